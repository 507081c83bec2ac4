//! Whose webhook Kernel holds, for whoever looks at a channel without being its controller: the same judgement, and
//! what can be said of the key by somebody who may lack the installation key. Pure.

use std::borrow::Cow;

use secrecy::ExposeSecret;
use url::Url;

use super::webhook::{Desired, Held, mask};
use crate::{
    api::{ChannelId, Effective, WebhookMode},
    config::Environment,
    kernel::contract::API_KEY_NAMES,
    keys::{ApiKey, Keys, Tag},
};

/// A channel, as far as its webhook is concerned.
pub(crate) struct Subject<'a> {
    /// The environment's name.
    pub environment_name: &'a str,
    /// The environment.
    pub environment: &'a Environment,
    /// The channel's namespace.
    pub namespace: &'a str,
    /// The channel.
    pub channel: ChannelId,
    /// Its settings.
    pub effective: &'a Effective,
    /// The key that a Secret holds, where the channel or mode Legacy names one.
    pub issued: Option<&'a ApiKey>,
    /// The installation's keys, where they may be known.
    pub keys: Option<&'a Keys>,
}

/// Whose a webhook is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// The one that the channel should have.
    Ours(HeldKey),
    /// Ours, below a public URL that was in force before, or our bridge where mode Legacy wants the system before.
    Former,
    /// Somebody else's; the host is safe to print.
    Foreign(String),
}

/// What can be said of the key in a webhook of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeldKey {
    /// It is the one in force.
    Current,
    /// Kernel shows none.
    Masked,
    /// The one in force is not known here.
    NotCompared,
    /// It is derived from the installation key, for another generation.
    Generation(u64),
    /// It is derived for another environment or namespace, or from another installation key, or is issued elsewhere.
    Other,
}

impl Subject<'_> {
    fn wanted(&self) -> Option<ApiKey> {
        let derived = |keys: &Keys| {
            let tag = Tag::new(self.environment_name, self.namespace);
            keys.api_key(tag, self.effective.key_generation, self.channel)
        };
        self.issued.cloned().or_else(|| self.keys.map(derived))
    }

    fn legacy(&self) -> Option<&str> {
        let legacy = self.environment.legacy_callback.as_ref();
        legacy
            .filter(|_| self.effective.mode == WebhookMode::Legacy)
            .map(|legacy| legacy.url.as_str())
    }

    fn desired(&self, key: Option<&ApiKey>) -> Desired {
        match (self.legacy(), key) {
            (Some(template), _) => Desired::from_template(template, self.channel, self.issued),
            (None, Some(key)) => Desired::new(self.environment, self.channel, key),
            // A stand-in: only the place is compared then.
            (None, None) => Desired::new(self.environment, self.channel, &ApiKey::issued("unknown")),
        }
    }

    /// The URL that Kernel should hold, its key masked.
    pub(crate) fn expected(&self) -> String {
        self.desired(self.wanted().as_ref()).masked()
    }

    /// Whose this URL is.
    pub(crate) fn judge(&self, held: &str) -> Whose {
        let wanted = self.wanted();
        let desired = self.desired(wanted.as_ref());
        let judge = |held: &str| desired.judge(self.environment, self.channel, held);
        // The place first, with the key out of sight: what is left can only be about the key.
        let place = if self.legacy().is_some() {
            Cow::Borrowed(held)
        } else {
            Cow::Owned(mask(held))
        };
        match judge(&place) {
            Held::Foreign { host } | Held::Legacy { host } => return Whose::Foreign(host),
            Held::Outdated
                if self.legacy().is_some() && same_place(held, desired.expose().expose_secret()) => {}
            Held::Outdated | Held::Empty | Held::Unsupported => return Whose::Former,
            Held::Current { .. } => {}
        }
        Whose::Ours(match judge(held) {
            Held::Current { key_seen: false } => HeldKey::Masked,
            _ if wanted.is_none() && self.legacy().is_none() => HeldKey::NotCompared,
            Held::Current { key_seen: true } => HeldKey::Current,
            _ => self.other(held),
        })
    }

    /// What the controller would make of this URL, and whether its key could be compared for that. Without the
    /// installation key, what a derived key says of itself is believed.
    pub(super) fn held(&self, held: &str) -> (Held, bool) {
        let wanted = self.wanted();
        let desired = self.desired(wanted.as_ref());
        let judge = |held: &str| desired.judge(self.environment, self.channel, held);
        if wanted.is_some() || self.legacy().is_some() {
            return (judge(held), true);
        }
        let (Held::Current { .. }, Held::Outdated) = (judge(&mask(held)), judge(held)) else {
            // Not our place, or a masked key.
            return (judge(held), true);
        };
        let tag = Tag::new(self.environment_name, self.namespace);
        let start = format!("{tag}.{}.", self.effective.key_generation);
        if key_in(held).is_some_and(|key| key.expose().starts_with(&start)) {
            (Held::Current { key_seen: true }, false)
        } else {
            (Held::Outdated, true)
        }
    }

    fn other(&self, held: &str) -> HeldKey {
        let proof = self
            .keys
            .zip(key_in(held))
            .and_then(|(keys, key)| keys.verify(self.channel, key.expose()));
        match proof {
            Some(proof) if proof.tag == Tag::new(self.environment_name, self.namespace) => {
                HeldKey::Generation(proof.generation)
            }
            _ => HeldKey::Other,
        }
    }
}

/// The key that stands in a URL.
fn key_in(held: &str) -> Option<ApiKey> {
    let url = Url::parse(held.trim()).ok()?;
    url.query_pairs()
        .find(|(name, _)| API_KEY_NAMES.contains(&name.as_ref()))
        .map(|(_, value)| ApiKey::issued(value))
}

fn same_place(a: &str, b: &str) -> bool {
    let place = |text: &str| {
        let url = Url::parse(text.trim()).ok()?;
        Some((url.host_str()?.to_owned(), url.path().to_owned()))
    };
    place(a).is_some() && place(a) == place(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{ChannelDefaults, WhatsAppChannelSpec},
        config::Installation,
        keys::{CONVERSATIONS, CURRENT, KeyMaterial},
    };

    fn environment() -> Environment {
        let text = r"
environments:
  es:
    namespaces: [n]
    publicUrl: https://svc.example.com
    formerPublicUrls: [https://old.example.com]
    kernel: {apiUrl: https://k.example.com, authUrl: https://k.example.com}
    aura: {messagesUrl: https://a.example.com, replyUrl: http://b, outboundAuth: {apiKeyFile: /x}, inboundAuth: {apiKeyFile: /x}}
    legacyCallback: {url: 'https://legacy.example.com/cb?apikey={apikey}&channelId={channelId}', apiKeySecretRef: {name: legacy, key: key}}
";
        let mut installation = Installation::parse(text, "t").unwrap();
        installation.environments.remove("es").unwrap()
    }

    fn keys() -> Keys {
        let entry = |name: &str| [CURRENT, CONVERSATIONS].contains(&name).then(|| vec![b'k'; 64]);
        Keys::derive(&KeyMaterial::new(entry).unwrap())
    }

    fn at(host: &str, key: &str) -> String {
        let id = ChannelId::from_bytes([7; 16]);
        format!("https://{host}/aura-services/v1/whatsapp/messages?apikey={key}&channelId={id}")
    }

    #[test]
    fn with_the_installation_key_the_held_key_is_named_by_its_generation() {
        let (environment, keys) = (environment(), keys());
        let effective = Effective::new(&WhatsAppChannelSpec::example(), &ChannelDefaults::default());
        let channel = ChannelId::from_bytes([7; 16]);
        let subject = |keys, issued| Subject {
            environment_name: "es",
            environment: &environment,
            namespace: "n",
            channel,
            effective: &effective,
            issued,
            keys,
        };
        let derived = |namespace: &str, generation| {
            let key = keys.api_key(Tag::new("es", namespace), generation, channel);
            at("svc.example.com", key.expose())
        };
        let known = subject(Some(&keys), None);
        let ours = Whose::Ours;
        assert_eq!(known.judge(&derived("n", 1)), ours(HeldKey::Current));
        assert_eq!(known.judge(&derived("n", 7)), ours(HeldKey::Generation(7)));
        assert_eq!(known.judge(&derived("m", 1)), ours(HeldKey::Other));
        assert_eq!(known.judge(&at("svc.example.com", "****")), ours(HeldKey::Masked));
        assert_eq!(known.judge(&at("old.example.com", "x")), Whose::Former);
        assert_eq!(
            known.judge(&at("x.example.com", "x")),
            Whose::Foreign("x.example.com".into())
        );

        let unknown = subject(None, None);
        assert_eq!(unknown.judge(&derived("n", 1)), ours(HeldKey::NotCompared));
        assert_eq!(
            unknown.judge(&at("svc.example.com", "****")),
            ours(HeldKey::Masked)
        );
        assert!(matches!(
            unknown.judge(&at("x.example.com", "x")),
            Whose::Foreign(_)
        ));
        assert!(unknown.expected().contains("apikey=****"));

        let issued = ApiKey::issued("fake-issued-key");
        let issued = subject(None, Some(&issued));
        assert_eq!(
            issued.judge(&at("svc.example.com", "fake-issued-key")),
            ours(HeldKey::Current)
        );
        assert_eq!(issued.judge(&derived("n", 1)), ours(HeldKey::Other));
    }

    #[test]
    fn in_mode_legacy_the_system_before_is_the_one_that_should_be_called() {
        let environment = environment();
        let mut effective = Effective::new(&WhatsAppChannelSpec::example(), &ChannelDefaults::default());
        effective.mode = WebhookMode::Legacy;
        let issued = ApiKey::issued("fake-legacy-key");
        let subject = Subject {
            environment_name: "es",
            environment: &environment,
            namespace: "n",
            channel: ChannelId::from_bytes([7; 16]),
            effective: &effective,
            issued: Some(&issued),
            keys: None,
        };
        let id = ChannelId::from_bytes([7; 16]);
        let legacy = |key: &str| format!("https://legacy.example.com/cb?apikey={key}&channelId={id}");
        assert_eq!(
            subject.judge(&legacy("fake-legacy-key")),
            Whose::Ours(HeldKey::Current)
        );
        assert_eq!(subject.judge(&legacy("another")), Whose::Ours(HeldKey::Other));
        assert_eq!(subject.judge(&at("svc.example.com", "x")), Whose::Former);
        assert!(matches!(
            subject.judge("https://elsewhere.example.com/"),
            Whose::Foreign(_)
        ));
    }
}
