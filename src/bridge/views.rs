//! What the bridge keeps of each resource: no secret, and little, because there may be a hundred thousand. Pure.
//!
//! What channels have in common is kept once: their namespaces, and their specs without what is each one's own.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
};

use kube::ResourceExt;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};

use crate::api::{
    ChannelDefaults, ChannelId, Claim, CredentialsRef, Effective, KeyRef, WebhookKeyStatus, WhatsAppChannel,
    WhatsAppChannelSpec,
};

/// How many texts and specs are kept before those that nobody has any more are looked for.
const SWEEP_AT: usize = 64;

/// What the bridge keeps of a resource. Also what the snapshot holds.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelView {
    /// The resource's namespace.
    pub namespace: Arc<str>,
    /// The resource's name.
    pub name: Arc<str>,
    /// When the resource was created, in seconds since 1970.
    pub created: i64,
    /// It is being deleted: another that claims its channel holds it.
    pub leaving: bool,
    /// The channel that it claims.
    pub channel: ChannelId,
    /// The Secret with its Kernel client; the keys within stand in the common spec.
    pub client_secret: Box<str>,
    /// Its key that was issued elsewhere.
    pub issued_key: Option<Box<KeyRef>>,
    /// The rest of its spec.
    pub common: Arc<CommonSpec>,
    /// The resourceVersion of the Secret that the controller used last: a change of it says that the Secret changed.
    pub secret_version: Option<Arc<str>>,
    /// The resourceVersion of the Secret with a key issued elsewhere, as the controller announced it.
    pub api_key_version: Option<Box<str>>,
    /// The key that Kernel was told.
    pub webhook_key: Option<WebhookKeyStatus>,
}

/// A spec without what is its channel's own.
#[derive(Debug, PartialEq)]
pub struct CommonSpec(WhatsAppChannelSpec);

/// What channels have in common, each once.
#[derive(Debug, Default)]
pub struct Commons {
    namespaces: HashSet<Arc<str>>,
    /// By a digest of what they say.
    specs: HashMap<[u8; 16], Arc<CommonSpec>>,
    sweep_at: usize,
}

/// What is known of all resources, as the snapshot holds it.
#[derive(Debug, Default)]
pub struct KnownViews {
    /// The resources.
    pub views: Vec<Arc<ChannelView>>,
    /// What they have in common.
    pub commons: Commons,
}

/// A resource in the snapshot.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Saved {
    namespace: String,
    name: String,
    created: i64,
    #[serde(default)]
    leaving: bool,
    spec: WhatsAppChannelSpec,
    secret_version: Option<String>,
    #[serde(default)]
    api_key_version: Option<String>,
    webhook_key: Option<WebhookKeyStatus>,
}

impl CommonSpec {
    /// The name of the environment.
    pub fn environment(&self) -> &str {
        &self.0.environment
    }

    /// A Secret with a Kernel client, and the keys within that hold the client's id and secret.
    pub fn client(&self, secret: &str) -> CredentialsRef {
        CredentialsRef {
            name: secret.to_owned(),
            ..self.0.kernel.credentials_secret_ref.clone()
        }
    }

    /// Whether another reads a Secret with a Kernel client alike.
    pub fn reads_client_like(&self, other: &Self) -> bool {
        let own = &self.0.kernel.credentials_secret_ref;
        let theirs = &other.0.kernel.credentials_secret_ref;
        (own.id_key(), own.secret_key()) == (theirs.id_key(), theirs.secret_key())
    }

    /// What holds where an environment says this.
    pub fn effective(&self, defaults: &ChannelDefaults) -> Effective {
        Effective::new(&self.0, defaults)
    }
}

impl Commons {
    /// What is kept of a resource; `None` for one that was never stored, or that claims no channel.
    pub fn view(&mut self, channel: &WhatsAppChannel) -> Option<ChannelView> {
        let status = channel.status.as_ref();
        self.compact(Saved {
            namespace: channel.namespace()?,
            name: channel.name_any(),
            created: channel.creation_timestamp()?.0.as_second(),
            leaving: channel.metadata.deletion_timestamp.is_some(),
            spec: channel.spec.clone(),
            secret_version: status.and_then(|status| status.observed_secret_version.clone()),
            api_key_version: status.and_then(|status| status.observed_api_key_version.clone()),
            webhook_key: status.and_then(|status| status.webhook_key.clone()),
        })
    }

    fn compact(&mut self, saved: Saved) -> Option<ChannelView> {
        let mut spec = saved.spec;
        let channel = std::mem::take(&mut spec.channel_id).parse().ok()?;
        let client_secret = std::mem::take(&mut spec.kernel.credentials_secret_ref.name).into();
        let issued_key = spec
            .webhook
            .as_mut()
            .and_then(|webhook| webhook.api_key_secret_ref.take())
            .map(Box::new);
        // For people; nothing here goes by it.
        spec.phone_number = None;
        Some(ChannelView {
            namespace: self.namespace(&saved.namespace),
            name: saved.name.into(),
            created: saved.created,
            leaving: saved.leaving,
            channel,
            client_secret,
            issued_key,
            common: self.common(spec),
            secret_version: saved.secret_version.map(Into::into),
            api_key_version: saved.api_key_version.map(Into::into),
            webhook_key: saved.webhook_key.map(|told| WebhookKeyStatus {
                // Which installation key is in force, the bridge knows from its own.
                installation_key_id: None,
                ..told
            }),
        })
    }

    fn namespace(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.namespaces.get(name) {
            return known.clone();
        }
        self.sweep();
        let name: Arc<str> = name.into();
        self.namespaces.insert(name.clone());
        name
    }

    fn common(&mut self, spec: WhatsAppChannelSpec) -> Arc<CommonSpec> {
        let Ok(text) = serde_json::to_vec(&spec) else {
            return Arc::new(CommonSpec(spec));
        };
        let hash = Sha256::digest(text);
        let mut digest = [0; 16];
        digest.copy_from_slice(&hash[..16]);
        if let Some(known) = self.specs.get(&digest) {
            if known.0 == spec {
                return known.clone();
            }
            // Never another's, whatever made the digests meet.
            return Arc::new(CommonSpec(spec));
        }
        self.sweep();
        let spec = Arc::new(CommonSpec(spec));
        self.specs.insert(digest, spec.clone());
        spec
    }

    /// Forgets what no channel has any more, once there may be as much of it as of the rest.
    fn sweep(&mut self) {
        if self.namespaces.len() + self.specs.len() < self.sweep_at.max(SWEEP_AT) {
            return;
        }
        self.namespaces.retain(|name| Arc::strong_count(name) > 1);
        self.specs.retain(|_, spec| Arc::strong_count(spec) > 1);
        self.sweep_at = 2 * (self.namespaces.len() + self.specs.len());
    }
}

impl ChannelView {
    /// What it claims its channel with.
    pub fn claim(&self) -> Claim {
        Claim {
            created: self.created,
            namespace: self.namespace.as_ref().to_owned(),
            name: self.name.as_ref().to_owned(),
        }
    }

    fn saved(&self) -> Saved {
        let mut spec = self.common.0.clone();
        spec.channel_id = self.channel.to_string();
        spec.kernel.credentials_secret_ref.name = self.client_secret.clone().into();
        if let Some(reference) = &self.issued_key {
            spec.webhook.get_or_insert_default().api_key_secret_ref = Some(reference.as_ref().clone());
        }
        Saved {
            namespace: self.namespace.as_ref().to_owned(),
            name: self.name.as_ref().to_owned(),
            created: self.created,
            leaving: self.leaving,
            spec,
            secret_version: self.secret_version.as_deref().map(ToOwned::to_owned),
            api_key_version: self.api_key_version.as_deref().map(ToOwned::to_owned),
            webhook_key: self.webhook_key.clone(),
        }
    }
}

impl Serialize for ChannelView {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.saved().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for KnownViews {
    /// One resource after the other: all of them at once, as they are written, would take many times the room.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> de::Visitor<'de> for Each {
            type Value = KnownViews;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of channels")
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut all: A) -> Result<KnownViews, A::Error> {
                let mut known = KnownViews::default();
                while let Some(saved) = all.next_element()? {
                    known.views.extend(known.commons.compact(saved).map(Arc::new));
                }
                Ok(known)
            }
        }
        deserializer.deserialize_seq(Each)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::api::{Delivery, DeliveryMode, Webhook};

    /// A view of a resource with this spec, but for its channel and its environment, "es-dev".
    pub(in crate::bridge) fn view_of(
        namespace: &str,
        name: &str,
        created: i64,
        id: u8,
        spec: WhatsAppChannelSpec,
    ) -> ChannelView {
        let mut commons = Commons::default();
        let saved = saved(namespace, name, created, id, spec);
        commons.compact(saved).unwrap()
    }

    pub(in crate::bridge) fn view(namespace: &str, name: &str, created: i64, id: u8) -> ChannelView {
        view_of(namespace, name, created, id, WhatsAppChannelSpec::example())
    }

    fn saved(namespace: &str, name: &str, created: i64, id: u8, spec: WhatsAppChannelSpec) -> Saved {
        Saved {
            namespace: namespace.into(),
            name: name.into(),
            created,
            leaving: false,
            spec: WhatsAppChannelSpec {
                channel_id: ChannelId::from_bytes([id; 16]).to_string(),
                environment: "es-dev".into(),
                ..spec
            },
            secret_version: None,
            api_key_version: None,
            webhook_key: None,
        }
    }

    fn holding() -> WhatsAppChannelSpec {
        WhatsAppChannelSpec {
            delivery: Some(Delivery {
                mode: Some(DeliveryMode::Hold),
                ..Delivery::default()
            }),
            ..WhatsAppChannelSpec::example()
        }
    }

    #[test]
    fn channels_that_say_the_same_share_it_whatever_their_own_is() {
        let mut commons = Commons::default();
        let mut named = WhatsAppChannelSpec::example();
        named.kernel.credentials_secret_ref.name = "another".into();
        named.phone_number = Some("34600001002".into());
        let mut view = |id, spec| commons.compact(saved("a", "b", 1, id, spec)).unwrap();
        let (one, same, other) = (
            view(1, WhatsAppChannelSpec::example()),
            view(2, named),
            view(3, holding()),
        );
        assert!(Arc::ptr_eq(&one.common, &same.common) && Arc::ptr_eq(&one.namespace, &other.namespace));
        assert!(!Arc::ptr_eq(&one.common, &other.common));
        assert_eq!((&*one.client_secret, &*same.client_secret), ("shop", "another"));
    }

    #[test]
    fn what_no_channel_says_any_more_is_forgotten() {
        let mut commons = Commons::default();
        let mut last = None;
        for n in 0..1000 {
            let mut spec = holding();
            spec.delivery.as_mut().unwrap().messages_per_second = Some(n);
            last = commons.compact(saved(&n.to_string(), "b", 1, 1, spec));
        }
        assert!(commons.specs.len() + commons.namespaces.len() <= 2 * SWEEP_AT);
        let again = commons.compact(last.clone().unwrap().saved()).unwrap();
        assert!(Arc::ptr_eq(&again.common, &last.unwrap().common), "still known");
    }

    #[test]
    fn a_view_is_written_as_its_resource_says_and_read_again() {
        let spec = WhatsAppChannelSpec {
            webhook: Some(Webhook {
                key_generation: Some(3),
                api_key_secret_ref: Some(KeyRef {
                    name: "k".into(),
                    key: "v".into(),
                }),
                ..Webhook::default()
            }),
            ..holding()
        };
        let mut view = view_of("a", "b", 7, 1, spec.clone());
        view.secret_version = Some("12".into());
        view.api_key_version = Some("13".into());
        let written = serde_json::to_value([&view]).unwrap();
        assert_eq!(written[0]["spec"], {
            let channel_id = view.channel.to_string();
            serde_json::to_value(WhatsAppChannelSpec {
                channel_id,
                environment: "es-dev".into(),
                ..spec
            })
            .unwrap()
        });
        let read: KnownViews = serde_json::from_value(written).unwrap();
        assert_eq!(*read.views[0], view);
    }

    #[test]
    fn a_resource_that_claims_no_channel_is_none() {
        let mut commons = Commons::default();
        let mut none = saved("a", "b", 1, 1, WhatsAppChannelSpec::example());
        none.spec.channel_id = "no uuid".into();
        assert_eq!(commons.compact(none), None);
    }
}
