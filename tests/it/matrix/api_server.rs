//! The cells of the API server. No status can be written then: log and metrics say what is wrong.
//!
//! Each cell has a world whose controller goes through a proxy of its own, with a verified channel and one that is being
//! tried again because of Kernel: so there are passes that need the API server, whether or not its watches live. The
//! Lease is spared, so that it is a pass that fails and not the lead that ends (the cells of the Lease are in `leader`);
//! only who refuses connections refuses them for the Lease as well.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use aura_whatsapp_operator::{
    api::{WhatsAppChannel, conditions::Reason},
    sim::{
        apiproxy::{Calls, Verb, WatchEnd},
        dev::site,
        fault::{Endpoint, Fault},
    },
};
use kube::runtime::wait::await_condition;

use super::{ASKED, Trouble, most_attempts, side_by_side, waits_too_short};
use crate::{
    leader::leads,
    support::{Number, SOON, World, ready},
};

/// One cell.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    pub trouble: Trouble,
    /// What the log says of a pass that failed; the empty text where none fails.
    pub told: &'static str,
}

const fn cell(trouble: Trouble, told: &'static str) -> Cell {
    Cell { trouble, told }
}

use Trouble::{
    BreaksMidBody, Drips, Forbidden, Garbage, GoneForLong, Hangs, Limited, LimitedFor, NotFound, Refused,
    ServerError, Unauthorized,
};

pub const CELLS: &[Cell] = &[
    cell(Refused, "the API server: unreachable"),
    cell(Hangs, "the API server: unreachable"),
    cell(Limited, "the API server: too_many_requests"),
    cell(LimitedFor, "the API server: too_many_requests"),
    cell(ServerError, "the API server: api_error"),
    cell(Unauthorized, "the API server: api_error"),
    cell(Forbidden, "the API server: forbidden"),
    // That a Secret is not found is an observation; that its channel's status is not found is none.
    cell(NotFound, "the API server: not_found"),
    cell(Garbage, "the API server: error"),
    cell(Drips, "the API server: unreachable"),
    cell(BreaksMidBody, "the API server: unreachable"),
    cell(GoneForLong, "the API server: unreachable"),
];

/// How long a cell is watched for too many calls.
const WINDOW: Duration = Duration::from_millis(2500);
/// Longer than a lease lasts that others use by default (15 s).
const LONGER_THAN_A_LEASE: Duration = Duration::from_secs(16);
/// How many passes fail at least: one that is tried, and one that is tried again.
const ATTEMPTS: usize = 2;
/// A pass fails at the latest when the deadlines of a call (10 s for its head, 10 s for its body) are over.
const FAILS_WITHIN: Duration = Duration::from_secs(60);
/// Until when all is well again: the longest wait after an error is 30 s.
const HEALS_WITHIN: Duration = Duration::from_secs(40);

impl Cell {
    async fn run(&self) {
        let world = World::builder("matrix-api")
            .through_proxy()
            .without_bridge()
            .start()
            .await;
        let verified = world.ready_number("1002").await;
        world.kernel.inject(
            Fault::status(503)
                .on(Endpoint::Token)
                .only_for("fake-client-1004"),
        );
        let retried = world.add("1004", |_| {}).await;
        world.wait_reason(&retried, Reason::UpstreamUnavailable).await;

        let (before, began) = (Count::of(&world).await, Instant::now());
        match self.trouble.fault() {
            None => world.proxy().stop().await,
            Some(fault) => world.proxy().inject(Calls::all().but("leases"), fault),
        }
        world.proxy().end_watches(WatchEnd::Eof);
        self.is_told(&world, &before).await;
        let tokens = world.kernel.token_requests().len();
        tokio::time::sleep(WINDOW.saturating_sub(began.elapsed())).await;
        self.is_polite(&world, &before, began).await;
        if self.trouble == GoneForLong {
            tokio::time::sleep(LONGER_THAN_A_LEASE.saturating_sub(began.elapsed())).await;
        }
        assert_eq!(
            world.kernel.token_requests().len(),
            tokens,
            "Kernel is asked for nothing with a Secret that can't be read"
        );
        let untouched = world.channels().get(&verified.name).await.unwrap();
        assert_eq!(ready(&untouched).0, "True");

        world.kernel.clear_faults();
        match self.trouble.fault() {
            None => world.proxy().restart().await.unwrap(),
            Some(_) => world.proxy().clear_faults(),
        }
        // What drips would go on for as long as the server lets a watch live: five minutes.
        world.proxy().end_watches(WatchEnd::Eof);
        heals(&world, &retried).await;
        let new = world.add("1006", |_| {}).await;
        heals(&world, &new).await;
        let controller = world.controller.as_ref().unwrap();
        assert!(controller.try_wait().unwrap().is_none(), "it was not restarted");
        assert_eq!(world.kernel.webhook_sets(&verified.client_id), 1);
    }

    /// Waits until a failed pass is in the log and in the metrics, and was tried again.
    async fn is_told(&self, world: &World, before: &Count) {
        let deadline = Instant::now() + FAILS_WITHIN;
        loop {
            let failed = Count::of(world).await.errors - before.errors;
            if failed >= ATTEMPTS && world.log("controller").contains(self.told) {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "{self:?} is not told of ({failed} failed passes):\n{}",
                world.log("controller")
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if self.trouble.fault().is_some() {
            assert!(
                leads(world, world.site.controller_admin).await,
                "{self:?} is the passes' trouble, not the election's"
            );
        }
    }

    async fn is_polite(&self, world: &World, before: &Count, began: Instant) {
        let (now, within) = (Count::of(world).await, began.elapsed());
        let passes = most_attempts(within, Duration::from_millis(500), Duration::from_secs(15));
        // A watch's waits begin at 0.2 s, and each of the two watches has its own.
        let watches = 2 * most_attempts(within, Duration::from_millis(200), Duration::from_millis(2500));
        // A connection that is refused is seen by nobody but the caller. A verdict that could not be written is not
        // found out anew: then it is the write that is tried again.
        let (refused, unwritten) = (self.trouble.fault().is_none(), self.trouble == NotFound);
        let secrets = if unwritten { 1 } else { ATTEMPTS };
        let writes = if unwritten { ATTEMPTS } else { 0 };
        for (what, before, now, least, most) in [
            ("failed passes", before.errors, now.errors, ATTEMPTS, passes),
            (
                "reads of Secrets",
                before.secrets,
                now.secrets,
                if refused { 0 } else { secrets },
                passes,
            ),
            (
                "lists and watches",
                before.watches,
                now.watches,
                // Each of the two watches begins anew.
                if refused { 0 } else { 2 },
                watches,
            ),
            ("writes", before.writes, now.writes, writes, passes),
        ] {
            assert!(
                (least..=most).contains(&(now - before)),
                "{self:?}: {} {what} within {within:?}, which should be {least} to {most}",
                now - before
            );
        }
        if self.trouble == LimitedFor {
            let mut calls: HashMap<_, Vec<_>> = HashMap::new();
            for request in world.proxy().requests().split_off(before.requests) {
                if request.status == Some(429) {
                    let what = format!("{:?} {} {}", request.verb, request.resource, request.name);
                    calls.entry(what).or_default().push(request.at);
                }
            }
            calls.retain(|_, calls| !waits_too_short(calls).is_empty());
            let short: HashMap<_, _> = calls
                .iter()
                .map(|(what, calls)| (what, waits_too_short(calls)))
                .collect();
            assert!(
                short.is_empty(),
                "asked again after {short:#?}, told to wait {ASKED} s"
            );
        }
    }
}

/// What the controller has done so far.
struct Count {
    errors: usize,
    secrets: usize,
    watches: usize,
    writes: usize,
    /// Of any kind.
    requests: usize,
}

impl Count {
    async fn of(world: &World) -> Self {
        let proxy = world.proxy();
        Self {
            errors: passes(world, "Error").await,
            secrets: proxy.count(&Calls::gets().of("secrets")),
            watches: proxy.count(&Calls::verbs(&[Verb::List, Verb::Watch])),
            writes: proxy.count(&Calls::writes().but("leases")),
            requests: proxy.requests().len(),
        }
    }
}

/// How many passes ended like this.
async fn passes(world: &World, reason: &str) -> usize {
    let (_, page) = site::get(world.site.controller_admin, "/metrics").await.unwrap();
    page.lines()
        .filter(|line| line.starts_with("aura_whatsapp_reconciles_total{"))
        .filter(|line| line.contains(&format!("reason=\"{reason}\"")))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok())
        .sum()
}

async fn heals(world: &World, number: &Number) {
    let well = |channel: Option<&WhatsAppChannel>| channel.is_some_and(|channel| ready(channel).0 == "True");
    let healed = await_condition(world.channels(), &number.name, well);
    let result = tokio::time::timeout(HEALS_WITHIN, healed).await;
    assert!(
        result.is_ok(),
        "{} is not Ready again after {HEALS_WITHIN:?}:\n{}",
        number.name,
        world.log("controller")
    );
}

#[tokio::test]
async fn each_trouble_with_the_api_server_is_told_tried_again_politely_and_healed() {
    side_by_side(CELLS.iter().map(|cell| (cell, cell.run()))).await;
}

#[tokio::test]
async fn a_status_that_is_not_found_is_written_less_and_less_often() {
    let world = World::builder("no-status")
        .through_proxy()
        .without_bridge()
        .start()
        .await;
    let writes = Calls::writes().of("whatsappchannels/status");
    world.proxy().inject(writes.clone(), Fault::status(404));
    // Without its Secret: a channel that is tried again and again.
    world.apply(Number::new("1002").channel()).await;
    world.proxy().wait_requests(&writes, 1, SOON).await.unwrap();
    let began = Instant::now();
    tokio::time::sleep(Duration::from_secs(6)).await;
    let (count, most) = (
        world.proxy().count(&writes),
        most_attempts(
            began.elapsed(),
            Duration::from_millis(500),
            Duration::from_secs(30),
        ),
    );
    assert!(count <= most, "{count} writes, which should be {most} at most");
}
