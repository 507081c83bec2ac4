//! The installation key and all that is derived from it: webhook API keys, conversation ids, digests for logs.
//!
//! Pure: it is given key material and answers with values. It upholds Law 6 (nothing leaks) and the rule that
//! neither role stores a key per channel: a webhook's API key proves itself.

mod conversation;

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroizing;

pub use self::conversation::{ConversationKey, Sealer};
use crate::api::ChannelId;

type HmacSha256 = Hmac<Sha256>;

/// The key of the installation Secret that holds the key in force.
pub const CURRENT: &str = "current";
/// The key of the installation Secret that holds the key before, while a rotation lasts.
pub const PREVIOUS: &str = "previous";
/// The key of the installation Secret that conversation ids are sealed with. It is never rotated away, because
/// Aura keys the state of a dialog by the conversation id.
pub const CONVERSATIONS: &str = "conversations";
/// The least length of each of them, in bytes.
pub const MIN_LEN: usize = 32;

/// Longest API key that is looked at, in bytes. Longer ones are wrong.
const MAX_PRESENTED: usize = 256;

/// What the installation Secret holds.
pub struct KeyMaterial {
    /// The key in force.
    pub current: SecretSlice<u8>,
    /// The key before it, still taken.
    pub previous: Option<SecretSlice<u8>>,
    /// The key of the conversation ids.
    pub conversations: SecretSlice<u8>,
}

/// The installation Secret can't be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// A key is missing.
    #[error("the installation key has no entry {0:?}: each of current and conversations must be there")]
    Missing(&'static str),
    /// A key is too short to be random.
    #[error("the installation key's entry {0:?} is shorter than {MIN_LEN} bytes")]
    TooShort(&'static str),
}

impl KeyMaterial {
    /// Takes the entries of the installation Secret (or of the directory it is mounted as).
    ///
    /// # Errors
    /// When `current` or `conversations` is missing, or any entry is shorter than [`MIN_LEN`].
    pub fn new(mut entry: impl FnMut(&str) -> Option<Vec<u8>>) -> Result<Self, KeyError> {
        let mut take = |name: &'static str| match entry(name) {
            Some(bytes) if bytes.len() < MIN_LEN => Err(KeyError::TooShort(name)),
            other => Ok(other.map(SecretSlice::from)),
        };
        Ok(Self {
            current: take(CURRENT)?.ok_or(KeyError::Missing(CURRENT))?,
            previous: take(PREVIOUS)?,
            conversations: take(CONVERSATIONS)?.ok_or(KeyError::Missing(CONVERSATIONS))?,
        })
    }
}

/// An API key of a webhook. Its `Debug` shows nothing of it.
#[derive(Clone, Debug)]
pub struct ApiKey(SecretString);

impl ApiKey {
    /// A key that was issued elsewhere.
    pub fn issued(text: impl Into<String>) -> Self {
        Self(SecretString::from(text.into()))
    }

    /// The key itself, to be put into a URL or compared.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Whether this is the presented key, in a time that does not depend on either.
    pub fn matches(&self, presented: &str) -> bool {
        bool::from(digests_equal(self.expose().as_bytes(), presented.as_bytes()))
    }
}

/// What an authentic derived key says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// For which environment and namespace it was made.
    pub tag: Tag,
    /// The `keyGeneration` it was made for.
    pub generation: u64,
}

/// A short hash of environment and namespace: a channel that moves or is squatted elsewhere has another key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag([u8; 6]);

impl Tag {
    /// The tag of an environment's channels in a namespace.
    pub fn new(environment: &str, namespace: &str) -> Self {
        let hash = Sha256::new()
            .chain_update(environment.as_bytes())
            .chain_update([0])
            .chain_update(namespace.as_bytes())
            .finalize();
        let mut tag = [0; 6];
        tag.copy_from_slice(&hash[..6]);
        Self(tag)
    }
}

impl Tag {
    /// Its bytes.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tag({self})")
    }
}

/// Everything derived from the installation key.
pub struct Keys {
    /// The MAC keys of webhook API keys: in force, then before.
    webhook: Vec<Zeroizing<[u8; 32]>>,
    log: Zeroizing<[u8; 32]>,
    /// What wraps the keys of stored bodies: in force, then before.
    wrapping: Vec<Zeroizing<[u8; 64]>>,
    sealer: Sealer,
    id: String,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.id)
    }
}

impl Keys {
    /// Derives every key. Each purpose has its own (RFC 5869), so that none can stand in for another.
    pub fn derive(material: &KeyMaterial) -> Self {
        let current = material.current.expose_secret();
        let webhook = std::iter::once(current)
            .chain(material.previous.as_ref().map(ExposeSecret::expose_secret))
            .map(|key| expand(key, b"aura-whatsapp-operator/webhook/v1"))
            .collect();
        let wrapping = std::iter::once(current)
            .chain(material.previous.as_ref().map(ExposeSecret::expose_secret))
            .map(|key| expand(key, b"aura-whatsapp-operator/bodies/v1"))
            .collect();
        let id = expand::<32>(current, b"aura-whatsapp-operator/key-id/v1");
        Self {
            webhook,
            wrapping,
            log: expand(
                material.conversations.expose_secret(),
                b"aura-whatsapp-operator/log/v1",
            ),
            sealer: Sealer::new(material.conversations.expose_secret()),
            id: format!("{:08x}", u32::from_be_bytes([id[0], id[1], id[2], id[3]])),
        }
    }

    /// A short fingerprint of the installation key in force, safe to print.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The API key of a channel's webhook: `<tag>.<generation>.<MAC>`.
    pub fn api_key(&self, tag: Tag, generation: u64, channel: ChannelId) -> ApiKey {
        let mac = self
            .webhook
            .first()
            .map(|key| mac(key, tag, generation, channel))
            .unwrap_or_default();
        ApiKey(SecretString::from(format!(
            "{tag}.{generation}.{}",
            URL_SAFE_NO_PAD.encode(mac)
        )))
    }

    /// Whether a presented key is one that this installation derived for that channel, and what it says of itself.
    ///
    /// The work done does not depend on where the key is wrong: each MAC is computed and compared in full.
    pub fn verify(&self, channel: ChannelId, presented: &str) -> Option<Proof> {
        let parsed = parse(presented);
        let (tag, generation, given) = parsed.unwrap_or((Tag([0; 6]), 0, [0; 32]));
        let mut authentic = Choice::from(0);
        for key in &self.webhook {
            authentic |= mac(key, tag, generation, channel).ct_eq(&given);
        }
        (bool::from(authentic) && parsed.is_some()).then_some(Proof { tag, generation })
    }

    /// What wraps the keys of stored bodies: the first new ones, all of them those that are there.
    pub fn wrapping(&self) -> Vec<Zeroizing<[u8; 64]>> {
        self.wrapping.clone()
    }

    /// The sealer of conversation ids.
    pub fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// Sixteen bytes that stand for these parts: the same each time, of no use to anybody without the key. Each part
    /// is bound with its length, so that no two lists of parts look alike.
    pub fn fingerprint(&self, parts: &[&[u8]]) -> [u8; 16] {
        let mut hmac = new_hmac(&self.log[..]);
        for part in parts {
            hmac.update(&(part.len() as u64).to_be_bytes());
            hmac.update(part);
        }
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(&hmac.finalize().into_bytes()[..16]);
        fingerprint
    }

    /// A keyed digest that stands for a phone number, message id or conversation in logs: the same each time, of
    /// no use to anybody without the key.
    pub fn digest(&self, text: &str) -> Digest {
        let mut digest = [0; 6];
        digest.copy_from_slice(&self.fingerprint(&[b"digest", text.as_bytes()])[..6]);
        Digest(digest)
    }
}

/// Stands for a personal identifier in logs and traces; see [`Keys::digest`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 6]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether two texts of any length are equal, in a time that tells nothing but their lengths: their digests are
/// compared, so that there is no early end.
pub fn texts_equal(a: &str, b: &str) -> bool {
    bool::from(digests_equal(a.as_bytes(), b.as_bytes()))
}

fn digests_equal(a: &[u8], b: &[u8]) -> Choice {
    Sha256::digest(a).as_slice().ct_eq(Sha256::digest(b).as_slice())
}

fn expand<const LEN: usize>(key: &[u8], purpose: &[u8]) -> Zeroizing<[u8; LEN]> {
    let mut derived = Zeroizing::new([0; LEN]);
    // 32 and 64 bytes are within what one HKDF-SHA-256 may give (8,160): this cannot fail.
    let _ = Hkdf::<Sha256>::new(None, key).expand(purpose, &mut derived[..]);
    derived
}

#[allow(
    clippy::expect_used,
    reason = "HMAC takes keys of any length (RFC 2104, section 2): this cannot fail"
)]
fn new_hmac(key: &[u8]) -> HmacSha256 {
    HmacSha256::new_from_slice(key).expect("HMAC takes a key of any length")
}

fn mac(key: &[u8; 32], tag: Tag, generation: u64, channel: ChannelId) -> [u8; 32] {
    let mut hmac = new_hmac(key);
    hmac.update(&tag.0);
    hmac.update(&generation.to_be_bytes());
    hmac.update(channel.as_bytes());
    hmac.finalize().into_bytes().into()
}

fn parse(presented: &str) -> Option<(Tag, u64, [u8; 32])> {
    if presented.len() > MAX_PRESENTED {
        return None;
    }
    let mut parts = presented.split('.');
    let (tag, generation, mac) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some()
        || generation.starts_with('0')
        || !generation.bytes().all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
    Some((
        Tag(decode(tag)?.try_into().ok()?),
        generation.parse().ok()?,
        decode(mac)?.try_into().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn material(current: u8, previous: Option<u8>) -> KeyMaterial {
        KeyMaterial::new(|name| match name {
            CURRENT => Some(vec![current; 32]),
            PREVIOUS => previous.map(|byte| vec![byte; 32]),
            _ => Some(vec![9; 32]),
        })
        .unwrap()
    }

    fn channel(n: u8) -> ChannelId {
        ChannelId::from_bytes([n; 16])
    }

    #[test]
    fn a_derived_key_proves_itself_for_its_own_channel_only() {
        let keys = Keys::derive(&material(1, None));
        let tag = Tag::new("es-pro", "aura-es");
        let key = keys.api_key(tag, 3, channel(7));
        assert_eq!(
            keys.verify(channel(7), key.expose()),
            Some(Proof { tag, generation: 3 })
        );
        assert_eq!(keys.verify(channel(8), key.expose()), None);
        assert_ne!(Tag::new("es-pro", "aura-br"), tag);
    }

    #[test]
    fn a_key_of_the_installation_key_before_is_still_taken_and_a_foreign_one_never() {
        let tag = Tag::new("es-pro", "aura-es");
        let old = Keys::derive(&material(1, None)).api_key(tag, 1, channel(7));
        assert!(
            Keys::derive(&material(2, Some(1)))
                .verify(channel(7), old.expose())
                .is_some()
        );
        assert!(
            Keys::derive(&material(2, None))
                .verify(channel(7), old.expose())
                .is_none()
        );
    }

    #[test]
    fn a_key_does_not_show_in_debug_output() {
        let keys = Keys::derive(&material(1, None));
        let key = keys.api_key(Tag::new("a", "b"), 1, channel(7));
        assert!(!format!("{key:?} {keys:?}").contains(key.expose()));
    }

    #[test]
    fn short_or_missing_material_is_refused() {
        let missing = KeyMaterial::new(|name| (name == CURRENT).then(|| vec![1; 32]));
        assert_eq!(missing.err(), Some(KeyError::Missing(CONVERSATIONS)));
        assert_eq!(
            KeyMaterial::new(|_| Some(vec![1; 31])).err(),
            Some(KeyError::TooShort(CURRENT))
        );
    }

    proptest! {
        #[test]
        fn no_other_text_is_ever_taken(text in ".{0,300}", flip in 0usize..60) {
            let keys = Keys::derive(&material(1, None));
            prop_assert_eq!(keys.verify(channel(7), &text), None);
            let mut key = keys.api_key(Tag::new("a", "b"), 1, channel(7)).expose().as_bytes().to_vec();
            let at = flip % key.len();
            key[at] = if key[at] == b'A' { b'B' } else { b'A' };
            prop_assert_eq!(keys.verify(channel(7), std::str::from_utf8(&key).unwrap()), None);
        }
    }
}
