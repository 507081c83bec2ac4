//! Dead letters as lines of a file, and back. Pure.
//!
//! A line holds a message whole, with its user's number and text. Each is bound by a MAC of the installation's, so that
//! only what this installation wrote is taken back, and as it was written.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::view::{direction, hex, time, unhex};
use crate::{
    api::ChannelId,
    bridge::{deliver::word, entry::contact_key},
    journal::{Address, DedupKey, Entry, Kept, MAX_TRACE_BYTES, NewEntry, Origin, RequestId, Standing},
    keys::Keys,
};

/// How long ids are remembered, but for an hour.
const REMEMBERED_MS: u64 = (7 * 24 - 1) * 3_600_000;

/// One dead letter in a file.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Line {
    v: u8,
    seq: u64,
    channel: String,
    direction: String,
    environment: String,
    tag: String,
    user: String,
    id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    born_ms: Option<u64>,
    accepted_at_ms: u64,
    /// For people.
    accepted_at: String,
    reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    trace: String,
    /// Where it comes from; none for what a user or Aura wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
    body: String,
    mac: String,
}

/// Why a line is not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LineError {
    #[error("not a line of an export")]
    Unreadable,
    #[error("not as this installation wrote it")]
    NotOurs,
}

/// The line of a dead letter; `None` for what is none.
pub(super) fn line(kept: &Kept, entry: &Entry, keys: &Keys) -> Option<Line> {
    let Standing::DeadLetter { reason, .. } = &kept.standing else {
        return None;
    };
    let mut line = Line {
        v: 1,
        seq: kept.seq.0,
        channel: ChannelId::from_bytes(kept.address.channel).to_string(),
        direction: word(kept.address.direction).to_owned(),
        environment: hex(&kept.address.environment),
        tag: hex(&kept.address.tag),
        user: entry.contact.clone(),
        id: hex(&kept.dedup.0),
        born_ms: kept.born_ms,
        accepted_at_ms: kept.accepted_at_ms,
        accepted_at: time(kept.accepted_at_ms),
        reason: reason.clone(),
        request: kept.request.map(|request| hex(&request.0)),
        trace: kept.trace.clone(),
        origin: (entry.origin != Origin::Peer).then(|| hex(&entry.origin.to_bytes())),
        body: STANDARD.encode(&entry.body),
        mac: String::new(),
    };
    line.mac = hex(&line.mac(keys));
    Some(line)
}

impl Line {
    /// As it was written.
    pub fn parse(text: &str) -> Result<Self, LineError> {
        let line: Self = serde_json::from_str(text).map_err(|_| LineError::Unreadable)?;
        if line.v == 1 {
            Ok(line)
        } else {
            Err(LineError::Unreadable)
        }
    }

    /// The journal's entry, as a dead letter from the start. Its id is filed where the message's own was, so that it is
    /// known where that one is still remembered, and by a second import.
    pub fn entry(&self, keys: &Keys, now_ms: u64) -> Result<NewEntry, LineError> {
        let given: [u8; 16] = unhex(&self.mac).ok_or(LineError::Unreadable)?;
        if given != self.mac(keys) {
            return Err(LineError::NotOurs);
        }
        self.read(keys, now_ms).ok_or(LineError::Unreadable)
    }

    fn read(&self, keys: &Keys, now_ms: u64) -> Option<NewEntry> {
        let channel: ChannelId = self.channel.parse().ok()?;
        // Ids without an own time are looked for from the hour of their acceptance on. What is older than ids are
        // remembered is new here, and has the time of its first acceptance for its own.
        let remembered = self.accepted_at_ms > now_ms.saturating_sub(REMEMBERED_MS);
        let (born_ms, accepted_at_ms) = match self.born_ms {
            None if remembered => (None, self.accepted_at_ms.min(now_ms)),
            None => (Some(self.accepted_at_ms), now_ms),
            born => (born, now_ms),
        };
        Some(NewEntry {
            address: Address {
                direction: direction(&self.direction).ok()?,
                channel: *channel.as_bytes(),
                environment: unhex(&self.environment)?,
                tag: unhex(&self.tag)?,
                contact: contact_key(&self.user, keys),
            },
            contact: self.user.clone(),
            dedup: DedupKey(unhex(&self.id)?),
            born_ms,
            accepted_at_ms,
            request: match &self.request {
                Some(request) => Some(RequestId(unhex(request)?)),
                None => None,
            },
            trace: Some(self.trace.clone()).filter(|trace| trace.len() <= MAX_TRACE_BYTES)?,
            body: Bytes::from(STANDARD.decode(&self.body).ok()?),
            origin: match &self.origin {
                Some(origin) => Origin::from_bytes(unhex(origin)?),
                None => Origin::Peer,
            },
            set_aside: Some(known(&self.reason)),
        })
    }

    fn mac(&self, keys: &Keys) -> [u8; 16] {
        let number = |number: Option<u64>| number.unwrap_or(u64::MAX).to_be_bytes();
        let parts: [&[u8]; 13] = [
            b"export/v1",
            self.channel.as_bytes(),
            self.direction.as_bytes(),
            self.environment.as_bytes(),
            self.tag.as_bytes(),
            self.user.as_bytes(),
            self.id.as_bytes(),
            &number(self.born_ms),
            &number(Some(self.accepted_at_ms)),
            self.reason.as_bytes(),
            self.request.as_deref().unwrap_or_default().as_bytes(),
            self.trace.as_bytes(),
            self.body.as_bytes(),
        ];
        // As before there was an origin to tell of, where there is none.
        let origin = self.origin.as_deref().map(str::as_bytes);
        keys.fingerprint(&parts.into_iter().chain(origin).collect::<Vec<_>>())
    }
}

/// Reasons of dead letters: those that an import keeps. docs/operations.md says what each means.
const REASONS: &[&str] = &[
    "TooOld",
    "AttemptsExhausted",
    "RefusedByAura",
    "RefusedByKernel",
    "UnknownOutcome",
    "ChannelDeleted",
    "Unreadable",
    "JournalDamaged",
    "OlderThanRemembered",
    "GroupCancelled",
    "NoConversation",
    "Repaired",
    "Dropped",
];

/// The reason that an imported dead letter has: its own, or that it was imported.
fn known(reason: &str) -> &'static str {
    let known = REASONS.iter().find(|known| **known == reason);
    known.copied().unwrap_or("Imported")
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::kept;
    use super::*;
    use crate::{
        journal::{Journal, Seq},
        keys::KeyMaterial,
    };

    const WEEK_MS: u64 = 7 * 24 * 3_600_000;

    fn keys(byte: u8) -> Keys {
        Keys::derive(&KeyMaterial::new(|_| Some(vec![byte; 32])).unwrap())
    }

    async fn exported() -> (Journal, Line) {
        let journal = Journal::in_memory();
        let mut first = exported_entry();
        first.set_aside = Some("TooOld");
        journal.append(vec![first]).await.unwrap();
        let (kept, entry) = (
            journal.head(Seq(1)).await.unwrap(),
            journal.read(Seq(1)).await.unwrap(),
        );
        let line = line(&kept, &entry, &keys(3)).unwrap();
        (journal, line)
    }

    fn exported_entry() -> NewEntry {
        NewEntry {
            address: Address {
                contact: contact_key("34600000001", &keys(3)),
                ..kept(1).address
            },
            contact: "34600000001".to_owned(),
            dedup: DedupKey([9; 16]),
            born_ms: None,
            accepted_at_ms: 1_800_000_000_000,
            request: Some(RequestId([5; 16])),
            trace: "trace".to_owned(),
            body: Bytes::from_static(b"{\"text\":\"hola\"}"),
            origin: Origin::Resent { times: 2, part: 1 },
            set_aside: None,
        }
    }

    #[tokio::test]
    async fn what_was_exported_is_a_dead_letter_again_elsewhere_and_only_once() {
        let (_, line) = exported().await;
        let text = serde_json::to_string(&line).unwrap();
        let elsewhere = Journal::in_memory();
        // Months later: longer than any id is remembered by its own time.
        for (later, new) in [(WEEK_MS * 20, true), (WEEK_MS * 20 + WEEK_MS / 2, false)] {
            let now = 1_800_000_000_000 + later;
            let entry = Line::parse(&text).unwrap().entry(&keys(3), now).unwrap();
            let appended = elsewhere.append(vec![entry]).await.unwrap();
            assert_eq!(matches!(appended[0], crate::journal::Appended::New(_)), new);
        }
        let dead = elsewhere.dead_letters();
        assert_eq!((dead.len(), dead[0].reason.as_str()), (1, "TooOld"));
        let (before, after) = (exported_entry(), elsewhere.read(Seq(1)).await.unwrap());
        assert_eq!(after.address, before.address);
        assert_eq!((after.body, after.contact), (before.body, before.contact));
        assert_eq!((after.request, after.trace), (before.request, before.trace));
        assert_eq!(after.origin, before.origin);
    }

    #[tokio::test]
    async fn a_line_that_was_changed_or_is_of_another_installation_is_not_taken() {
        let (_, line) = exported().await;
        assert_eq!(line.entry(&keys(4), 1).err(), Some(LineError::NotOurs));
        let mut changed = line.clone();
        changed.user = "34600000002".to_owned();
        assert_eq!(changed.entry(&keys(3), 1).err(), Some(LineError::NotOurs));
        let mut changed = line.clone();
        changed.body = STANDARD.encode("{}");
        assert_eq!(changed.entry(&keys(3), 1).err(), Some(LineError::NotOurs));
        assert!(line.entry(&keys(3), 1).is_ok());
        for text in ["", "{}", "[]", "{\"v\":1}"] {
            assert_eq!(Line::parse(text).err(), Some(LineError::Unreadable));
        }
    }

    #[test]
    fn what_is_no_dead_letter_has_no_line() {
        let entry = Entry {
            seq: Seq(1),
            dedup: kept(1).dedup,
            address: kept(1).address,
            contact: "1".to_owned(),
            accepted_at_ms: 1,
            request: None,
            trace: String::new(),
            note: kept(1).note,
            replayed: false,
            origin: Origin::Peer,
            body: Bytes::new(),
        };
        assert_eq!(line(&kept(1), &entry, &keys(3)), None);
    }
}
