//! How often each channel may send to Kernel: evenly, so many messages a second. Pure: time is a duration since some start.
//!
//! Kernel and WhatsApp limit each number by the second; what goes beyond comes back as 429 and costs an attempt.

use std::{collections::HashMap, time::Duration};

use crate::api::ChannelId;

/// The rate of a channel that nobody has said anything of: the default of `delivery.messagesPerSecond`.
const PER_SECOND: u32 = 80;
/// How many channels' last sends are remembered before those that are rested are forgotten.
const SWEEP_AT: usize = 1024;
/// What a channel that is rested may send at once: this time's worth. No second has more than a tenth over the rate, as
/// WhatsApp counts.
const BURST: Duration = Duration::from_millis(100);

/// The pace of all channels: the generic cell rate algorithm, for each.
#[derive(Debug, Default)]
pub(super) struct Paces {
    /// Of those with another rate than the usual one.
    rates: HashMap<ChannelId, u32>,
    /// When the next message would be due if they came evenly.
    due: HashMap<ChannelId, Duration>,
    sweep_at: usize,
}

impl Paces {
    /// Sets a channel's rate. What was sent stays counted.
    pub fn set(&mut self, channel: ChannelId, per_second: u32) {
        if per_second == PER_SECOND {
            self.rates.remove(&channel);
        } else {
            self.rates.insert(channel, per_second.max(1));
        }
    }

    fn interval(&self, channel: ChannelId) -> Duration {
        Duration::from_secs(1) / self.rates.get(&channel).copied().unwrap_or(PER_SECOND)
    }

    /// When a channel may send its next message, where that is not now.
    pub fn waits(&self, channel: ChannelId, now: Duration) -> Option<Duration> {
        let burst = BURST.saturating_sub(self.interval(channel));
        let at = self.due.get(&channel)?.saturating_sub(burst);
        (at > now).then_some(at)
    }

    /// A channel makes so many calls: a long reply is several messages. They are one after the other; what follows waits
    /// for all of them.
    pub fn take(&mut self, channel: ChannelId, calls: u32, now: Duration) {
        if calls == 0 {
            return;
        }
        if self.due.len() >= self.sweep_at.max(SWEEP_AT) {
            self.due.retain(|_, due| *due > now);
            self.sweep_at = self.due.len() * 2;
        }
        let interval = self.interval(channel);
        let due = self.due.entry(channel).or_default();
        *due = (*due).max(now) + interval * calls;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn channel(n: u16) -> ChannelId {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&n.to_be_bytes());
        ChannelId::from_bytes(bytes)
    }

    #[test]
    fn a_rested_channel_sends_a_little_at_once_and_then_evenly() {
        let mut paces = Paces::default();
        paces.set(channel(1), 40);
        let mut now = Duration::from_secs(10);
        let mut times = Vec::new();
        for _ in 0..8 {
            now = paces.waits(channel(1), now).unwrap_or(now);
            paces.take(channel(1), 1, now);
            times.push(now.as_millis());
        }
        assert_eq!(times, [10000, 10000, 10000, 10000, 10025, 10050, 10075, 10100]);
        // One that took three calls has the next one wait for all.
        paces.take(channel(1), 2, now);
        assert_eq!(
            paces.waits(channel(1), now),
            Some(now + 3 * Duration::from_millis(25))
        );
        assert_eq!(
            paces.waits(channel(2), now),
            None,
            "another channel is another matter"
        );
    }

    #[test]
    fn channels_that_are_rested_are_forgotten() {
        let mut paces = Paces::default();
        for n in 0..10_000 {
            paces.take(channel(n), 1, Duration::from_secs(u64::from(n)));
        }
        assert!(paces.due.len() <= SWEEP_AT, "{}", paces.due.len());
    }

    proptest! {
        #[test]
        fn never_more_in_a_second_than_the_rate_and_a_tenth(
            calls in 1u32..4,
            rate in 1u32..200,
            gaps in proptest::collection::vec(0u64..2000, 1..300),
        ) {
            let mut paces = Paces::default();
            paces.set(channel(1), rate);
            let (mut now, mut sent) = (Duration::ZERO, Vec::new());
            for gap in gaps {
                now += Duration::from_millis(gap % 50);
                if gap > 1900 {
                    now += Duration::from_secs(3);
                }
                now = paces.waits(channel(1), now).unwrap_or(now);
                paces.take(channel(1), calls, now);
                sent.push(now);
            }
            for (n, at) in sent.iter().enumerate() {
                let within = sent[..=n].iter().filter(|before| **before + Duration::from_secs(1) > *at).count();
                // The last one's calls may follow those of a full second.
                let most = rate * 11 / 10 + 1 + calls;
                prop_assert!(within * calls as usize <= most as usize, "{within} within a second at {rate}");
            }
        }
    }
}
