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
    /// Ready, Accepted, CredentialsValid, WebhookRegistered and WebhookVerified; Delivering once the bridge was asked;
    /// Reconciling, Stalled and Suspended only while true.
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
    /// The resourceVersion of the Secret with a key issued elsewhere that was seen last. It stands here before Kernel
    /// is told of the key, so that the bridge takes it before Kernel uses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_api_key_version: Option<String>,
    /// How often another party's webhook was replaced: the memory that keeps two parties from fighting for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_over: Option<TakenOver>,
    /// Another party's webhook was found and left where it was. It stays so, whatever fails meanwhile, until Kernel holds
    /// ours again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_alone: Option<LeftAlone>,
    /// The last value of the channels.auracognitive.com/requestedAt annotation that was acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handled_reconcile_at: Option<String>,
}

/// The API key that Kernel was told, by its marks; never the key itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookKeyStatus {
    /// The generation of the derived key; none where the key was issued elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// A short fingerprint of the installation key that it was derived from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installation_key_id: Option<String>,
    /// The resourceVersion of the Secret with the key issued elsewhere; none where the key is derived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_version: Option<String>,
    /// The generation of the derived key before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_generation: Option<i64>,
    /// Until when the key before this one is still taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_until: Option<Time>,
}

/// That another party's webhook was left where it was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeftAlone {
    /// The generation of the spec that it was left for.
    pub generation: i64,
    /// Why: WebhookForeign or WebhookContested.
    #[schemars(length(max = 64))]
    pub reason: String,
}

/// How often another party's webhook was replaced by ours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TakenOver {
    /// The generation of the spec that it was taken over for.
    pub generation: i64,
    /// When it was put back after that, the last times.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub put_back_at: Vec<Time>,
}
