//! Strictness for types that are lenient elsewhere.
//!
//! The resource's types take fields they do not know: an older release must be able to read what a newer definition
//! let in, or one such object would stop the watch of all. In the configuration the same types stand, and there an
//! unknown key is a mistake to be told of.

use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned, de::Error};
use serde_json::Value;

/// Reads a value and refuses every key that it has no field for, with its path.
pub(super) fn deserialize<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned + Serialize,
{
    let written = Value::deserialize(deserializer)?;
    let read: T = serde_json::from_value(written.clone()).map_err(Error::custom)?;
    let known = serde_json::to_value(&read).map_err(Error::custom)?;
    match unknown(&written, &known) {
        Some(path) => Err(Error::custom(format!("unknown field `{path}`"))),
        None => Ok(read),
    }
}

/// The path of the first key that was written and is not known.
fn unknown(written: &Value, known: &Value) -> Option<String> {
    let (Value::Object(written), Value::Object(known)) = (written, known) else {
        return None;
    };
    written
        .iter()
        .filter(|(_, value)| !value.is_null())
        .find_map(|(key, value)| match known.get(key) {
            None => Some(key.clone()),
            Some(known) => unknown(value, known).map(|path| format!("{key}.{path}")),
        })
}
