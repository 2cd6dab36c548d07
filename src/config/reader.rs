//! Converts given texts to values of the right type. Owns the wording of faults; `parts` decides which setting becomes
//! what.

use std::fmt::Display;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::settings::{Fallback, Setting, ValueKind, parse_bytes, parse_integer};
use super::sources::{AllGiven, Given, ValueSource};
use super::typos::is_link;
use crate::tls::Trust;

/// Reads settings and collects faults. A method that reports a fault returns a placeholder so that the rest is read
/// too; no placeholder escapes, because a fault means no config.
pub(super) struct SettingsReader<'a> {
    given: AllGiven,
    read_file: &'a dyn Fn(&Path) -> io::Result<String>,
    faults: Vec<String>,
    faulty: Vec<&'static str>,
}

impl<'a> SettingsReader<'a> {
    pub(super) fn new(
        given: AllGiven,
        read_file: &'a dyn Fn(&Path) -> io::Result<String>,
        faults: Vec<String>,
    ) -> Self {
        Self { given, read_file, faults, faulty: Vec::new() }
    }

    /// All faults, one per line.
    pub(super) fn into_faults(self) -> Vec<String> {
        self.faults
    }

    /// Whether a setting is valid, so that its relation to others can be checked.
    pub(super) fn is_good(&self, setting: &Setting) -> bool {
        !self.faulty.contains(&setting.name)
    }

    /// The value of a setting and its source, if it was set.
    pub(super) fn given(&self, setting: &Setting) -> Option<&Given> {
        self.given.get(setting.name)
    }

    /// The source of a setting, if it was set.
    pub(super) fn source(&self, setting: &Setting) -> Option<&ValueSource> {
        self.given(setting).map(|given| &given.source)
    }

    /// The given value, or the table's default; `None` without either.
    fn value(&mut self, setting: &Setting) -> Option<Given> {
        if let Some(given) = self.given.get(setting.name) {
            return Some(given.clone());
        }
        match setting.default {
            Fallback::Value(text) => Some(Given { text: text.to_owned(), source: ValueSource::Default }),
            Fallback::Computed(_) | Fallback::Unset => None,
        }
    }

    fn fault(&mut self, setting: &Setting, text: &str) {
        self.faults.push(text.to_owned());
        self.faulty.push(setting.name);
    }

    /// Reports an invalid value: `PORT (environment): got "x"; takes a port, 1 to 65535`.
    pub(super) fn wrong(&mut self, setting: &Setting, given: &Given, takes: &str) {
        let shown =
            if setting.is_secret() { "a value that is not shown".to_owned() } else { format!("{:?}", given.text) };
        let mut text = format!("{} ({}): got {shown}; takes {takes}", setting.name, given.source);
        if given.source == ValueSource::Environment && is_link(&given.text) {
            // For example, a Service named `redis` sets REDIS_PORT.
            text.push_str(
                "; Kubernetes sets this for a Service with that prefix as its name: enableServiceLinks: false in the pod's \
                 spec prevents it",
            );
        }
        self.fault(setting, &text);
    }

    /// A value that `parse` understands; `None` if it is unset, or was reported as invalid.
    pub(super) fn parsed<T>(&mut self, setting: &Setting, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let given = self.value(setting)?;
        let parsed = parse(&given.text);
        if parsed.is_none() {
            self.wrong(setting, &given, &setting.takes.words());
        }
        parsed
    }

    /// A list; each invalid entry is a separate fault, with the reason.
    pub(super) fn list<T, E: Display>(
        &mut self,
        setting: &Setting,
        parse: impl FnOnce(&str) -> Result<T, Vec<(String, E)>>,
    ) -> Option<T> {
        let given = self.value(setting)?;
        let faults = match parse(&given.text) {
            Ok(list) => return Some(list),
            Err(faults) => faults,
        };
        for (entry, why) in faults {
            self.fault(setting, &format!("{} ({}): got {entry:?}, which {why}", setting.name, given.source));
        }
        None
    }

    /// A text that is not empty and has no control character.
    pub(super) fn text(&mut self, setting: &Setting) -> Box<str> {
        self.parsed(setting, plain_text).unwrap_or_default()
    }

    /// A number within the bounds of the table.
    pub(super) fn number(&mut self, setting: &Setting) -> Option<u64> {
        self.parsed(setting, |text| match setting.takes {
            ValueKind::Bytes { min, max } => parse_bytes(text).filter(|number| (min..=max).contains(number)),
            ValueKind::Integer { min, max, .. } => parse_integer(text).filter(|number| (min..=max).contains(number)),
            _ => None,
        })
    }

    /// The same as another type, whose range must include the table's bounds; 0 if it is invalid.
    pub(super) fn count<T: TryFrom<u64> + Default>(&mut self, setting: &Setting) -> T {
        self.number(setting).and_then(|number| T::try_from(number).ok()).unwrap_or_default()
    }

    /// A time in ms.
    pub(super) fn millis(&mut self, setting: &Setting) -> Duration {
        Duration::from_millis(self.count(setting))
    }

    /// One of the words that the table lists.
    pub(super) fn word(&mut self, setting: &Setting) -> String {
        let ValueKind::Word(words) = setting.takes else { return String::new() };
        self.parsed(setting, |text| words.contains(&text).then(|| text.to_owned())).unwrap_or_default()
    }

    /// A switch: true or false.
    pub(super) fn switch(&mut self, setting: &Setting) -> bool {
        self.parsed(setting, |text| text.parse().ok()).unwrap_or_default()
    }

    /// The contents of a named file, as `parse` reads them; `parse` reports each fault with its line.
    pub(super) fn file<T>(
        &mut self,
        setting: &Setting,
        parse: impl FnOnce(&str) -> Result<T, Vec<String>>,
    ) -> Option<T> {
        let given = self.value(setting)?;
        let faults = match (self.read_file)(Path::new(&given.text)) {
            Ok(text) => match parse(&text) {
                Ok(parsed) => return Some(parsed),
                Err(faults) => faults,
            },
            Err(error) => vec![format!("can't be read: {error}; takes {}", setting.takes.words())],
        };
        for fault in faults {
            self.fault(setting, &format!("{} ({}): {} {fault}", setting.name, given.source, given.text));
        }
        None
    }

    /// Reads a file that a setting names among other things.
    pub(super) fn read(&self, path: &Path) -> io::Result<String> {
        (self.read_file)(path)
    }

    /// Reports a setting that must be set.
    pub(super) fn missing(&mut self, setting: &Setting, takes: &str) {
        let text = format!("{}: is not set; {takes}, as {} or in the environment", setting.name, setting.flag());
        self.fault(setting, &text);
    }

    /// The certificates of a named file, or the system's.
    pub(super) fn certificates(&mut self, setting: &Setting) -> Trust {
        let parsed = self.file(setting, |pem| Trust::parse(pem).map_err(|fault| vec![fault.to_owned()]));
        parsed.unwrap_or_default()
    }

    /// Reports a relation between settings that does not hold.
    pub(super) fn relation(&mut self, setting: &Setting, text: &str) {
        let source = self.source(setting).unwrap_or(&ValueSource::Default).to_string();
        self.fault(setting, &format!("{} ({source}): {text}", setting.name));
    }
}

/// Accepts a text that is not empty, has no white space at its ends, and no control character.
pub(super) fn plain_text(text: &str) -> Option<Box<str>> {
    let plain = !text.is_empty() && text.trim() == text && !text.contains(char::is_control);
    plain.then(|| text.into())
}
