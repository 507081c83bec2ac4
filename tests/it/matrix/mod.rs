//! The fault matrix: each thing that the controller depends on, in each kind of trouble. What the status (or, where none
//! can be written, log and metrics) says, how often it is tried again, and that all is well once the trouble is over,
//! without a restart.
//!
//! Every pair is either a cell that is tested or stands in [`CANNOT_OCCUR`] with the reason. The cells of Kernel share
//! one world, with an environment and a client each; one whose port is shut for long has a world of its own, and a cell of
//! the API server, or of the Lease, a world and a proxy.

mod api_server;
mod gone;
mod kernel;
mod leader;
mod storms;

use std::{collections::BTreeMap, panic::AssertUnwindSafe, time::Duration};

use aura_whatsapp_operator::sim::fault::Fault;
use futures::FutureExt;
use jiff::Timestamp;

/// What is depended on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dependency {
    KernelAuth,
    WebhookGet,
    WebhookSet,
    ApiServer,
    /// The Lease.
    Leader,
}

impl Dependency {
    const ALL: [Self; 5] = [
        Self::KernelAuth,
        Self::WebhookGet,
        Self::WebhookSet,
        Self::ApiServer,
        Self::Leader,
    ];
}

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    Refused,
    Hangs,
    Limited,
    /// 429 with a `Retry-After` of [`ASKED`].
    LimitedFor,
    ServerError,
    Unauthorized,
    Forbidden,
    NotFound,
    Garbage,
    Drips,
    BreaksMidBody,
    /// Refuses connections for longer than a lease lasts.
    GoneForLong,
}

/// What `Retry-After` asks for, in seconds.
const ASKED: u64 = 3;
/// The looks at a verified webhook that fail before it is not called verified any more: that an open circuit turns a pass
/// away is none.
const LOOKS: usize = 3;
/// How long each byte of a dripping body takes: far too long for any body.
const DRIP: Duration = Duration::from_millis(200);

impl Trouble {
    const ALL: [Self; 12] = [
        Self::Refused,
        Self::Hangs,
        Self::Limited,
        Self::LimitedFor,
        Self::ServerError,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::Garbage,
        Self::Drips,
        Self::BreaksMidBody,
        Self::GoneForLong,
    ];

    /// The fault that makes it; `None` where nobody is there to misbehave.
    fn fault(self) -> Option<Fault> {
        Some(match self {
            Self::Refused | Self::GoneForLong => return None,
            Self::Hangs => Fault::hang(),
            Self::Limited => Fault::status(429),
            Self::LimitedFor => Fault::status(429).retry_after(ASKED),
            Self::ServerError => Fault::status(500),
            Self::Unauthorized => Fault::status(401),
            Self::Forbidden => Fault::status(403),
            Self::NotFound => Fault::status(404),
            Self::Garbage => Fault::garbage(),
            Self::Drips => Fault::drip(DRIP),
            Self::BreaksMidBody => Fault::cut(),
        })
    }
}

/// Pairs that can't occur, and why. None is known.
const CANNOT_OCCUR: &[(Dependency, &[Trouble], &str)] = &[];

/// The most attempts that a backoff with waits of at least `least`, doubled each time up to `cap`, makes in a time.
fn most_attempts(within: Duration, least: Duration, cap: Duration) -> usize {
    let (mut attempts, mut at, mut wait) = (1, Duration::ZERO, least);
    while at + wait <= within {
        at += wait;
        attempts += 1;
        wait = (wait * 2).min(cap);
    }
    attempts
}

/// The waits between calls at these moments, all answered with [`Trouble::LimitedFor`], that are shorter than asked.
fn waits_too_short(calls: &[Timestamp]) -> Vec<Duration> {
    let waits = calls
        .windows(2)
        .map(|pair| Duration::try_from(pair[1].duration_since(pair[0])).unwrap_or_default());
    waits
        .filter(|waited| *waited < Duration::from_secs(ASKED))
        .collect()
}

/// Runs cells side by side and tells of all that fail, not of the first only.
async fn side_by_side<C: std::fmt::Debug, F: Future<Output = ()>>(cells: impl IntoIterator<Item = (C, F)>) {
    let running = cells.into_iter().map(|(cell, run)| async move {
        let result = AssertUnwindSafe(run).catch_unwind().await;
        result.is_err().then(|| format!("{cell:?}"))
    });
    let failed: Vec<_> = futures::future::join_all(running)
        .await
        .into_iter()
        .flatten()
        .collect();
    assert!(failed.is_empty(), "these cells failed, see above: {failed:#?}");
}

#[test]
fn every_pair_is_tested_or_listed_with_the_reason_why_it_is_not() {
    let mut seen: BTreeMap<(Dependency, Trouble), u32> = BTreeMap::new();
    let tested = kernel::CELLS
        .iter()
        .map(|cell| (cell.at, cell.trouble))
        .chain(gone::CELLS.iter().copied())
        .chain(
            api_server::CELLS
                .iter()
                .map(|cell| (Dependency::ApiServer, cell.trouble)),
        )
        .chain(leader::CELLS.iter().map(|trouble| (Dependency::Leader, *trouble)));
    let listed = CANNOT_OCCUR
        .iter()
        .flat_map(|(dependency, troubles, _)| troubles.iter().map(|trouble| (*dependency, *trouble)));
    for pair in tested.chain(listed) {
        *seen.entry(pair).or_default() += 1;
    }
    for dependency in Dependency::ALL {
        for trouble in Trouble::ALL {
            let times = seen.get(&(dependency, trouble)).copied().unwrap_or_default();
            assert_eq!(
                times, 1,
                "{dependency:?} × {trouble:?} is tested or listed {times} times"
            );
        }
    }
}

#[test]
fn a_backoff_makes_so_many_attempts() {
    let seconds = Duration::from_secs;
    let most = |within| most_attempts(within, seconds(1), seconds(4));
    assert_eq!(
        [0, 1, 2, 3, 7, 11, 14].map(|s| most(seconds(s))),
        [1, 2, 2, 3, 4, 5, 5]
    );
}
