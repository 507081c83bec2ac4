//! A channel's settings as they hold in the end, each with where it comes from. Pure.

use std::{fmt::Write as _, time::Duration};

use serde::Serialize;
use serde_json::{Value, json};

use crate::api::{ChannelDefaults, Effective, WhatsAppChannelSpec};

/// Where a setting's value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// The resource says so.
    Spec,
    /// The environment's `channelDefaults` say so.
    Environment,
    /// Nobody says anything: the built-in default.
    Default,
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Setting {
    /// Its path below `spec`, such as `webhook.mode`.
    pub path: &'static str,
    /// What holds.
    pub value: Value,
    /// Why.
    pub source: Source,
}

/// Every setting of a channel, in the order of the resource's documentation.
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
        messages_per_second,
        channel_data,
        options,
        undelivered_text,
        suspend,
        resync_period,
    } = Effective::new(spec, defaults);
    let values: Vec<(&'static str, Value)> = vec![
        ("kernel.scopes.registration", json!(registration_scopes)),
        ("kernel.scopes.messaging", json!(messaging_scopes)),
        ("kernel.purposes", json!(purposes)),
        ("kernel.apiVersion", json!(api_version)),
        ("webhook.mode", json!(mode)),
        ("webhook.existing", json!(existing)),
        ("webhook.onDelete", json!(on_delete)),
        ("webhook.keyGeneration", json!(key_generation)),
        ("delivery.mode", json!(delivery_mode)),
        ("delivery.onUndeliverable", json!(on_undeliverable)),
        ("delivery.onUnknownSend", json!(on_unknown_send)),
        ("delivery.maxAge.toAura", json!(period(max_age_to_aura))),
        ("delivery.maxAge.toUser", json!(period(max_age_to_user))),
        ("delivery.replyOrder", json!(reply_order)),
        ("delivery.unansweredAfter", json!(period(unanswered_after))),
        ("delivery.messagesPerSecond", json!(messages_per_second)),
        ("conversion.channelData", json!(channel_data)),
        ("conversion.options", json!(options)),
        ("conversion.undeliveredText", json!(undelivered_text)),
        ("suspend", json!(suspend)),
        (
            "resyncPeriod",
            json!(period(resync_period.unwrap_or(Effective::RESYNC))),
        ),
    ];
    let written = serde_json::to_value(spec).unwrap_or_default();
    let environment = serde_json::to_value(defaults).unwrap_or_default();
    let says = |value: &Value, path: &str| {
        let pointer = format!("/{}", path.replace('.', "/"));
        value.pointer(&pointer).is_some_and(|value| !value.is_null())
    };
    values
        .into_iter()
        .map(|(path, value)| Setting {
            source: if says(&written, path) {
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

/// The settings as YAML, each with its source as a comment.
pub fn yaml(settings: &[Setting]) -> String {
    let mut text = String::new();
    let mut open: Vec<&str> = Vec::new();
    for setting in settings {
        let mut parts: Vec<&str> = setting.path.split('.').collect();
        let Some(name) = parts.pop() else { continue };
        let same = open
            .iter()
            .zip(&parts)
            .take_while(|(open, part)| open == part)
            .count();
        for (depth, part) in parts.iter().enumerate().skip(same) {
            let _ = writeln!(text, "{}{part}:", "  ".repeat(depth));
        }
        let source = match setting.source {
            Source::Spec => "spec",
            Source::Environment => "environment",
            Source::Default => "default",
        };
        let indent = "  ".repeat(parts.len());
        let _ = writeln!(text, "{indent}{name}: {}  # {source}", scalar(&setting.value));
        open = parts;
    }
    text
}

/// A value in YAML's flow style. JSON is YAML; only plain words go without quotes.
fn scalar(value: &Value) -> String {
    let plain = |text: &str| {
        let word = |c: char| c.is_ascii_alphanumeric();
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(word)
            && !matches!(
                text.to_ascii_lowercase().as_str(),
                "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
            )
            && text.chars().any(|c| c.is_ascii_alphabetic())
    };
    match value {
        Value::String(text) if plain(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A span of time as it is written in a manifest.
pub(super) fn period(span: Duration) -> String {
    let (seconds, millis) = (span.as_secs(), span.subsec_millis());
    let mut text = String::new();
    for (count, unit) in [
        (seconds / 3600, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
        (u64::from(millis), "ms"),
    ] {
        if count > 0 {
            let _ = write!(text, "{count}{unit}");
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Conversion, OnDelete, Period, Webhook, WebhookMode};

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
        let text = yaml(&settings(&spec, &defaults));
        insta::assert_snapshot!(text);
        let parsed: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(parsed["webhook"]["onDelete"], "Clear");
        assert_eq!(parsed["conversion"]["undeliveredText"], "¡Perdón! # no");
        assert_eq!(
            parsed["kernel"]["scopes"]["registration"][0],
            "whatsapp:app-admin"
        );
    }

    #[test]
    fn a_period_is_written_as_it_is_read() {
        for text in ["4h", "1h30m", "10s", "500ms", "0s"] {
            assert_eq!(period(Period(text.into()).parse().unwrap()), text);
        }
    }
}
