//! The spec of a `WhatsAppChannel`, as people write it.
//!
//! No field has a default in the schema: a default may be set per environment, and the controller writes nothing
//! into a spec, so that a GitOps tool never sees a difference. `effective.rs` says what holds in the end.
//! Rules that a manifest must keep are CEL, because a CEL rule can say what to write instead.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Period, WhatsAppChannelStatus};

/// A WhatsApp number served by Aura.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "channels.auracognitive.com",
    version = "v1alpha1",
    kind = "WhatsAppChannel",
    plural = "whatsappchannels",
    singular = "whatsappchannel",
    shortname = "wac",
    category = "aura",
    namespaced,
    status = "WhatsAppChannelStatus",
    derive = "PartialEq",
    selectable = ".spec.channelId",
    selectable = ".spec.environment",
    doc = "A WhatsApp number of Aura. The controller registers the number's webhook with Kernel and keeps it registered; the bridge carries its messages to Aura and Aura's replies back.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(name = "Number", type_ = "string", json_path = ".spec.phoneNumber"),
    printcolumn(name = "Environment", type_ = "string", json_path = ".spec.environment"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Channel",
        type_ = "string",
        json_path = ".spec.channelId",
        priority = 1
    ),
    printcolumn(
        name = "Delivering",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Delivering\")].reason",
        priority = 1
    ),
    printcolumn(
        name = "Webhook",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"WebhookRegistered\")].reason",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct WhatsAppChannelSpec {
    /// The UUID that identifies the channel in Aura (channel_id of the Aura channel model). Immutable.
    #[schemars(length(max = 36))]
    #[x_kube(
        validation = kube::core::Rule::new("self.matches('^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$')")
            .message("channelId must be a UUID in lower case, such as 6f1c2a9e-5f0e-4a57-9d2c-0b7a3c1d8e42"),
        validation = kube::core::Rule::new("self == oldSelf")
            .message("channelId is immutable: delete this channel and create one with the other id")
    )]
    pub channel_id: String,

    /// The business number, for people: it is printed by kubectl and helps to notice swapped Secrets. A short
    /// number is fine. Digits, with or without a leading +.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = kube::core::Rule::new("self.matches('^[+]?[0-9]{3,15}$')")
        .message("phoneNumber must be 3 to 15 digits, with or without a leading +, such as \"+34600001002\""))]
    pub phone_number: Option<String>,

    /// The name of an environment in the installation's configuration: which Kernel and which Aura. Immutable.
    #[schemars(length(max = 63))]
    #[x_kube(
        validation = kube::core::Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
            .message("environment must be the name of an environment of the installation, such as es-pro"),
        validation = kube::core::Rule::new("self == oldSelf")
            .message("environment is immutable: delete this channel and create it anew in the other environment")
    )]
    pub environment: String,

    /// How to talk to Kernel on behalf of this number.
    pub kernel: Kernel,

    /// The webhook that Kernel calls for this number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Webhook>,

    /// How messages are delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<Delivery>,

    /// How messages are converted between WhatsApp and Aura.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversion: Option<Conversion>,

    /// The controller leaves the channel alone while this is true; the bridge goes on routing its messages, and
    /// deletion still works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,

    /// How often Kernel is asked whether it still holds our webhook. Default 1h; 24h where Kernel can't be read
    /// back. From 1m to 168h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(
        validation = kube::core::Rule::new("self.matches('^([0-9]+(ms|s|m|h))+$')")
            .message("resyncPeriod must be a duration such as 30m or 1h30m"),
        validation = kube::core::Rule::new("!self.matches('^([0-9]+(ms|s|m|h))+$') || (duration(self) >= duration('1m') && duration(self) <= duration('168h'))")
            .message("resyncPeriod must be between 1m and 168h")
    )]
    pub resync_period: Option<Period>,
}

/// The channel's Kernel client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Kernel {
    /// The Secret with the number's Kernel client, in this namespace. It must carry the label
    /// channels.auracognitive.com/channel-secret=true.
    pub credentials_secret_ref: CredentialsRef,

    /// The OAuth scopes to ask for. Each role asks only for its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Scopes>,

    /// The OAuth purposes to ask for; none unless the Kernel team said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 128)))]
    #[x_kube(validation = kube::core::Rule::new("self.all(p, p.matches('^[!#-Z^-~]+$'))")
        .message("a purpose is one word without spaces or quotes; write several as several items"))]
    pub purposes: Option<Vec<String>>,

    /// The version of Kernel's WhatsApp API: v1 (shapes of the on-premises API) or v2 (shapes of the Cloud API).
    /// Default v1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<ApiVersion>,
}

/// A Secret with OAuth client credentials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CredentialsRef {
    /// The name of the Secret.
    #[schemars(length(max = 253))]
    #[x_kube(validation = kube::core::Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')")
        .message("name must be the name of a Secret in this namespace, such as shop-es-kernel"))]
    pub name: String,
    /// The key that holds the client id. Default id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = kube::core::Rule::new("self.matches('^[-._a-zA-Z0-9]+$')")
        .message("idKey must be a key of the Secret: letters, digits, '-', '_' and '.'"))]
    pub id_key: Option<String>,
    /// The key that holds the client secret. Default secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = kube::core::Rule::new("self.matches('^[-._a-zA-Z0-9]+$')")
        .message("secretKey must be a key of the Secret: letters, digits, '-', '_' and '.'"))]
    pub secret_key: Option<String>,
}

/// One key of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyRef {
    /// The name of the Secret. It must carry the label channels.auracognitive.com/channel-secret=true.
    #[schemars(length(max = 253))]
    #[x_kube(validation = kube::core::Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')")
        .message("name must be the name of a Secret in this namespace, such as shop-es-webhook"))]
    pub name: String,
    /// The key that holds the value.
    #[schemars(length(max = 253))]
    #[x_kube(validation = kube::core::Rule::new("self.matches('^[-._a-zA-Z0-9]+$')")
        .message("key must be a key of the Secret: letters, digits, '-', '_' and '.'"))]
    pub key: String,
}

/// OAuth scopes by what they are used for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Scopes {
    /// Asked for by the controller to set the webhook. Default [whatsapp:app-admin].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 128)))]
    #[x_kube(validation = kube::core::Rule::new("self.all(s, s.matches('^[!#-Z^-~]+$'))")
        .message("a scope is one word without spaces or quotes; write several as several items"))]
    pub registration: Option<Vec<String>>,
    /// Asked for by the bridge to send messages. Default [whatsapp:app-messaging].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 128)))]
    #[x_kube(validation = kube::core::Rule::new("self.all(s, s.matches('^[!#-Z^-~]+$'))")
        .message("a scope is one word without spaces or quotes; write several as several items"))]
    pub messaging: Option<Vec<String>>,
}

/// The webhook that Kernel calls for this number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Webhook {
    /// Manage registers our webhook and keeps it registered. Observe checks everything, says what would change and
    /// changes nothing at Kernel. Legacy registers the callback of the system before, from the environment's
    /// legacyCallback. Default Manage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<WebhookMode>,
    /// What to do when Kernel holds a URL that is not ours: Refuse or TakeOver. Default Refuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub existing: Option<Existing>,
    /// What becomes of Kernel's webhook when this resource is deleted: Keep or Clear. Default Keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_delete: Option<OnDelete>,
    /// Raise it by one to rotate the webhook's API key. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub key_generation: Option<i64>,
    /// An API key issued elsewhere, instead of the derived one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_secret_ref: Option<KeyRef>,
}

/// How messages are delivered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    /// Deliver, or Hold: accept and keep every message, deliver none. Default Deliver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<DeliveryMode>,
    /// What becomes of a conversation whose message went to the dead letters: Continue with the next one, or
    /// HoldConversation. Default Continue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_undeliverable: Option<OnUndeliverable>,
    /// What becomes of a reply that may have arrived, because it was written to Kernel and there was no answer (or a
    /// gateway's 502 or 504): Retry with the same idempotency key, or Hold for a person, also after a crash. Default Retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_unknown_send: Option<OnUnknownSend>,
    /// Older messages go to the dead letters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<MaxAge>,
    /// AfterEarlierRequests: a reply waits until earlier messages of its conversation were answered. AsReceived: it
    /// does not. Default AfterEarlierRequests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_order: Option<ReplyOrder>,
    /// How long a reply waits for an earlier message's answer. Default 10s; from 1s to 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(
        validation = kube::core::Rule::new("self.matches('^([0-9]+(ms|s|m|h))+$')")
            .message("unansweredAfter must be a duration such as 10s"),
        validation = kube::core::Rule::new("!self.matches('^([0-9]+(ms|s|m|h))+$') || (duration(self) >= duration('1s') && duration(self) <= duration('5m'))")
            .message("unansweredAfter must be between 1s and 5m")
    )]
    pub unanswered_after: Option<Period>,
    /// Which of WhatsApp's statuses of sent messages Aura is told, as events: Failed, Sent, Delivered, Read, Other (what
    /// is no step of a message's way, such as a warning). Default [Failed]; [] tells none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 5))]
    #[x_kube(validation = kube::core::Rule::new("self.all(s, self.exists_one(o, o == s))")
        .message("statuses must name each status once"))]
    pub statuses: Option<Vec<ReportedStatus>>,
    /// How many messages a second this number may send towards Kernel. Default 80; an environment can only lower it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub messages_per_second: Option<i64>,
}

/// How old a message may get before it is no longer delivered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MaxAge {
    /// From the user to Aura. Default 4h; from 1m to 168h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(
        validation = kube::core::Rule::new("self.matches('^([0-9]+(ms|s|m|h))+$')")
            .message("toAura must be a duration such as 4h"),
        validation = kube::core::Rule::new("!self.matches('^([0-9]+(ms|s|m|h))+$') || (duration(self) >= duration('1m') && duration(self) <= duration('168h'))")
            .message("toAura must be between 1m and 168h")
    )]
    pub to_aura: Option<Period>,
    /// From Aura to the user. Default 1h; from 1m to 168h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(
        validation = kube::core::Rule::new("self.matches('^([0-9]+(ms|s|m|h))+$')")
            .message("toUser must be a duration such as 1h"),
        validation = kube::core::Rule::new("!self.matches('^([0-9]+(ms|s|m|h))+$') || (duration(self) >= duration('1m') && duration(self) <= duration('168h'))")
            .message("toUser must be between 1m and 168h")
    )]
    pub to_user: Option<Period>,
}

/// How messages are converted between WhatsApp and Aura.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Conversion {
    /// The version of Aura's channelData: v1, v2 or v3. Default v2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel_data: Option<DataVersion>,
    /// How a question's choices are shown: Auto, Buttons, List or Text. Default Auto.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<ChoiceStyle>,
    /// What the user is told when a reply is lost for good. Default empty: nothing is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub undelivered_text: Option<String>,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $first:ident $(, $other:ident)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        #[allow(missing_docs, reason = "the field that holds the word documents each")]
        pub enum $name { #[default] $first $(, $other)* }
    };
}

words!(/** What is done about Kernel's webhook. */ WebhookMode { Manage, Observe, Legacy });
words!(/** What is done about a URL at Kernel that is not ours. */ Existing { Refuse, TakeOver });
words!(/** What becomes of Kernel's webhook on deletion. */ OnDelete { Keep, Clear });
words!(/** Whether messages are delivered. */ DeliveryMode { Deliver, Hold });
words!(/** What becomes of a conversation after a dead letter. */ OnUndeliverable { Continue, HoldConversation });
words!(/** What becomes of a send whose outcome is unknown. */ OnUnknownSend { Retry, Hold });
words!(/** In which order replies leave. */ ReplyOrder { AfterEarlierRequests, AsReceived });
words!(/** What WhatsApp reports of a sent message. */ ReportedStatus { Failed, Sent, Delivered, Read, Other });
words!(/** How choices are shown. */ ChoiceStyle { Auto, Buttons, List, Text });

/// The version of Kernel's WhatsApp API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the field that holds the word documents each")]
pub enum ApiVersion {
    #[default]
    V1,
    V2,
}

/// The version of Aura's channelData.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the field that holds the word documents each")]
pub enum DataVersion {
    V1,
    #[default]
    V2,
    V3,
}

impl CredentialsRef {
    /// The key of the Secret that holds the client id.
    pub fn id_key(&self) -> &str {
        self.id_key.as_deref().unwrap_or("id")
    }

    /// The key of the Secret that holds the client secret.
    pub fn secret_key(&self) -> &str {
        self.secret_key.as_deref().unwrap_or("secret")
    }
}

impl WhatsAppChannelSpec {
    /// Every Secret of the channel's namespace that the spec names.
    pub fn secret_names(&self) -> Vec<&str> {
        let key = self
            .webhook
            .as_ref()
            .and_then(|webhook| webhook.api_key_secret_ref.as_ref());
        std::iter::once(self.kernel.credentials_secret_ref.name.as_str())
            .chain(key.map(|reference| reference.name.as_str()))
            .collect()
    }
}

#[cfg(test)]
impl WhatsAppChannelSpec {
    /// The least that a spec holds, for tests.
    pub(crate) fn example() -> Self {
        Self {
            channel_id: "6f1c2a9e-5f0e-4a57-9d2c-0b7a3c1d8e42".into(),
            phone_number: None,
            environment: "es-pro".into(),
            kernel: Kernel {
                credentials_secret_ref: CredentialsRef {
                    name: "shop".into(),
                    id_key: None,
                    secret_key: None,
                },
                scopes: None,
                purposes: None,
                api_version: None,
            },
            webhook: None,
            delivery: None,
            conversion: None,
            suspend: None,
            resync_period: None,
        }
    }
}
