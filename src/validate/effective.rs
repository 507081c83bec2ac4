//! What holds for a channel in the end, and where each value comes from. Pure.
//!
//! The values are those of [`Effective`], which the controller and the bridge go by; only their origin is worked out
//! here.

use std::{fmt, fmt::Write, time::Duration};

use serde_json::{Value, json};

use super::{Channel, metadata, yaml};
use crate::api::{ChannelDefaults, Effective, WhatsAppChannelSpec};

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The manifest.
    Spec,
    /// The environment's `channelDefaults`.
    Environment,
    /// This program.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Spec => "spec",
            Self::Environment => "environment",
            Self::Default => "default",
        })
    }
}

/// One field of a spec, as it holds.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Setting {
    /// The field, without `spec.`.
    pub field: &'static str,
    /// Its value.
    pub value: Value,
    /// Where the value comes from.
    pub from: Origin,
}

/// Every setting of a channel. `defaults` are those of its environment.
pub fn settings(spec: &WhatsAppChannelSpec, defaults: &ChannelDefaults) -> Vec<Setting> {
    let effective = Effective::new(spec, defaults);
    let (spec_json, defaults) = (
        serde_json::to_value(spec).unwrap_or_default(),
        serde_json::to_value(defaults).unwrap_or_default(),
    );
    let client = &spec.kernel.credentials_secret_ref;
    let issued = spec
        .webhook
        .as_ref()
        .and_then(|it| it.api_key_secret_ref.as_ref());
    let e = &effective;
    [
        ("channelId", json!(spec.channel_id)),
        ("phoneNumber", json!(spec.phone_number)),
        ("environment", json!(spec.environment)),
        ("kernel.credentialsSecretRef.name", json!(client.name)),
        ("kernel.credentialsSecretRef.idKey", json!(client.id_key())),
        (
            "kernel.credentialsSecretRef.secretKey",
            json!(client.secret_key()),
        ),
        ("kernel.scopes.registration", json!(e.registration_scopes)),
        ("kernel.scopes.messaging", json!(e.messaging_scopes)),
        ("kernel.purposes", json!(e.purposes)),
        ("kernel.apiVersion", json!(e.api_version)),
        ("webhook.mode", json!(e.mode)),
        ("webhook.existing", json!(e.existing)),
        ("webhook.onDelete", json!(e.on_delete)),
        ("webhook.keyGeneration", json!(e.key_generation)),
        ("webhook.apiKeySecretRef.name", json!(issued.map(|it| &it.name))),
        ("webhook.apiKeySecretRef.key", json!(issued.map(|it| &it.key))),
        ("delivery.mode", json!(e.delivery_mode)),
        ("delivery.onUndeliverable", json!(e.on_undeliverable)),
        ("delivery.onUnknownSend", json!(e.on_unknown_send)),
        ("delivery.maxAge.toAura", written(e.max_age_to_aura)),
        ("delivery.maxAge.toUser", written(e.max_age_to_user)),
        ("delivery.replyOrder", json!(e.reply_order)),
        ("delivery.unansweredAfter", written(e.unanswered_after)),
        ("delivery.messagesPerSecond", json!(e.messages_per_second)),
        ("conversion.channelData", json!(e.channel_data)),
        ("conversion.options", json!(e.options)),
        ("conversion.undeliveredText", json!(e.undelivered_text)),
        ("suspend", json!(e.suspend)),
        (
            "resyncPeriod",
            written(e.resync_period.unwrap_or(Effective::RESYNC)),
        ),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_null())
    .map(|(field, value)| {
        let pointer = format!("/{}", field.replace('.', "/"));
        let set = |in_what: &Value| in_what.pointer(&pointer).is_some_and(|value| !value.is_null());
        let from = if set(&spec_json) {
            Origin::Spec
        } else if set(&defaults) {
            Origin::Environment
        } else {
            Origin::Default
        };
        Setting { field, value, from }
    })
    .collect()
}

/// A duration as a manifest writes it.
fn written(duration: Duration) -> Value {
    let mut rest = duration.as_millis();
    let mut text = String::new();
    for (unit, length) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
        if rest >= length {
            let _ = write!(text, "{}{unit}", rest / length);
            rest %= length;
        }
    }
    json!(if text.is_empty() { "0s".to_owned() } else { text })
}

impl Channel {
    /// The settings as a YAML document; nothing for a spec that is none. `defaults` is `None` where the environment is
    /// not known.
    pub fn effective_yaml(&self, defaults: Option<&ChannelDefaults>) -> String {
        let Some(spec) = &self.spec else {
            return String::new();
        };
        let mut text = format!("---\n# {}\n", self.place().replace(char::is_control, "?"));
        if defaults.is_none() {
            text.push_str(
                "# Without the channelDefaults of its environment: name the configuration with --config.\n",
            );
        }
        let _ = write!(
            text,
            "metadata:\n  name: {}\n  namespace: {}\nspec:\n",
            scalar(&json!(self.name)),
            scalar(&json!(self.namespace))
        );
        let mut open: Vec<&str> = Vec::new();
        for setting in settings(spec, defaults.unwrap_or(&ChannelDefaults::default())) {
            let mut parts: Vec<&str> = setting.field.split('.').collect();
            let leaf = parts.pop().unwrap_or_default();
            let same = open.iter().zip(&parts).take_while(|(a, b)| a == b).count();
            for (depth, part) in parts.iter().enumerate().skip(same) {
                let _ = writeln!(text, "{}{part}:", "  ".repeat(depth + 1));
            }
            let indent = "  ".repeat(parts.len() + 1);
            let note = match (setting.field, setting.from) {
                ("resyncPeriod", Origin::Default) => "; 24h where Kernel can't be read back",
                _ => "",
            };
            let value = scalar(&setting.value);
            let _ = writeln!(text, "{indent}{leaf}: {value} # {}{note}", setting.from);
            open = parts;
        }
        text
    }
}

/// A value in one line of YAML: JSON, without quotes where none are needed.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) if metadata::is_name(&text.to_lowercase(), 253, true) && yaml::is_text(text) => {
            text.clone()
        }
        value => value.to_string(),
    }
}
