//! In which order replies leave: what is remembered of the requests that Aura has, and of the groups that were
//! cancelled. Pure; times are ms since some start.
//!
//! A request is a user's message, from when Aura has taken it until it is answered or `unansweredAfter` has passed. It
//! is answered by the first reply that names it. A reply waits while a request that was accepted before its own is
//! neither. The bound counts from when Aura took the request, not from its acceptance: before that Aura can't
//! answer, and after an outage of Aura, when every request is old, the order would be lost just when many come at once.
//! A request that Aura does not have yet holds nothing: a lane is in order (Law 3), so that Aura has none of those
//! behind it, and no reply to them can come.
//!
//! One whose time is up holds nothing, and is remembered as long again: who passes it then is counted.
//!
//! All is in memory and bounded (Law 11). After a restart the requests that Aura had are forgotten: replies that wait
//! leave as they were accepted.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet, VecDeque},
};

use super::key::{ContactKey, RequestId, first_bytes};
use crate::api::ChannelId;

/// Requests remembered in all; beyond, those whose time would be up first are forgotten.
const REQUESTS: usize = 100_000;
/// Cancelled groups remembered in all; beyond, the oldest is forgotten.
const GROUPS: usize = 10_000;

/// Both directions of one conversation.
pub(super) type Conversation = (ChannelId, ContactKey);

/// A request within its conversation: a part of its digest is enough to tell it from the few others there. 0: none.
pub(super) type Tag = u64;

/// The tag of a request.
pub(super) fn tag(request: Option<RequestId>) -> Tag {
    request.map_or(0, |RequestId(digest)| first_bytes(digest).max(1))
}

/// A request that Aura has.
#[derive(Clone, Copy, Debug)]
struct Request {
    tag: Tag,
    seq: u64,
    taken_at: u64,
    answered: bool,
}

/// A request's place among those of its conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// Its place in the journal.
    pub seq: u64,
    /// None that came after it is known.
    pub newest: bool,
}

/// The requests that Aura has, of all conversations.
#[derive(Debug, Default)]
pub(super) struct Requests {
    by_conversation: HashMap<Conversation, Vec<Request>>,
    /// When each is forgotten.
    ends: BinaryHeap<Reverse<(u64, Conversation, u64)>>,
}

impl Requests {
    /// Aura has taken a request: it holds later ones' replies for so long, and is remembered for twice as long.
    pub fn taken(
        &mut self,
        conversation: Conversation,
        tag: Tag,
        seq: u64,
        answered: bool,
        now: u64,
        bound: u64,
    ) {
        if self.ends.len() >= REQUESTS
            && let Some(Reverse((_, conversation, seq))) = self.ends.pop()
        {
            self.forget(conversation, seq);
        }
        let request = Request {
            tag,
            seq,
            taken_at: now,
            answered,
        };
        self.by_conversation
            .entry(conversation)
            .or_default()
            .push(request);
        self.ends.push(Reverse((now + 2 * bound, conversation, seq)));
    }

    /// A reply names a request: it is answered. Its place, if it is known.
    pub fn answered(&mut self, conversation: Conversation, tag: Tag) -> Option<Known> {
        let requests = self.by_conversation.get_mut(&conversation)?;
        let newest = requests.iter().map(|request| request.seq).max();
        let request = requests.iter_mut().find(|request| request.tag == tag)?;
        request.answered = true;
        Some(Known {
            seq: request.seq,
            newest: newest == Some(request.seq),
        })
    }

    /// Until when a reply to the request with this place waits for earlier ones; `None`: it may leave.
    pub fn held_until(&self, conversation: Conversation, seq: u64, now: u64, bound: u64) -> Option<u64> {
        self.by_conversation
            .get(&conversation)?
            .iter()
            .filter(|request| request.seq < seq && !request.answered)
            .map(|request| request.taken_at + bound)
            .max()
            .filter(|until| *until > now)
    }

    /// Whether a reply to the request with this place passes an earlier one that nobody has answered.
    pub fn overtakes(&self, conversation: Conversation, seq: u64) -> bool {
        self.by_conversation.get(&conversation).is_some_and(|requests| {
            requests
                .iter()
                .any(|request| request.seq < seq && !request.answered)
        })
    }

    /// Forgets the requests that are over.
    pub fn sweep(&mut self, now: u64) {
        while let Some(Reverse((at, conversation, seq))) = self.ends.peek().copied()
            && at <= now
        {
            self.ends.pop();
            self.forget(conversation, seq);
        }
    }

    fn forget(&mut self, conversation: Conversation, seq: u64) {
        if let Some(requests) = self.by_conversation.get_mut(&conversation) {
            requests.retain(|request| request.seq != seq);
            if requests.is_empty() {
                self.by_conversation.remove(&conversation);
            }
        }
    }
}

/// The groups that were cancelled: replies to their requests that come later are cancelled too.
#[derive(Debug, Default)]
pub(super) struct Cancelled {
    known: HashSet<(Conversation, Tag)>,
    oldest: VecDeque<(Conversation, Tag)>,
}

impl Cancelled {
    /// The replies to this request are cancelled from now on.
    pub fn add(&mut self, conversation: Conversation, tag: Tag) {
        if !self.known.insert((conversation, tag)) {
            return;
        }
        self.oldest.push_back((conversation, tag));
        if self.oldest.len() > GROUPS
            && let Some(oldest) = self.oldest.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    /// Whether replies to this request are cancelled.
    pub fn has(&self, conversation: Conversation, tag: Tag) -> bool {
        self.known.contains(&(conversation, tag))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: u64 = 10_000;

    fn conversation(n: u8) -> Conversation {
        (ChannelId::from_bytes([1; 16]), ContactKey([n; 16]))
    }

    #[test]
    fn a_reply_waits_for_earlier_requests_that_aura_has_until_they_are_answered_or_time_is_up() {
        let mut requests = Requests::default();
        requests.taken(conversation(1), 11, 1, false, 1000, BOUND);
        requests.taken(conversation(1), 12, 2, false, 3000, BOUND);
        let held = |requests: &Requests, seq, now| requests.held_until(conversation(1), seq, now, BOUND);
        assert_eq!(
            held(&requests, 1, 4000),
            None,
            "its own request is no earlier one"
        );
        assert_eq!(held(&requests, 2, 4000), Some(11_000));
        assert_eq!(held(&requests, 3, 4000), Some(13_000), "the later of the two");
        assert_eq!(held(&requests, 2, 11_000), None);
        let passes = |requests: &Requests, seq| requests.overtakes(conversation(1), seq);
        assert!(passes(&requests, 2) && !passes(&requests, 1));
        assert_eq!(requests.held_until(conversation(2), 2, 4000, BOUND), None);
        let known = requests.answered(conversation(1), 11);
        assert_eq!(
            known,
            Some(Known {
                seq: 1,
                newest: false
            })
        );
        assert_eq!(held(&requests, 2, 4000), None);
        assert!(!passes(&requests, 2));
        assert_eq!(requests.answered(conversation(1), 99), None);
        requests.sweep(22_999);
        assert!(passes(&requests, 3), "its time was up long ago");
        requests.sweep(23_000);
        assert!(!passes(&requests, 3));
    }

    #[test]
    fn nothing_is_remembered_for_ever() {
        let mut requests = Requests::default();
        let count = REQUESTS as u64 + 5;
        for seq in 0..count {
            requests.taken(conversation((seq % 7) as u8), seq + 1, seq, false, seq, BOUND);
        }
        assert_eq!(requests.ends.len(), REQUESTS);
        assert_eq!(requests.answered(conversation(4), 5), None, "the oldest gave way");
        requests.sweep(count + 2 * BOUND);
        assert!(requests.ends.is_empty() && requests.by_conversation.is_empty());
        let mut cancelled = Cancelled::default();
        for tag in 0..=GROUPS as u64 {
            cancelled.add(conversation(1), tag + 1);
        }
        assert!(!cancelled.has(conversation(1), 1) && cancelled.has(conversation(1), 2));
        assert_eq!(cancelled.known.len(), GROUPS);
    }
}
