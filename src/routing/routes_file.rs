//! The routes file (TOML): from its text to routes, or to all of its faults, each with its line and what would be
//! right. It owns the format, which `routes.toml` beside it explains; [`super::table`] owns what the routes mean.

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use openssl::sha::sha256;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::pattern::TopicPattern;
use super::table::{
    AssessmentFrom, Field, FieldSource, InvalidRoutes, MessageFields, Partitioner, PayloadForm, PayloadPath,
    RecordValue, Route, RouteTable, Scope, When,
};
use crate::limits::ROUTE_FIELDS_MAX;

/// The part of a market route's topic that names the market.
const MARKET_PART: &str = "market";

/// What a market route's messages are called where it doesn't say (PROTOCOL 2).
const MARKET_TYPE: &str = "market_price";

/// Types of the gateway's own messages (PROTOCOL 2): a client could not tell a route's message from them.
const OWN_TYPES: [&str; 4] = ["connected", "ping", "pong", "reset"];

/// Fields that the gateway itself writes into a message: a record's value must not pass for one of them.
const OWN_FIELDS: [&str; 2] = ["type", "cursor"];

const ROUTE_KEYS: [&str; 8] = ["topic", "scope", "type", "fields", "assessment", "partitioner", "payload", "when"];
const FIELD_KEYS: [&str; 5] = ["name", "from", "const", "topic", "record"];
const WHEN_KEYS: [&str; 2] = ["field", "equals"];
const SCOPES: [(&str, ScopeName); 2] = [("market", ScopeName::Market), ("assessment", ScopeName::Assessment)];
const PAYLOAD_FORMS: [(&str, PayloadForm); 2] = [("json", PayloadForm::Json), ("json-schema", PayloadForm::JsonSchema)];
const PARTITIONERS: [(&str, Partitioner); 3] =
    [("murmur2", Partitioner::Murmur2), ("crc32", Partitioner::Crc32), ("none", Partitioner::None)];

const WHAT_A_FIELD_IS: &str = "a field is a name, { name, from }, { name, const }, { name, topic } or { name, record }, as `shardgate routes` shows";

const WHAT_ASSESSMENT_IS: &str =
    "\"payload\", \"key\", \"header:<name>\", or a JSON pointer such as \"/order/assessmentId\"";

const WHAT_RECORD_IS: &str = "\"key\", \"header:<name>\", \"partition\", \"offset\" or \"timestamp\"";

#[derive(Clone, Copy, PartialEq, Eq)]
enum ScopeName {
    Market,
    Assessment,
}

impl RouteTable {
    /// The built-in routes' file, as `shardgate routes` prints it.
    pub const BUILT_IN: &str = include_str!("routes.toml");

    /// The built-in routes.
    ///
    /// # Panics
    /// Never: a test reads the same text.
    #[must_use]
    pub fn built_in() -> Self {
        Self::parse(Self::BUILT_IN).expect("the built-in routes are valid, as a test holds")
    }

    /// Reads a routes file.
    ///
    /// # Errors
    /// Every fault at once, each with its line and what would be right.
    pub fn parse(toml: &str) -> Result<Self, InvalidRoutes> {
        let routes = parse_routes(toml)?;
        let digest =
            format!("{:016x}", u64::from_be_bytes(*sha256(toml.as_bytes()).first_chunk().expect("of 32 bytes")));
        Ok(Self { routes: routes.into_iter().map(Arc::new).collect(), digest: digest.into() })
    }
}

fn parse_routes(text: &str) -> Result<Vec<Route>, InvalidRoutes> {
    let mut reader = RoutesParser { text, faults: Vec::new() };
    let (document, broken) = DeTable::parse_recoverable(text);
    for error in &broken {
        reader.fault(&error.span().unwrap_or_default(), error.message().to_owned());
    }
    // What a broken file seems to say is not worth a fault of its own.
    let routes = if broken.is_empty() { reader.document(document.get_ref()) } else { Vec::new() };
    reader.finish(routes)
}

/// Goes through the file's tables and gathers what is wrong. A method that gives `None` has told why.
struct RoutesParser<'t> {
    text: &'t str,
    /// Each with its place in the text.
    faults: Vec<(usize, String)>,
}

impl RoutesParser<'_> {
    fn fault(&mut self, place: &Range<usize>, text: String) {
        self.faults.push((place.start, text));
    }

    fn finish(mut self, routes: Vec<Route>) -> Result<Vec<Route>, InvalidRoutes> {
        if self.faults.is_empty() {
            return Ok(routes);
        }
        self.faults.sort_by_key(|(place, _)| *place);
        let line = |place: usize| 1 + self.text.bytes().take(place).filter(|byte| *byte == b'\n').count();
        Err(InvalidRoutes(self.faults.iter().map(|(place, text)| format!("line {}: {text}", line(*place))).collect()))
    }

    fn document(&mut self, document: &DeTable<'_>) -> Vec<Route> {
        self.unknown_keys(document, &["route"], "a routes file");
        let Some(listed) = document.get("route") else {
            self.fault(&(0..0), "there are no routes; it takes at least one [[route]]".into());
            return Vec::new();
        };
        let Some(tables) = listed.get_ref().as_array() else {
            self.fault(&listed.span(), format!("route is {}; it takes [[route]]", a(listed)));
            return Vec::new();
        };
        if tables.is_empty() {
            self.fault(&listed.span(), "there are no routes; it takes at least one [[route]]".into());
        }
        let mut routes: Vec<(Range<usize>, Route)> = Vec::new();
        for table in tables {
            let Some(route) = self.route(table) else { continue };
            if let Some((_, earlier)) = routes.iter().find(|(_, earlier)| earlier.topic.covers(&route.topic)) {
                let text = format!(
                    "the route of \"{}\" never has a topic: an earlier one, \"{}\", takes them all; put this \
                     one first, or drop it",
                    route.topic, earlier.topic
                );
                self.fault(&table.span(), text);
            }
            routes.push((table.span(), route));
        }
        routes.into_iter().map(|(_, route)| route).collect()
    }

    fn route(&mut self, table: &Spanned<DeValue<'_>>) -> Option<Route> {
        let place = table.span();
        let Some(keys) = table.get_ref().as_table() else {
            self.fault(&place, format!("a route is {}; it takes a table, written [[route]]", a(table)));
            return None;
        };
        self.unknown_keys(keys, &ROUTE_KEYS, "a route");
        // Each is looked at, whatever is wrong with another.
        let topic = self.topic(keys, &place);
        let scope = self.scope(keys, &place, topic.as_ref());
        let message_type = self.message_type(keys, &place);
        let mut carried = Vec::new();
        let fields = self.fields(keys, &place, topic.as_ref(), &mut carried);
        let payload = self.one_of(keys, "payload", &PAYLOAD_FORMS, PayloadForm::Json);
        let when = keys.get("when").map(|when| self.when(when));
        Some(Route {
            topic: topic?,
            scope: scope?,
            message_type: message_type?,
            fields: fields?,
            payload: payload?,
            when: when.map_or(Some(None), |when| when.map(Some))?,
            carried,
        })
    }

    fn when(&mut self, value: &Spanned<DeValue<'_>>) -> Option<When> {
        let Some(keys) = value.get_ref().as_table() else {
            self.fault(&value.span(), format!("when is {}; it takes {{ field, equals }}", a(value)));
            return None;
        };
        self.unknown_keys(keys, &WHEN_KEYS, "when");
        let takes = "a field's name, or a JSON pointer such as \"/order/status\"";
        let path = self.required(keys, "field", &value.span(), takes).and_then(|(text, at)| {
            let path = PayloadPath::parse(text);
            if path.is_none() {
                self.fault(&at, format!("field = \"{text}\": it takes {takes}"));
            }
            path
        });
        let Some(equals) = keys.get("equals") else {
            self.fault(&value.span(), "equals is missing; it takes a string, a number, true or false".into());
            return None;
        };
        let equals = self.constant("equals", equals);
        Some(When { path: path?, equals: equals? })
    }

    /// Where a record says whose it is.
    fn assessment(&mut self, keys: &DeTable<'_>) -> Option<AssessmentFrom> {
        if !keys.contains_key("assessment") {
            return Some(AssessmentFrom::Payload);
        }
        let (text, at) = self.string(keys, "assessment")?;
        let from = match (text, text.strip_prefix("header:")) {
            ("payload", _) => Some(AssessmentFrom::Payload),
            ("key", _) => Some(AssessmentFrom::Key),
            (_, Some(name)) => (!name.is_empty()).then(|| AssessmentFrom::Header(name.into())),
            _ if text.starts_with('/') => PayloadPath::parse(text).map(AssessmentFrom::Path),
            _ => None,
        };
        if from.is_none() {
            self.fault(&at, format!("assessment = \"{text}\": it takes {WHAT_ASSESSMENT_IS}"));
        }
        from
    }

    fn topic(&mut self, keys: &DeTable<'_>, place: &Range<usize>) -> Option<TopicPattern> {
        let (text, at) =
            self.required(keys, "topic", place, "a topic's name, in which {name} stands for any characters")?;
        TopicPattern::parse(text).map_err(|fault| self.fault(&at, format!("topic = \"{text}\": {fault}"))).ok()
    }

    fn scope(&mut self, keys: &DeTable<'_>, place: &Range<usize>, topic: Option<&TopicPattern>) -> Option<Scope> {
        let from = self.assessment(keys);
        let partitioner = self.one_of(keys, "partitioner", &PARTITIONERS, Partitioner::Murmur2);
        let said = self.required(keys, "scope", place, &alternatives(&SCOPES))?;
        if self.word("scope", said, &SCOPES)? == ScopeName::Assessment {
            return Some(Scope::Assessment { from: from?, partitioner: partitioner? });
        }
        for key in ["assessment", "partitioner"] {
            if let Some((key, _)) = keys.get_key_value(key) {
                let text = format!("{} is for scope = \"assessment\"; scope = \"market\" takes none", key.get_ref());
                self.fault(&key.span(), text);
            }
        }
        if topic.is_some_and(|topic| !topic.parts().any(|part| part == MARKET_PART)) {
            let at = keys.get("topic").map_or(place.clone(), Spanned::span);
            self.fault(&at, format!("scope = \"market\" takes a topic with a part {{{MARKET_PART}}}"));
        }
        Some(Scope::Market { part: MARKET_PART.into() })
    }

    fn message_type(&mut self, keys: &DeTable<'_>, place: &Range<usize>) -> Option<Box<str>> {
        let market = keys.get("scope").and_then(|scope| scope.get_ref().as_str()) == Some("market");
        if market && !keys.contains_key("type") {
            return Some(MARKET_TYPE.into());
        }
        let (text, at) = self.required(keys, "type", place, "the message's type")?;
        if text.is_empty() || OWN_TYPES.contains(&text) {
            let text =
                format!("type = \"{text}\": it takes a name other than the gateway's own: {}", OWN_TYPES.join(", "));
            self.fault(&at, text);
            return None;
        }
        Some(text.into())
    }

    fn fields(
        &mut self,
        keys: &DeTable<'_>,
        place: &Range<usize>,
        topic: Option<&TopicPattern>,
        carried: &mut Vec<RecordValue>,
    ) -> Option<MessageFields> {
        let Some(value) = keys.get("fields") else {
            self.fault(
                place,
                format!("the route has no fields; it takes a list of fields, or \"*\"; {WHAT_A_FIELD_IS}"),
            );
            return None;
        };
        let listed = match value.get_ref() {
            DeValue::String(text) if text == "*" => return Some(MessageFields::Whole),
            DeValue::Array(listed) if (1..=ROUTE_FIELDS_MAX).contains(&listed.len()) => listed,
            DeValue::Array(listed) => {
                let text = format!("fields lists {}; it takes 1 to {ROUTE_FIELDS_MAX}, or \"*\"", listed.len());
                self.fault(&value.span(), text);
                return None;
            }
            _ => {
                self.fault(&value.span(), format!("fields is {}; it takes a list of fields, or \"*\"", a(value)));
                return None;
            }
        };
        let mut fields: Vec<Field> = Vec::new();
        for value in listed {
            let Some(field) = self.field(value, topic, carried) else { continue };
            if fields.iter().any(|other| other.name == field.name) {
                self.fault(
                    &value.span(),
                    format!("the field \"{}\" is there twice; a message takes it once", field.name),
                );
            }
            fields.push(field);
        }
        (fields.len() == listed.len()).then_some(MessageFields::Listed(fields))
    }

    fn field(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        topic: Option<&TopicPattern>,
        carried: &mut Vec<RecordValue>,
    ) -> Option<Field> {
        let (name, at, source) = match value.get_ref() {
            DeValue::String(name) => (&**name, value.span(), Some(FieldSource::Payload((&**name).into()))),
            DeValue::Table(keys) => {
                self.unknown_keys(keys, &FIELD_KEYS, "a field");
                let source = self.source(keys, &value.span(), topic, carried);
                let (name, at) = self.required(keys, "name", &value.span(), "the field's name in the message")?;
                (name, at, source)
            }
            _ => {
                self.fault(&value.span(), format!("a field is {}; {WHAT_A_FIELD_IS}", a(value)));
                return None;
            }
        };
        if name.is_empty() || OWN_FIELDS.contains(&name) {
            let text = format!(
                "a field is named \"{name}\"; it takes a name other than \"type\" and \"cursor\", the gateway's own"
            );
            self.fault(&at, text);
            return None;
        }
        Some(Field { name: name.into(), source: source? })
    }

    fn source(
        &mut self,
        keys: &DeTable<'_>,
        place: &Range<usize>,
        topic: Option<&TopicPattern>,
        carried: &mut Vec<RecordValue>,
    ) -> Option<FieldSource> {
        let sources: Vec<&str> = FIELD_KEYS[1..].iter().copied().filter(|key| keys.contains_key(*key)).collect();
        let [source] = sources[..] else {
            let got =
                if sources.is_empty() { "no value".to_owned() } else { format!("both {}", sources.join(" and ")) };
            self.fault(place, format!("a field has {got}; it takes one of from, const, topic and record"));
            return None;
        };
        if source == "const" {
            return self.constant("const", keys.get("const")?).map(FieldSource::Const);
        }
        let (text, at) = self.string(keys, source)?;
        if source == "from" {
            return Some(FieldSource::Payload(text.into()));
        }
        if source == "record" {
            let Some(value) = RecordValue::parse(text) else {
                self.fault(&at, format!("record = \"{text}\": it takes {WHAT_RECORD_IS}"));
                return None;
            };
            carried.push(value);
            return Some(FieldSource::Record(carried.len() - 1));
        }
        if let Some(topic) = topic
            && !topic.parts().any(|part| part == text)
        {
            let parts: Vec<String> = topic.parts().map(|part| format!("\"{part}\"")).collect();
            let has = if parts.is_empty() { "no part".to_owned() } else { parts.join(", ") };
            self.fault(&at, format!("topic = \"{text}\": it takes a part of the route's topic, which has {has}"));
            return None;
        }
        Some(FieldSource::Topic(text.into()))
    }

    /// A constant as JSON.
    fn constant(&mut self, key: &str, value: &Spanned<DeValue<'_>>) -> Option<Box<str>> {
        let json = match value.get_ref() {
            DeValue::String(text) => serde_json::to_string(&**text).ok(),
            DeValue::Boolean(flag) => Some(flag.to_string()),
            DeValue::Integer(number) => {
                i64::from_str_radix(number.as_str(), number.radix()).ok().map(|n| n.to_string())
            }
            // A number's digits stay as they were written, where JSON writes it so: all but `inf`, `nan` and a plus.
            DeValue::Float(number) => {
                let digits = number.as_str().trim_start_matches('+');
                serde_json::from_str::<serde_json::Number>(digits).ok().map(|_| digits.to_owned())
            }
            _ => None,
        };
        if json.is_none() {
            let text = format!("{key} is {}; it takes a string, a number, true or false, as JSON knows them", a(value));
            self.fault(&value.span(), text);
        }
        json.map(Into::into)
    }

    fn unknown_keys(&mut self, table: &DeTable<'_>, known: &[&str], what: &str) {
        for key in table.keys().filter(|key| !known.contains(&&**key.get_ref())) {
            let text = format!("unknown key \"{}\"; {what} takes {}", key.get_ref(), known.join(", "));
            self.fault(&key.span(), text);
        }
    }

    /// The string of a key that must be there.
    fn required<'a>(
        &mut self,
        keys: &'a DeTable<'_>,
        key: &str,
        place: &Range<usize>,
        takes: &str,
    ) -> Option<(&'a str, Range<usize>)> {
        if !keys.contains_key(key) {
            self.fault(place, format!("{key} is missing; it takes {takes}"));
        }
        self.string(keys, key)
    }

    /// The string of a key, if it is there.
    fn string<'a>(&mut self, keys: &'a DeTable<'_>, key: &str) -> Option<(&'a str, Range<usize>)> {
        let value = keys.get(key)?;
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.fault(&value.span(), format!("{key} is {}; it takes a string", a(value)));
        }
        Some((text?, value.span()))
    }

    /// One of a few words, or `absent` where the key is not there.
    fn one_of<T: Copy>(&mut self, keys: &DeTable<'_>, key: &str, words: &[(&str, T)], absent: T) -> Option<T> {
        if !keys.contains_key(key) {
            return Some(absent);
        }
        let said = self.string(keys, key)?;
        self.word(key, said, words)
    }

    /// What a word stands for.
    fn word<T: Copy>(&mut self, key: &str, said: (&str, Range<usize>), words: &[(&str, T)]) -> Option<T> {
        let (text, at) = said;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
        if found.is_none() {
            self.fault(&at, format!("{key} = \"{text}\": it takes {}", alternatives(words)));
        }
        found
    }
}

fn alternatives<T>(words: &[(&str, T)]) -> String {
    words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(" or ")
}

/// A value's type with its article: `a string`, `an integer`.
fn a(value: &Spanned<DeValue<'_>>) -> String {
    let kind = value.get_ref().type_str();
    format!("{} {kind}", if kind.starts_with(['a', 'i']) { "an" } else { "a" })
}
