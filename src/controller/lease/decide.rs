//! The rules of the election: what to ask of the API server next, and what its answer means for our claim. Pure: times
//! come in as arguments, requests go out as values.
//!
//! Three rules keep two from leading at once (Law 10):
//!
//! - A record of another holder runs out by **our** clock alone: its duration after the moment we first *had* it as it
//!   is now, which is later than the moment it was written. What the other's clock wrote into it is for people.
//! - Every write names the version that was judged, so that of two who try only one succeeds.
//! - Our claim ends `renew_deadline` after the moment *before* the last renewal that succeeded was sent, which is
//!   earlier than the moment it was written. An answer that was lost extends nothing.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};

use super::{
    Settings,
    timing::{MAX_DURATION, Timing},
};

/// A moment of this process's own monotonic clock: the time since an origin of its own.
pub(super) type Uptime = Duration;

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Read the Lease.
    Read,
    /// Create it with us as its holder.
    Create(Box<Lease>),
    /// Replace it with this, which carries the version that was read.
    Replace(Box<Lease>),
    /// Ask for nothing for so long.
    Wait(Duration),
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    /// It was read.
    Found(Lease),
    /// There is none to be read or replaced.
    Absent,
    /// It was created or replaced; this is how it stands now.
    Written(Lease),
    /// Somebody was faster: it is there already, or has changed since it was read.
    Conflict,
    /// The request had no effect: a refusal, or a read that was not answered.
    Failed,
    /// A write was not answered: it may stand, now or later.
    Unknown,
}

/// The Lease as it was last seen, and since when it has not changed.
#[derive(Clone, Debug)]
struct Seen {
    lease: Lease,
    since: Uptime,
}

/// How what was seen relates to what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sight {
    /// To be read before anything is written.
    Stale,
    /// As far as we know it is so.
    Current,
    /// There was none when we last asked.
    Absent,
}

/// One candidate's view of the election.
#[derive(Clone, Debug)]
pub(super) struct Election {
    settings: Settings,
    seen: Option<Seen>,
    sight: Sight,
    /// When our claim ends.
    claim: Option<Uptime>,
    /// No request before this.
    next: Uptime,
    /// The last write met a conflict: another one is no reason for haste.
    contested: bool,
    /// A write of ours was not answered, and may stand.
    unsure: bool,
}

impl Election {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            seen: None,
            sight: Sight::Stale,
            claim: None,
            next: Duration::ZERO,
            contested: false,
            unsure: false,
        }
    }

    /// When our claim ends, if it has not.
    pub(super) fn claim(&self, now: Uptime) -> Option<Uptime> {
        self.claim.filter(|end| now < *end)
    }

    /// Who holds the Lease as it was last seen; nobody after a release.
    pub(super) fn holder(&self) -> Option<&str> {
        self.seen.as_ref().and_then(|seen| holder(&seen.lease))
    }

    /// What to do now. `wall` is written into the Lease for people to read, and judged by nobody.
    pub(super) fn step(&self, now: Uptime, wall: Timestamp) -> Step {
        let wait = self.next.saturating_sub(now);
        if !wait.is_zero() {
            return Step::Wait(wait);
        }
        if self.sight == Sight::Stale || self.held_by_another(now) {
            return Step::Read;
        }
        match (&self.seen, self.sight) {
            (Some(seen), Sight::Current) => Step::Replace(Box::new(self.claiming(&seen.lease, wall))),
            _ => Step::Create(Box::new(self.claiming(&self.fresh(), wall))),
        }
    }

    /// Takes in the answer to a request that was sent at `sent`, a moment taken before it was. `chance`, from 0 to 1,
    /// spreads candidates.
    pub(super) fn answered(&mut self, sent: Uptime, now: Uptime, chance: f64, answer: Answer) {
        let retry = self.settings.timing.retry_period();
        let again = sent + retry.mul_f64(1.0 - chance.clamp(0.0, 1.0) / 2.0);
        self.next = match answer {
            Answer::Found(lease) => {
                self.saw(lease, now);
                self.contested &= !self.held_by_another(now);
                self.soonest(again, now)
            }
            Answer::Absent => {
                // What was seen is kept: its holder may not have noticed that the Lease was deleted.
                self.sight = Sight::Absent;
                self.soonest(again, now)
            }
            Answer::Written(lease) => {
                self.saw(lease, now);
                self.contested = false;
                if self.is_ours() {
                    self.claim = Some(sent + self.settings.timing.renew_deadline());
                }
                sent + retry
            }
            Answer::Conflict => {
                self.sight = Sight::Stale;
                if std::mem::replace(&mut self.contested, true) {
                    again
                } else {
                    now
                }
            }
            Answer::Failed => again,
            Answer::Unknown => {
                self.unsure = true;
                again
            }
        };
    }

    /// The API server has asked to be left alone until then. Who leads tries once more before the claim ends: to lose it
    /// would cost more than one request.
    pub(super) fn put_off(&mut self, until: Uptime, now: Uptime) {
        let last = self
            .claim(now)
            .map(|end| end.saturating_sub(self.settings.timing.retry_period()));
        self.next = self.next.max(last.map_or(until, |last| until.min(last)));
    }

    /// Ends our claim for good. What follows is [`Self::release`], never [`Self::step`].
    pub(super) fn resign(&mut self) {
        self.claim = None;
    }

    /// What to do so that the others need not wait until our record runs out; `None` when there is nothing left to do.
    pub(super) fn release(&self, wall: Timestamp) -> Option<Step> {
        match (&self.seen, self.sight) {
            (Some(seen), Sight::Current) if self.is_ours() => {
                let mut lease = seen.lease.clone();
                let spec = lease.spec.get_or_insert_default();
                spec.holder_identity = Some(String::new());
                spec.renew_time = Some(MicroTime(wall));
                Some(Step::Replace(Box::new(lease)))
            }
            _ if self.unsure || (self.is_ours() && self.sight == Sight::Stale) => Some(Step::Read),
            _ => None,
        }
    }

    fn saw(&mut self, lease: Lease, now: Uptime) {
        self.sight = Sight::Current;
        self.unsure = false;
        if self.seen.as_ref().is_none_or(|seen| seen.lease != lease) {
            self.seen = Some(Seen { lease, since: now });
        }
        if !self.is_ours() {
            self.claim = None;
        }
    }

    fn is_ours(&self) -> bool {
        self.holder() == Some(self.settings.identity.as_str())
    }

    /// When a record that names another runs out.
    fn runs_out(&self) -> Option<Uptime> {
        let seen = self.seen.as_ref()?;
        let held = holder(&seen.lease).is_some() && !self.is_ours();
        held.then(|| seen.since + duration(&seen.lease, &self.settings.timing))
    }

    fn held_by_another(&self, now: Uptime) -> bool {
        self.runs_out().is_some_and(|end| now < end)
    }

    /// At once where the Lease is to be had; else with the next look, or when the other's record runs out.
    fn soonest(&self, again: Uptime, now: Uptime) -> Uptime {
        match self.runs_out() {
            Some(end) if now < end => again.min(end),
            _ => now,
        }
    }

    fn fresh(&self) -> Lease {
        Lease {
            metadata: ObjectMeta {
                name: Some(self.settings.name.clone()),
                namespace: Some(self.settings.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: None,
        }
    }

    /// A Lease with us as its holder. What else stands in it is kept, the version first of all.
    fn claiming(&self, lease: &Lease, wall: Timestamp) -> Lease {
        let mut lease = lease.clone();
        let first = lease.spec.is_none();
        let changes = holder(&lease) != Some(self.settings.identity.as_str());
        let spec: &mut LeaseSpec = lease.spec.get_or_insert_default();
        if changes {
            spec.holder_identity = Some(self.settings.identity.clone());
            spec.acquire_time = Some(MicroTime(wall));
            let before = spec.lease_transitions.unwrap_or_default().max(0);
            spec.lease_transitions = Some(before.saturating_add(i32::from(!first)));
        }
        let duration = self.settings.timing.duration();
        // Rounded up: what the others wait is never shorter than what we meant.
        let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
        spec.lease_duration_seconds = Some(i32::try_from(seconds).unwrap_or(i32::MAX));
        spec.renew_time = Some(MicroTime(wall));
        lease
    }
}

/// Who holds a Lease; an empty name is a release.
fn holder(lease: &Lease) -> Option<&str> {
    let holder = lease.spec.as_ref()?.holder_identity.as_deref();
    holder.filter(|holder| !holder.is_empty())
}

/// How long a record holds. One that does not say it, or says nothing sensible, holds as long as ours would.
fn duration(lease: &Lease, ours: &Timing) -> Duration {
    let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
    seconds
        .and_then(|seconds| u64::try_from(seconds).ok())
        .filter(|seconds| *seconds > 0)
        .map_or(ours.duration(), |seconds| {
            Duration::from_secs(seconds).min(MAX_DURATION)
        })
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
