//! What the controller reports of a channel. People, GitOps tools and the bridge read it; nobody else writes it.

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// What the controller saw and did. The `Ready` condition sums it up; its reason says what to do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WhatsAppChannelStatus {
    /// The generation of the spec that this status speaks of; -1 before the controller has seen the channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Accepted, CredentialsValid, WebhookRegistered and WebhookVerified; Reconciling, Stalled and
    /// Suspended only while true.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// The URL that Kernel was told to call, its key masked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook_url: Option<String>,
    /// When Kernel last took a registration from us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registered_at: Option<Time>,
    /// Which key Kernel was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook_key: Option<WebhookKeyStatus>,
    /// The resourceVersion of the credentials Secret that was used last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_secret_version: Option<String>,
    /// The last value of the channels.auracognitive.com/requestedAt annotation that was acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handled_reconcile_at: Option<String>,
}

/// The API key that Kernel was told, by its marks; never the key itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookKeyStatus {
    /// The generation of the derived key.
    pub generation: i64,
    /// A short fingerprint of the installation key that it was derived from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installation_key_id: Option<String>,
    /// Until when the key before this one is still taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_until: Option<Time>,
}
