//! The messages that wait, by lane: small, because there may be a million (Law 11). Pure.
//!
//! A message is a record of 40 bytes in one slab, linked to the next of its lane; a lane is a record of 48 bytes in
//! another, found through a table of its number. So a queued message takes 40 bytes, and a lane some 60; slabs grow by
//! doubling, of which the part that was never used is not in memory.
//!
//! It knows neither time nor rules: `lanes` says what happens to what.

use std::num::NonZeroU16;

use hashbrown::{HashTable, hash_table::Entry};
use slab::Slab;

use super::{
    fair::Slot,
    key::{ContactKey, first_bytes},
    order::Tag,
};

/// The number of a lane while it exists.
pub(super) type LaneId = u32;

/// No record.
const NONE: u32 = u32::MAX;
/// How many waiting replies are looked at to find a reply's place among them; beyond, it goes to the end.
const LOOK_THROUGH: usize = 1000;

/// A message that waits or is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    /// Its place in the journal.
    pub seq: u64,
    /// Its request, or the one that it answers.
    pub tag: Tag,
    /// Of a reply: the place of its request in the journal; 0 if that is not known or none.
    pub order: u64,
    /// What its channel's clock showed when it was accepted.
    pub born: i64,
    next: u32,
    attempts: NonZeroU16,
    flags: u8,
}

/// What is so of a message.
#[derive(Clone, Copy, Debug)]
pub(super) enum Flag {
    /// An attempt ended with nobody knowing whether it arrived.
    Uncertain = 1,
    /// A person had it accepted again.
    Replayed = 2,
    /// It gets one attempt whatever its age.
    LeftOver = 4,
    /// A person gave it up while it was under way.
    Dropped = 8,
    /// Of a user's message: a reply to it was accepted before Aura's answer to the message itself was.
    Answered = 16,
    /// It is in front of one that was accepted before it.
    Jumped = 32,
}

impl Node {
    pub fn new(seq: u64, tag: Tag, born: i64, attempts: u32) -> Self {
        let attempts = u16::try_from(attempts.saturating_add(1)).unwrap_or(u16::MAX);
        Self {
            seq,
            tag,
            order: 0,
            born,
            next: NONE,
            attempts: NonZeroU16::MIN.saturating_add(attempts.saturating_sub(1)),
            flags: 0,
        }
    }

    pub fn is(&self, flag: Flag) -> bool {
        self.flags & flag as u8 != 0
    }

    pub fn set(&mut self, flag: Flag, on: bool) {
        if on {
            self.flags |= flag as u8;
        } else {
            self.flags &= !(flag as u8);
        }
    }

    /// Attempts so far.
    pub fn attempts(&self) -> u32 {
        u32::from(self.attempts.get()) - 1
    }

    pub fn count_attempt(&mut self) {
        self.attempts = self.attempts.saturating_add(1);
    }

    pub fn uncount_attempt(&mut self) {
        self.attempts = NonZeroU16::new(self.attempts.get() - 1).unwrap_or(NonZeroU16::MIN);
    }
}

/// What a lane does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing: it is empty, or parked.
    Resting,
    /// Its head may be looked at when its channel's turn comes.
    Ready,
    /// Its head is under way.
    UnderWay,
    /// Its head waits for its retry.
    Retrying,
    /// Its head waits for an earlier request's answer.
    Ordered,
    /// Its head has ended, which is being recorded.
    Settling,
}

/// One direction of one conversation.
#[derive(Debug)]
pub(super) struct Lane {
    pub contact: ContactKey,
    pub slot: Slot,
    head: u32,
    tail: u32,
    next_ready: LaneId,
    /// The timer that it waits for; 0: none.
    pub timer: u32,
    pub state: State,
    /// A person must let it go on.
    pub parked: bool,
    /// It is parked once its head's end is recorded.
    pub park_next: bool,
}

/// The lanes of one slot that are ready, in turn.
#[derive(Debug)]
pub(super) struct Ready {
    first: LaneId,
    last: LaneId,
}

impl Default for Ready {
    fn default() -> Self {
        Self {
            first: NONE,
            last: NONE,
        }
    }
}

impl Ready {
    pub fn is_empty(&self) -> bool {
        self.first == NONE
    }
}

/// All lanes and their messages.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    nodes: Slab<Node>,
    lanes: Slab<Lane>,
    index: HashTable<LaneId>,
}

/// The digest is as good as random already; the slot tells a contact's lanes apart.
fn hash(slot: Slot, contact: ContactKey) -> u64 {
    first_bytes(contact.0) ^ u64::from(slot).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn at(id: u32) -> usize {
    id as usize
}

/// More than four thousand million records do not fit into any memory this runs in.
fn number(key: usize) -> u32 {
    u32::try_from(key).unwrap_or(NONE)
}

impl Backlog {
    /// How many messages there are.
    pub fn messages(&self) -> usize {
        self.nodes.len()
    }

    /// How many lanes there are.
    pub fn lane_count(&self) -> usize {
        self.lanes.len()
    }

    /// Bytes that are held for messages and lanes.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>()
            + self.lanes.capacity() * size_of::<Lane>()
            + self.index.allocation_size()
    }

    pub fn lane(&self, id: LaneId) -> Option<&Lane> {
        self.lanes.get(at(id))
    }

    pub fn lane_mut(&mut self, id: LaneId) -> Option<&mut Lane> {
        self.lanes.get_mut(at(id))
    }

    pub fn find(&self, slot: Slot, contact: ContactKey) -> Option<LaneId> {
        let lanes = &self.lanes;
        let same = |id: &LaneId| {
            lanes
                .get(at(*id))
                .is_some_and(|lane| lane.slot == slot && lane.contact == contact)
        };
        self.index.find(hash(slot, contact), same).copied()
    }

    pub fn find_or_add(&mut self, slot: Slot, contact: ContactKey) -> LaneId {
        let lanes = &mut self.lanes;
        let is = |lanes: &Slab<Lane>, id: LaneId| {
            lanes
                .get(at(id))
                .is_some_and(|lane| lane.slot == slot && lane.contact == contact)
        };
        let rehash = |lanes: &Slab<Lane>, id: LaneId| {
            lanes.get(at(id)).map_or(0, |lane| hash(lane.slot, lane.contact))
        };
        let entry = self
            .index
            .entry(hash(slot, contact), |id| is(lanes, *id), |id| rehash(lanes, *id));
        match entry {
            Entry::Occupied(found) => *found.get(),
            Entry::Vacant(place) => {
                let id = number(lanes.vacant_key());
                place.insert(id);
                lanes.insert(Lane {
                    contact,
                    slot,
                    head: NONE,
                    tail: NONE,
                    next_ready: NONE,
                    timer: 0,
                    state: State::Resting,
                    parked: false,
                    park_next: false,
                });
                id
            }
        }
    }

    /// Forgets a lane, which is empty and in no row.
    pub fn remove_lane(&mut self, id: LaneId) {
        if let Some(lane) = self.lanes.try_remove(at(id))
            && let Ok(entry) = self
                .index
                .find_entry(hash(lane.slot, lane.contact), |other| *other == id)
        {
            entry.remove();
        }
    }

    pub fn lanes(&self) -> impl Iterator<Item = (LaneId, &Lane)> {
        self.lanes.iter().map(|(key, lane)| (number(key), lane))
    }

    pub fn head(&self, id: LaneId) -> Option<&Node> {
        self.nodes.get(at(self.lanes.get(at(id))?.head))
    }

    pub fn head_mut(&mut self, id: LaneId) -> Option<&mut Node> {
        self.nodes.get_mut(at(self.lanes.get(at(id))?.head))
    }

    pub fn push(&mut self, id: LaneId, node: Node) {
        let new = number(self.nodes.insert(Node { next: NONE, ..node }));
        let Some(lane) = self.lanes.get_mut(at(id)) else {
            return;
        };
        match self.nodes.get_mut(at(lane.tail)) {
            Some(tail) => tail.next = new,
            None => lane.head = new,
        }
        lane.tail = new;
    }

    /// Puts a reply before those of later requests, and behind each of its own or an earlier one, wherever that had to go;
    /// never before a head that was tried, which may have arrived or is about to.
    pub fn push_in_order(&mut self, id: LaneId, node: Node) {
        let Some(lane) = self.lanes.get(at(id)) else {
            return;
        };
        let (mut before, mut here) = (NONE, lane.head);
        let busy = !matches!(lane.state, State::Resting | State::Ready | State::Ordered);
        let mut place = None;
        for n in 0..LOOK_THROUGH {
            let Some(other) = self.nodes.get(at(here)) else {
                break;
            };
            let is_fixed = n == 0 && (busy || other.attempts() > 0);
            if other.order > node.order {
                place = place.or((!is_fixed).then_some((before, here)));
            } else if other.order > 0 || other.tag != 0 {
                // Also behind an answer to a request that nobody remembers: it is older than those that are known.
                place = None;
            }
            (before, here) = (here, other.next);
        }
        // Of a lane that is longer nobody knows what stands behind: the end is never out of turn within its group.
        let Some((before, next)) = place.filter(|_| here == NONE) else {
            self.push(id, node);
            return;
        };
        let mut node = Node { next, ..node };
        node.set(Flag::Jumped, true);
        let new = number(self.nodes.insert(node));
        if let Some(before) = self.nodes.get_mut(at(before)) {
            before.next = new;
        } else if let Some(lane) = self.lanes.get_mut(at(id)) {
            lane.head = new;
        }
    }

    pub fn pop(&mut self, id: LaneId) -> Option<Node> {
        let lane = self.lanes.get_mut(at(id))?;
        let node = self.nodes.try_remove(at(lane.head))?;
        lane.head = node.next;
        if lane.head == NONE {
            lane.tail = NONE;
        }
        Some(node)
    }

    /// Takes out what is wanted; the head only if `head` says so.
    pub fn take(&mut self, id: LaneId, head: bool, wanted: impl Fn(&Node) -> bool) -> Vec<u64> {
        let mut taken = Vec::new();
        let Some(lane) = self.lanes.get_mut(at(id)) else {
            return taken;
        };
        let (mut before, mut here) = (NONE, lane.head);
        while let Some(node) = self.nodes.get(at(here)).copied() {
            if (head || before != NONE) && wanted(&node) {
                taken.push(node.seq);
                self.nodes.try_remove(at(here));
                match self.nodes.get_mut(at(before)) {
                    Some(before) => before.next = node.next,
                    None => lane.head = node.next,
                }
                if lane.tail == here {
                    lane.tail = before;
                }
            } else {
                before = here;
            }
            here = node.next;
        }
        taken
    }

    /// The messages of a lane, in order.
    pub fn each(&self, id: LaneId) -> impl Iterator<Item = &Node> {
        let first = self.head(id);
        std::iter::successors(first, |node| self.nodes.get(at(node.next)))
    }

    /// Changes each message of a lane.
    pub fn change(&mut self, id: LaneId, change: impl Fn(&mut Node)) {
        let mut here = self.lanes.get(at(id)).map_or(NONE, |lane| lane.head);
        while let Some(node) = self.nodes.get_mut(at(here)) {
            change(node);
            here = node.next;
        }
    }

    /// Puts a lane at the end of a row.
    pub fn make_ready(&mut self, row: &mut Ready, id: LaneId) {
        if let Some(last) = self.lanes.get_mut(at(row.last)) {
            last.next_ready = id;
        } else {
            row.first = id;
        }
        row.last = id;
        if let Some(lane) = self.lanes.get_mut(at(id)) {
            lane.state = State::Ready;
            lane.timer = 0;
            lane.next_ready = NONE;
        }
    }

    /// Takes the first lane of a row.
    pub fn next_ready(&mut self, row: &mut Ready) -> Option<LaneId> {
        let id = row.first;
        let lane = self.lanes.get_mut(at(id))?;
        row.first = lane.next_ready;
        if row.first == NONE {
            row.last = NONE;
        }
        lane.next_ready = NONE;
        lane.state = State::Resting;
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contact(n: u64) -> ContactKey {
        let mut digest = [7; 16];
        digest[..8].copy_from_slice(&n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
        ContactKey(digest)
    }

    fn node(seq: u64, order: u64) -> Node {
        Node {
            order,
            ..Node::new(seq, u64::from(order > 0), 0, 0)
        }
    }

    fn seqs(backlog: &Backlog, id: LaneId) -> Vec<u64> {
        backlog.each(id).map(|node| node.seq).collect()
    }

    #[test]
    fn a_reply_goes_before_those_of_later_requests_but_never_before_one_that_was_tried() {
        let mut backlog = Backlog::default();
        let id = backlog.find_or_add(1, contact(1));
        for (seq, order) in [(10, 5), (11, 0), (12, 9), (13, 3), (14, 5), (15, 9)] {
            // One that answers nothing has no place to look for.
            if order == 0 {
                backlog.push(id, node(seq, order));
            } else {
                backlog.push_in_order(id, node(seq, order));
            }
        }
        assert_eq!(seqs(&backlog, id), [13, 10, 11, 14, 12, 15]);
        backlog.head_mut(id).unwrap().count_attempt();
        backlog.push_in_order(id, node(16, 1));
        assert_eq!(seqs(&backlog, id), [13, 16, 10, 11, 14, 12, 15]);
        assert_eq!(backlog.take(id, false, |node| node.seq % 2 == 1), [11, 15]);
        backlog.push(id, node(17, 0));
        assert_eq!(seqs(&backlog, id), [13, 16, 10, 14, 12, 17]);
        assert_eq!(
            backlog.take(id, true, |node| node.seq != 16),
            [13, 10, 14, 12, 17]
        );
        backlog.push(id, node(18, 0));
        assert_eq!(seqs(&backlog, id), [16, 18]);
        assert_eq!(backlog.pop(id).map(|node| node.seq), Some(16));
    }

    #[test]
    fn a_reply_stays_behind_its_own_group_that_had_to_go_behind_a_later_one() {
        let mut backlog = Backlog::default();
        let id = backlog.find_or_add(1, contact(1));
        backlog.push(id, node(20, 9));
        // The head is under way when the first reply to an earlier request comes, and waits again when the second does.
        backlog.head_mut(id).unwrap().count_attempt();
        backlog.push_in_order(id, node(21, 5));
        backlog.head_mut(id).unwrap().uncount_attempt();
        backlog.push_in_order(id, node(22, 5));
        backlog.push_in_order(id, node(23, 7));
        backlog.push_in_order(id, node(24, 9));
        assert_eq!(seqs(&backlog, id), [20, 21, 22, 23, 24]);
    }

    #[test]
    fn a_reply_stays_behind_one_to_a_request_that_is_forgotten() {
        let mut backlog = Backlog::default();
        let id = backlog.find_or_add(1, contact(1));
        backlog.push(id, node(20, 9));
        backlog.push(id, Node::new(21, 1, 0, 0));
        backlog.push_in_order(id, node(22, 5));
        assert_eq!(seqs(&backlog, id), [20, 21, 22]);
    }

    #[test]
    fn ready_lanes_come_in_turn_and_a_lane_that_is_gone_is_found_no_more() {
        let mut backlog = Backlog::default();
        let mut row = Ready::default();
        let ids: Vec<_> = (0..3).map(|n| backlog.find_or_add(1, contact(n))).collect();
        ids.iter().for_each(|id| backlog.make_ready(&mut row, *id));
        assert_eq!(backlog.next_ready(&mut row), Some(ids[0]));
        backlog.make_ready(&mut row, ids[0]);
        let rest: Vec<_> = std::iter::from_fn(|| backlog.next_ready(&mut row)).collect();
        assert_eq!(rest, [ids[1], ids[2], ids[0]]);
        backlog.remove_lane(ids[1]);
        assert_eq!(backlog.find(1, contact(1)), None);
        assert_eq!(backlog.find(1, contact(2)), Some(ids[2]));
        assert_eq!(backlog.find(2, contact(2)), None);
    }

    #[test]
    fn attempts_are_counted_as_far_as_they_matter() {
        let mut node = Node::new(1, 0, 0, 2);
        node.count_attempt();
        assert_eq!(node.attempts(), 3);
        node.uncount_attempt();
        assert_eq!(node.attempts(), 2);
        let mut many = Node::new(1, 0, 0, u32::MAX);
        many.count_attempt();
        assert_eq!(many.attempts(), u32::from(u16::MAX) - 1);
    }

    #[test]
    fn a_million_messages_take_what_they_should() {
        // Of one conversation each, and of a hundred: what a message takes, with its share of its lane.
        for (of_one_lane, bytes) in [(1, 115), (100, 48)] {
            let mut backlog = Backlog::default();
            for n in 0..1_000_000 {
                let id = backlog.find_or_add(0, contact(n / of_one_lane));
                backlog.push(id, node(n, 0));
            }
            let each = backlog.bytes() / backlog.messages();
            assert!(each <= bytes, "{each} bytes each, {of_one_lane} to a lane");
        }
        assert_eq!((size_of::<Node>(), size_of::<Option<Node>>()), (40, 40));
        assert_eq!((size_of::<Lane>(), size_of::<Option<Lane>>()), (40, 40));
    }
}
