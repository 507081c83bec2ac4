//! Who is connected: how many of one address, and who goes when all places are taken.
//!
//! A flood of connections that ask for nothing must not shut out those that do (Law 4). So when a listener is full,
//! those that have waited longest are closed, never one that is being served; when all are being served, new ones
//! wait in the kernel's queue.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::stream::{SharedPulse, with};

/// How long a connection is left alone before it may be closed for another's sake: time enough for a head to arrive.
const LEFT_ALONE: Duration = Duration::from_secs(1);
/// The part of all connections that is closed at once when room is needed.
const SHARE: usize = 32;

/// The connections of one listener.
#[derive(Debug, Default)]
pub(super) struct Crowd(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    members: HashMap<u64, Member>,
    of_address: HashMap<IpAddr, usize>,
}

#[derive(Debug)]
struct Member {
    pulse: SharedPulse,
    leave: Arc<Notify>,
}

/// A connection's place in the crowd, until it is dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    crowd: Arc<Crowd>,
    id: u64,
    address: Option<IpAddr>,
    /// Told when the connection has to go for another's sake.
    pub leave: Arc<Notify>,
}

impl Crowd {
    /// Takes a connection in. `limit` says how many there may be of its address, if they are counted; `None` when there
    /// are as many already.
    pub fn admit(
        self: &Arc<Self>,
        address: IpAddr,
        limit: Option<usize>,
        pulse: &SharedPulse,
    ) -> Option<Ticket> {
        let mut inner = self.inner();
        let address = limit.map(|_| counted(address));
        if let (Some(address), Some(limit)) = (address, limit) {
            let count = inner.of_address.entry(address).or_default();
            if *count >= limit {
                return None;
            }
            *count += 1;
        }
        let (id, leave) = (inner.next, Arc::new(Notify::new()));
        inner.next += 1;
        let member = Member {
            pulse: pulse.clone(),
            leave: leave.clone(),
        };
        inner.members.insert(id, member);
        Some(Ticket {
            crowd: self.clone(),
            id,
            address,
            leave,
        })
    }

    /// Closes those that have waited longest, a share of all; how many these are.
    pub fn make_room(&self, now: Instant) -> usize {
        let inner = self.inner();
        let mut waiting: Vec<(Instant, &Member)> = inner
            .members
            .values()
            .filter_map(|member| Some((with(&member.pulse, |pulse| pulse.waits_since())?, member)))
            .filter(|(since, _)| now.saturating_duration_since(*since) >= LEFT_ALONE)
            .collect();
        waiting.sort_unstable_by_key(|(since, _)| *since);
        let share = inner.members.len().div_ceil(SHARE).min(waiting.len());
        for (_, member) in &waiting[..share] {
            member.leave.notify_one();
        }
        share
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut inner = self.crowd.inner();
        inner.members.remove(&self.id);
        if let Some(address) = self.address
            && let Some(count) = inner.of_address.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                inner.of_address.remove(&address);
            }
        }
    }
}

/// What an address is counted as: whoever has one IPv6 address has its /64.
pub(super) fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(network))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::pulse::Pulse, *};

    fn pulse(since: Instant) -> SharedPulse {
        Arc::new(Mutex::new(Pulse::new(since)))
    }

    #[test]
    fn who_waits_longest_goes_first_and_who_is_served_or_new_stays() {
        let crowd = Arc::new(Crowd::default());
        let start = Instant::now();
        let now = start + Duration::from_secs(60);
        let admit = |seconds: u64| {
            let pulse = pulse(start + Duration::from_secs(seconds));
            let ticket = crowd.admit(IpAddr::from([127, 0, 0, 1]), None, &pulse).unwrap();
            (ticket, pulse)
        };
        let (served, its) = admit(0);
        with(&its, Pulse::begins);
        let (oldest, middle, newest) = (admit(1), admit(2), admit(60));
        let told = |ticket: &Ticket| {
            use std::task::{Context, Waker};
            std::pin::pin!(ticket.leave.notified())
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()))
                .is_ready()
        };
        assert_eq!(crowd.make_room(now), 1);
        assert!(told(&oldest.0));
        drop(oldest);
        assert_eq!(crowd.make_room(now), 1);
        assert!(told(&middle.0));
        drop(middle);
        assert_eq!(crowd.make_room(now), 0);
        assert!(!told(&served) && !told(&newest.0));
    }

    #[test]
    fn an_address_has_its_limit_and_a_network_of_ipv6_is_one_address() {
        let crowd = Arc::new(Crowd::default());
        let pulse = pulse(Instant::now());
        let admit = |address: &str, limit| crowd.admit(address.parse().unwrap(), limit, &pulse);
        let first = admit("2001:db8::1", Some(2)).unwrap();
        let _second = admit("2001:db8::2", Some(2)).unwrap();
        assert!(admit("2001:db8::3", Some(2)).is_none());
        assert!(admit("2001:db8:0:1::3", Some(2)).is_some(), "another network");
        assert!(admit("2001:db8::3", None).is_some(), "not counted");
        drop(first);
        let _third = admit("2001:db8::3", Some(2)).unwrap();
        let _v4 = admit("192.0.2.1", Some(1)).unwrap();
        assert!(admit("::ffff:192.0.2.1", Some(1)).is_none());
        assert_eq!(crowd.inner().of_address.len(), 2, "who is gone is forgotten");
    }
}
