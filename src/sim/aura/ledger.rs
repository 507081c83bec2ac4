//! What the simulated Aura knows and what happened to it. Nothing is ever dropped from it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use jiff::Timestamp;
use serde_json::Value;

use super::bot::Behaviour;
use crate::sim::server::Exchange;

/// An activity that was taken.
#[derive(Clone, Debug)]
pub struct ReceivedActivity {
    /// When.
    pub at: Timestamp,
    /// Its `type`: `message`, `event`, …
    pub kind: String,
    /// Its id.
    pub id: String,
    /// `conversation.id`
    pub conversation_id: String,
    /// `from.id`
    pub from_id: String,
    /// Where replies go.
    pub service_url: String,
    /// `channelData.channelId`
    pub channel_id: String,
    /// `channelData.correlator`
    pub correlator: Option<String>,
    /// Its text, if it has one.
    pub text: Option<String>,
    /// All of it.
    pub body: Value,
}

/// A call to `POST /messages`.
#[derive(Clone, Debug)]
pub struct AuraCall {
    /// When it arrived.
    pub at: Timestamp,
    /// What its headers said of its exchange.
    pub exchange: Exchange,
    /// The activity's id, if it could be read.
    pub activity_id: Option<String>,
    /// The activity's channelId, if it could be read.
    pub channel_id: Option<String>,
    /// What was answered; none while it is under way, or for ever if no answer was sent.
    pub status: Option<u16>,
    /// When it was answered.
    pub answered_at: Option<Timestamp>,
}

/// A request with a reply.
#[derive(Clone, Debug)]
pub struct SentReply {
    /// When it began.
    pub began: Timestamp,
    /// When it ended.
    pub at: Timestamp,
    /// The reply's id.
    pub id: String,
    /// Its conversation.
    pub conversation_id: String,
    /// The activity it replies to.
    pub reply_to_id: String,
    /// Its text.
    pub text: String,
    /// 1 for the first request with this reply, then 2, …
    pub attempt: u32,
    /// What was answered; none if nothing was.
    pub status: Option<u16>,
}

impl SentReply {
    /// The reply was taken: a 2xx.
    pub fn taken(&self) -> bool {
        self.status.is_some_and(|status| (200..300).contains(&status))
    }
}

/// Two activities of a conversation that came the wrong way round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disorder {
    /// The conversation.
    pub conversation_id: String,
    /// The number that came first and is not lower.
    pub before: u64,
    /// The number that came next.
    pub after: u64,
}

pub(super) struct Data {
    pub behaviour: Behaviour,
    pub latency: Duration,
    pub calls: Vec<AuraCall>,
    pub activities: Vec<ReceivedActivity>,
    pub duplicates: Vec<ReceivedActivity>,
    pub replies: Vec<SentReply>,
    seen: HashSet<String>,
    counters: HashMap<String, u64>,
}

impl Data {
    pub fn new(behaviour: Behaviour, latency: Duration) -> Self {
        Self {
            behaviour,
            latency,
            calls: Vec::new(),
            activities: Vec::new(),
            duplicates: Vec::new(),
            replies: Vec::new(),
            seen: HashSet::new(),
            counters: HashMap::new(),
        }
    }

    /// False for an id taken before.
    pub fn take(&mut self, activity: ReceivedActivity) -> bool {
        let new = self.seen.insert(activity.id.clone());
        if new {
            &mut self.activities
        } else {
            &mut self.duplicates
        }
        .push(activity);
        new
    }

    /// A conversation's next reply id, in Direct Line's form.
    pub fn reply_id(&mut self, conversation_id: &str) -> String {
        let counter = self.counters.entry(conversation_id.to_owned()).or_default();
        *counter += 1;
        format!("{conversation_id}|{counter:07}")
    }

    pub fn texts(&self, conversation_id: &str) -> Vec<String> {
        let of_it = self
            .activities
            .iter()
            .filter(|activity| activity.conversation_id == conversation_id);
        of_it.filter_map(|activity| activity.text.clone()).collect()
    }
}

/// Where a number did not follow a lower one of the same conversation.
pub(super) fn disorders(
    activities: &[ReceivedActivity],
    number: impl Fn(&ReceivedActivity) -> Option<u64>,
) -> Vec<Disorder> {
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    let mut disorders = Vec::new();
    for activity in activities {
        let Some(after) = number(activity) else { continue };
        let before = last.insert(&activity.conversation_id, after);
        if let Some(before) = before.filter(|before| *before >= after) {
            let conversation_id = activity.conversation_id.clone();
            disorders.push(Disorder {
                conversation_id,
                before,
                after,
            });
        }
    }
    disorders
}
