//! What holds for a channel in the end: what its spec says, else what its environment says, else the default.
//!
//! Every default of the resource stands here and nowhere else.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    ApiVersion, ChoiceStyle, Conversion, DataVersion, Delivery, DeliveryMode, Existing, OnDelete,
    OnUndeliverable, OnUnknownSend, Period, ReplyOrder, ReportedStatus, Scopes, Webhook, WebhookMode,
    WhatsAppChannelSpec,
};

/// What an environment may set for all its channels: any field of the spec but those that make the channel what
/// it is (its ids, its Secrets).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ChannelDefaults {
    /// `spec.kernel`, without the Secret.
    pub kernel: KernelDefaults,
    /// `spec.webhook`.
    pub webhook: Webhook,
    /// `spec.delivery`.
    pub delivery: Delivery,
    /// `spec.conversion`.
    pub conversion: Conversion,
    /// `spec.resyncPeriod`.
    pub resync_period: Option<Period>,
}

/// `spec.kernel`, without the Secret.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KernelDefaults {
    /// `spec.kernel.scopes`.
    pub scopes: Scopes,
    /// `spec.kernel.purposes`.
    pub purposes: Option<Vec<String>>,
    /// `spec.kernel.apiVersion`.
    pub api_version: Option<ApiVersion>,
}

/// A channel's settings with nothing left open.
#[derive(Clone, Debug, PartialEq)]
#[allow(
    missing_docs,
    reason = "each field is documented where the resource declares it"
)]
pub struct Effective {
    pub registration_scopes: Vec<String>,
    pub messaging_scopes: Vec<String>,
    pub purposes: Vec<String>,
    pub api_version: ApiVersion,
    pub mode: WebhookMode,
    pub existing: Existing,
    pub on_delete: OnDelete,
    pub key_generation: u64,
    pub delivery_mode: DeliveryMode,
    pub on_undeliverable: OnUndeliverable,
    pub on_unknown_send: OnUnknownSend,
    pub max_age_to_aura: Duration,
    pub max_age_to_user: Duration,
    pub reply_order: ReplyOrder,
    pub unanswered_after: Duration,
    pub statuses: Vec<ReportedStatus>,
    pub messages_per_second: u32,
    pub channel_data: DataVersion,
    pub options: ChoiceStyle,
    pub undelivered_text: String,
    pub suspend: bool,
    pub resync_period: Option<Duration>,
}

const HOUR: Duration = Duration::from_secs(3600);

impl Effective {
    /// The default of `resyncPeriod` where Kernel can be read back.
    pub const RESYNC: Duration = HOUR;
    /// The default of `resyncPeriod` where it can't be.
    pub const RESYNC_BLIND: Duration = Duration::from_secs(24 * 3600);

    /// Lays the spec over the environment's defaults over the built-in ones.
    pub fn new(spec: &WhatsAppChannelSpec, defaults: &ChannelDefaults) -> Self {
        let (webhook, delivery, conversion) = (
            spec.webhook.clone().unwrap_or_default(),
            spec.delivery.clone().unwrap_or_default(),
            spec.conversion.clone().unwrap_or_default(),
        );
        let (kernel, scopes) = (&spec.kernel, spec.kernel.scopes.clone().unwrap_or_default());
        let (d, spec_age, default_age) = (
            &defaults.delivery,
            delivery.max_age.unwrap_or_default(),
            defaults.delivery.max_age.clone().unwrap_or_default(),
        );
        // What the environment says is a limit too: a channel can only stay below it.
        let per_second = match (delivery.messages_per_second, d.messages_per_second) {
            (Some(own), Some(limit)) => own.min(limit),
            (own, limit) => own.or(limit).unwrap_or(80),
        };
        Self {
            registration_scopes: scopes
                .registration
                .or_else(|| defaults.kernel.scopes.registration.clone())
                .unwrap_or_else(|| vec!["whatsapp:app-admin".to_owned()]),
            messaging_scopes: scopes
                .messaging
                .or_else(|| defaults.kernel.scopes.messaging.clone())
                .unwrap_or_else(|| vec!["whatsapp:app-messaging".to_owned()]),
            purposes: kernel
                .purposes
                .clone()
                .or_else(|| defaults.kernel.purposes.clone())
                .unwrap_or_default(),
            api_version: kernel
                .api_version
                .or(defaults.kernel.api_version)
                .unwrap_or_default(),
            mode: webhook.mode.or(defaults.webhook.mode).unwrap_or_default(),
            existing: webhook.existing.or(defaults.webhook.existing).unwrap_or_default(),
            on_delete: webhook
                .on_delete
                .or(defaults.webhook.on_delete)
                .unwrap_or_default(),
            key_generation: webhook
                .key_generation
                .or(defaults.webhook.key_generation)
                .and_then(|generation| u64::try_from(generation).ok())
                .unwrap_or(1),
            delivery_mode: delivery.mode.or(d.mode).unwrap_or_default(),
            on_undeliverable: delivery
                .on_undeliverable
                .or(d.on_undeliverable)
                .unwrap_or_default(),
            on_unknown_send: delivery.on_unknown_send.or(d.on_unknown_send).unwrap_or_default(),
            max_age_to_aura: period(spec_age.to_aura.as_ref(), default_age.to_aura.as_ref(), 4 * HOUR),
            max_age_to_user: period(spec_age.to_user.as_ref(), default_age.to_user.as_ref(), HOUR),
            reply_order: delivery.reply_order.or(d.reply_order).unwrap_or_default(),
            unanswered_after: period(
                delivery.unanswered_after.as_ref(),
                d.unanswered_after.as_ref(),
                Duration::from_secs(10),
            ),
            statuses: delivery
                .statuses
                .or_else(|| d.statuses.clone())
                .unwrap_or_else(|| vec![ReportedStatus::Failed]),
            messages_per_second: u32::try_from(per_second.clamp(1, 1000)).unwrap_or(80),
            channel_data: conversion
                .channel_data
                .or(defaults.conversion.channel_data)
                .unwrap_or_default(),
            options: conversion
                .options
                .or(defaults.conversion.options)
                .unwrap_or_default(),
            undelivered_text: conversion
                .undelivered_text
                .or_else(|| defaults.conversion.undelivered_text.clone())
                .unwrap_or_default(),
            suspend: spec.suspend.unwrap_or_default(),
            resync_period: spec
                .resync_period
                .as_ref()
                .or(defaults.resync_period.as_ref())
                .and_then(|period| period.parse().ok()),
        }
    }
}

/// The first of the two that is a duration, else the default. (The API server lets none in that is not.)
fn period(spec: Option<&Period>, environment: Option<&Period>, default: Duration) -> Duration {
    spec.or(environment)
        .and_then(|period| period.parse().ok())
        .unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_spec_gets_the_documented_defaults() {
        let effective = Effective::new(&WhatsAppChannelSpec::example(), &ChannelDefaults::default());
        assert_eq!(effective.registration_scopes, ["whatsapp:app-admin"]);
        assert_eq!(effective.messaging_scopes, ["whatsapp:app-messaging"]);
        assert_eq!(effective.statuses, [ReportedStatus::Failed]);
        assert_eq!((effective.key_generation, effective.messages_per_second), (1, 80));
        for (own, limit, holds) in [
            (Some(5), Some(10), 5),
            (Some(50), Some(10), 10),
            (None, Some(10), 10),
            (Some(200), None, 200),
        ] {
            let mut spec = WhatsAppChannelSpec::example();
            let delivery = |messages_per_second| Delivery {
                messages_per_second,
                ..Delivery::default()
            };
            spec.delivery = Some(delivery(own));
            let defaults = ChannelDefaults {
                delivery: delivery(limit),
                ..ChannelDefaults::default()
            };
            assert_eq!(Effective::new(&spec, &defaults).messages_per_second, holds);
        }
        assert_eq!(
            (effective.max_age_to_aura, effective.max_age_to_user),
            (4 * HOUR, HOUR)
        );
        assert_eq!(
            (effective.mode, effective.existing),
            (WebhookMode::Manage, Existing::Refuse)
        );
    }

    #[test]
    fn the_spec_wins_over_the_environment_and_the_environment_over_the_default() {
        let mut spec = WhatsAppChannelSpec::example();
        let defaults = ChannelDefaults {
            webhook: Webhook {
                mode: Some(WebhookMode::Observe),
                on_delete: Some(OnDelete::Clear),
                ..Webhook::default()
            },
            resync_period: Some(Period("2h".into())),
            ..ChannelDefaults::default()
        };
        spec.webhook = Some(Webhook {
            mode: Some(WebhookMode::Manage),
            ..Webhook::default()
        });
        spec.delivery = Some(Delivery {
            statuses: Some(Vec::new()),
            ..Delivery::default()
        });
        let effective = Effective::new(&spec, &defaults);
        assert_eq!(effective.statuses, [], "none is a list too");
        assert_eq!(effective.mode, WebhookMode::Manage);
        assert_eq!(effective.on_delete, OnDelete::Clear);
        assert_eq!(effective.resync_period, Some(2 * HOUR));
    }
}
