//! What is remembered of each channel while this process runs. What must outlive it stands in the status.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{decide::Verdict, statuses::Statuses};
use crate::{api::WhatsAppChannelStatus, kernel::Credentials};

/// What a verification was made for, hashed: if any of it changes, Kernel is looked at again.
pub(super) type Fingerprint = u64;

/// One channel.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    /// What the webhook was last found or set right for, and when the next look is due.
    pub verified: Option<(Fingerprint, Instant)>,
    /// Looks that failed in a row since then.
    pub misses: u32,
    /// The status that was written last, and the resourceVersion that it made; until the watch has told of it.
    pub written: Option<Box<(u64, WhatsAppChannelStatus)>>,
    /// What was found out and could not be reported: the API server did not take it. It is reported without asking
    /// Kernel again.
    pub unreported: Option<Box<(Fingerprint, Verdict)>>,
    /// What the failures in a row were for, and how many there were.
    pub failures: Option<(Fingerprint, u32)>,
    /// Until when Kernel has asked us to wait, and for what.
    pub not_before: Option<(Fingerprint, Instant)>,
    /// How often somebody else may have changed the webhook, so that Kernel is looked at although no look is due; and how
    /// often it was.
    pub looks_wanted: u32,
    pub looks_made: u32,
    /// What the bridge was told of, and when.
    pub announced: Option<(Fingerprint, Instant)>,
    /// When Kernel was last heard about it, in seconds since 1970.
    pub looked_at: Option<i64>,
    /// When its deletion first failed.
    pub cleanup_failing: Option<Instant>,
    /// All that its deletion has to do was done, or given up and told of: only the finalizer is left.
    pub cleaned_up: bool,
    /// Its Kernel client, kept where its deletion clears the webhook: the Secret may go first.
    pub credentials: Option<Box<Credentials>>,
}

/// All channels, by UID.
#[derive(Default)]
pub(super) struct Memories {
    /// UIDs are hashed: they are random themselves, and 36 bytes each.
    by_uid: Mutex<HashMap<u64, Memory>>,
    statuses: Mutex<Statuses>,
    hasher: RandomState,
}

impl Memories {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Memory>> {
        self.by_uid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A hash that only this process can make: of a fingerprint's parts, of a client's id.
    pub fn hash(&self, what: impl Hash) -> u64 {
        self.hasher.hash_one(what)
    }

    /// What is remembered of a channel.
    pub fn of(&self, uid: &str) -> Memory {
        self.lock().get(&self.hash(uid)).cloned().unwrap_or_default()
    }

    /// Replaces what is remembered, but for what others have asked for meanwhile.
    pub fn keep(&self, uid: &str, mut memory: Memory) {
        let mut all = self.lock();
        let kept = all.entry(self.hash(uid)).or_default();
        memory.looks_wanted = kept.looks_wanted;
        *kept = memory;
    }

    /// Has Kernel looked at although no look is due.
    pub fn look_at_once(&self, uid: &str) {
        let mut all = self.lock();
        let memory = all.entry(self.hash(uid)).or_default();
        memory.looks_wanted = memory.looks_wanted.wrapping_add(1);
    }

    /// Forgets a channel.
    pub fn forget(&self, uid: &str) {
        self.lock().remove(&self.hash(uid));
        self.statuses().forget(self.hash(uid));
    }

    fn statuses(&self) -> MutexGuard<'_, Statuses> {
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The watch has told of this status.
    pub fn told_status(&self, uid: &str, status: WhatsAppChannelStatus) {
        self.statuses().keep(self.hash(uid), status);
    }

    /// The status that the watch has told of last.
    pub fn status(&self, uid: &str) -> WhatsAppChannelStatus {
        self.statuses().get(self.hash(uid))
    }

    /// Shows the conditions of that status: each one's type, value and reason.
    pub fn conditions(&self, uid: &str, mut show: impl FnMut(&str, &str, &str)) {
        let channel = self.hash(uid);
        self.statuses()
            .conditions(channel)
            .for_each(|(kind, value, reason)| show(kind, value, reason));
    }

    /// Forgets all channels, but for their statuses.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// The watch has told of this version: a status that made it, or an older one, need not be remembered.
    pub fn caught_up(&self, uid: &str, version: u64) {
        if let Some(memory) = self.lock().get_mut(&self.hash(uid))
            && memory
                .written
                .as_ref()
                .is_some_and(|written| written.0 <= version)
        {
            memory.written = None;
        }
    }
}
