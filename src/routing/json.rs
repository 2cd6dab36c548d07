//! Reads a payload's JSON (PROTOCOL 3): one pass of serde_json over the top level's fields, each value checked for JSON's
//! grammar and otherwise left as it is written. Nested values are passed over without recursion, so no payload can
//! exhaust the stack.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Why a record can't be used. Each is counted under its label, and harms nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Malformed {
    /// A tombstone: no payload.
    #[error("the record has no payload")]
    NoPayload,
    /// Not UTF-8, not JSON, or not an object.
    #[error("the payload is not a JSON object")]
    NotAnObject,
    /// `assessmentId` (or the key) is missing, given twice, no string, or outside of its rule.
    #[error("the record has not exactly one valid assessmentId")]
    NoAssessment,
    /// Its first five bytes are those of a schema registry's serializers.
    #[error(
        "the payload begins with the five bytes of a schema registry: if JSON follows, the route takes \
         payload = \"json-schema\"; Avro and Protobuf are not read"
    )]
    SchemaRegistry,
}

/// The last value of an object's field, and how many it has.
pub(super) fn value_of<'p>(object: &'p str, name: &str) -> Result<(Option<&'p str>, usize), Malformed> {
    value_by::<Decoded<'_>>(object, name).or_else(|_| value_by::<&RawValue>(object, name))
}

fn value_by<'p, N: Name<'p>>(object: &'p str, wanted: &str) -> Result<(Option<&'p str>, usize), Malformed> {
    let mut found = None;
    let mut count = 0;
    for_each_wanted::<N, _>(
        object,
        |name| (name == wanted).then_some(()),
        |(), value| {
            found = Some(value);
            count += 1;
        },
    )?;
    Ok((found, count))
}

/// A JSON string's text; `None` for another value, and for one that is no Unicode (half of a surrogate pair).
pub(super) fn unquote(json: &str) -> Option<Cow<'_, str>> {
    let inner = json.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') { serde_json::from_str(json).ok().map(Cow::Owned) } else { Some(Cow::Borrowed(inner)) }
}

pub(super) fn text(payload: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(payload).map_err(|_| Malformed::NotAnObject)
}

/// The JSON object that a payload is, without the white space around it.
pub(super) fn object_text(payload: &[u8]) -> Result<&str, Malformed> {
    let json: &RawValue = serde_json::from_str(text(payload)?).map_err(|_| Malformed::NotAnObject)?;
    Some(json.get()).filter(|json| json.starts_with('{')).ok_or(Malformed::NotAnObject)
}

/// The name of a field, as a pass over an object takes it.
pub(super) trait Name<'p>: Deserialize<'p> {
    /// With its escapes decoded; `None` for one that is no Unicode.
    fn decoded(&self) -> Option<Cow<'_, str>>;
}

/// As it is written: takes every name that JSON's grammar allows, also one with half of a surrogate pair.
impl<'p> Name<'p> for &'p RawValue {
    fn decoded(&self) -> Option<Cow<'_, str>> {
        unquote(self.get())
    }
}

/// As serde_json decodes it, which makes the whole pass a quarter cheaper. It refuses payloads with a name that is no
/// Unicode.
pub(super) struct Decoded<'p>(Cow<'p, str>);

impl<'p> Name<'p> for Decoded<'p> {
    fn decoded(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(&self.0))
    }
}

impl<'p> Deserialize<'p> for Decoded<'p> {
    fn deserialize<D: Deserializer<'p>>(name: D) -> Result<Self, D::Error> {
        struct Borrowed;
        impl<'p> Visitor<'p> for Borrowed {
            type Value = Decoded<'p>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_borrowed_str<E>(self, name: &'p str) -> Result<Decoded<'p>, E> {
                Ok(Decoded(Cow::Borrowed(name)))
            }

            fn visit_str<E>(self, name: &str) -> Result<Decoded<'p>, E> {
                Ok(Decoded(Cow::Owned(name.to_owned())))
            }
        }
        name.deserialize_str(Borrowed)
    }
}

/// Goes through a JSON object's fields: `want` says which are wanted, by their name with its escapes decoded, and
/// `take` is given the value of each as it is written.
pub(super) fn for_each_wanted<'p, N: Name<'p>, K>(
    payload: &'p str,
    want: impl Fn(&str) -> Option<K>,
    take: impl FnMut(K, &'p str),
) -> Result<(), Malformed> {
    let mut json = serde_json::Deserializer::from_str(payload);
    let fields = FieldsVisitor::<N, _, _> { want, take, name: PhantomData };
    json.deserialize_map(fields).and_then(|()| json.end()).map_err(|_| Malformed::NotAnObject)
}

struct FieldsVisitor<N, W, T> {
    want: W,
    take: T,
    name: PhantomData<N>,
}

impl<'p, N, K, W, T> Visitor<'p> for FieldsVisitor<N, W, T>
where
    N: Name<'p>,
    W: Fn(&str) -> Option<K>,
    T: FnMut(K, &'p str),
{
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'p>>(mut self, mut object: A) -> Result<(), A::Error> {
        while let Some(name) = object.next_key::<N>()? {
            match name.decoded().and_then(|name| (self.want)(&name)) {
                Some(wanted) => (self.take)(wanted, object.next_value::<&RawValue>()?.get()),
                None => {
                    object.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}
