//! The sources of settings: flags beat environment beats file. Owns the three forms and faults in them;
//! [`super::reader`] interprets the values.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::settings::{self, Setting};
use super::{MachineLimits, Preset};

/// Names the settings file; the only flag that is not a setting.
const CONFIG_FLAG: &str = "--config";

/// Everything that the settings are read from, as arguments: nothing here looks at the process.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// The arguments behind the subcommand.
    pub flags: &'a [OsString],
    /// The environment.
    pub environment: &'a BTreeMap<OsString, OsString>,
    /// Defaults that replace the table's.
    pub presets: &'a [Preset],
    /// Settings that are not used and therefore not checked: for `demo`.
    pub unused: &'a [&'static str],
    /// Reads a file of text.
    pub read_file: &'a dyn Fn(&Path) -> io::Result<String>,
    /// Limits that some defaults depend on.
    pub machine: &'a MachineLimits,
}

/// The source of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ValueSource {
    Flag,
    Environment,
    File { path: String, line: usize },
    Default,
}

impl fmt::Display for ValueSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Environment => f.write_str("environment"),
            Self::File { path, line } => write!(f, "{path} line {line}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value as given.
#[derive(Debug, Clone)]
pub(super) struct Given {
    pub(super) text: String,
    pub(super) source: ValueSource,
}

/// The given value of each setting, by name; from several sources the winner.
pub(super) type AllGiven = BTreeMap<&'static str, Given>;

/// Collects the values of all sources, and reports faults in their form.
pub(super) fn gather(sources: &Sources<'_>, faults: &mut Vec<String>) -> AllGiven {
    let mut config_file = None;
    let flags = from_flags(sources.flags, &mut config_file, faults);
    let mut given = AllGiven::new();
    for preset in sources.presets {
        given.insert(preset.name, Given { text: preset.value.clone(), source: ValueSource::Default });
    }
    if let Some(path) = config_file {
        given.extend(from_file(&path, sources, faults));
    }
    given.extend(from_environment(sources.environment, faults));
    given.extend(flags);
    given.retain(|name, _| !sources.unused.contains(name));
    given
}

/// Returns a warning for each setting that is set but not used.
pub(super) fn unused(sources: &Sources<'_>) -> Vec<String> {
    let all = gather(&Sources { unused: &[], ..*sources }, &mut Vec::new());
    let unused = all.iter().filter(|(name, _)| sources.unused.contains(name));
    unused.map(|(name, given)| format!("{name} ({}) is not used here", given.source)).collect()
}

fn from_flags(arguments: &[OsString], config_file: &mut Option<String>, faults: &mut Vec<String>) -> AllGiven {
    let mut given = AllGiven::new();
    let mut arguments = (1..).zip(arguments).peekable();
    while let Some((number, argument)) = arguments.next() {
        // The text of an argument is not repeated if it may be a value, since that may be a secret.
        let Some(argument) = argument.to_str() else {
            faults.push(format!("argument {number}: is not UTF-8"));
            continue;
        };
        if !argument.starts_with("--") {
            faults.push(format!("argument {number}: a flag begins with --; see --help"));
            continue;
        }
        let (flag, value) = match argument.split_once('=') {
            Some((flag, value)) => (flag, Some(value.to_owned())),
            None => {
                let value = arguments.next_if(|(_, next)| !next.to_string_lossy().starts_with("--"));
                (argument, value.and_then(|(_, value)| value.to_str().map(str::to_owned)))
            }
        };
        let setting = Setting::of_flag(flag);
        let Some(text) = value.filter(|_| setting.is_some() || flag == CONFIG_FLAG) else {
            let known = setting.is_some() || flag == CONFIG_FLAG;
            let fault = if known { "has no value, or one that is not UTF-8" } else { "unknown flag; see --help" };
            faults.push(format!("{flag}: {fault}"));
            continue;
        };
        let twice = match setting {
            Some(setting) => given.insert(setting.name, Given { text, source: ValueSource::Flag }).is_some(),
            None => config_file.replace(text).is_some(),
        };
        if twice {
            faults.push(format!("{flag}: is given twice"));
        }
    }
    given
}

fn from_environment(environment: &BTreeMap<OsString, OsString>, faults: &mut Vec<String>) -> AllGiven {
    let mut given = AllGiven::new();
    for setting in settings::ALL {
        match environment.get(&OsString::from(setting.name)) {
            None => {}
            Some(value) if value.is_empty() => {}
            Some(value) => match value.to_str() {
                Some(text) => {
                    given.insert(setting.name, Given { text: text.to_owned(), source: ValueSource::Environment });
                }
                None => faults.push(format!("{} (environment): is not UTF-8", setting.name)),
            },
        }
    }
    given
}

fn from_file(path: &str, sources: &Sources<'_>, faults: &mut Vec<String>) -> AllGiven {
    let mut given = AllGiven::new();
    let text = match (sources.read_file)(Path::new(path)) {
        Ok(text) => text,
        Err(error) => {
            faults.push(format!("--config: can't read {path}: {error}"));
            return given;
        }
    };
    let line_at = |source: usize| 1 + text.bytes().take(source).filter(|byte| *byte == b'\n').count();
    let (table, broken) = DeTable::parse_recoverable(&text);
    for error in &broken {
        faults.push(format!("{path} line {}: {}", line_at(error.span().unwrap_or_default().start), error.message()));
    }
    if !broken.is_empty() {
        return given;
    }
    for (key, value) in table.get_ref() {
        let line = line_at(key.span().start);
        let Some(setting) = Setting::of_key(key.get_ref()) else {
            faults.push(format!("{path} line {line}: unknown key {:?}; see --help", key.get_ref()));
            continue;
        };
        match file_value(value) {
            Some(text) => {
                given.insert(setting.name, Given { text, source: ValueSource::File { path: path.to_owned(), line } });
            }
            None => {
                let (kind, takes) = (value.get_ref().type_str(), setting.takes.words());
                faults.push(format!("{} ({path} line {line}): got a TOML {kind}; takes {takes}", setting.name));
            }
        }
    }
    given
}

/// A file's value as the text of a flag; a list of texts as their comma list.
fn file_value(value: &Spanned<DeValue<'_>>) -> Option<String> {
    match value.get_ref() {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Boolean(flag) => Some(flag.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok().map(|n| n.to_string()),
        DeValue::Array(list) => {
            let texts: Option<Vec<&str>> = list.iter().map(|item| item.get_ref().as_str()).collect();
            texts.map(|texts| texts.join(","))
        }
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_) => None,
    }
}
