//! Whether the journal refuses messages: what readiness tells of it. Pure.
//!
//! Judged by what became of the messages that were to be kept. A bridge that is not ready is called by nobody, so it
//! could never find out that the journal takes messages again: where nothing else says so, it is taken to after a while,
//! and the next message tells.

use std::time::{Duration, Instant};

/// How long a refusal stands when nothing is heard of the journal.
const STANDS: Duration = Duration::from_secs(60);
/// How long commits may take too long before that is a refusal, not a busy disk.
const SLOW_FOR: Duration = Duration::from_secs(15);

/// Why a message was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The journal or its disk is full.
    Full,
    /// It can't be written.
    Failing,
    /// It did not become durable in time.
    Slow,
}

/// What is known of the journal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Journal {
    /// Commits that succeeded so far, of messages and of outcomes.
    pub commits: u64,
    /// Whether the last one failed.
    pub failing: bool,
    /// Its size on disk.
    pub bytes: u64,
    /// How large it may be.
    pub max_bytes: u64,
}

/// The refusals since a message was kept last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Refusing(Option<Refusal>);

#[derive(Clone, Copy, Debug)]
struct Refusal {
    why: Why,
    first: Instant,
    last: Instant,
    commits: u64,
    was_over: bool,
}

impl Refusing {
    /// A message was kept.
    pub fn kept(&mut self) {
        self.0 = None;
    }

    /// A message was not kept.
    pub fn refused(&mut self, why: Why, journal: Journal, now: Instant) {
        let first = match self.0 {
            Some(before) if before.why == why && before.stands(journal, now) => before.first,
            _ => now,
        };
        self.0 = Some(Refusal {
            why,
            first,
            last: now,
            commits: journal.commits,
            was_over: journal.is_over(),
        });
    }

    /// What is wrong, in words; `None` where nothing is, or not any more.
    pub fn missing(&self, journal: Journal, now: Instant) -> Option<&'static str> {
        let refusal = self.0.filter(|refusal| refusal.stands(journal, now))?;
        match refusal.why {
            Why::Full => Some("the journal is full: new messages are asked to come back"),
            Why::Failing => Some("the journal can't be written: new messages are asked to come back"),
            Why::Slow => (refusal.last.duration_since(refusal.first) >= SLOW_FOR)
                .then_some("the journal does not answer: new messages are asked to come back"),
        }
    }
}

impl Refusal {
    fn stands(&self, journal: Journal, now: Instant) -> bool {
        let in_time = now.saturating_duration_since(self.last) < STANDS;
        let stands = match self.why {
            Why::Full => !self.was_over || journal.is_over(),
            Why::Failing => journal.failing || journal.commits == self.commits,
            Why::Slow => journal.commits == self.commits,
        };
        in_time && stands
    }
}

impl Journal {
    /// Whether it is so near its limit that a large message would find no room.
    fn is_over(self) -> bool {
        self.bytes.saturating_add(NEAR) > self.max_bytes
    }
}

/// Larger than any entry, in bytes.
const NEAR: u64 = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(commits: u64, bytes: u64) -> Journal {
        Journal {
            commits,
            failing: false,
            bytes,
            max_bytes: 1 << 30,
        }
    }

    #[test]
    fn a_full_journal_is_told_of_until_there_is_room() {
        let now = Instant::now();
        let mut refusing = Refusing::default();
        let full = journal(5, (1 << 30) - 10);
        assert_eq!(refusing.missing(full, now), None, "nobody was refused");
        refusing.refused(Why::Full, full, now);
        assert!(refusing.missing(full, now).unwrap().contains("full"));
        assert!(
            refusing.missing(journal(9, (1 << 30) - 10), now).is_some(),
            "outcomes are still written"
        );
        assert_eq!(refusing.missing(journal(9, 1 << 29), now), None);
    }

    #[test]
    fn a_full_disk_is_told_of_until_a_message_is_kept_or_a_while_has_passed() {
        let start = Instant::now();
        let mut refusing = Refusing::default();
        let small = journal(5, 1 << 20);
        refusing.refused(Why::Full, small, start);
        assert!(refusing.missing(small, start + STANDS / 2).is_some());
        assert_eq!(refusing.missing(small, start + STANDS), None);
        refusing.kept();
        assert_eq!(refusing.missing(small, start), None);
    }

    #[test]
    fn a_journal_that_fails_is_told_of_until_it_commits_something() {
        let start = Instant::now();
        let mut refusing = Refusing::default();
        refusing.refused(Why::Failing, journal(5, 0), start);
        assert!(refusing.missing(journal(5, 0), start).is_some());
        let failing = Journal {
            failing: true,
            ..journal(6, 0)
        };
        assert!(
            refusing.missing(failing, start).is_some(),
            "and the next one failed again"
        );
        assert_eq!(refusing.missing(journal(6, 0), start), None);
    }

    #[test]
    fn a_slow_commit_is_no_refusal_but_none_for_a_while_is() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut refusing = Refusing::default();
        for second in 0..20 {
            refusing.refused(Why::Slow, journal(5, 0), at(second));
            let told = refusing.missing(journal(5, 0), at(second)).is_some();
            assert_eq!(told, second >= 15, "{second}");
        }
        refusing.refused(Why::Slow, journal(6, 0), at(20));
        assert_eq!(refusing.missing(journal(6, 0), at(20)), None, "one got through");
    }
}
