//! How far a long run has come, in one line that a terminal overwrites; nothing where nobody watches.

use std::io::Write;

use std::time::{Duration, Instant};

/// Runs that are over by then say nothing.
const AFTER: Duration = Duration::from_secs(1);
/// How often the line changes at most.
const EACH: Duration = Duration::from_millis(200);

/// The line.
pub(super) struct Progress<W: Write> {
    out: W,
    watched: bool,
    next: Instant,
    shown: bool,
}

impl<W: Write> Progress<W> {
    /// A line on `out`, which is a terminal if it is `watched`.
    pub fn new(out: W, watched: bool, now: Instant) -> Self {
        Self {
            out,
            watched,
            next: now + AFTER,
            shown: false,
        }
    }

    /// So many of so many are done.
    pub fn show(&mut self, done: usize, total: usize, now: Instant) {
        if self.watched && now >= self.next {
            self.next = now + EACH;
            self.shown = true;
            // That nobody can be shown it is no reason to stop.
            let _ = write!(self.out, "\r\x1b[K{done} of {total} channels");
            let _ = self.out.flush();
        }
    }

    /// Takes the line away.
    pub fn end(mut self) {
        if self.shown {
            let _ = write!(self.out, "\r\x1b[K");
            let _ = self.out.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_long_run_before_a_terminal_shows_how_far_it_has_come() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let run = |watched| {
            let mut out = Vec::new();
            let mut progress = Progress::new(&mut out, watched, start);
            for (done, millis) in [(0, 0), (1, 900), (2, 1000), (3, 1100), (4, 1300)] {
                progress.show(done, 9, at(millis));
            }
            progress.end();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(run(false), "");
        assert_eq!(
            run(true),
            "\r\x1b[K2 of 9 channels\r\x1b[K4 of 9 channels\r\x1b[K"
        );
    }
}
