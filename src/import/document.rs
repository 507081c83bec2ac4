//! A channel document of Aura's channel model. Pure.
//!
//! Documented are `channel_id` and `whatsapp.client` with `id`, `secret`, `purposes` and `scopes` (Aura's page "Support
//! several WhatsApp channels"), and `version` (the page of the WhatsApp client plugin). `id` for `channel_id`, and the
//! `name`, `prefix` and `type` of a channel, are of the page "Current channel model". Where a document has the
//! business number is not documented: the likely fields are looked at. Everything else is named, not taken over.

use secrecy::SecretString;
use serde_json::{Map, Value};

/// The fields that are taken over, by their path; a `*` field holds a text.
const TAKEN: &[&str] = &[
    "channel_id",
    "id",
    "name",
    "prefix",
    "type",
    "environment",
    "phoneNumber",
    "phone_number",
    "whatsapp",
    "whatsapp.client",
    "whatsapp.client.id",
    "whatsapp.client.secret",
    "whatsapp.client.purposes",
    "whatsapp.client.scopes",
    "whatsapp.client.version",
    "whatsapp.phoneNumber",
    "whatsapp.phone_number",
    "whatsapp.number",
];

/// What a document says that a manifest can say too. It has no `Debug` for its texts: they may be anything.
pub(super) struct AuraChannel {
    pub channel_id: String,
    pub name: Option<String>,
    pub prefix: Option<String>,
    pub number: Option<String>,
    pub environment: Option<String>,
    pub client_id: SecretString,
    pub client_secret: SecretString,
    pub scopes: Vec<String>,
    pub purposes: Vec<String>,
    pub version: Option<String>,
}

/// What becomes of a document.
pub(super) enum Read {
    Channel(Box<AuraChannel>),
    /// Another kind of channel.
    OtherType,
    /// What it lacks.
    Unusable(&'static str),
}

/// The values of a text: one document, an array of them, or one after the other (NDJSON). What stands before an error
/// is kept; the error is its line and column.
pub(super) fn split(text: &str) -> (Vec<Value>, Option<(usize, usize)>) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut values = Vec::new();
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    loop {
        match stream.next() {
            Some(Ok(Value::Array(items))) => values.extend(items),
            Some(Ok(value)) => values.push(value),
            Some(Err(error)) => return (values, Some((error.line(), error.column()))),
            None => return (values, None),
        }
    }
}

/// What people know the document by: its name, else nothing.
pub(super) fn title(value: &Value) -> Option<String> {
    text(value, &["name"]).or_else(|| text(value, &["channel_id"]))
}

/// Reads one document.
pub(super) fn read(value: &Value) -> Read {
    if !value.is_object() {
        return Read::Unusable("not a JSON object");
    }
    if text(value, &["type"]).is_some_and(|kind| !kind.eq_ignore_ascii_case("whatsapp")) {
        return Read::OtherType;
    }
    let Some(channel_id) = text(value, &["channel_id"]).or_else(|| text(value, &["id"])) else {
        return Read::Unusable("channel_id is missing");
    };
    let client = |name: &str| text(value, &["whatsapp", "client", name]);
    let (Some(id), Some(secret)) = (client("id"), client("secret")) else {
        return Read::Unusable("whatsapp.client.id or whatsapp.client.secret is missing or empty");
    };
    let number = ["phoneNumber", "phone_number", "number"]
        .iter()
        .flat_map(|name| {
            [
                text(value, &["whatsapp", name]),
                text(value, &[name]).filter(|_| *name != "number"),
            ]
        })
        .flatten()
        .next();
    Read::Channel(Box::new(AuraChannel {
        channel_id: channel_id.to_lowercase(),
        name: text(value, &["name"]),
        prefix: text(value, &["prefix"]),
        number: number.map(|number| number.replace([' ', '-', '(', ')', '.'], "")),
        environment: text(value, &["environment"]),
        client_id: id.into(),
        client_secret: secret.into(),
        scopes: words(value.pointer("/whatsapp/client/scopes")),
        purposes: words(value.pointer("/whatsapp/client/purposes")),
        version: client("version"),
    }))
}

/// The paths of the fields that are not taken over.
pub(super) fn left_out(value: &Value) -> Vec<String> {
    let mut left = Vec::new();
    if let Value::Object(fields) = value {
        unknown(fields, "", &mut left);
    }
    left
}

fn unknown(fields: &Map<String, Value>, parent: &str, left: &mut Vec<String>) {
    for (key, value) in fields {
        let path = format!("{parent}{key}");
        match value {
            _ if !TAKEN.contains(&path.as_str()) => left.push(path),
            Value::Object(below) => unknown(below, &format!("{path}."), left),
            _ => {}
        }
    }
}

/// A text or a number at a path, trimmed; nothing if it is empty.
fn text(value: &Value, path: &[&str]) -> Option<String> {
    let value = path.iter().try_fold(value, |value, key| value.get(key))?;
    let text = match value {
        Value::String(text) => text.trim().to_owned(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    (!text.is_empty()).then_some(text)
}

/// Words: a text with spaces between them, or a list of texts.
fn words(value: Option<&Value>) -> Vec<String> {
    let split = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    match value {
        Some(Value::String(text)) => split(text),
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).flat_map(split).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_document_an_array_and_one_after_the_other_are_read_alike() {
        let one = r#"{"channel_id": "a"}"#;
        for (text, count) in [
            (one.to_owned(), 1),
            (format!("[{one},\n{one}]"), 2),
            (format!("{one}\n{one}\n"), 2),
        ] {
            let (values, error) = split(&text);
            assert_eq!((values.len(), error), (count, None), "{text}");
        }
        let (values, error) = split(&format!("{one}\n{{\"secret\": x\n"));
        assert_eq!((values.len(), error.unwrap().0), (1, 2));
    }

    #[test]
    fn what_is_not_taken_over_is_named_by_its_path_alone() {
        let document = json!({"channel_id": "a", "brand": "x", "security": {"anonymous": "y"},
            "whatsapp": {"client": {"id": "i", "tenant": "z"}, "retries": 3}});
        assert_eq!(
            left_out(&document),
            ["brand", "security", "whatsapp.client.tenant", "whatsapp.retries"]
        );
    }
}
