//! The fields of a JSON object as written, including repeated names, of which serde_json's own map keeps only one.

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The fields of a JSON object, in order; `None` if the text is not one.
pub fn fields(text: &str) -> Option<Vec<(String, &str)>> {
    struct Fields;
    impl<'t> Visitor<'t> for Fields {
        type Value = Vec<(String, &'t str)>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'t>>(self, mut object: A) -> Result<Self::Value, A::Error> {
            let mut fields = Vec::new();
            while let Some((name, value)) = object.next_entry::<String, &RawValue>()? {
                fields.push((name, value.get()));
            }
            Ok(fields)
        }
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let fields = json.deserialize_map(Fields).ok()?;
    json.end().is_ok().then_some(fields)
}
