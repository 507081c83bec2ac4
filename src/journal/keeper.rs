//! What keeps the journal in order off the path of a commit: space, keys and dead letters whose time is over.
//!
//! Not for what is needed (`state.rs`). Upholds law 11 (space is given back; a stuck message does not keep a whole
//! segment) and the end of retention: a day's key is destroyed, what still needs it is written again before.
//!
//! A round reads old segments and asks the writer, like any caller, to write again what is still needed. Files that
//! nobody needs become the next segments, for removing one of 64 MiB stalls the commits beside it for tens of
//! milliseconds.

use std::io;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::format::{Accepted, FRAME_HEADER, Record, SEGMENT_HEADER, Salt, decode_frame_at, frame_len};
use super::group::Command;
use super::ids::{Frozen, Merge, RunStorage};
use super::keyring::Keyring;
use super::seal::{self, Encoded};
use super::state::Position;
use super::storage::Storage;
use super::writer::{Chores, Shared, millis};
use super::{Options, Outcome};

/// What is written again at a time, in bytes: about what a commit under load holds.
const PIECE: usize = 256 << 10;
/// Dead letters that are dropped in one go.
const DROPPED_AT_ONCE: usize = 256;
/// Of the files that wait to be segments, more than a quiet journal needs, one is given back in so many rounds: ten
/// minutes without load.
const ROUNDS_A_SPARE: u64 = 60;
/// Segments that one round goes through for space.
const SEGMENTS_A_ROUND: usize = 4;

/// Does the chores.
pub(super) struct Keeper {
    pub storage: Arc<dyn Storage>,
    pub shared: Arc<Shared>,
    pub runs: Arc<dyn RunStorage>,
    pub keyring: Option<Arc<Keyring>>,
    pub options: Options,
    /// Rounds so far.
    pub rounds: u64,
    /// Ids that are to be written, until that has succeeded.
    pub sealing: Option<Frozen>,
    /// Runs that are to be made one, until that has succeeded.
    pub merging: Option<Merge>,
}

/// How the writer is asked.
type Ask<'a> = &'a mut dyn FnMut(Command);

impl Keeper {
    /// One round. `ask` hands a command to the writer; what comes of it is waited for here.
    pub fn round(&mut self, chores: Chores, ask: Ask<'_>) {
        for number in chores.retire {
            if let Err(error) = self.storage.retire(number) {
                // The next opening removes it.
                tracing::warn!(segment = number, %error, "an old segment could not be given back");
            }
        }
        for file in chores.forget {
            // The next opening of the ids finds it again, and does the same.
            let _ = self.runs.remove(file);
        }
        for erasure in chores.erase {
            self.carry_out(erasure, ask);
        }
        self.rounds += 1;
        if self.rounds.is_multiple_of(ROUNDS_A_SPARE)
            && let Err(error) = self.storage.thin_out()
        {
            tracing::warn!(%error, "a file that waits to be a segment could not be given back");
        }
        self.sealing = chores.seal.or(self.sealing.take());
        self.merging = chores.merge.or(self.merging.take());
        self.write_ids(ask);
        if chores.prepare
            && let Err(error) = self.storage.prepare(self.options.segment_bytes)
        {
            tracing::warn!(%error, "no segment could be made ready: the next one grows as it is written");
        }
        self.drop_old_dead_letters(ask);
        self.destroy_old_keys(ask);
        for _ in 0..SEGMENTS_A_ROUND {
            let Some(number) = self.to_evacuate() else { break };
            if !self.write_again(number, None, ask) {
                break;
            }
        }
    }

    fn write_ids(&mut self, ask: Ask<'_>) {
        let written = [
            self.sealing.as_ref().map(|frozen| frozen.write(&*self.runs)),
            self.merging.as_ref().map(|merge| merge.write(&*self.runs)),
        ];
        for (place, written) in written.into_iter().enumerate() {
            match written {
                None => {}
                Some(Ok(run)) => {
                    if place == 0 {
                        self.sealing = None;
                    } else {
                        self.merging = None;
                    }
                    ask(Command::Adopt(run));
                }
                Some(Err(error)) if place > 0 && error.kind() == io::ErrorKind::InvalidData => {
                    // A merge of runs of which one is damaged never succeeds; they answer as they are, as far as they can.
                    tracing::error!(%error, "remembered ids can't be put together: restore the named file");
                    self.merging = None;
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "remembered ids could not be written: tried again in a while");
                }
            }
        }
    }

    fn to_evacuate(&self) -> Option<u64> {
        let state = self.shared.state();
        let tip = state.segment_numbers().last()?;
        state.to_evacuate(tip, self.options.segment_bytes, self.options.max_bytes)
    }

    fn drop_old_dead_letters(&self, ask: Ask<'_>) {
        let now = self.shared.expiry_ms();
        let oldest = now.saturating_sub(millis(self.options.dead_letter_retention));
        loop {
            let old = self.shared.state().dead_before(oldest, DROPPED_AT_ONCE);
            for seq in &old {
                let outcome = Outcome::Dropped {
                    reason: "Expired".to_owned(),
                };
                let done = answered(|reply| {
                    ask(Command::Settle {
                        seq: *seq,
                        outcome,
                        at_ms: now,
                        reply,
                    });
                });
                if !done {
                    return;
                }
                self.shared.expires();
            }
            if !old.is_empty() {
                tracing::warn!(
                    dropped = old.len(),
                    "dead letters that nobody has looked at in their time were dropped"
                );
            }
            if old.len() < DROPPED_AT_ONCE {
                return;
            }
        }
    }

    fn destroy_old_keys(&self, ask: Ask<'_>) {
        let Some(keyring) = &self.keyring else { return };
        let ended = self
            .shared
            .expiry_ms()
            .saturating_sub(millis(self.options.body_retention));
        for key in keyring.ended_before(ended) {
            if self.shared.state().needs_key(key) {
                let segments = self.shared.state().live_segments();
                for number in segments {
                    if !self.shared.state().needs_key(key) {
                        break;
                    }
                    self.write_again(number, Some(key), ask);
                }
            }
            if self.shared.state().needs_key(key) {
                continue;
            }
            match keyring.destroy(key) {
                Ok(()) => tracing::info!(key, "a day's bodies are beyond reach: their key is destroyed"),
                Err(error) => tracing::warn!(key, %error, "a key could not be destroyed"),
            }
        }
    }

    /// Writes what is needed of a segment again, or only what is sealed with one key. False if it could not be done.
    fn write_again(&self, number: u64, only: Option<u32>, ask: Ask<'_>) -> bool {
        match self.try_write_again(number, only, ask) {
            Ok(done) => done,
            Err(error) => {
                tracing::warn!(segment = number, %error, "what is needed of a segment could not be written again");
                false
            }
        }
    }

    fn try_write_again(&self, number: u64, only: Option<u32>, ask: Ask<'_>) -> io::Result<bool> {
        let Some(salt) = self.shared.state().salt(number) else {
            return Ok(true);
        };
        let (mut messages, mut bytes) = (Vec::new(), 0);
        let mut at = SEGMENT_HEADER as u64;
        while let Some((frame, end)) = self.frame(number, salt, at)? {
            let decoded = decode_frame_at(salt, at, &frame)
                .map_err(|fault| io::Error::other(format!("at byte {at}: {}", fault.describe())))?;
            for (place, record) in decoded.records {
                let Record::Accepted(entry) = record else { continue };
                let position = Position {
                    segment: number,
                    place,
                    key: entry.head.key,
                };
                let here = self.shared.state().position(entry.head.seq);
                if here.is_none_or(|(here, _)| here != position)
                    || only.is_some_and(|key| key != entry.head.key)
                {
                    continue;
                }
                let encoded = self.seal_again(&entry)?;
                bytes += encoded.content.len();
                messages.push((position, encoded));
                if bytes >= PIECE {
                    bytes = 0;
                    if !submit(std::mem::take(&mut messages), ask) {
                        return Ok(false);
                    }
                }
            }
            at = end;
        }
        Ok(messages.is_empty() || submit(messages, ask))
    }

    /// The frame at an offset, and the offset of the next one; none behind the last.
    fn frame(&self, number: u64, salt: Salt, at: u64) -> io::Result<Option<(Vec<u8>, u64)>> {
        let header = self.storage.read(number, at, FRAME_HEADER)?;
        let Some(len) = frame_len(&header) else {
            return Ok(None);
        };
        let frame = self.storage.read(number, at, len)?;
        // Behind the last frame stands what was there before.
        if decode_frame_at(salt, at, &frame).is_err() && !super::format::is_frame_of(salt, at, &header) {
            return Ok(None);
        }
        Ok(Some((frame, at + len as u64)))
    }

    /// The same message, sealed with today's key.
    fn seal_again(&self, entry: &Accepted<'_>) -> io::Result<Encoded> {
        let mut head = entry.head;
        head.written_again = true;
        let Some(keyring) = self.keyring.as_ref().filter(|_| head.key != 0) else {
            return Ok(Encoded::again(head, entry));
        };
        let old = keyring.get(head.key);
        // What can't be opened, because its key is gone or it is damaged, goes on as it is: nobody will read it, and it
        // must not keep the rest of its segment where it is.
        let Some((contact, body)) = seal::open(entry, old.as_deref()) else {
            return Ok(Encoded::again(head, entry));
        };
        let environment = head.address.environment;
        let now = self.shared.expiry_ms().max(head.accepted_at_ms);
        let key = keyring.make(environment, now)?;
        head.key = key.id;
        Encoded::seal(head, entry.trace, &contact, &body, Some(&key))
            .map_err(|_| io::Error::other("no randomness"))
    }
}

fn submit(messages: Vec<(Position, Encoded)>, ask: Ask<'_>) -> bool {
    answered(|reply| ask(Command::WriteAgain { messages, reply }))
}

/// Asks for something and waits until it is durable.
fn answered(ask: impl FnOnce(super::group::Answer<()>)) -> bool {
    let (reply, answer) = oneshot::channel();
    ask(reply);
    matches!(answer.blocking_recv(), Ok(Ok(())))
}
