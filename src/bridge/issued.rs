//! Keys issued elsewhere: which ones are taken for a channel, and until when. Pure.
//!
//! A derived key proves itself; one that was issued elsewhere has to be known. When it is changed, Kernel goes on with the
//! one before until it is told, and calls that are on their way, or come again, still carry it. So the ones before are
//! kept for their grace, also across a restart, as keyed digests: of no use to anybody without the installation key.

use std::{collections::HashMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use subtle::{Choice, ConstantTimeEq};

use super::views::ChannelView;
use crate::{
    api::{ChannelId, KeyRef},
    keys::{ApiKey, Keys},
};

/// How many keys of one channel are kept.
const MOST: usize = 8;
/// How long the keys of a channel that is gone are kept: its resource may come back.
const KEPT: SignedDuration = SignedDuration::from_hours(24);

type Name = (Arc<str>, Arc<str>);

/// A keyed digest of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyDigest([u8; 16]);

impl KeyDigest {
    /// The digest of a key, as issued or as presented.
    pub fn of(keys: &Keys, key: &str) -> Self {
        Self(keys.fingerprint(&[b"issued", key.as_bytes()]))
    }
}

/// A key that is taken for a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    digest: KeyDigest,
    /// `None`: as long as nothing changes.
    until: Option<Timestamp>,
}

/// Whether one of these keys was presented; in a time that does not depend on which.
pub fn presented(taken: &[Taken], presented: KeyDigest, now: Timestamp) -> bool {
    let mut found = Choice::from(0);
    for key in taken {
        let in_time = key.until.is_none_or(|until| now < until);
        found |= key.digest.0.ct_eq(&presented.0) & Choice::from(u8::from(in_time));
    }
    bool::from(found)
}

/// The keys of one channel, the one that was read last at the end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Channel {
    channel: ChannelId,
    keys: Vec<Key>,
    reference: KeyRef,
    /// The version that the controller had announced when it was read last.
    read_for: Option<String>,
    /// Since when there is no such resource.
    gone: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Key {
    digest: KeyDigest,
    version: String,
}

/// The keys of all channels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Issued {
    channels: HashMap<Name, Channel>,
}

/// As it is kept across a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    namespace: String,
    name: String,
    #[serde(flatten)]
    channel: Channel,
}

/// The reference to a key issued elsewhere that a channel has.
pub fn reference(view: &ChannelView) -> Option<&KeyRef> {
    view.issued_key.as_deref()
}

fn name(view: &ChannelView) -> Name {
    (view.namespace.clone(), view.name.clone())
}

impl Issued {
    /// Takes what was kept.
    pub fn restore(kept: Vec<Kept>) -> Self {
        let channels = kept
            .into_iter()
            .map(|kept| ((kept.namespace.into(), kept.name.into()), kept.channel))
            .collect();
        Self { channels }
    }

    /// What is to be kept.
    pub fn kept(&self) -> Vec<Kept> {
        let mut kept: Vec<_> = self
            .channels
            .iter()
            .map(|((namespace, name), channel)| Kept {
                namespace: namespace.as_ref().to_owned(),
                name: name.as_ref().to_owned(),
                channel: channel.clone(),
            })
            .collect();
        kept.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        kept
    }

    /// Whether a channel's key has to be read: it has one, and it is not known, or the controller says that it changed.
    pub fn must_read(&self, view: &ChannelView) -> bool {
        let Some(reference) = reference(view) else {
            return false;
        };
        let Some(known) = self.channels.get(&name(view)) else {
            return true;
        };
        let Some(last) = known.keys.last() else {
            return true;
        };
        let announced = view.api_key_version.as_ref();
        known.reference != *reference
            || announced.is_some_and(|announced| {
                **announced != *last.version && known.read_for.as_deref() != Some(&**announced)
            })
    }

    /// A channel's key was read, at this version of its Secret.
    pub fn read(&mut self, view: &ChannelView, keys: &Keys, key: &ApiKey, version: &str) {
        let Some(reference) = reference(view) else {
            return;
        };
        let channel = view.channel;
        let known = self.channels.entry(name(view)).or_insert_with(|| Channel {
            channel,
            keys: Vec::new(),
            reference: reference.clone(),
            read_for: None,
            gone: None,
        });
        if known.channel != channel {
            // A resource of the same name for another channel: the keys before are none of its.
            known.keys.clear();
        }
        (known.channel, known.gone) = (channel, None);
        known.reference.clone_from(reference);
        known.read_for = view.api_key_version.as_deref().map(ToOwned::to_owned);
        let digest = KeyDigest::of(keys, key.expose());
        // The same key at another version is still one key: what else changed in the Secret is no matter here.
        known
            .keys
            .retain(|before| before.digest != digest && before.version != version);
        known.keys.push(Key {
            digest,
            version: version.to_owned(),
        });
        let surplus = known.keys.len().saturating_sub(MOST);
        known.keys.drain(..surplus);
    }

    /// The keys that are taken for a channel.
    pub fn taken(&self, view: &ChannelView) -> Vec<Taken> {
        let Some(known) = self.channels.get(&name(view)) else {
            return Vec::new();
        };
        if view.channel != known.channel {
            return Vec::new();
        }
        let told = view
            .webhook_key
            .as_ref()
            .and_then(|told| told.secret_version.as_ref());
        let current = reference(view).and(known.keys.last());
        // Until Kernel was told of the one in force it goes on with one before, however long that takes.
        let pending = told != current.map(|current| &current.version);
        let grace = view
            .webhook_key
            .as_ref()
            .and_then(|told| told.previous_until.as_ref())
            .map(|until| until.0);
        known
            .keys
            .iter()
            .filter_map(|key| {
                let until = if pending || current == Some(key) {
                    None
                } else {
                    Some(grace?)
                };
                Some(Taken {
                    digest: key.digest,
                    until,
                })
            })
            .collect()
    }

    /// The keys of channels whose resource is gone: a call with one of them is authentic, and is asked to come back.
    pub fn departed(&self) -> HashMap<ChannelId, Vec<Taken>> {
        let gone = self.channels.values().filter(|channel| channel.gone.is_some());
        gone.map(|channel| {
            let taken = channel.keys.iter().map(|key| Taken {
                digest: key.digest,
                until: channel.gone.and_then(|gone| gone.checked_add(KEPT).ok()),
            });
            (channel.channel, taken.collect())
        })
        .collect()
    }

    /// Compares with the resources there are: forgets what is of no more use.
    pub fn tidy<'a>(&mut self, views: impl Iterator<Item = &'a ChannelView>, now: Timestamp) {
        if self.channels.is_empty() {
            return;
        }
        let views: HashMap<Name, &ChannelView> = views
            .map(|view| (name(view), view))
            .filter(|(name, _)| self.channels.contains_key(name))
            .collect();
        let in_use: HashMap<Name, Vec<Taken>> = views
            .iter()
            .map(|(name, view)| (name.clone(), self.taken(view)))
            .collect();
        for (name, channel) in &mut self.channels {
            match in_use.get(name) {
                Some(taken) => {
                    channel.gone = None;
                    channel.keys.retain(|key| {
                        taken.iter().any(|taken| {
                            taken.digest == key.digest && taken.until.is_none_or(|until| now < until)
                        })
                    });
                }
                None => channel.gone = channel.gone.or(Some(now)),
            }
        }
        self.channels.retain(|name, channel| {
            let wanted = views.get(name).is_some_and(|view| reference(view).is_some());
            (wanted || !channel.keys.is_empty())
                && channel.gone.is_none_or(|gone| now.duration_since(gone) < KEPT)
        });
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::{super::views::tests::view, *};
    use crate::{api::WebhookKeyStatus, keys::KeyMaterial};

    fn keys() -> Keys {
        Keys::derive(&KeyMaterial::new(|name| (name != "previous").then(|| vec![3; 32])).unwrap())
    }

    fn with_key() -> ChannelView {
        let mut view = view("n", "a", 1, 1);
        view.issued_key = Some(Box::new(KeyRef {
            name: "k".into(),
            key: "k".into(),
        }));
        view
    }

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + minutes * 60).unwrap()
    }

    fn told(view: &mut ChannelView, version: Option<&str>, until: i64) {
        view.webhook_key = Some(WebhookKeyStatus {
            secret_version: version.map(ToOwned::to_owned),
            previous_until: Some(Time(at(until))),
            ..WebhookKeyStatus::default()
        });
    }

    fn takes(issued: &Issued, view: &ChannelView, key: &str, now: Timestamp) -> bool {
        presented(&issued.taken(view), KeyDigest::of(&keys(), key), now)
    }

    fn read(issued: &mut Issued, view: &mut ChannelView, key: &str, version: &str) {
        view.api_key_version = Some(version.into());
        assert!(issued.must_read(view));
        issued.read(view, &keys(), &ApiKey::issued(key), version);
        assert!(!issued.must_read(view));
    }

    #[test]
    fn the_key_before_is_taken_until_kernel_was_told_and_its_grace_is_over() {
        let (mut issued, mut view) = (Issued::default(), with_key());
        read(&mut issued, &mut view, "fake-one", "1");
        told(&mut view, Some("1"), -1);
        read(&mut issued, &mut view, "fake-two", "2");
        for key in ["fake-one", "fake-two"] {
            assert!(
                takes(&issued, &view, key, at(1000)),
                "Kernel has not been told: {key}"
            );
        }
        told(&mut view, Some("2"), 60);
        assert!(takes(&issued, &view, "fake-one", at(59)));
        assert!(!takes(&issued, &view, "fake-one", at(60)));
        assert!(takes(&issued, &view, "fake-two", at(60)));
        assert!(!takes(&issued, &view, "fake-three", at(59)));
        issued.tidy([view.clone()].iter(), at(61));
        assert_eq!(issued.taken(&view).len(), 1);
    }

    #[test]
    fn a_reference_that_is_taken_away_leaves_its_key_a_grace() {
        let (mut issued, mut view) = (Issued::default(), with_key());
        read(&mut issued, &mut view, "fake-one", "1");
        told(&mut view, Some("1"), -1);
        view.issued_key = None;
        assert!(takes(&issued, &view, "fake-one", at(1000)), "Kernel still has it");
        told(&mut view, None, 60);
        assert!(takes(&issued, &view, "fake-one", at(59)) && !takes(&issued, &view, "fake-one", at(61)));
        issued.tidy([view.clone()].iter(), at(61));
        assert_eq!(issued, Issued::default());
    }

    #[test]
    fn what_was_kept_is_good_after_a_restart_and_shows_no_key() {
        let (mut issued, mut view) = (Issued::default(), with_key());
        read(&mut issued, &mut view, "fake-one", "1");
        let text = serde_json::to_string(&issued.kept()).unwrap();
        assert!(!text.contains("fake-one"));
        let restored = Issued::restore(serde_json::from_str(&text).unwrap());
        assert_eq!(restored, issued);
        assert!(takes(&restored, &view, "fake-one", at(0)) && !restored.must_read(&view));
        view.api_key_version = Some("2".into());
        assert!(restored.must_read(&view), "it changed meanwhile");
    }

    #[test]
    fn a_key_of_a_channel_that_is_gone_is_known_for_a_day() {
        let (mut issued, mut view) = (Issued::default(), with_key());
        read(&mut issued, &mut view, "fake-one", "1");
        issued.tidy([].iter(), at(0));
        let channel = ChannelId::from_bytes([1; 16]);
        let known = |issued: &Issued, now| {
            let departed = issued.departed();
            let taken = departed.get(&channel).map_or(&[][..], Vec::as_slice);
            presented(taken, KeyDigest::of(&keys(), "fake-one"), now)
        };
        assert!(known(&issued, at(60)));
        issued.tidy([view.clone()].iter(), at(61));
        assert!(!known(&issued, at(61)), "it is back: it has a route");
        assert!(takes(&issued, &view, "fake-one", at(61)));
        issued.tidy([].iter(), at(70));
        issued.tidy([].iter(), at(70 + 24 * 60));
        assert_eq!(issued, Issued::default());
    }

    #[test]
    fn the_keys_of_one_channel_are_bounded() {
        let (mut issued, mut view) = (Issued::default(), with_key());
        for n in 0..20 {
            read(&mut issued, &mut view, &format!("fake-{n}"), &n.to_string());
        }
        assert_eq!(issued.taken(&view).len(), MOST);
        assert!(takes(&issued, &view, "fake-19", at(0)));
    }
}
