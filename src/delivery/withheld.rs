//! Messages of runs before this one that nobody may try yet: whether the journal is older than the cluster's record is
//! not known, or it is, and a person has not said what becomes of them. Pure.
//!
//! Until the journal is judged, what is accepted meanwhile waits behind them if it is of the same conversation, in either
//! direction (Law 3); other conversations are not held up (Law 4). What a judged journal withholds may have been
//! delivered long ago: new messages pass it by.

use std::collections::{BTreeMap, HashSet};

use super::key::{ContactKey, LaneKey};
use crate::{
    api::ChannelId,
    journal::{Pending, Seq},
};

/// Which messages are meant: a channel's, or all.
pub type OfChannel = Option<ChannelId>;

type Conversation = (ChannelId, ContactKey);

fn conversation(message: &Pending) -> Conversation {
    let lane = LaneKey::of(&message.address);
    (lane.channel, lane.contact)
}

/// What is withheld.
#[derive(Debug, Default)]
pub(super) struct Withheld {
    /// Until the journal is judged: they go on by themselves then, if it is the cluster's.
    unjudged: Vec<Pending>,
    /// What came since, of their conversations.
    behind: Vec<Pending>,
    conversations: HashSet<Conversation>,
    /// Until a person says what becomes of them.
    held: BTreeMap<Seq, Pending>,
}

impl Withheld {
    /// Withholds what a journal held when it was opened, in the order of acceptance. `is_held`: a run before has judged
    /// that a person is to be asked.
    pub fn new(pending: Vec<Pending>, is_held: impl Fn(&Pending) -> bool) -> Self {
        let (held, unjudged): (Vec<_>, Vec<_>) = pending.into_iter().partition(is_held);
        Self {
            conversations: unjudged.iter().map(conversation).collect(),
            unjudged,
            behind: Vec::new(),
            held: held.into_iter().map(|message| (message.seq, message)).collect(),
        }
    }

    /// A message was accepted. Says whether it waits here.
    pub fn takes(&mut self, message: &Pending) -> bool {
        let waits = self.conversations.contains(&conversation(message));
        if waits {
            self.behind.push(*message);
        }
        waits
    }

    /// The journal is the cluster's: all of its messages go on, in this order.
    pub fn trusted(&mut self) -> Vec<Pending> {
        self.conversations = HashSet::new();
        let mut messages = in_order(std::mem::take(&mut self.unjudged));
        messages.append(&mut self.behind);
        messages
    }

    /// The journal is not: what it held waits for a person, and only what came since goes on.
    pub fn distrusted(&mut self) -> Vec<Pending> {
        self.conversations = HashSet::new();
        let held = std::mem::take(&mut self.unjudged);
        self.held
            .extend(held.into_iter().map(|message| (message.seq, message)));
        std::mem::take(&mut self.behind)
    }

    /// A person lets those that wait for him go on, in this order; if all, without waiting for the judgement either.
    pub fn release(&mut self, of: OfChannel) -> Vec<Pending> {
        let mut messages = in_order(self.take(of, usize::MAX));
        if of.is_none() {
            messages.append(&mut self.trusted());
        }
        messages
    }

    /// A person gives those that wait for him up, the oldest first and at most so many.
    pub fn take(&mut self, of: OfChannel, most: usize) -> Vec<Pending> {
        let is_meant =
            |message: &Pending| of.is_none_or(|channel| message.address.channel == *channel.as_bytes());
        let meant = self.held.values().filter(|message| is_meant(message));
        let taken: Vec<Pending> = meant.take(most).copied().collect();
        for message in &taken {
            self.held.remove(&message.seq);
        }
        taken
    }

    /// A person gives one up, whatever it waits for.
    pub fn take_one(&mut self, seq: Seq) -> Option<Pending> {
        if let Some(message) = self.held.remove(&seq) {
            return Some(message);
        }
        [&mut self.unjudged, &mut self.behind]
            .into_iter()
            .find_map(|list| {
                let at = list.iter().position(|message| message.seq == seq)?;
                Some(list.remove(at))
            })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.unjudged() + self.held.len()
    }

    /// How many wait for the judgement.
    pub fn unjudged(&self) -> usize {
        self.unjudged.len() + self.behind.len()
    }

    /// How many wait for a person, by channel.
    pub fn held(&self) -> BTreeMap<ChannelId, usize> {
        let mut held = BTreeMap::new();
        for message in self.held.values() {
            *held
                .entry(ChannelId::from_bytes(message.address.channel))
                .or_default() += 1;
        }
        held
    }
}

/// What left before its turn may have arrived: it must not come again behind what was accepted before it.
fn in_order(messages: Vec<Pending>) -> Vec<Pending> {
    let (mut begun, mut rest): (Vec<_>, Vec<_>) =
        messages.into_iter().partition(|message| message.note.begun);
    begun.append(&mut rest);
    begun
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{self, Address, Direction, Note};

    fn message(seq: u64, channel: u8, contact: u8, direction: Direction) -> Pending {
        Pending {
            seq: Seq(seq),
            address: Address {
                direction,
                channel: [channel; 16],
                environment: [1; 8],
                tag: [2; 6],
                contact: journal::ContactKey([contact; 16]),
            },
            accepted_at_ms: 1,
            request: None,
            note: Note::default(),
            replayed: false,
            origin: crate::journal::Origin::default(),
        }
    }

    const IN: Direction = Direction::ToAura;
    const OUT: Direction = Direction::ToKernel;

    fn seqs(messages: &[Pending]) -> Vec<u64> {
        messages.iter().map(|message| message.seq.0).collect()
    }

    fn channel(byte: u8) -> ChannelId {
        ChannelId::from_bytes([byte; 16])
    }

    fn unjudged() -> Withheld {
        let begun = Pending {
            note: Note {
                begun: true,
                ..Note::default()
            },
            ..message(2, 1, 1, OUT)
        };
        Withheld::new(vec![message(1, 1, 1, IN), begun, message(3, 2, 1, IN)], |_| false)
    }

    #[test]
    fn until_it_is_judged_a_conversation_waits_in_both_directions_and_no_other() {
        let mut withheld = unjudged();
        assert!(withheld.takes(&message(4, 1, 1, IN)));
        assert!(withheld.takes(&message(5, 1, 1, OUT)));
        assert!(!withheld.takes(&message(6, 1, 9, IN)), "another contact");
        assert!(!withheld.takes(&message(7, 3, 1, IN)), "another channel");
        assert_eq!(withheld.len(), 5);
        assert_eq!(seqs(&withheld.trusted()), [2, 1, 3, 4, 5]);
        assert_eq!(withheld.len(), 0);
        assert!(!withheld.takes(&message(8, 1, 1, IN)));
    }

    #[test]
    fn what_is_distrusted_waits_for_a_person_and_new_messages_pass_it_by() {
        let mut withheld = unjudged();
        assert!(withheld.takes(&message(4, 1, 1, IN)));
        assert_eq!(seqs(&withheld.distrusted()), [4]);
        assert!(!withheld.takes(&message(5, 1, 1, IN)));
        assert_eq!(
            withheld.held(),
            BTreeMap::from([(channel(1), 2), (channel(2), 1)])
        );
        assert_eq!(seqs(&withheld.trusted()), Vec::<u64>::new(), "judged once");
        assert_eq!(seqs(&withheld.release(Some(channel(1)))), [2, 1]);
        assert_eq!(seqs(&withheld.take(None, 9)), [3]);
        assert_eq!(withheld.len(), 0);
    }

    #[test]
    fn what_a_run_before_held_stays_held_when_the_journal_is_trusted() {
        let pending = vec![message(1, 1, 1, IN), message(9, 1, 1, IN)];
        let mut withheld = Withheld::new(pending, |message| message.seq < Seq(5));
        assert_eq!(seqs(&withheld.trusted()), [9]);
        assert_eq!(seqs(&withheld.release(None)), [1]);
    }

    #[test]
    fn a_person_who_releases_all_does_not_wait_for_the_judgement() {
        let mut withheld = unjudged();
        assert!(withheld.takes(&message(4, 1, 1, IN)));
        assert_eq!(seqs(&withheld.release(Some(channel(1)))), Vec::<u64>::new());
        assert_eq!(seqs(&withheld.release(None)), [2, 1, 3, 4]);
        assert_eq!(seqs(&withheld.distrusted()), Vec::<u64>::new());
        assert_eq!(withheld.len(), 0);
    }

    #[test]
    fn one_message_is_given_up_wherever_it_waits() {
        let mut withheld = unjudged();
        withheld.takes(&message(4, 1, 1, IN));
        assert_eq!(withheld.take_one(Seq(1)).map(|message| message.seq), Some(Seq(1)));
        assert_eq!(withheld.take_one(Seq(4)).map(|message| message.seq), Some(Seq(4)));
        withheld.distrusted();
        assert_eq!(withheld.take_one(Seq(3)).map(|message| message.seq), Some(Seq(3)));
        assert_eq!(withheld.take_one(Seq(3)), None);
        assert_eq!(withheld.len(), 1);
    }
}
