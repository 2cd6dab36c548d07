//! What a route takes from a record beside its payload's fields: values of the record itself, places within the payload,
//! the filter, and the form of the payload. [`super::mapping`] applies a route to a record.
//!
//! A shard maps a record when the first client needs it, long after the record is gone. So ingest puts the values that
//! the route takes from the record before its payload ([`carry`]), and [`split`] parts them again.

use std::fmt;

use super::json::{Malformed, unquote, value_of};

/// A value of a record beside its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordValue {
    /// The key, as a string.
    Key,
    /// The last header of this name, as a string.
    Header(Box<str>),
    /// The partition's number.
    Partition,
    /// The offset.
    Offset,
    /// The timestamp, in Unix ms.
    Timestamp,
}

/// A record's values, read only if a route takes them.
pub(crate) trait RecordValues {
    /// The key.
    fn key(&self) -> Option<&[u8]>;
    /// The last header of a name.
    fn header(&self, name: &str) -> Option<&[u8]>;
    /// The partition.
    fn partition(&self) -> i32;
    /// The offset.
    fn offset(&self) -> i64;
    /// In Unix ms; negative if there is none.
    fn timestamp_ms(&self) -> i64;
}

impl RecordValue {
    /// Parses `key`, `header:<name>`, `partition`, `offset` or `timestamp`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "key" => Self::Key,
            "partition" => Self::Partition,
            "offset" => Self::Offset,
            "timestamp" => Self::Timestamp,
            _ => Self::Header(text.strip_prefix("header:").filter(|name| !name.is_empty())?.into()),
        })
    }

    /// Appends the value as JSON; nothing if the record lacks it, or it is no UTF-8.
    fn write(&self, record: &impl RecordValues, out: &mut Vec<u8>) {
        let text = |bytes: Option<&[u8]>, out: &mut Vec<u8>| {
            if let Some(text) = bytes.and_then(|bytes| std::str::from_utf8(bytes).ok()) {
                serde_json::to_writer(out, text)
                    .expect("a string has a form in JSON, and a Vec takes all that is written");
            }
        };
        let number = |number: i64, out: &mut Vec<u8>| out.extend_from_slice(number.to_string().as_bytes());
        match self {
            Self::Key => text(record.key(), out),
            Self::Header(name) => text(record.header(name), out),
            Self::Partition => number(record.partition().into(), out),
            Self::Offset => number(record.offset(), out),
            Self::Timestamp if record.timestamp_ms() < 0 => {}
            Self::Timestamp => number(record.timestamp_ms(), out),
        }
    }
}

/// Appends these values of a record, each as its length and its JSON.
pub(crate) fn carry(values: &[RecordValue], record: &impl RecordValues, out: &mut Vec<u8>) {
    for value in values {
        let start = out.len();
        out.extend_from_slice(&[0; size_of::<u32>()]);
        value.write(record, out);
        let len = u32::try_from(out.len() - start - size_of::<u32>()).unwrap_or(u32::MAX);
        out[start..start + size_of::<u32>()].copy_from_slice(&len.to_le_bytes());
    }
}

/// Values that [`carry`] wrote.
#[derive(Debug, Clone, Copy)]
pub(super) struct Carried<'a>(&'a [u8]);

impl<'a> Carried<'a> {
    /// The JSON of the value with this index; empty if the record lacks it.
    pub(super) fn get(self, index: usize) -> &'a str {
        let mut rest = self.0;
        for _ in 0..index {
            rest = next(rest).map_or(&[], |(_, rest)| rest);
        }
        next(rest).and_then(|(json, _)| std::str::from_utf8(json).ok()).unwrap_or_default()
    }
}

/// A value's JSON, and what follows.
fn next(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u32::from_le_bytes(*len)).ok()?)
}

/// Parts what [`carry`] wrote for `count` values from the payload behind it.
///
/// # Errors
/// [`Malformed::NotAnObject`] for bytes that were not written so.
pub(super) fn split(count: usize, bytes: &[u8]) -> Result<(Carried<'_>, &[u8]), Malformed> {
    let mut payload = bytes;
    for _ in 0..count {
        (_, payload) = next(payload).ok_or(Malformed::NotAnObject)?;
    }
    Ok((Carried(bytes), payload))
}

/// The form of a route's payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PayloadForm {
    /// JSON.
    #[default]
    Json,
    /// JSON, behind the five bytes with which a schema registry's serializers begin: a zero and the schema's id.
    JsonSchema,
}

/// What a schema registry's serializers write before a value.
const SCHEMA_BYTES: usize = 5;

impl PayloadForm {
    /// The JSON of a payload.
    ///
    /// # Errors
    /// [`Malformed::SchemaRegistry`] if the route doesn't say that the five bytes are there. JSON begins with no zero.
    pub(crate) fn json(self, payload: &[u8]) -> Result<&[u8], Malformed> {
        match payload.split_at_checked(SCHEMA_BYTES) {
            Some(([0, ..], json)) if self == Self::JsonSchema => Ok(json),
            Some(([0, ..], _)) => Err(Malformed::SchemaRegistry),
            _ => Ok(payload),
        }
    }
}

/// A place in a payload: a field, or a JSON pointer (RFC 6901) through objects. The names on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayloadPath(Vec<Box<str>>);

impl PayloadPath {
    /// Parses a field's name or, with a slash at its start, a JSON pointer.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let Some(pointer) = text.strip_prefix('/') else {
            return (!text.is_empty()).then(|| Self(vec![text.into()]));
        };
        let name = |name: &str| {
            let has_escapes_only = name.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
            has_escapes_only.then(|| name.replace("~1", "/").replace("~0", "~").into())
        };
        pointer.split('/').map(name).collect::<Option<_>>().map(Self)
    }

    /// The value there, as it is written; `None` if it, or a name on the way, is missing or given twice.
    ///
    /// # Errors
    /// [`Malformed::NotAnObject`] where the payload is none.
    pub(super) fn find<'p>(&self, payload: &'p str) -> Result<Option<&'p str>, Malformed> {
        let mut at = payload;
        for (depth, name) in self.0.iter().enumerate() {
            match value_of(at, name) {
                Ok((Some(value), 1)) => at = value,
                Ok(_) => return Ok(None),
                Err(fault) if depth == 0 => return Err(fault),
                // Something else than an object is on the way.
                Err(_) => return Ok(None),
            }
        }
        Ok(Some(at))
    }
}

/// The pointer, as a routes file could have it.
impl fmt::Display for PayloadPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|name| write!(f, "/{}", name.replace('~', "~0").replace('/', "~1")))
    }
}

/// A filter: records for which it does not hold are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct When {
    /// Where to look.
    pub(crate) path: PayloadPath,
    /// The JSON that must be there. Strings are compared by what they say, other values by how they are written.
    pub(crate) equals: Box<str>,
}

impl When {
    /// Whether a payload has the value.
    ///
    /// # Errors
    /// [`Malformed::NotAnObject`].
    pub(crate) fn holds(&self, payload: &[u8]) -> Result<bool, Malformed> {
        let payload = std::str::from_utf8(payload).map_err(|_| Malformed::NotAnObject)?;
        let Some(value) = self.path.find(payload)? else { return Ok(false) };
        Ok(*value == *self.equals || unquote(value).is_some_and(|text| unquote(&self.equals) == Some(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record with one header, twice.
    struct TestRecord;

    impl RecordValues for TestRecord {
        fn key(&self) -> Option<&[u8]> {
            Some(b"k\"1")
        }

        fn header(&self, name: &str) -> Option<&[u8]> {
            match name {
                "trace" => Some("é".as_bytes()),
                "binary" => Some(b"\xff"),
                _ => None,
            }
        }

        fn partition(&self) -> i32 {
            2
        }

        fn offset(&self) -> i64 {
            1 << 40
        }

        fn timestamp_ms(&self) -> i64 {
            -1
        }
    }

    #[test]
    fn carried_values_are_parted_from_the_payload_again() {
        let names = ["key", "header:trace", "header:binary", "header:none", "partition", "offset", "timestamp"];
        let values = names.map(|name| RecordValue::parse(name).unwrap());
        let mut bytes = Vec::new();
        carry(&values, &TestRecord, &mut bytes);
        bytes.extend_from_slice(b"{}");
        let (carried, payload) = split(values.len(), &bytes).unwrap();
        let json: Vec<&str> = (0..values.len()).map(|index| carried.get(index)).collect();
        assert_eq!(json, [r#""k\"1""#, "\"é\"", "", "", "2", "1099511627776", ""]);
        assert_eq!(payload, b"{}");
        assert_eq!(split(0, b"{}").unwrap().1, b"{}");
        for broken in [&bytes[..3], &bytes[..6]] {
            assert!(split(2, broken).is_err(), "{broken:?}");
        }
        for wrong in ["", "Key", "header:", "headers:a"] {
            assert_eq!(RecordValue::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_bytes_of_a_schema_registry_are_skipped_or_named() {
        let (plain, framed) = (&b"{\"a\":1}"[..], &b"\0\0\0\x01\x02{\"a\":1}"[..]);
        assert_eq!(PayloadForm::Json.json(plain), Ok(plain));
        assert_eq!(PayloadForm::JsonSchema.json(plain), Ok(plain));
        assert_eq!(PayloadForm::JsonSchema.json(framed), Ok(plain));
        assert_eq!(PayloadForm::Json.json(framed), Err(Malformed::SchemaRegistry));
        assert_eq!(PayloadForm::Json.json(b"\0\0\0"), Ok(&b"\0\0\0"[..]));
    }

    #[test]
    fn a_path_finds_the_one_value_at_its_place() {
        let payload = r#"{"a":{"b/c":{"~":"x"},"d":1},"a.b":"y","t":1,"t":2,"l":[{"b":1}]}"#;
        let find = |path: &str| PayloadPath::parse(path).unwrap().find(payload).unwrap();
        assert_eq!(find("/a/b~1c/~0"), Some("\"x\""));
        assert_eq!((find("a.b"), find("/a/d")), (Some("\"y\""), Some("1")));
        for nowhere in ["/a/d/e", "/a/x", "x", "t", "/l/0/b", "/"] {
            assert_eq!(find(nowhere), None, "{nowhere}");
        }
        assert_eq!(PayloadPath::parse("/a").unwrap().find("[]"), Err(Malformed::NotAnObject));
        assert!(["", "/~", "/a~2"].into_iter().all(|wrong| PayloadPath::parse(wrong).is_none()));
        assert_eq!(PayloadPath::parse("/a/b~1c/~0").unwrap().to_string(), "/a/b~1c/~0");
        assert_eq!(PayloadPath::parse("a").unwrap().to_string(), "/a");
    }

    #[test]
    fn a_filter_compares_strings_by_what_they_say_and_other_values_as_they_are_written() {
        let holds = |equals: &str, payload: &str| {
            let when = When { path: PayloadPath::parse("/s").unwrap(), equals: equals.into() };
            when.holds(payload.as_bytes())
        };
        assert_eq!(holds("\"open\"", r#"{"s":"\u006fpen"}"#), Ok(true));
        assert_eq!(holds("1", r#"{"s": 1 }"#), Ok(true));
        for other in [r#"{"s":"closed"}"#, r#"{"s":"1"}"#, "{}", r#"{"s":1.0}"#, r#"{"s":1,"s":1}"#] {
            assert_eq!(holds("1", other), Ok(false), "{other}");
        }
        assert_eq!(holds("1", "[1]"), Err(Malformed::NotAnObject));
    }
}
