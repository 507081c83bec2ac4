//! Conversation ids: the sealed pair of channel and contact that Aura sees.
//!
//! AES-SIV (RFC 5297) is deterministic, so a conversation has one id for ever, and authenticated, so that a reply
//! can't name a conversation that we did not give out (Law 5).

use std::fmt;

use aes_siv::{KeyInit, siv::Aes256Siv};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::api::ChannelId;

const PREFIX: &str = "v1.";
/// Longest id that is looked at, in bytes.
const MAX_LEN: usize = 512;

/// One user's conversation with one channel: the unit of order.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConversationKey {
    /// The channel.
    pub channel: ChannelId,
    /// The user's WhatsApp id: digits.
    pub contact: String,
}

impl fmt::Debug for ConversationKey {
    /// Leaves the contact out: it is a phone number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConversationKey({}, …)", self.channel)
    }
}

/// Seals and opens conversation ids.
pub struct Sealer(Zeroizing<[u8; 64]>);

impl Sealer {
    pub(super) fn new(material: &[u8]) -> Self {
        let mut key = Zeroizing::new([0; 64]);
        // 64 bytes are within what one HKDF-SHA-256 may give (8,160): this cannot fail.
        let _ = Hkdf::<Sha256>::new(None, material)
            .expand(b"aura-whatsapp-operator/conversation/v1", &mut key[..]);
        Self(key)
    }

    fn cipher(&self) -> Aes256Siv {
        Aes256Siv::new((&*self.0).into())
    }

    /// The id of a conversation, safe in a URL.
    pub fn seal(&self, key: &ConversationKey) -> String {
        let plain = Zeroizing::new([key.channel.as_bytes().as_slice(), key.contact.as_bytes()].concat());
        let headers: [&[u8]; 0] = [];
        // SIV takes any plaintext and up to 126 headers: this cannot fail.
        let sealed = self.cipher().encrypt(headers, &plain).unwrap_or_default();
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(sealed))
    }

    /// The conversation that an id stands for; `None` for an id that we did not give out.
    pub fn open(&self, id: &str) -> Option<ConversationKey> {
        if id.len() > MAX_LEN {
            return None;
        }
        let sealed = URL_SAFE_NO_PAD.decode(id.strip_prefix(PREFIX)?).ok()?;
        let headers: [&[u8]; 0] = [];
        let plain = Zeroizing::new(self.cipher().decrypt(headers, &sealed).ok()?);
        let (channel, contact) = plain.split_first_chunk::<16>()?;
        Some(ConversationKey {
            channel: ChannelId::from_bytes(*channel),
            contact: String::from_utf8(contact.to_vec()).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_stable_opens_again_and_hides_the_number() {
        let sealer = Sealer::new(&[1; 32]);
        let key = ConversationKey {
            channel: ChannelId::from_bytes([7; 16]),
            contact: "34600000001".into(),
        };
        let id = sealer.seal(&key);
        assert_eq!(id, sealer.seal(&key));
        assert_eq!(sealer.open(&id), Some(key));
        assert!(!id.contains("34600000001") && id.is_ascii());
    }

    #[test]
    fn an_id_that_was_not_given_out_does_not_open() {
        let sealer = Sealer::new(&[1; 32]);
        let key = ConversationKey {
            channel: ChannelId::from_bytes([7; 16]),
            contact: "34600000001".into(),
        };
        let other = Sealer::new(&[2; 32]).seal(&key);
        let long = "v1.".to_owned() + &"A".repeat(600);
        for wrong in ["", "v1.", "v1.AAAA", "v2.AAAA", other.as_str(), long.as_str()] {
            assert_eq!(sealer.open(wrong), None, "{wrong}");
        }
    }
}
