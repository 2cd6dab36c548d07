//! From a record's payload to a message's JSON (PROTOCOL 3): values pass byte for byte, an absent field is left out.
//! It owns the finding of a record's assessment, too, for both read the payload the same way (`json`).

use std::borrow::Cow;

use serde_json::value::RawValue;

pub use super::json::Malformed;
use super::json::{Decoded, Name, for_each_wanted, object_text, text, unquote, value_of};
use super::record_values::{Carried, PayloadPath, split};
use super::table::{Field, FieldSource, MessageFields, Topic};
use crate::ids::AssessmentId;
use crate::limits::ROUTE_FIELDS_MAX;

/// The payload's field that says whose a record is (PROTOCOL 3).
const ASSESSMENT_FIELD: &str = "assessmentId";

/// Checks that a payload is a JSON object in UTF-8 and finds its one `assessmentId`, copying nothing unless the id is
/// written with escapes. A name that is no Unicode harms nothing: the payload is then read again, with its
/// names as they are written.
///
/// # Errors
/// What makes the record unusable.
pub fn assessment_of(payload: &[u8]) -> Result<Cow<'_, str>, Malformed> {
    let payload = text(payload)?;
    let (found, count) = value_of(payload, ASSESSMENT_FIELD)?;
    checked(found.filter(|_| count == 1).and_then(unquote).ok_or(Malformed::NoAssessment)?)
}

/// The same, for a route that says where in the payload the id is.
///
/// # Errors
/// What makes the record unusable.
pub fn assessment_at<'p>(path: &PayloadPath, payload: &'p [u8]) -> Result<Cow<'p, str>, Malformed> {
    checked(path.find(text(payload)?)?.and_then(unquote).ok_or(Malformed::NoAssessment)?)
}

/// The same, for a route that takes the id from a record's key or header.
///
/// # Errors
/// [`Malformed::NoAssessment`].
pub fn assessment_in(bytes: Option<&[u8]>) -> Result<Cow<'_, str>, Malformed> {
    let id = bytes.and_then(|bytes| std::str::from_utf8(bytes).ok()).ok_or(Malformed::NoAssessment)?;
    checked(Cow::Borrowed(id))
}

/// An id within its rule.
fn checked(id: Cow<'_, str>) -> Result<Cow<'_, str>, Malformed> {
    AssessmentId::check(&id).map_err(|_| Malformed::NoAssessment)?;
    Ok(id)
}

/// Checks that a payload is a JSON object in UTF-8.
///
/// # Errors
/// [`Malformed::NotAnObject`].
pub fn check_object(payload: &[u8]) -> Result<(), Malformed> {
    object_text(payload).map(|_| ())
}

/// Appends the message's JSON to `out` without its closing brace, so that the caller can add a cursor. The result is
/// never empty: it has at least `{"type":"…"`. `record` is the payload, behind the values that the route carries. On an error `out` is as it was. Of a field that the payload has twice,
/// the last one counts, as it does for JavaScript's `JSON.parse`.
///
/// # Errors
/// [`Malformed::NotAnObject`] where the payload is none.
pub fn map_open(topic: &Topic, record: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let (carried, payload) = split(topic.route.carried.len(), record)?;
    match &topic.route.fields {
        MessageFields::Whole => {
            let data = object_text(payload)?;
            open(topic, out);
            push_name("data", out);
            out.extend_from_slice(data.as_bytes());
        }
        MessageFields::Listed(fields) => {
            let values = values_of(fields, payload)?;
            open(topic, out);
            for (field, value) in fields.iter().zip(values) {
                push_field(topic, field, value, carried, out);
            }
        }
    }
    Ok(())
}

/// The payload's values of the fields that come from it, as they are written there; empty where it has none.
fn values_of<'p>(fields: &[Field], payload: &'p [u8]) -> Result<[&'p str; ROUTE_FIELDS_MAX], Malformed> {
    let payload = text(payload)?;
    values_by::<Decoded<'_>>(fields, payload).or_else(|_| values_by::<&RawValue>(fields, payload))
}

fn values_by<'p, N: Name<'p>>(fields: &[Field], payload: &'p str) -> Result<[&'p str; ROUTE_FIELDS_MAX], Malformed> {
    let mut values = [""; ROUTE_FIELDS_MAX];
    let comes_from = |field: &Field, name: &str| matches!(&field.source, FieldSource::Payload(from) if **from == *name);
    for_each_wanted::<N, _>(
        payload,
        |name| fields.iter().position(|field| comes_from(field, name)),
        |first, value| {
            let same = |field: &Field| field.source == fields[first].source;
            for (slot, _) in values.iter_mut().zip(fields).filter(|(_, field)| same(field)) {
                *slot = value;
            }
        },
    )?;
    Ok(values)
}

fn open(topic: &Topic, out: &mut Vec<u8>) {
    out.extend_from_slice(br#"{"type":"#);
    push_string(&topic.route.message_type, out);
}

fn push_field(topic: &Topic, field: &Field, value: &str, carried: Carried<'_>, out: &mut Vec<u8>) {
    let value = match field.source {
        FieldSource::Record(index) => carried.get(index),
        _ => value,
    };
    match &field.source {
        FieldSource::Payload(_) | FieldSource::Record(_) if value.is_empty() => {}
        FieldSource::Payload(_) | FieldSource::Record(_) => {
            push_name(&field.name, out);
            out.extend_from_slice(value.as_bytes());
        }
        FieldSource::Const(json) => {
            push_name(&field.name, out);
            out.extend_from_slice(json.as_bytes());
        }
        FieldSource::Topic(part) => {
            if let Some(value) = topic.part(part) {
                push_name(&field.name, out);
                push_string(value, out);
            }
        }
    }
}

fn push_name(name: &str, out: &mut Vec<u8>) {
    out.push(b',');
    push_string(name, out);
    out.push(b':');
}

fn push_string(text: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, text).expect("a string has a form in JSON, and a Vec takes all that is written");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::TopicIndex;
    use crate::routing::table::RouteTable;

    fn topic(fields: &str) -> Topic {
        let scope = "scope = \"assessment\"\ntype = \"kind\"\ntopic = \"a.{p}\"";
        let table =
            RouteTable::parse(&format!("[[route]]\n{scope}\nfields = {fields}")).expect("the test's route is good");
        table.resolve(TopicIndex(0), "a.part").expect("the test's topic matches")
    }

    fn map(fields: &str, payload: &str) -> Result<String, Malformed> {
        let mut out = b"before".to_vec();
        let mapped = map_open(&topic(fields), payload.as_bytes(), &mut out);
        let out = String::from_utf8(out).unwrap();
        let appended = out.strip_prefix("before").expect("what was there stays").to_owned();
        assert!(mapped.is_ok() || appended.is_empty(), "an error leaves the output as it was");
        mapped.map(|()| appended)
    }

    fn assessment(payload: &str) -> Result<String, Malformed> {
        assessment_of(payload.as_bytes()).map(Cow::into_owned)
    }

    #[test]
    fn a_message_has_its_fields_in_the_routes_order_and_its_values_byte_for_byte() {
        let fields =
            r#"["z", { name = "b", from = "c" }, { name = "n", const = 0 }, { name = "t", topic = "p" }, "a"]"#;
        let payload = r#"{"a": 1.10e+2 ,"extra":[{}], "c" : "\u00e9\/" ,"z":{ "x" : [ 1 , 2 ] }}"#;
        assert_eq!(
            map(fields, payload).unwrap(),
            r#"{"type":"kind","z":{ "x" : [ 1 , 2 ] },"b":"\u00e9\/","n":0,"t":"part","a":1.10e+2"#
        );
    }

    #[test]
    fn an_absent_field_is_left_out_and_a_null_stays_null() {
        assert_eq!(map(r#"["a", "b"]"#, r#"{"b":null}"#).unwrap(), r#"{"type":"kind","b":null"#);
        assert_eq!(map(r#"["a"]"#, "{}").unwrap(), r#"{"type":"kind""#);
    }

    #[test]
    fn of_a_field_given_twice_the_last_counts_and_names_are_compared_decoded() {
        assert_eq!(map(r#"["a"]"#, r#"{"a":1,"\u0061":2}"#).unwrap(), r#"{"type":"kind","a":2"#);
        assert_eq!(map(r#"["é"]"#, r#"{"\u00e9":1}"#).unwrap(), r#"{"type":"kind","é":1"#);
    }

    #[test]
    fn one_value_may_go_to_two_fields() {
        let fields = r#"["a", { name = "again", from = "a" }]"#;
        assert_eq!(map(fields, r#"{"a":1}"#).unwrap(), r#"{"type":"kind","a":1,"again":1"#);
    }

    #[test]
    fn the_events_own_type_and_cursor_never_get_through() {
        let payload = r#"{"type":"evil","cursor":"evil","a":1}"#;
        assert_eq!(map(r#"["a"]"#, payload).unwrap(), r#"{"type":"kind","a":1"#);
        assert_eq!(map(r#""*""#, payload).unwrap(), format!(r#"{{"type":"kind","data":{payload}"#));
    }

    #[test]
    fn a_payload_passes_whole_without_the_white_space_around_it() {
        assert_eq!(map(r#""*""#, " \r\n\t{ \"a\" :1 } \n").unwrap(), r#"{"type":"kind","data":{ "a" :1 }"#);
    }

    /// Payloads that are no JSON object in UTF-8, whichever function reads them.
    const NOT_OBJECTS: [&[u8]; 23] = [
        b"",
        b" ",
        b"null",
        b"[]",
        br#"["assessmentId"]"#,
        b"5",
        br#""{}""#,
        b"{",
        br#"{"a":1"#,
        br#"{"a":1,}"#,
        br#"{"a" 1}"#,
        br"{a:1}",
        br#"{"a":01}"#,
        br#"{"a":+1}"#,
        br#"{"a":NaN}"#,
        br#"{"a":[1,]}"#,
        br#"{"a":"\x"}"#,
        b"{\"a\":\"\n\"}",
        b"{\"\x00a\":1}",
        b"{\"a\":\"\xff\"}",
        b"{\"a\":\"\xed\xa0\x80\"}",
        b"\xef\xbb\xbf{\"assessmentId\":\"a\"}",
        br#"{"assessmentId":"a"}{}"#,
    ];

    #[test]
    fn what_is_not_a_json_object_is_malformed_for_all_that_read_it() {
        for payload in NOT_OBJECTS {
            let told = String::from_utf8_lossy(payload);
            assert_eq!(assessment_of(payload), Err(Malformed::NotAnObject), "{told}");
            assert_eq!(check_object(payload), Err(Malformed::NotAnObject), "{told}");
            for fields in [r#"["a"]"#, r#"["other"]"#, r#""*""#] {
                let mut out = Vec::new();
                assert_eq!(map_open(&topic(fields), payload, &mut out), Err(Malformed::NotAnObject), "{told}");
                assert!(out.is_empty());
            }
        }
    }

    #[test]
    fn the_assessment_is_the_payloads_one_string_within_the_rule() {
        assert_eq!(assessment(r#"{"x":{"assessmentId":"no"},"assessmentId":"a-1"}"#).unwrap(), "a-1");
        assert_eq!(assessment(r#" {"assessment\u0049d" : "a\u002d1 \" é" } "#).unwrap(), "a-1 \" é");
        let payload = br#"{"assessmentId":"plain"}"#;
        assert!(matches!(assessment_of(payload), Ok(Cow::Borrowed("plain"))), "nothing is copied");
        assert_eq!(assessment(&format!(r#"{{"assessmentId":"{}"}}"#, "é".repeat(64))).unwrap().len(), 128);
    }

    #[test]
    fn a_record_without_exactly_one_valid_assessment_is_malformed() {
        let long = format!(r#"{{"assessmentId":"{}"}}"#, "a".repeat(129));
        for payload in [
            "{}",
            r#"{"AssessmentId":"a"}"#,
            r#"{"assessmentId":"a","assessmentId":"a"}"#,
            r#"{"assessmentId":"a","\u0061ssessmentId":"b"}"#,
            r#"{"assessmentId":null}"#,
            r#"{"assessmentId":17}"#,
            r#"{"assessmentId":["a"]}"#,
            r#"{"assessmentId":""}"#,
            r#"{"assessmentId":"a\u0000"}"#,
            r#"{"assessmentId":"a\u0085"}"#,
            r#"{"assessmentId":"\ud800"}"#,
            &long,
        ] {
            assert_eq!(assessment(payload), Err(Malformed::NoAssessment), "{payload}");
        }
    }

    #[test]
    fn half_a_surrogate_pair_elsewhere_harms_nothing() {
        let payload = r#"{"\udc00":1,"a":"\ud800","assessmentId":"x"}"#;
        assert_eq!(assessment(payload).unwrap(), "x");
        assert_eq!(map(r#"["a"]"#, payload).unwrap(), r#"{"type":"kind","a":"\ud800""#);
    }

    #[test]
    fn nesting_as_deep_as_an_event_can_hold_does_not_exhaust_the_stack() {
        let deep = 500_000;
        for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
            let value = format!("{}1{}", open.repeat(deep), close.repeat(deep));
            let payload = format!(r#"{{"assessmentId":"x","a":{value},"b":{value}}}"#);
            assert_eq!(assessment(&payload).unwrap(), "x");
            assert_eq!(map(r#"["a"]"#, &payload).unwrap(), format!(r#"{{"type":"kind","a":{value}"#));
            assert_eq!(assessment(&payload[..payload.len() - 2]), Err(Malformed::NotAnObject));
        }
    }

    fn white_space() -> impl Strategy<Value = String> {
        "[ \t\r\n]{0,2}"
    }

    /// JSON values in any legal spelling.
    fn value() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            "true|false",
            "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,30})?([eE][+-]?[0-9]{1,4})?",
            r#""([a-z é🦀/]|\\(["\\/bfnrt]|u[0-9a-fA-F]{4})){0,12}""#,
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            let item =
                (white_space(), inner, white_space()).prop_map(|(before, value, after)| before + &value + &after);
            let item = item.boxed();
            let field = (white_space(), "\"[a-c]{0,3}\"", item.clone())
                .prop_map(|(w, name, item)| format!("{w}{name}{w}:{item}"));
            let list = prop::collection::vec(item, 1..4).prop_map(|items| format!("[{}]", items.join(",")));
            let object = prop::collection::vec(field, 0..4).prop_map(|fields| format!("{{{}}}", fields.join(",")));
            prop_oneof![list, object]
        })
    }

    /// A field's name as it may be written, and what it stands for: few letters, so that some are given twice.
    fn name() -> impl Strategy<Value = (String, String)> {
        ("[a-d]", any::<bool>()).prop_map(|(name, escaped)| {
            let written = if escaped { format!("\\u{:04x}", u32::from(name.as_bytes()[0])) } else { name.clone() };
            (format!("\"{written}\""), name)
        })
    }

    prop_compose! {
        /// An object's text, and its fields in order: names decoded, values as written.
        fn object()(
            fields in prop::collection::vec((name(), value(), white_space(), white_space()), 0..8),
            around in white_space(),
        ) -> (String, Vec<(String, String)>) {
            let written: Vec<String> =
                fields.iter().map(|((name, _), value, w1, w2)| format!("{w1}{name}{w2}:{w2}{value}{w1}")).collect();
            let model = fields.into_iter().map(|((_, name), value, ..)| (name, value)).collect();
            (format!("{around}{{{}}}{around}", written.join(",")), model)
        }
    }

    proptest! {
        #[test]
        fn the_mapping_keeps_every_byte_of_each_value((payload, model) in object()) {
            let last = |name: &str| model.iter().rev().find(|(other, _)| other == name).map(|(_, value)| value);
            let mut expected = r#"{"type":"kind""#.to_owned();
            for (field, from) in [("d", "d"), ("a", "a"), ("renamed", "b")] {
                if let Some(value) = last(from) {
                    expected += &format!(r#","{field}":{value}"#);
                }
            }
            let mapped = map(r#"["d", "a", { name = "renamed", from = "b" }]"#, &payload);
            prop_assert_eq!(mapped.as_deref(), Ok(expected.as_str()));
            prop_assert_eq!(check_object(payload.as_bytes()), Ok(()));
        }

        /// Against serde_json's own tree, on texts that are nearly payloads: a good one, with a few bytes changed.
        #[test]
        fn the_assessment_is_the_one_that_a_naive_reading_finds(
            before in value(),
            id in r#""([a-z é]|\\u00[0-9a-f]{2}){0,3}""#,
            cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        ) {
            let mut payload = format!(r#"{{"x":{before},"assessmentId":{id}}}"#).into_bytes();
            for (place, byte) in cuts {
                let place = place.index(payload.len());
                payload[place] = byte;
            }
            // The tree also refuses what the gateway passes over: numbers beyond a float's range, deep nesting, and
            // halves of surrogate pairs. So what it takes must be taken, with the same answer.
            let found = assessment_of(&payload);
            if let Ok(tree) = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&payload) {
                let id = tree.get("assessmentId").and_then(|id| id.as_str());
                let id = id.filter(|id| AssessmentId::check(id).is_ok());
                prop_assert_eq!(found.as_deref().ok(), id);
            }
            prop_assert_eq!(found == Err(Malformed::NotAnObject), check_object(&payload).is_err());
        }
    }
}
