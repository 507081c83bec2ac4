//! What a connection waits for, since when, and when that has been too long. Pure: it is told the time.
//!
//! A head that has begun, an idle connection and an answer that is not read each have a time of their own (Law 11).
//! What a request's handler waits for, its body too, is the handler's own concern.

use std::time::Instant;

use super::Bounds;

/// One connection's state.
#[derive(Debug)]
pub struct Pulse {
    /// Requests whose answer is being made. One at most in HTTP/1, but for the moment between two.
    serving: u32,
    /// Since when there has been none.
    waiting_since: Instant,
    /// Since when a head is on its way.
    head_since: Option<Instant>,
    /// Since when the peer has taken nothing of what is to be written.
    blocked_since: Option<Instant>,
    /// Requests so far.
    requests: u32,
}

/// How a connection ends whose time is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Overdue {
    /// Nothing was asked for long.
    Idle,
    /// A head did not come in time; also that of the first request.
    Head,
    /// The answer is not read.
    Write,
}

impl Pulse {
    /// A connection that was just opened.
    pub fn new(now: Instant) -> Self {
        Self {
            serving: 0,
            waiting_since: now,
            head_since: None,
            blocked_since: None,
            requests: 0,
        }
    }

    /// The handshake is over: the time of the first head begins.
    pub fn greeted(&mut self, now: Instant) {
        self.waiting_since = now;
    }

    /// Bytes were read: whether the peer is within a head now.
    pub fn read(&mut self, in_head: bool, now: Instant) {
        if !in_head {
            self.head_since = None;
        } else if self.head_since.is_none() {
            self.head_since = Some(now);
        }
    }

    /// A request is handed to its handler; how many that makes.
    pub fn begins(&mut self) -> u32 {
        self.serving += 1;
        self.requests = self.requests.saturating_add(1);
        self.requests
    }

    /// Its answer is made.
    pub fn ends(&mut self, now: Instant) {
        self.serving = self.serving.saturating_sub(1);
        self.waiting_since = now;
    }

    /// The peer takes nothing more.
    pub fn blocked(&mut self, now: Instant) {
        self.blocked_since.get_or_insert(now);
    }

    /// The peer took something.
    pub fn flows(&mut self) {
        self.blocked_since = None;
    }

    /// Since when the connection has been waiting for its peer to ask for something; `None` while it serves.
    pub fn waits_since(&self) -> Option<Instant> {
        (self.serving == 0).then_some(self.waiting_since)
    }

    /// When the connection has waited for too long, and for what; `None` while it waits for nothing but a handler.
    pub fn due(&self, bounds: &Bounds) -> Option<(Instant, Overdue)> {
        let write = self
            .blocked_since
            .map(|since| (since + bounds.write_timeout, Overdue::Write));
        let read = (self.serving == 0).then(|| match self.head_since {
            // A head that came while another was served could not be read on.
            Some(since) => (
                since.max(self.waiting_since) + bounds.header_timeout,
                Overdue::Head,
            ),
            None if self.requests == 0 => (self.waiting_since + bounds.header_timeout, Overdue::Head),
            None => (self.waiting_since + bounds.idle_timeout, Overdue::Idle),
        });
        write.into_iter().chain(read).min_by_key(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn bounds() -> Bounds {
        Bounds {
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(20),
            ..Bounds::default()
        }
    }

    fn due(pulse: &Pulse, start: Instant) -> Option<(u64, Overdue)> {
        pulse
            .due(&bounds())
            .map(|(at, overdue)| (at.duration_since(start).as_secs(), overdue))
    }

    #[test]
    fn a_head_an_idle_connection_and_an_unread_answer_have_times_of_their_own() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pulse = Pulse::new(start);
        assert_eq!(due(&pulse, start), Some((10, Overdue::Head)), "nothing was said");
        pulse.read(true, at(3));
        pulse.read(true, at(9));
        assert_eq!(
            due(&pulse, start),
            Some((13, Overdue::Head)),
            "each byte does not begin it anew"
        );
        pulse.read(false, at(11));
        pulse.begins();
        assert_eq!(due(&pulse, start), None, "the handler has its own");
        pulse.ends(at(30));
        assert_eq!(due(&pulse, start), Some((105, Overdue::Idle)));
        pulse.blocked(at(31));
        pulse.blocked(at(40));
        assert_eq!(due(&pulse, start), Some((51, Overdue::Write)));
        pulse.flows();
        assert_eq!(due(&pulse, start), Some((105, Overdue::Idle)));
    }

    #[test]
    fn a_head_that_came_while_another_was_served_has_its_time_after_that() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pulse = Pulse::new(start);
        pulse.begins();
        pulse.read(true, at(1));
        pulse.ends(at(50));
        assert_eq!(due(&pulse, start), Some((60, Overdue::Head)));
    }
}
