//! What of a message is nobody's business: contact and body, sealed for the disk with the key of their day.
//!
//! Not for where keys come from (`keyring.rs`). Upholds law 6: what a record shows in the clear are digests, times and
//! numbers. Encoding and sealing are done by the caller of the journal, not by its one writer.

use bytes::Bytes;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use super::format::{ACCEPTED_FIXED, Accepted, Head};
use super::{NewEntry, Seq};

/// The length of a body key, in bytes.
pub(super) const KEY_LEN: usize = 32;

/// The key of one environment's bodies of one day.
pub(super) struct BodyKey {
    /// Its number, which records name.
    pub id: u32,
    key: LessSafeKey,
}

/// Sealing failed: there is no randomness.
#[derive(Debug)]
pub(super) struct NoRandomness;

impl BodyKey {
    /// `None` if the material is not of [`KEY_LEN`] bytes.
    pub fn new(id: u32, material: &[u8]) -> Option<Self> {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, material).ok()?);
        Some(Self { id, key })
    }
}

/// New key material.
pub(super) fn random_key() -> Result<Zeroizing<[u8; KEY_LEN]>, NoRandomness> {
    let mut material = Zeroizing::new([0; KEY_LEN]);
    SystemRandom::new()
        .fill(&mut material[..])
        .map_err(|_| NoRandomness)?;
    Ok(material)
}

/// A message that is ready to be written: all but its number.
#[derive(Clone)]
pub(super) struct Encoded {
    pub head: Head,
    /// The content of its record.
    pub content: Vec<u8>,
    /// Why it is a dead letter from the start.
    pub set_aside: Option<&'static str>,
    /// The dead letter that this is, sent on its way again: it is no longer one when this is accepted.
    pub replaces: Option<Seq>,
}

impl Encoded {
    /// Encodes a new message.
    pub fn new(entry: &NewEntry, key: Option<&BodyKey>) -> Result<Self, NoRandomness> {
        let head = Head {
            seq: Seq(0),
            address: entry.address,
            written_again: false,
            replayed: false,
            accepted_at_ms: entry.accepted_at_ms,
            born_ms: entry.born_ms,
            key: key.map_or(0, |key| key.id),
            dedup: entry.dedup,
            request: entry.request,
            origin: entry.origin,
        };
        let sealed = Self::seal(head, &entry.trace, &entry.contact, &entry.body, key)?;
        Ok(Self {
            set_aside: entry.set_aside,
            ..sealed
        })
    }

    /// A message as it was read, its sealed part as it is.
    pub fn again(head: Head, entry: &Accepted<'_>) -> Self {
        let mut content = Vec::with_capacity(ACCEPTED_FIXED + entry.trace.len() + entry.sealed.len());
        head.encode(entry.trace, &mut content);
        content.extend_from_slice(entry.sealed);
        Self {
            head,
            content,
            set_aside: None,
            replaces: None,
        }
    }

    /// Encodes a message, its contact and body sealed if there is a key.
    pub fn seal(
        head: Head,
        trace: &str,
        contact: &str,
        body: &[u8],
        key: Option<&BodyKey>,
    ) -> Result<Self, NoRandomness> {
        let plain = 1 + contact.len() + body.len();
        let mut content = Vec::with_capacity(ACCEPTED_FIXED + trace.len() + NONCE_LEN + plain + 16);
        head.encode(trace, &mut content);
        let nonce = match key {
            Some(_) => {
                let mut nonce = [0; NONCE_LEN];
                // Random, and not the number: a number whose commit failed may be given out again.
                SystemRandom::new().fill(&mut nonce).map_err(|_| NoRandomness)?;
                content.extend_from_slice(&nonce);
                Some(nonce)
            }
            None => None,
        };
        let start = content.len();
        // The limit of 64 bytes was checked before.
        content.push(u8::try_from(contact.len()).unwrap_or(u8::MAX));
        content.extend_from_slice(contact.as_bytes());
        content.extend_from_slice(body);
        if let (Some(key), Some(nonce)) = (key, nonce) {
            let tag = key
                .key
                .seal_in_place_separate_tag(
                    Nonce::assume_unique_for_key(nonce),
                    Aad::from(associated(&head)),
                    &mut content[start..],
                )
                .map_err(|_| NoRandomness)?;
            content.extend_from_slice(tag.as_ref());
        }
        Ok(Self {
            head,
            content,
            set_aside: None,
            replaces: None,
        })
    }
}

/// What ties the sealed part to its message.
fn associated(head: &Head) -> [u8; 48] {
    let mut bytes = [0; 48];
    bytes[..16].copy_from_slice(&head.address.channel);
    bytes[16..32].copy_from_slice(&head.dedup.0);
    bytes[32..].copy_from_slice(&head.address.contact.0);
    bytes
}

/// The contact and body of an accepted record; `None` if the key is not the right one or the bytes are not what was sealed.
pub(super) fn open(entry: &Accepted<'_>, key: Option<&BodyKey>) -> Option<(String, Bytes)> {
    let plain = match (entry.head.key, key) {
        (0, _) => Bytes::copy_from_slice(entry.sealed),
        (_, None) => return None,
        (_, Some(key)) => {
            let (nonce, sealed) = entry.sealed.split_first_chunk::<NONCE_LEN>()?;
            let mut sealed = sealed.to_vec();
            let len = key
                .key
                .open_in_place(
                    Nonce::assume_unique_for_key(*nonce),
                    Aad::from(associated(&entry.head)),
                    &mut sealed,
                )
                .ok()?
                .len();
            sealed.truncate(len);
            Bytes::from(sealed)
        }
    };
    let contact_end = 1 + usize::from(*plain.first()?);
    let contact = str::from_utf8(plain.get(1..contact_end)?).ok()?.to_owned();
    Some((contact, plain.slice(contact_end..)))
}
