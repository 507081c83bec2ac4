//! Judges what went through the bridge in one direction: what was acknowledged against what arrived. Pure.
//!
//! The rules are Laws 1 to 3 and 5: nothing acknowledged is lost; first arrivals of a conversation come in the order
//! accepted; a message arrives twice only where a crash lay between its send and the record of it, and then under the
//! same mark; and nothing arrives in another's conversation.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use jiff::Timestamp;

/// One direction of one conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane {
    /// The channel.
    pub channel: String,
    /// The user.
    pub user: String,
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.user, self.channel)
    }
}

/// A message that was handed to the bridge.
#[derive(Clone, Debug)]
pub struct Sent {
    /// What tells it from all others of its direction.
    pub id: String,
    /// Where it belongs.
    pub lane: Lane,
    /// When it was handed over first.
    pub offered: Timestamp,
    /// When the bridge first said that it has it; none if it never did.
    pub acknowledged: Option<Timestamp>,
    /// The message that stood before it in the same call and conversation.
    pub after: Option<String>,
    /// The request that it answers, as a number that grows within its conversation: a reply to an earlier request may
    /// go out before one to a later request that was accepted first. The same for all where there is no such thing.
    pub turn: u64,
}

/// A message as it came out at the other end.
#[derive(Clone, Debug)]
pub struct Arrived {
    /// Which message it is.
    pub id: String,
    /// Where it came out.
    pub lane: Lane,
    /// What tells its receiver that it is the same as another: the activity's id, the idempotency key.
    pub mark: Option<String>,
    /// Which run of the bridge sent it.
    pub run: usize,
    /// When it came.
    pub at: Timestamp,
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Acknowledged, and never arrived.
    Lost {
        /// The message.
        id: String,
        /// Its conversation.
        lane: Lane,
    },
    /// It arrived, and nobody sent it.
    Unknown {
        /// The message.
        id: String,
        /// Where it arrived.
        lane: Lane,
    },
    /// It arrived in another conversation or channel than it was sent in.
    Astray {
        /// The message.
        id: String,
        /// Where it belongs.
        lane: Lane,
        /// Where it arrived.
        arrived: Lane,
    },
    /// The first arrivals of two messages came the wrong way round.
    Disorder {
        /// The one that should have come first.
        earlier: String,
        /// The one that did.
        later: String,
        /// Their conversation.
        lane: Lane,
    },
    /// It arrived again although its record must have been on disk.
    Repeated {
        /// The message.
        id: String,
        /// Its conversation.
        lane: Lane,
        /// Why there is no excuse.
        why: &'static str,
    },
    /// It arrived again under another mark or none: its receiver can't know it.
    Unmarked {
        /// The message.
        id: String,
        /// Its conversation.
        lane: Lane,
    },
    /// Two messages have one mark: a receiver that goes by it would drop the second.
    SharedMark {
        /// The first.
        id: String,
        /// The second.
        other: String,
    },
}

impl Fault {
    /// The conversation that it happened in.
    pub fn lane(&self) -> Option<&Lane> {
        match self {
            Self::Lost { lane, .. }
            | Self::Unknown { lane, .. }
            | Self::Astray { lane, .. }
            | Self::Disorder { lane, .. }
            | Self::Repeated { lane, .. }
            | Self::Unmarked { lane, .. } => Some(lane),
            Self::SharedMark { .. } => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { id, lane } => write!(f, "{id} ({lane}) was acknowledged and never arrived"),
            Self::Unknown { id, lane } => write!(f, "{id} ({lane}) arrived and nobody sent it"),
            Self::Astray { id, lane, arrived } => write!(f, "{id} ({lane}) arrived at {arrived}"),
            Self::Disorder { earlier, later, lane } => {
                write!(
                    f,
                    "{later} ({lane}) arrived before {earlier}, which was accepted before it"
                )
            }
            Self::Repeated { id, lane, why } => write!(f, "{id} ({lane}) arrived again: {why}"),
            Self::Unmarked { id, lane } => write!(f, "{id} ({lane}) arrived again without its mark"),
            Self::SharedMark { id, other } => write!(f, "{id} and {other} arrived under one mark"),
        }
    }
}

/// What the ledger amounts to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// What must not be; empty for a clean ledger.
    pub faults: Vec<Fault>,
    /// Messages that arrived, each once.
    pub arrived: usize,
    /// Arrivals beyond the first that a crash excuses, under the mark of the first.
    pub repeats: usize,
}

/// Judges one direction. `sent` comes in any order, `arrived` in the order of arrival.
pub fn judge(sent: &[Sent], arrived: &[Arrived]) -> Judgement {
    let known: HashMap<&str, &Sent> = sent.iter().map(|one| (one.id.as_str(), one)).collect();
    let mut judgement = Judgement::default();
    let mut marks: HashMap<&str, &str> = HashMap::new();
    let mut first: HashMap<&str, &Arrived> = HashMap::new();
    // The first arrivals of each conversation, in order.
    let mut lanes: HashMap<&Lane, Vec<&Sent>> = HashMap::new();
    let mut last_run: HashMap<&str, usize> = HashMap::new();
    for one in arrived {
        let Some(&was) = known.get(one.id.as_str()) else {
            judgement.faults.push(Fault::Unknown {
                id: one.id.clone(),
                lane: one.lane.clone(),
            });
            continue;
        };
        if was.lane != one.lane {
            judgement.faults.push(Fault::Astray {
                id: one.id.clone(),
                lane: was.lane.clone(),
                arrived: one.lane.clone(),
            });
            continue;
        }
        if let Some(mark) = &one.mark {
            let owner = *marks.entry(mark).or_insert(&one.id);
            if owner != one.id {
                judgement.faults.push(Fault::SharedMark {
                    id: owner.to_owned(),
                    other: one.id.clone(),
                });
            }
        }
        let lane = lanes.entry(&was.lane).or_default();
        if let Some(before) = first.get(one.id.as_str()) {
            let newest = lane.last().is_some_and(|newest| newest.id == one.id);
            let fault = |why| Fault::Repeated {
                id: one.id.clone(),
                lane: one.lane.clone(),
                why,
            };
            if before.mark.is_none() || before.mark != one.mark {
                judgement.faults.push(Fault::Unmarked {
                    id: one.id.clone(),
                    lane: one.lane.clone(),
                });
            } else if last_run.get(one.id.as_str()).is_some_and(|run| *run >= one.run) {
                judgement.faults.push(fault("no crash lay between"));
            } else if !newest {
                // A conversation has one message under way: the next one goes only after the record of this one.
                judgement
                    .faults
                    .push(fault("a later message of the conversation had arrived before"));
            } else {
                judgement.repeats += 1;
            }
        } else {
            first.insert(&one.id, one);
            lane.push(was);
        }
        last_run.insert(&one.id, one.run);
    }
    judgement.arrived = first.len();
    for (lane, in_order) in lanes {
        judgement.faults.extend(disorders(lane, &in_order));
    }
    let arrived: HashSet<&str> = first.into_keys().collect();
    let lost = sent
        .iter()
        .filter(|one| one.acknowledged.is_some() && !arrived.contains(one.id.as_str()));
    judgement.faults.extend(lost.map(|one| Fault::Lost {
        id: one.id.clone(),
        lane: one.lane.clone(),
    }));
    judgement
}

/// Where a message came after one that it should have come before.
fn disorders<'a>(lane: &'a Lane, in_order: &'a [&'a Sent]) -> impl Iterator<Item = Fault> + 'a {
    in_order.iter().enumerate().flat_map(move |(n, later)| {
        let behind = in_order[n + 1..].iter();
        behind
            .filter(|earlier| comes_before(earlier, later))
            .map(|earlier| Fault::Disorder {
                earlier: earlier.id.clone(),
                later: later.id.clone(),
                lane: lane.clone(),
            })
    })
}

/// Whether one had been acknowledged before the other was even offered, or stood before it in the same call.
fn comes_before(earlier: &Sent, later: &Sent) -> bool {
    let accepted_before = earlier
        .acknowledged
        .is_some_and(|acknowledged| acknowledged < later.offered);
    later.after.as_ref() == Some(&earlier.id) || (accepted_before && earlier.turn <= later.turn)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(channel: &str, user: &str) -> Lane {
        Lane {
            channel: channel.to_owned(),
            user: user.to_owned(),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// Sent one after the other, each acknowledged before the next.
    fn sent(count: i64) -> Vec<Sent> {
        (0..count)
            .map(|n| Sent {
                id: format!("m{n}"),
                lane: lane("a", "1"),
                offered: at(10 * n),
                acknowledged: Some(at(10 * n + 5)),
                after: None,
                turn: 0,
            })
            .collect()
    }

    fn arrival(id: &str, run: usize) -> Arrived {
        Arrived {
            id: id.to_owned(),
            lane: lane("a", "1"),
            mark: Some(format!("mark-of-{id}")),
            run,
            at: at(1000),
        }
    }

    fn arrivals(list: &[(&str, usize)]) -> Vec<Arrived> {
        list.iter().map(|(id, run)| arrival(id, *run)).collect()
    }

    fn faults(sent: &[Sent], arrived: &[Arrived]) -> Vec<Fault> {
        judge(sent, arrived).faults
    }

    #[test]
    fn a_clean_ledger_passes_with_a_crash_in_it_or_without() {
        let clean = judge(&sent(3), &arrivals(&[("m0", 0), ("m1", 0), ("m2", 1)]));
        assert_eq!((clean.faults, clean.arrived, clean.repeats), (vec![], 3, 0));
        let crashed = judge(&sent(2), &arrivals(&[("m0", 0), ("m0", 1), ("m0", 2), ("m1", 2)]));
        assert_eq!((crashed.faults, crashed.arrived, crashed.repeats), (vec![], 2, 2));
        let mut unanswered = sent(2);
        unanswered[1].acknowledged = None;
        assert_eq!(faults(&unanswered, &arrivals(&[("m0", 0)])), []);
        assert_eq!(faults(&unanswered, &arrivals(&[("m0", 0), ("m1", 0)])), []);
    }

    #[test]
    fn a_loss_is_found() {
        let lost = Fault::Lost {
            id: "m1".to_owned(),
            lane: lane("a", "1"),
        };
        assert_eq!(faults(&sent(3), &arrivals(&[("m0", 0), ("m2", 0)])), [lost]);
    }

    #[test]
    fn a_swap_is_found() {
        let swapped = |earlier: &str, later: &str| Fault::Disorder {
            earlier: earlier.to_owned(),
            later: later.to_owned(),
            lane: lane("a", "1"),
        };
        let arrived = arrivals(&[("m1", 0), ("m0", 0), ("m2", 0)]);
        assert_eq!(faults(&sent(3), &arrived), [swapped("m0", "m1")]);
        let arrived = arrivals(&[("m1", 0), ("m2", 0), ("m0", 0)]);
        assert_eq!(
            faults(&sent(3), &arrived),
            [swapped("m0", "m1"), swapped("m0", "m2")]
        );
    }

    #[test]
    fn two_that_were_under_way_together_may_come_either_way_round_but_not_those_of_one_call() {
        let mut together = sent(2);
        together[1].offered = at(2);
        let arrived = arrivals(&[("m1", 0), ("m0", 0)]);
        assert_eq!(faults(&together, &arrived), []);
        together[1].after = Some("m0".to_owned());
        assert_eq!(faults(&together, &arrived).len(), 1);
        assert_eq!(faults(&together, &arrivals(&[("m0", 0), ("m1", 0)])), []);
    }

    #[test]
    fn a_reply_to_an_earlier_request_may_go_before_one_to_a_later_request_and_not_the_other_way() {
        let mut replies = sent(2);
        (replies[0].turn, replies[1].turn) = (2, 1);
        let arrived = arrivals(&[("m1", 0), ("m0", 0)]);
        assert_eq!(faults(&replies, &arrived), []);
        assert_eq!(faults(&replies, &arrivals(&[("m0", 0), ("m1", 0)])), []);
        (replies[0].turn, replies[1].turn) = (1, 2);
        assert_eq!(faults(&replies, &arrived).len(), 1);
    }

    #[test]
    fn a_repetition_without_a_crash_or_after_its_record_is_found() {
        let repeated = |why| Fault::Repeated {
            id: "m0".to_owned(),
            lane: lane("a", "1"),
            why,
        };
        assert_eq!(
            faults(&sent(1), &arrivals(&[("m0", 0), ("m0", 0)])),
            [repeated("no crash lay between")]
        );
        assert_eq!(
            faults(&sent(2), &arrivals(&[("m0", 0), ("m1", 0), ("m0", 1)])),
            [repeated("a later message of the conversation had arrived before")]
        );
        assert_eq!(
            faults(&sent(1), &arrivals(&[("m0", 0), ("m0", 1), ("m0", 1)])),
            [repeated("no crash lay between")]
        );
    }

    #[test]
    fn an_unmarked_duplicate_is_found() {
        let unmarked = [Fault::Unmarked {
            id: "m0".to_owned(),
            lane: lane("a", "1"),
        }];
        let mut arrived = arrivals(&[("m0", 0), ("m0", 1)]);
        arrived[1].mark = Some("another".to_owned());
        assert_eq!(faults(&sent(1), &arrived), unmarked);
        arrived[1].mark = None;
        assert_eq!(faults(&sent(1), &arrived), unmarked);
        arrived[0].mark = None;
        assert_eq!(faults(&sent(1), &arrived), unmarked);
    }

    #[test]
    fn a_mark_that_two_messages_share_is_found() {
        let mut arrived = arrivals(&[("m0", 0), ("m1", 0)]);
        arrived[1].mark = arrived[0].mark.clone();
        let shared = Fault::SharedMark {
            id: "m0".to_owned(),
            other: "m1".to_owned(),
        };
        assert_eq!(faults(&sent(2), &arrived), [shared]);
    }

    #[test]
    fn a_reply_of_another_channel_and_one_that_nobody_sent_are_found() {
        let mut arrived = arrivals(&[("m0", 0), ("m9", 0)]);
        arrived[0].lane = lane("b", "1");
        let found = faults(&sent(1), &arrived);
        let astray = Fault::Astray {
            id: "m0".to_owned(),
            lane: lane("a", "1"),
            arrived: lane("b", "1"),
        };
        let unknown = Fault::Unknown {
            id: "m9".to_owned(),
            lane: lane("a", "1"),
        };
        let lost = Fault::Lost {
            id: "m0".to_owned(),
            lane: lane("a", "1"),
        };
        assert_eq!(found, [astray, unknown, lost]);
    }

    #[test]
    fn conversations_are_judged_apart() {
        let mut two = sent(2);
        two[1].lane = lane("a", "2");
        let mut arrived = arrivals(&[("m1", 0), ("m0", 0)]);
        arrived[0].lane = lane("a", "2");
        assert_eq!(faults(&two, &arrived), []);
    }
}
