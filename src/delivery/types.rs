//! The words between the lanes and whoever runs them: what is told to them, and what they say is to be done. Pure.
//!
//! Not for behaviour. Reasons of dead letters stand here, so that each is documented once.

use std::{sync::Arc, time::Duration};

use super::{
    backoff::{Backoff, Retries},
    key::{LaneKey, RequestId},
};
use crate::{
    api::{Effective, OnUndeliverable, OnUnknownSend, ReplyOrder},
    journal::{Direction, Origin, Outcome, Pending, Reference, Seq},
};

/// Reasons of dead letters that are the lanes' own.
pub mod reason {
    /// It was tried as often as it may be.
    pub const ATTEMPTS_EXHAUSTED: &str = "AttemptsExhausted";
    /// It is older than its channel's `delivery.maxAge`.
    pub const TOO_OLD: &str = "TooOld";
    /// Another reply to the same request was given up.
    pub const GROUP_CANCELLED: &str = "GroupCancelled";
    /// It may have arrived, and its channel says that a person decides.
    pub const UNKNOWN_OUTCOME: &str = "UnknownOutcome";
    /// Its channel is gone.
    pub const CHANNEL_DELETED: &str = "ChannelDeleted";
    /// A person gave it up.
    pub const DROPPED: &str = "Dropped";
    /// A status of a message that nobody knows, which names no user.
    pub const NO_CONVERSATION: &str = "NoConversation";
}

/// One accepted message, as it is told to the lanes: those of one lane in the order of their places in the journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// Its place in the journal.
    pub seq: Seq,
    /// Its lane.
    pub lane: LaneKey,
    /// Of a user's message: what it is; of a reply: what it answers. None for a status, and for a reply that Aura
    /// sends of its own accord.
    pub request: Option<RequestId>,
    /// When it was accepted, in ms since 1970.
    pub accepted_at_ms: u64,
    /// Attempts that runs before this one made.
    pub attempts: u32,
    /// One of them ended with nobody knowing whether it arrived.
    pub uncertain: bool,
    /// It was pending when this run began. How long it was on hold before is not known, so that it gets one attempt
    /// whatever its age.
    pub left_over: bool,
    /// It was a dead letter, and a person had it accepted again: it goes to the end of its lane, whatever it answers.
    pub replayed: bool,
}

/// A status of WhatsApp's on a message of ours, before it is in a lane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Report {
    /// What was accepted.
    pub pending: Pending,
    /// What the message was sent under.
    pub about: Reference,
    /// It was pending when this run began.
    pub left_over: bool,
}

impl Report {
    /// What was accepted, if it is one. One that a person sent on its way again goes its way like any message.
    pub fn of(pending: Pending, left_over: bool) -> Option<Self> {
        let about = pending
            .request
            .filter(|_| pending.origin == Origin::Report && !pending.replayed)?;
        Some(Self {
            pending,
            about: Reference(about.0),
            left_over,
        })
    }
}

/// Where a status of WhatsApp's goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// To the end of this lane.
    Lane(LaneKey),
    /// It waits for the record of its message's send, at most until then, in ms since 1970; then it is looked at again.
    WaitForSend(u64),
    /// It is looked at again then, in ms since 1970.
    WaitFor(u64),
    /// It ends.
    Ends(Outcome),
}

/// A message's place and lane: what an effect is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Item {
    /// Its place in the journal.
    pub seq: Seq,
    /// Its lane.
    pub lane: LaneKey,
}

/// Why an attempt did not deliver although the message may be delivered later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// Nobody was there: no connection, or a gateway that says so. Speaks of the environment, not of the message.
    Unreachable,
    /// A gateway that had taken the message says that nobody answered it: as [`Failure::Unreachable`], but it may have
    /// arrived.
    Unanswered,
    /// The peer limits the rate.
    Limited,
    /// The peer answers that it can't now.
    Failing,
}

/// How one attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It arrived; `reference` is the other side's id of it.
    Delivered {
        /// The digest of the other side's id of the message.
        reference: Option<Reference>,
    },
    /// It did not, and may later.
    Retry {
        /// Why.
        failure: Failure,
        /// How long the peer asks us to wait.
        after: Option<Duration>,
    },
    /// It was written and no answer came that says anything: it may have arrived.
    Unknown,
    /// It never will.
    Fatal {
        /// Why, in one word.
        reason: &'static str,
    },
    /// There is nothing to deliver, which says nothing of the other side.
    Dropped {
        /// Why, in one word.
        reason: &'static str,
    },
    /// The channel can't deliver now (credentials that are missing or rejected): no attempt is counted, and the
    /// channel's circuit in this direction opens (Law 8).
    Blocked,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Try this message.
    Attempt(Attempt),
    /// Record how this message ended, then say so by [`Lanes::settled`](super::Lanes::settled).
    Settle(Item, Outcome),
    /// Write down for a next run that so many attempts of a message count, and whether one may have arrived.
    Note(Item, u32, bool),
    /// Let people know; what is parked is written down as well.
    Tell(Event),
}

/// One attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The message.
    pub item: Item,
    /// Which attempt it is, from 1.
    pub number: u32,
    /// An earlier one may have arrived: this one may be a duplicate.
    pub uncertain: bool,
    /// A person had the message accepted again.
    pub replayed: bool,
    /// What is to be on disk before it is tried.
    pub record: RecordFirst,
}

/// What a restart must know of an attempt that it interrupts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordFirst {
    /// It leaves before one of its lane that was accepted earlier. The order of acceptance is all that a restart knows
    /// otherwise.
    pub begun: bool,
    /// It may have arrived, which for this channel is for a person to look into.
    pub unknown: bool,
}

/// What came of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempted {
    /// How it ended.
    pub ended: Ended,
    /// Calls that it took: a long reply takes several, and each counts for the channel's rate.
    pub calls: u32,
}

impl From<Ended> for Attempted {
    /// Of one call.
    fn from(ended: Ended) -> Self {
        Self { ended, calls: 1 }
    }
}

/// What people may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A reply left before an earlier request was answered, because the wait for it has a bound.
    Overtook(LaneKey),
    /// A conversation's direction is held until a person lets it go on.
    Parked(LaneKey),
    /// It goes on.
    Unparked(LaneKey),
    /// Nobody's calls to an environment get through, or they do again.
    Circuit {
        /// The environment's name.
        environment: Arc<str>,
        /// Towards its Aura or its Kernel.
        direction: Direction,
        /// Whether one call at a time tries.
        open: bool,
    },
}

/// Bounds and waits.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Messages under way at once per channel and direction.
    pub channel_concurrency: usize,
    /// Messages under way at once in all.
    pub concurrency: usize,
    /// Attempts before a message becomes a dead letter, and the waits between them.
    pub retries: Retries,
    /// Waits of a channel whose circuit is open.
    pub blocked: Backoff,
    /// Waits of an environment whose circuit is open.
    pub outage: Backoff,
}

/// What holds for a channel's deliveries.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Its environment.
    pub environment: Arc<str>,
    /// Messages a second towards Kernel.
    pub messages_per_second: u32,
    /// In which order replies leave.
    pub reply_order: ReplyOrder,
    /// How long a reply waits for an earlier request's answer, from when Aura has that request.
    pub unanswered_after: Duration,
    /// What becomes of a conversation after a dead letter.
    pub on_undeliverable: OnUndeliverable,
    /// What becomes of a reply that may have arrived.
    pub on_unknown_send: OnUnknownSend,
    /// How old a user's message may get.
    pub max_age_to_aura: Duration,
    /// How old a reply may get.
    pub max_age_to_user: Duration,
    /// Nothing is delivered before, in ms since 1970; [`FOREVER`] until something else is said.
    pub held_until_ms: Option<u64>,
}

/// A hold that does not end by itself.
pub const FOREVER: u64 = u64::MAX;

impl Settings {
    /// What an effective spec says.
    pub fn new(effective: &Effective, environment: &str, held_until_ms: Option<u64>) -> Self {
        Self {
            environment: environment.into(),
            messages_per_second: effective.messages_per_second,
            reply_order: effective.reply_order,
            unanswered_after: effective.unanswered_after,
            on_undeliverable: effective.on_undeliverable,
            on_unknown_send: effective.on_unknown_send,
            max_age_to_aura: effective.max_age_to_aura,
            max_age_to_user: effective.max_age_to_user,
            held_until_ms,
        }
    }

    pub(super) fn max_age(&self, direction: Direction) -> Duration {
        match direction {
            Direction::ToAura => self.max_age_to_aura,
            Direction::ToKernel => self.max_age_to_user,
        }
    }
}

/// Numbers for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Messages that are not settled.
    pub queued: usize,
    /// Lanes that hold some, or are parked.
    pub lanes: usize,
    /// Messages under way.
    pub under_way: usize,
    /// Conversations' directions that are held for a person.
    pub parked: usize,
    /// Messages of runs before this one that may not be tried yet: see `withheld`.
    pub withheld: usize,
    /// Channels' directions whose circuit is open.
    pub open_channels: usize,
    /// Environments' directions whose circuit is open.
    pub open_environments: usize,
}
