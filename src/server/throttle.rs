//! How often an address may fail: a token bucket for each, in bounded memory. Pure: it is told the time.

use core::net::IpAddr;
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::crowd::counted;

/// Addresses that are remembered at once; those beyond share one bucket.
const ADDRESSES: usize = 16 * 1024;

/// The failures of each address.
#[derive(Debug)]
pub struct Throttle {
    /// How many come at once before one is held back.
    burst: u32,
    /// How long it takes to forget one.
    interval: Duration,
    /// When each address will have its whole burst again (the generic cell rate algorithm).
    whole_at: HashMap<IpAddr, Instant>,
    /// The same for all that found no place.
    others: Option<Instant>,
    /// When those that have it were last forgotten.
    swept: Option<Instant>,
}

impl Throttle {
    /// So many a minute, and as many at once.
    pub fn per_minute(number: u32) -> Self {
        let number = number.max(1);
        Self {
            burst: number,
            interval: Duration::from_secs(60) / number,
            whole_at: HashMap::new(),
            others: None,
            swept: None,
        }
    }

    /// An address failed.
    ///
    /// # Errors
    /// When it has failed too often: how long until it may again. This failure does not count, so that whoever goes on
    /// is not held back for ever.
    pub fn failed(&mut self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let address = counted(address);
        let full = self.whole_at.len() >= ADDRESSES && !self.whole_at.contains_key(&address);
        if full && self.swept.is_none_or(|swept| now >= swept + self.interval) {
            self.whole_at.retain(|_, whole_at| *whole_at > now);
            self.swept = Some(now);
        }
        let is_known = self.whole_at.len() < ADDRESSES || self.whole_at.contains_key(&address);
        let before = if is_known {
            self.whole_at.get(&address).copied()
        } else {
            self.others
        };
        let whole_at = before.unwrap_or(now).max(now) + self.interval;
        let wait = whole_at
            .duration_since(now)
            .saturating_sub(self.interval * self.burst);
        if !wait.is_zero() {
            return Err(wait);
        }
        if is_known {
            self.whole_at.insert(address, whole_at);
        } else {
            self.others = Some(whole_at);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_burst_is_let_through_and_then_what_the_rate_allows() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let mut throttle = Throttle::per_minute(6);
        assert!((0..6).all(|_| throttle.failed(one, start).is_ok()));
        assert_eq!(throttle.failed(one, start), Err(Duration::from_secs(10)));
        assert_eq!(throttle.failed(one, at(4)), Err(Duration::from_secs(6)));
        assert!(
            throttle.failed(other, start).is_ok(),
            "another address is not meant"
        );
        assert!(throttle.failed(one, at(10)).is_ok());
        assert!(throttle.failed(one, at(10)).is_err());
        assert!(
            (0..6).all(|_| throttle.failed(one, at(100)).is_ok()),
            "it is forgotten"
        );
    }

    #[test]
    fn memory_is_bounded_and_those_beyond_share_one_bucket() {
        let start = Instant::now();
        let mut throttle = Throttle::per_minute(2);
        let address = |n: u32| IpAddr::V4(Ipv4Addr::from(n));
        for n in 0..u32::try_from(ADDRESSES).unwrap() {
            throttle.failed(address(n), start).unwrap();
        }
        assert!(throttle.failed(address(1 << 30), start).is_ok());
        assert!(throttle.failed(address(2 << 30), start).is_ok());
        assert!(throttle.failed(address(3 << 30), start).is_err());
        assert_eq!(throttle.whole_at.len(), ADDRESSES);
        assert!(
            throttle.failed(address(0), start).is_ok(),
            "who is known keeps his own"
        );
        // When the others have been forgotten there is room again.
        let later = start + Duration::from_secs(120);
        assert!(throttle.failed(address(3 << 30), later).is_ok());
        assert_eq!(throttle.whole_at.len(), 1);
    }
}
