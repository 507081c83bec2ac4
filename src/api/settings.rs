//! A channel's settings as they hold in the end, each with where its value comes from, for people and programs.
//!
//! The values are those of [`Effective`], which the controller and the bridge go by; only their source is worked out
//! here.

use std::{fmt, fmt::Write};

use serde::Serialize;
use serde_json::{Value, json};

use super::{ChannelDefaults, ChannelId, Effective, Period, WhatsAppChannelSpec};

/// Where a setting's value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The resource says so.
    Spec,
    /// The environment's `channelDefaults` say so.
    Environment,
    /// Nobody says anything: the built-in default.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Spec => "spec",
            Self::Environment => "environment",
            Self::Default => "default",
        })
    }
}

/// One field of a spec, as it holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setting {
    /// Its path below `spec`, such as `webhook.mode`.
    pub path: &'static str,
    /// What holds.
    pub value: Value,
    /// Why.
    pub source: Source,
}

/// Every setting of a channel, in the order of the resource's documentation. `defaults` are those of its environment.
/// A field without a value, which is one that has no default, is left out.
pub fn settings(spec: &WhatsAppChannelSpec, defaults: &ChannelDefaults) -> Vec<Setting> {
    // Every field is named: one that is added must be shown.
    let Effective {
        registration_scopes,
        messaging_scopes,
        purposes,
        api_version,
        mode,
        existing,
        on_delete,
        key_generation,
        delivery_mode,
        on_undeliverable,
        on_unknown_send,
        max_age_to_aura,
        max_age_to_user,
        reply_order,
        unanswered_after,
        statuses,
        messages_per_second,
        channel_data,
        options,
        undelivered_text,
        suspend,
        resync_period,
    } = Effective::new(spec, defaults);
    let client = &spec.kernel.credentials_secret_ref;
    let issued = spec
        .webhook
        .as_ref()
        .and_then(|webhook| webhook.api_key_secret_ref.as_ref());
    let resync_period = resync_period.unwrap_or(Effective::RESYNC);
    let says = |written: &Value, path: &str| {
        let pointer = format!("/{}", path.replace('.', "/"));
        written.pointer(&pointer).is_some_and(|value| !value.is_null())
    };
    let (written, environment) = (
        serde_json::to_value(spec).unwrap_or_default(),
        serde_json::to_value(defaults).unwrap_or_default(),
    );
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
        ("kernel.scopes.registration", json!(registration_scopes)),
        ("kernel.scopes.messaging", json!(messaging_scopes)),
        ("kernel.purposes", json!(purposes)),
        ("kernel.apiVersion", json!(api_version)),
        ("webhook.mode", json!(mode)),
        ("webhook.existing", json!(existing)),
        ("webhook.onDelete", json!(on_delete)),
        ("webhook.keyGeneration", json!(key_generation)),
        (
            "webhook.apiKeySecretRef.name",
            json!(issued.map(|issued| &issued.name)),
        ),
        (
            "webhook.apiKeySecretRef.key",
            json!(issued.map(|issued| &issued.key)),
        ),
        ("delivery.mode", json!(delivery_mode)),
        ("delivery.onUndeliverable", json!(on_undeliverable)),
        ("delivery.onUnknownSend", json!(on_unknown_send)),
        ("delivery.maxAge.toAura", json!(Period::from(max_age_to_aura))),
        ("delivery.maxAge.toUser", json!(Period::from(max_age_to_user))),
        ("delivery.replyOrder", json!(reply_order)),
        ("delivery.unansweredAfter", json!(Period::from(unanswered_after))),
        ("delivery.statuses", json!(statuses)),
        ("delivery.messagesPerSecond", json!(messages_per_second)),
        ("conversion.channelData", json!(channel_data)),
        ("conversion.options", json!(options)),
        ("conversion.undeliveredText", json!(undelivered_text)),
        ("suspend", json!(suspend)),
        ("resyncPeriod", json!(Period::from(resync_period))),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_null())
    .map(|(path, value)| Setting {
        source: if path == "delivery.messagesPerSecond" && is_lowered(spec, defaults) {
            Source::Environment
        } else if says(&written, path) {
            Source::Spec
        } else if says(&environment, path) {
            Source::Environment
        } else {
            Source::Default
        },
        path,
        value,
    })
    .collect()
}

/// Whether the environment's limit of messages a second is lower than what the spec says.
fn is_lowered(spec: &WhatsAppChannelSpec, defaults: &ChannelDefaults) -> bool {
    let own = spec
        .delivery
        .as_ref()
        .and_then(|delivery| delivery.messages_per_second);
    let limit = defaults.delivery.messages_per_second;
    own.zip(limit).is_some_and(|(own, limit)| limit < own)
}

/// The settings as the lines of a YAML mapping, so many levels deep, each with its source as a comment.
pub fn settings_yaml(settings: &[Setting], depth: usize) -> String {
    let mut text = String::new();
    let mut open: Vec<&str> = Vec::new();
    for setting in settings {
        let mut parts: Vec<&str> = setting.path.split('.').collect();
        let Some(name) = parts.pop() else { continue };
        let same = open.iter().zip(&parts).take_while(|(a, b)| a == b).count();
        let indent = |level: usize| "  ".repeat(depth + level);
        for (level, part) in parts.iter().enumerate().skip(same) {
            let _ = writeln!(text, "{}{part}:", indent(level));
        }
        let note = match (setting.path, setting.source) {
            ("resyncPeriod", Source::Default) => "; 24h where Kernel can't be read back",
            _ => "",
        };
        let value = yaml_scalar(&setting.value);
        let _ = writeln!(
            text,
            "{}{name}: {value}  # {}{note}",
            indent(parts.len()),
            setting.source
        );
        open = parts;
    }
    text
}

/// A value in one line of YAML: JSON, which is YAML, without quotes where no reader can take the text for anything
/// else.
pub fn yaml_scalar(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        value => value.to_string(),
    }
}

/// Words of YAML 1.1, which kubectl goes by, that are no texts.
const NO_TEXTS: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];

fn is_plain(text: &str) -> bool {
    let word = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))
        && !NO_TEXTS.contains(&text.to_ascii_lowercase().as_str());
    // What begins with a digit may be a number; these two can't.
    word || text.parse::<Period>().is_ok() || text.parse::<ChannelId>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Conversion, OnDelete, Webhook, WebhookMode};

    #[test]
    fn each_setting_is_shown_with_its_source() {
        let mut spec = WhatsAppChannelSpec::example();
        spec.webhook = Some(Webhook {
            mode: Some(WebhookMode::Observe),
            ..Webhook::default()
        });
        spec.conversion = Some(Conversion {
            undelivered_text: Some("¡Perdón! # no".into()),
            ..Conversion::default()
        });
        let defaults = ChannelDefaults {
            webhook: Webhook {
                mode: Some(WebhookMode::Manage),
                on_delete: Some(OnDelete::Clear),
                ..Webhook::default()
            },
            resync_period: Some(Period("90m".into())),
            ..ChannelDefaults::default()
        };
        let text = settings_yaml(&settings(&spec, &defaults), 0);
        insta::assert_snapshot!(text);
        let parsed: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(parsed["webhook"]["onDelete"], "Clear");
        assert_eq!(parsed["conversion"]["undeliveredText"], "¡Perdón! # no");
        assert_eq!(
            parsed["kernel"]["scopes"]["registration"][0],
            "whatsapp:app-admin"
        );
    }
}
