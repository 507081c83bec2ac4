//! Statuses that wait: for the record of the send that they speak of, or for their time. Pure; times are ms since some
//! start.
//!
//! They wait outside the lanes, so that they hold nobody (Law 3). All of them are in the journal, which bounds them
//! (Law 11).

use std::collections::{BTreeSet, HashMap};

use super::types::Report;
use crate::journal::{Reference, Seq};

/// A status that waits.
#[derive(Debug)]
struct Waiter {
    report: Report,
    until: u64,
    for_send: bool,
}

/// All that wait.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    by_seq: HashMap<Seq, Waiter>,
    /// Those that wait for a send.
    by_message: HashMap<Reference, BTreeSet<Seq>>,
    due: BTreeSet<(u64, Seq)>,
}

impl Waiting {
    /// One waits until then; `for_send`: or until its message's send is recorded.
    pub fn add(&mut self, report: Report, until: u64, for_send: bool) {
        let seq = report.pending.seq;
        if for_send {
            self.by_message.entry(report.about).or_default().insert(seq);
        }
        self.due.insert((until, seq));
        self.by_seq.insert(
            seq,
            Waiter {
                report,
                until,
                for_send,
            },
        );
    }

    /// Nobody waits for a send.
    pub fn for_no_send(&self) -> bool {
        self.by_message.is_empty()
    }

    /// Those that wait for a message's send, in the order of their acceptance; they wait no longer.
    pub fn take(&mut self, message: &Reference) -> Vec<Report> {
        let seqs = self.by_message.get(message).cloned().unwrap_or_default();
        seqs.into_iter().filter_map(|seq| self.remove(seq)).collect()
    }

    /// Those whose time has come, in the order of it; they wait no longer.
    pub fn due(&mut self, now: u64) -> Vec<Report> {
        let mut due = Vec::new();
        while let Some((_, seq)) = self.due.first().copied().filter(|(until, _)| *until <= now) {
            due.extend(self.remove(seq));
        }
        due
    }

    /// When the next one's time comes.
    pub fn next(&self) -> Option<u64> {
        self.due.first().map(|(until, _)| *until)
    }

    /// One waits no longer.
    pub fn remove(&mut self, seq: Seq) -> Option<Report> {
        let waiter = self.by_seq.remove(&seq)?;
        self.due.remove(&(waiter.until, seq));
        if waiter.for_send
            && let Some(seqs) = self.by_message.get_mut(&waiter.report.about)
        {
            seqs.remove(&seq);
            if seqs.is_empty() {
                self.by_message.remove(&waiter.report.about);
            }
        }
        Some(waiter.report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Address, ContactKey, Direction, Note, Origin, Pending};

    fn report(seq: u64, message: u8) -> Report {
        Report {
            pending: Pending {
                seq: Seq(seq),
                address: Address {
                    direction: Direction::ToAura,
                    channel: [1; 16],
                    environment: [1; 8],
                    tag: [1; 6],
                    contact: ContactKey([1; 16]),
                },
                accepted_at_ms: 0,
                request: None,
                note: Note::default(),
                replayed: false,
                origin: Origin::Report,
            },
            about: Reference([message; 16]),
            left_over: false,
        }
    }

    fn seqs(reports: &[Report]) -> Vec<u64> {
        reports.iter().map(|report| report.pending.seq.0).collect()
    }

    #[test]
    fn who_waits_for_a_send_is_found_by_it_in_order_and_who_waits_for_his_time_is_not() {
        let mut waiting = Waiting::default();
        waiting.add(report(7, 1), 50, true);
        waiting.add(report(5, 1), 60, true);
        waiting.add(report(6, 2), 40, true);
        waiting.add(report(8, 1), 45, false);
        assert_eq!(seqs(&waiting.take(&Reference([1; 16]))), [5, 7]);
        assert_eq!(waiting.take(&Reference([1; 16])).len(), 0);
        assert_eq!(waiting.next(), Some(40));
        assert_eq!(seqs(&waiting.due(45)), [6, 8]);
        assert!(waiting.for_no_send() && waiting.next().is_none() && waiting.by_seq.is_empty());
    }

    #[test]
    fn one_that_is_taken_out_leaves_nothing_behind() {
        let mut waiting = Waiting::default();
        waiting.add(report(1, 1), 10, true);
        assert!(waiting.remove(Seq(1)).is_some() && waiting.remove(Seq(1)).is_none());
        assert!(waiting.for_no_send() && waiting.due(99).is_empty() && waiting.due.is_empty());
    }
}
