//! The channels' statuses, in little room. Ten thousand channels that are Ready say the same words: the words of a status
//! are kept once for all that share them, and of each channel only what is its own. Pure.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::{Condition, WhatsAppChannelStatus};

/// How many different lists of words are kept before those that nobody uses any more are thrown out.
const SWEEP_AT: usize = 256;

/// A condition without its time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Words {
    kind: Box<str>,
    value: Box<str>,
    reason: Box<str>,
    message: Box<str>,
    generation: Option<i64>,
}

#[derive(Debug)]
struct Compact {
    words: Arc<[Words]>,
    /// In seconds since 1970: the API server keeps no more.
    times: Box<[i64]>,
    /// All but the conditions, as JSON: the structure itself is mostly empty fields.
    rest: Box<[u8]>,
}

/// The statuses, each under a key of its channel.
#[derive(Debug, Default)]
pub(super) struct Statuses {
    by_channel: HashMap<u64, Compact>,
    words: HashSet<Arc<[Words]>>,
    sweep_at: usize,
}

impl Statuses {
    /// Keeps a status, in place of the one before.
    pub fn keep(&mut self, channel: u64, mut status: WhatsAppChannelStatus) {
        let conditions = std::mem::take(&mut status.conditions);
        let times = conditions
            .iter()
            .map(|condition| condition.last_transition_time.0.as_second())
            .collect();
        let words: Arc<[Words]> = conditions
            .into_iter()
            .map(|condition| Words {
                kind: condition.type_.into(),
                value: condition.status.into(),
                reason: condition.reason.into(),
                message: condition.message.into(),
                generation: condition.observed_generation,
            })
            .collect();
        let words = match self.words.get(&words) {
            Some(known) => known.clone(),
            None => {
                self.words.insert(words.clone());
                words
            }
        };
        let compact = Compact {
            words,
            times,
            // What was read from JSON can be written as such.
            rest: serde_json::to_vec(&status).unwrap_or_default().into(),
        };
        self.by_channel.insert(channel, compact);
        if self.words.len() > self.sweep_at.max(SWEEP_AT) {
            self.words.retain(|words| Arc::strong_count(words) > 1);
            self.sweep_at = self.words.len() * 2;
        }
    }

    /// A status as it was kept; an empty one for a channel without.
    pub fn get(&self, channel: u64) -> WhatsAppChannelStatus {
        let Some(compact) = self.by_channel.get(&channel) else {
            return WhatsAppChannelStatus::default();
        };
        let conditions = compact
            .words
            .iter()
            .zip(&compact.times)
            .map(|(words, at)| Condition {
                type_: words.kind.to_string(),
                status: words.value.to_string(),
                reason: words.reason.to_string(),
                message: words.message.to_string(),
                observed_generation: words.generation,
                last_transition_time: Time(Timestamp::from_second(*at).unwrap_or_default()),
            });
        WhatsAppChannelStatus {
            conditions: conditions.collect(),
            ..serde_json::from_slice(&compact.rest).unwrap_or_default()
        }
    }

    /// The conditions' types and values, and the reason of one.
    pub fn conditions(&self, channel: u64) -> impl Iterator<Item = (&str, &str, &str)> {
        let words = self.by_channel.get(&channel).map(|compact| &compact.words);
        words
            .into_iter()
            .flat_map(|words| words.iter())
            .map(|words| (&*words.kind, &*words.value, &*words.reason))
    }

    /// Forgets a channel's.
    pub fn forget(&mut self, channel: u64) {
        self.by_channel.remove(&channel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(reason: &str, version: &str) -> WhatsAppChannelStatus {
        let condition = |kind: &str| Condition {
            type_: kind.into(),
            status: "True".into(),
            reason: reason.into(),
            message: format!("{kind}: {reason}"),
            observed_generation: Some(3),
            last_transition_time: Time("2026-11-22T10:00:00Z".parse().unwrap()),
        };
        WhatsAppChannelStatus {
            observed_generation: Some(3),
            observed_secret_version: Some(version.into()),
            conditions: vec![condition("Ready"), condition("Accepted")],
            ..WhatsAppChannelStatus::default()
        }
    }

    #[test]
    fn what_is_kept_comes_back_as_it_was_and_the_same_words_are_kept_once() {
        let mut statuses = Statuses::default();
        for channel in 0..100 {
            statuses.keep(channel, status("Succeeded", &channel.to_string()));
        }
        assert_eq!(statuses.get(7), status("Succeeded", "7"));
        assert_eq!(statuses.words.len(), 1);
        assert_eq!(
            statuses.conditions(7).collect::<Vec<_>>(),
            [("Ready", "True", "Succeeded"), ("Accepted", "True", "Succeeded")]
        );
        statuses.forget(7);
        assert_eq!(statuses.get(7), WhatsAppChannelStatus::default());
        assert_eq!(statuses.conditions(7).count(), 0);
    }

    #[test]
    fn words_that_nobody_uses_any_more_are_thrown_out() {
        let mut statuses = Statuses::default();
        for round in 0..10 * SWEEP_AT {
            statuses.keep(1, status(&format!("Reason{round}"), "1"));
        }
        assert!(statuses.words.len() <= SWEEP_AT + 1, "{}", statuses.words.len());
        assert_eq!(
            statuses.get(1),
            status(&format!("Reason{}", 10 * SWEEP_AT - 1), "1")
        );
    }
}
