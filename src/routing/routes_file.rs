//! The routes file (TOML): from its text to routes, or to all of its faults, each with its line and what would be
//! right. It owns the format, which `routes.toml` beside it explains; [`super::table`] owns what the routes mean.

use std::ops::Range;
use std::sync::Arc;

use openssl::sha::sha256;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::pattern::TopicPattern;
use super::table::{
    AssessmentFrom, Field, FieldSource, InvalidRoutes, MessageFields, Partitioner, Route, RouteTable, Scope,
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

const ROUTE_KEYS: [&str; 6] = ["topic", "scope", "type", "fields", "assessment", "partitioner"];
const FIELD_KEYS: [&str; 4] = ["name", "from", "const", "topic"];
const SCOPES: [(&str, ScopeName); 2] = [("market", ScopeName::Market), ("assessment", ScopeName::Assessment)];
const ASSESSMENT_FROM: [(&str, AssessmentFrom); 2] =
    [("payload", AssessmentFrom::Payload), ("key", AssessmentFrom::Key)];
const PARTITIONERS: [(&str, Partitioner); 3] =
    [("murmur2", Partitioner::Murmur2), ("crc32", Partitioner::Crc32), ("none", Partitioner::None)];

const WHAT_A_FIELD_IS: &str =
    "a field is a name, { name, from }, { name, const } or { name, topic }, as `shardgate routes` shows";

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
        let fields = self.fields(keys, &place, topic.as_ref());
        Some(Route { topic: topic?, scope: scope?, message_type: message_type?, fields: fields? })
    }

    fn topic(&mut self, keys: &DeTable<'_>, place: &Range<usize>) -> Option<TopicPattern> {
        let (text, at) =
            self.required(keys, "topic", place, "a topic's name, in which {name} stands for any characters")?;
        TopicPattern::parse(text).map_err(|fault| self.fault(&at, format!("topic = \"{text}\": {fault}"))).ok()
    }

    fn scope(&mut self, keys: &DeTable<'_>, place: &Range<usize>, topic: Option<&TopicPattern>) -> Option<Scope> {
        let from = self.one_of(keys, "assessment", &ASSESSMENT_FROM, AssessmentFrom::Payload);
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
            let Some(field) = self.field(value, topic) else { continue };
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

    fn field(&mut self, value: &Spanned<DeValue<'_>>, topic: Option<&TopicPattern>) -> Option<Field> {
        let (name, at, source) = match value.get_ref() {
            DeValue::String(name) => (&**name, value.span(), Some(FieldSource::Payload((&**name).into()))),
            DeValue::Table(keys) => {
                self.unknown_keys(keys, &FIELD_KEYS, "a field");
                let source = self.source(keys, &value.span(), topic);
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
    ) -> Option<FieldSource> {
        let sources: Vec<&str> = FIELD_KEYS[1..].iter().copied().filter(|key| keys.contains_key(*key)).collect();
        let [source] = sources[..] else {
            let got =
                if sources.is_empty() { "no value".to_owned() } else { format!("both {}", sources.join(" and ")) };
            self.fault(place, format!("a field has {got}; it takes one of from, const and topic"));
            return None;
        };
        if source == "const" {
            return self.constant(keys.get("const")?).map(FieldSource::Const);
        }
        let (text, at) = self.string(keys, source)?;
        if source == "from" {
            return Some(FieldSource::Payload(text.into()));
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
    fn constant(&mut self, value: &Spanned<DeValue<'_>>) -> Option<Box<str>> {
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
            let text = format!("const is {}; it takes a string, a number, true or false, as JSON knows them", a(value));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        parse_routes(text).expect_err("the file has a fault").0
    }

    /// The faults of a route that has good keys but for those given; its `[[route]]` is line 1.
    fn faults_of_route(keys: &str) -> Vec<String> {
        let good = [
            ("topic", r#"topic = "a.{x}""#),
            ("scope", r#"scope = "assessment""#),
            ("type", r#"type = "t""#),
            ("fields", r#"fields = ["f"]"#),
        ];
        let said = |key: &str| keys.lines().any(|line| line.trim_start_matches('!').starts_with(key));
        let given = keys.lines().filter(|line| !line.starts_with('!')).map(str::to_owned);
        let rest = good.iter().filter(|(key, _)| !said(key)).map(|(_, line)| (*line).to_owned());
        faults(&["[[route]]".to_owned()].into_iter().chain(given).chain(rest).collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn the_contracts_example_is_read_as_it_says() {
        let routes = parse_routes(
            r#"
            [[route]]
            topic = "market-data.{market}-ticks"
            scope = "market"
            fields = [{ name = "market", topic = "market" }, "price"]

            [[route]]
            topic = "rules.drawdown-checked"
            scope = "assessment"
            assessment = "key"
            partitioner = "crc32"
            type = "rule_status"
            fields = ["assessmentId", { name = "rule", const = "draw\"down" }, { name = "n", from = "number" }]

            [[route]]
            topic = "other"
            scope = "assessment"
            type = "other"
            fields = "*"
            "#,
        )
        .unwrap();
        assert_eq!(routes[0].scope, Scope::Market { part: "market".into() });
        assert_eq!(&*routes[0].message_type, "market_price");
        let key = Scope::Assessment { from: AssessmentFrom::Key, partitioner: Partitioner::Crc32 };
        assert_eq!(routes[1].scope, key);
        let MessageFields::Listed(fields) = &routes[1].fields else { panic!("the fields are listed") };
        let told: Vec<String> = fields.iter().map(|field| format!("{} {:?}", field.name, field.source)).collect();
        assert_eq!(
            told,
            [r#"assessmentId Payload("assessmentId")"#, r#"rule Const("\"draw\\\"down\"")"#, r#"n Payload("number")"#,]
        );
        let defaults = Scope::Assessment { from: AssessmentFrom::Payload, partitioner: Partitioner::Murmur2 };
        assert_eq!(routes[2].scope, defaults);
        assert!(matches!(routes[2].fields, MessageFields::Whole));
    }

    #[test]
    fn all_faults_are_told_at_once_in_the_order_of_their_lines() {
        let text = r#"
[[route]]
topic = "market-data.{market-ticks"
scope = "market"
fields = ["price"]

[[route]]
scope = "everyone"
type = 5
fields = ["cursor", { name = "a", from = "b", const = 1 }]
partitoner = "murmur2"
"#;
        assert_eq!(
            faults(text),
            [
                "line 3: topic = \"market-data.{market-ticks\": the part {market-ticks is not closed; \
                 a part is written {name}",
                "line 7: topic is missing; it takes a topic's name, in which {name} stands for any characters",
                "line 8: scope = \"everyone\": it takes \"market\" or \"assessment\"",
                "line 9: type is an integer; it takes a string",
                "line 10: a field is named \"cursor\"; it takes a name other than \"type\" and \"cursor\", \
                 the gateway's own",
                "line 10: a field has both from and const; it takes one of from, const and topic",
                "line 11: unknown key \"partitoner\"; a route takes topic, scope, type, fields, assessment, \
                 partitioner",
            ]
        );
    }

    #[test]
    fn a_file_that_is_no_toml_tells_each_place() {
        let told = faults("[[route]]\ntopic = x\n\nscope = \n");
        assert!(told.len() >= 2 && told[0].starts_with("line 2: ") && told[1].starts_with("line 4: "), "{told:?}");
        assert_eq!(faults("route = 1\nroute = 2"), ["line 2: duplicate key"]);
    }

    #[test]
    fn a_file_without_routes_is_a_fault() {
        let none = ["line 1: there are no routes; it takes at least one [[route]]"];
        assert_eq!(faults(""), none);
        assert_eq!(faults("route = []"), none);
        assert_eq!(faults("[route]\ntopic = \"a\""), ["line 1: route is a table; it takes [[route]]"]);
        assert_eq!(faults("route = [1]"), ["line 1: a route is an integer; it takes a table, written [[route]]"]);
    }

    #[test]
    fn a_route_that_an_earlier_one_leaves_no_topic_is_a_fault() {
        let route = |topic: &str| {
            format!("[[route]]\ntopic = \"{topic}\"\nscope = \"assessment\"\ntype = \"t\"\nfields = \"*\"\n")
        };
        let told = faults(&(route("a.{x}") + &route("b") + &route("a.{y}")));
        assert_eq!(
            told,
            ["line 11: the route of \"a.{y}\" never has a topic: an earlier one, \"a.{x}\", takes them all; \
              put this one first, or drop it"]
        );
        assert!(parse_routes(&(route("a.b") + &route("a.{y}"))).is_ok());
    }

    #[test]
    fn each_key_of_a_route_has_its_faults() {
        let table = [
            ("!type", "line 1: type is missing; it takes the message's type"),
            ("!scope", "line 1: scope is missing; it takes \"market\" or \"assessment\""),
            ("!fields", "line 1: the route has no fields; it takes a list of fields, or \"*\"; a field is"),
            ("topic = \"\"", "line 2: topic = \"\": it is empty"),
            ("scope = true", "line 2: scope is a boolean; it takes a string"),
            ("type = \"ping\"", "line 2: type = \"ping\": it takes a name other than the gateway's own: connected, "),
            ("type = \"\"", "line 2: type = \"\": it takes a name"),
            ("assessment = \"header\"", "line 2: assessment = \"header\": it takes \"payload\" or \"key\""),
            ("partitioner = \"fnv\"", "line 2: partitioner = \"fnv\": it takes \"murmur2\" or \"crc32\" or \"none\""),
            ("scope = \"market\"", "line 3: scope = \"market\" takes a topic with a part {market}"),
            ("fields = \"all\"", "line 2: fields is a string; it takes a list of fields, or \"*\""),
            ("fields = []", "line 2: fields lists 0; it takes 1 to 64, or \"*\""),
        ];
        for (keys, expected) in table {
            let told = faults_of_route(keys);
            assert!(told.len() == 1 && told[0].starts_with(expected), "{keys}: {told:?}");
        }
        let market = "scope = \"market\"\ntopic = \"{market}\"\nassessment = \"key\"\npartitioner = \"none\"";
        assert_eq!(
            faults_of_route(market),
            [
                "line 4: assessment is for scope = \"assessment\"; scope = \"market\" takes none",
                "line 5: partitioner is for scope = \"assessment\"; scope = \"market\" takes none",
            ]
        );
    }

    #[test]
    fn each_field_has_its_faults() {
        let table = [
            ("1", "a field is an integer; a field is a name, { name, from }"),
            ("\"type\"", "a field is named \"type\"; it takes a name other"),
            ("{ name = \"cursor\", const = 1 }", "a field is named \"cursor\"; it takes a name other"),
            ("\"\"", "a field is named \"\""),
            ("\"f\"", "the field \"f\" is there twice"),
            ("{ from = \"f\" }", "name is missing; it takes the field's name in the message"),
            ("{ name = \"g\" }", "a field has no value; it takes one of from, const and topic"),
            ("{ name = \"g\", from = 1 }", "from is an integer; it takes a string"),
            (
                "{ name = \"g\", form = \"f\", const = 1 }",
                "unknown key \"form\"; a field takes name, from, const, topic",
            ),
            ("{ name = \"g\", topic = \"y\" }", "topic = \"y\": it takes a part of the route's topic, which has \"x\""),
            ("{ name = \"g\", const = [1] }", "const is an array; it takes a string, a number, true or false"),
            ("{ name = \"g\", const = nan }", "const is a float; it takes a string, a number"),
            ("{ name = \"g\", const = 9223372036854775808 }", "const is an integer; it takes a string, a number"),
        ];
        for (field, expected) in table {
            let told = faults_of_route(&format!("fields = [\"f\", {field}]"));
            assert!(told.len() == 1 && told[0].starts_with(&format!("line 2: {expected}")), "{field}: {told:?}");
        }
    }

    #[test]
    fn a_constant_becomes_the_json_that_it_reads_as() {
        let constants = ["\"a\\u00e9\\n\"", "0", "-17", "0x1f", "1_000", "+2.50", "1e3", "true"];
        let json = ["\"aé\\n\"", "0", "-17", "31", "1000", "2.50", "1e3", "true"];
        let fields: Vec<String> =
            (0..).zip(constants).map(|(i, c)| format!("{{ name = \"c{i}\", const = {c} }}")).collect();
        let file =
            format!("[[route]]\ntopic = \"a\"\nscope = \"assessment\"\ntype = \"t\"\nfields = [{}]", fields.join(", "));
        let MessageFields::Listed(fields) = &parse_routes(&file).unwrap()[0].fields else {
            panic!("the fields are listed")
        };
        for (field, expected) in fields.iter().zip(json) {
            assert!(matches!(&field.source, FieldSource::Const(json) if **json == *expected), "{field:?}: {expected}");
        }
    }
}
