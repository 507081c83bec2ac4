//! What happened to the last messages, step by step, for whoever asks where one is. Pure.
//!
//! Memory only: after a restart the journal alone is asked. Ids are known here by their keyed digests (Law 6), and the
//! number of messages, steps and ids has limits (Law 11).

use std::collections::{HashMap, VecDeque};

use crate::{
    journal::Seq,
    keys::Keys,
    telemetry::{Outgoing, w3c::TraceId},
    whatsapp::Class,
};

/// Messages whose steps are remembered; beyond, the one that came first is forgotten. Some 19 MiB when full.
pub const MESSAGES: usize = 50_000;
/// Steps of one message that are remembered: the first half of them, and the last.
pub const STEPS: usize = 16;
/// Ids by which one message is found.
const IDS: usize = 8;

/// What an id is known by here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct IdDigest(u64);

impl IdDigest {
    /// The digest of a WhatsApp message id, an activity id or a correlator.
    pub fn of(id: &str, keys: &Keys) -> Self {
        let digest = keys.fingerprint(&[b"trail", id.as_bytes()]);
        let (half, _) = digest.split_at(8);
        Self(half.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident = $text:literal),* $(,)?) => {
        /// What happened.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum What { $($(#[$doc])* $name),* }

        impl What {
            /// Its word, which is stable.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

words! {
    /// It was accepted.
    Accepted = "accepted",
    /// It is on disk, and whoever sent it is told so.
    Committed = "committed",
    /// It came again and was known.
    CameAgain = "cameAgain",
    /// A dead letter was sent on its way again, as this message.
    Replayed = "replayed",
    /// An attempt delivered it.
    Delivered = "delivered",
    /// An attempt failed and will be repeated.
    Retry = "retry",
    /// An attempt was written and not answered.
    Unknown = "unknown",
    /// An attempt failed for good.
    Fatal = "fatal",
    /// The channel could not deliver: no attempt was counted.
    Blocked = "blocked",
    /// That it was delivered is on disk.
    Settled = "settled",
    /// It was given up.
    DeadLetter = "deadLetter",
    /// A person, or time, ended it.
    Dropped = "dropped",
    /// WhatsApp reports that it has it.
    ReportedSent = "reportedSent",
    /// WhatsApp reports that it is on the user's device.
    ReportedDelivered = "reportedDelivered",
    /// WhatsApp reports that the user saw it.
    ReportedRead = "reportedRead",
    /// WhatsApp reports that it did not reach the user.
    ReportedFailed = "reportedFailed",
    /// WhatsApp reports something else of it.
    ReportedOther = "reportedOther",
    /// It, or a part of it, is sent again because of that.
    SentAgain = "sentAgain",
    /// Its user is told that it was lost.
    UserTold = "userTold",
}

impl What {
    /// The outcome of an attempt, by the word that metrics have for it.
    pub fn attempt(outcome: &str) -> Self {
        match outcome {
            "delivered" => Self::Delivered,
            "retry" => Self::Retry,
            "unknown" => Self::Unknown,
            "fatal" => Self::Fatal,
            "dropped" => Self::Dropped,
            _ => Self::Blocked,
        }
    }

    /// A status that WhatsApp reports of a message.
    pub fn reported(class: Class) -> Self {
        match class {
            Class::Sent => Self::ReportedSent,
            Class::Failed => Self::ReportedFailed,
            Class::Delivered => Self::ReportedDelivered,
            Class::Read => Self::ReportedRead,
            Class::Other => Self::ReportedOther,
        }
    }

    fn is_attempt(self) -> bool {
        matches!(
            self,
            Self::Delivered | Self::Retry | Self::Unknown | Self::Fatal | Self::Blocked
        )
    }
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// When, ms since the epoch; the last time, if it happened several times.
    pub at_ms: u64,
    /// What.
    pub what: What,
    /// The number of the attempt, from 1; 0 for what is none.
    pub attempt: u16,
    /// How often in a row.
    pub times: u16,
}

/// What ties a message to the exchange that it belongs to, as its last attempt carried it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ties {
    /// Its trace.
    pub trace_id: Option<TraceId>,
    /// Its correlator.
    pub correlator: Box<str>,
}

impl Ties {
    /// Those of an attempt.
    pub fn of(outgoing: &Outgoing) -> Self {
        Self {
            trace_id: outgoing.trace_id(),
            correlator: outgoing.correlator.as_str().into(),
        }
    }
}

/// What is remembered of one message.
#[derive(Clone, Debug, Default)]
pub struct Steps {
    /// The steps, the first one first.
    pub steps: Vec<Step>,
    /// Steps in the middle that were left out.
    pub left_out: u32,
    /// What ties it to its exchange, once it was tried.
    pub ties: Option<Box<Ties>>,
    ids: Vec<IdDigest>,
}

impl Steps {
    fn push(&mut self, step: Step) {
        if let Some(last) = self.steps.last_mut()
            && last.what == step.what
            && (step.what == What::Blocked || step.what == What::CameAgain)
        {
            last.times = last.times.saturating_add(1);
            (last.at_ms, last.attempt) = (step.at_ms, step.attempt);
            return;
        }
        if self.steps.len() >= STEPS {
            self.steps.remove(STEPS / 2);
            self.left_out = self.left_out.saturating_add(1);
        }
        // The delivery hears of a message when it is on disk, which may be before its door does.
        let is_accepted = |step: &Step| step.what == What::Accepted;
        match step.what {
            What::Accepted => self.steps.insert(0, step),
            What::Committed => {
                let place = usize::from(self.steps.first().is_some_and(is_accepted));
                self.steps.insert(place, step);
            }
            _ => self.steps.push(step),
        }
    }

    /// The highest number of an attempt that counted.
    pub fn attempts(&self) -> u16 {
        let counted = self.steps.iter().filter(|step| step.what != What::Blocked);
        counted.map(|step| step.attempt).max().unwrap_or_default()
    }

    /// Whether an attempt got no answer.
    pub fn unknown(&self) -> bool {
        self.steps.iter().any(|step| step.what == What::Unknown)
    }
}

/// The steps of the last messages.
#[derive(Debug, Default)]
pub struct Trail {
    messages: HashMap<Seq, Steps>,
    /// The one that came first, first.
    order: VecDeque<Seq>,
    ids: HashMap<IdDigest, Seq>,
}

impl Trail {
    /// Something happened to a message.
    pub fn happened(&mut self, seq: Seq, what: What, attempt: u32, at_ms: u64) {
        let attempt = if what.is_attempt() { attempt } else { 0 };
        let attempt = u16::try_from(attempt).unwrap_or(u16::MAX);
        let step = Step {
            at_ms,
            what,
            attempt,
            times: 1,
        };
        self.of_mut(seq).push(step);
    }

    /// A message is known to others by this id. The first message that has it keeps it.
    pub fn known_as(&mut self, seq: Seq, id: IdDigest) {
        if self.ids.contains_key(&id) {
            return;
        }
        let steps = self.of_mut(seq);
        if steps.ids.len() < IDS {
            steps.ids.push(id);
            self.ids.insert(id, seq);
        }
    }

    /// An attempt carried this.
    pub fn tied(&mut self, seq: Seq, ties: Ties) {
        self.of_mut(seq).ties = Some(Box::new(ties));
    }

    /// A dead letter goes on under another number: so do its steps and ids.
    pub fn replayed(&mut self, dead: Seq, seq: Seq, at_ms: u64) {
        if let Some(steps) = self.messages.remove(&dead) {
            self.order.retain(|known| *known != dead);
            for id in &steps.ids {
                self.ids.insert(*id, seq);
            }
            let into = self.of_mut(seq);
            // What the delivery has done with it already comes after.
            let mut since = std::mem::replace(into, steps);
            into.ties = since.ties.take().or_else(|| into.ties.take());
            into.push(Step {
                at_ms,
                what: What::Replayed,
                attempt: 0,
                times: 1,
            });
            since.steps.into_iter().for_each(|step| into.push(step));
        } else {
            self.happened(seq, What::Replayed, 0, at_ms);
        }
    }

    /// The message that has this id.
    pub fn find(&self, id: IdDigest) -> Option<Seq> {
        self.ids.get(&id).copied()
    }

    /// What is remembered of a message.
    pub fn of(&self, seq: Seq) -> Option<&Steps> {
        self.messages.get(&seq)
    }

    fn of_mut(&mut self, seq: Seq) -> &mut Steps {
        if !self.messages.contains_key(&seq) {
            if self.order.len() >= MESSAGES
                && let Some(first) = self.order.pop_front()
            {
                let forgotten = self.messages.remove(&first).unwrap_or_default();
                for id in forgotten.ids {
                    self.ids.remove(&id);
                }
            }
            self.order.push_back(seq);
        }
        self.messages.entry(seq).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> IdDigest {
        IdDigest(number)
    }

    #[test]
    fn the_first_steps_and_the_last_are_kept() {
        let mut trail = Trail::default();
        trail.happened(Seq(1), What::Accepted, 0, 1);
        for number in 1..=80 {
            trail.happened(Seq(1), What::Retry, number, u64::from(number) * 10);
        }
        let steps = trail.of(Seq(1)).unwrap();
        assert_eq!((steps.steps.len(), steps.left_out), (STEPS, 65));
        assert_eq!(steps.steps[0].what, What::Accepted);
        assert_eq!(steps.steps[STEPS - 1].attempt, 80);
        assert_eq!(steps.attempts(), 80);
    }

    #[test]
    fn a_delivery_that_is_faster_than_the_door_comes_after_it() {
        let mut trail = Trail::default();
        trail.happened(Seq(1), What::Delivered, 1, 20);
        trail.happened(Seq(1), What::Accepted, 0, 10);
        trail.happened(Seq(1), What::Committed, 0, 19);
        let words: Vec<_> = trail
            .of(Seq(1))
            .unwrap()
            .steps
            .iter()
            .map(|step| step.what)
            .collect();
        assert_eq!(words, [What::Accepted, What::Committed, What::Delivered]);
    }

    #[test]
    fn a_channel_on_hold_fills_no_trail() {
        let mut trail = Trail::default();
        for at in 1..=100 {
            trail.happened(Seq(1), What::Blocked, 1, at);
        }
        let steps = &trail.of(Seq(1)).unwrap().steps;
        assert_eq!((steps.len(), steps[0].times, steps[0].at_ms), (1, 100, 100));
        assert_eq!(trail.of(Seq(1)).unwrap().attempts(), 0);
    }

    #[test]
    fn more_messages_than_there_is_room_for_push_the_first_out_with_its_ids() {
        let mut trail = Trail::default();
        for number in 0..=MESSAGES as u64 {
            trail.happened(Seq(number), What::Accepted, 0, number);
            trail.known_as(Seq(number), id(number));
        }
        assert_eq!(trail.messages.len(), MESSAGES);
        assert_eq!((trail.ids.len(), trail.order.len()), (MESSAGES, MESSAGES));
        assert_eq!((trail.find(id(0)), trail.find(id(1))), (None, Some(Seq(1))));
    }

    #[test]
    fn a_replayed_message_is_found_by_its_ids_and_tells_what_was_before() {
        let mut trail = Trail::default();
        trail.happened(Seq(1), What::Accepted, 0, 1);
        trail.known_as(Seq(1), id(7));
        trail.happened(Seq(1), What::DeadLetter, 0, 2);
        // The delivery may be faster than the one who asked for it.
        trail.happened(Seq(9), What::Delivered, 1, 4);
        trail.replayed(Seq(1), Seq(9), 3);
        assert_eq!(trail.find(id(7)), Some(Seq(9)));
        let words: Vec<_> = trail
            .of(Seq(9))
            .unwrap()
            .steps
            .iter()
            .map(|step| step.what)
            .collect();
        assert_eq!(
            words,
            [What::Accepted, What::DeadLetter, What::Replayed, What::Delivered]
        );
        assert!(trail.of(Seq(1)).is_none() && trail.order.len() == 1);
    }

    #[test]
    fn what_ties_a_message_to_its_exchange_goes_on_with_a_replay() {
        let ties = |correlator: &str| Ties {
            trace_id: None,
            correlator: correlator.into(),
        };
        let tied_as = |trail: &Trail| trail.of(Seq(9)).unwrap().ties.clone().map(|ties| ties.correlator);
        let mut trail = Trail::default();
        trail.tied(Seq(1), ties("before"));
        trail.replayed(Seq(1), Seq(9), 3);
        assert_eq!(tied_as(&trail).as_deref(), Some("before"));
        // The delivery may be faster than the one who asked for it.
        let mut trail = Trail::default();
        trail.tied(Seq(1), ties("before"));
        trail.tied(Seq(9), ties("after"));
        trail.replayed(Seq(1), Seq(9), 3);
        assert_eq!(tied_as(&trail).as_deref(), Some("after"));
    }

    #[test]
    fn one_message_has_a_bounded_number_of_ids() {
        let mut trail = Trail::default();
        for number in 0..100 {
            trail.known_as(Seq(1), id(number));
        }
        assert_eq!(trail.ids.len(), IDS);
    }
}
