//! The cells of the Lease, and of nothing else: the API server answers all other requests. The controller stands by, says
//! so, and leads again when the Lease is to be had.
//!
//! Each cell has a world whose controller goes through a proxy of its own, with a channel that is being tried again
//! because of Kernel, one that is asked for a look, and one that is new: so there is something to do that is not done.

use std::time::{Duration, Instant};

use aura_whatsapp_operator::{
    api::{REQUESTED_AT, conditions::Reason},
    sim::{
        apiproxy::Calls,
        fault::{Endpoint, Fault},
    },
};
use serde_json::json;

use super::{ASKED, Trouble, side_by_side, waits_too_short};
use crate::{
    leader::{QUICK, leads},
    support::{SOON, World, handled},
};

/// Every kind of trouble can befall the Lease.
pub const CELLS: &[Trouble] = &Trouble::ALL;

/// Longer than the lease of [`QUICK`], in tries.
const LONGER_THAN_A_LEASE: usize = 16;
/// How many tries are watched elsewhere.
const TRIES: usize = 5;
/// The shortest wait between two tries: half of the retry period.
const BETWEEN: Duration = Duration::from_millis(250);

async fn run(trouble: Trouble) {
    let world = World::builder("matrix-leader")
        .through_proxy()
        .without_bridge()
        .controller_arguments(QUICK)
        .start()
        .await;
    let proxy = world.proxy();
    let admin = world.site.controller_admin;
    let verified = world.ready_number("1002").await;
    world.kernel.inject(
        Fault::status(503)
            .on(Endpoint::Token)
            .only_for("fake-client-1004"),
    );
    let retried = world.add("1004", |_| {}).await;
    world.wait_reason(&retried, Reason::UpstreamUnavailable).await;

    let leases = Calls::all().of("leases");
    // Only this resource is away: a connection that is refused can't be had, so it is closed without an answer.
    let fault = trouble.fault().unwrap_or_else(Fault::reset);
    proxy.inject(leases.clone(), fault);
    // By the clock, and a moment later in the log.
    world
        .until("it leads no longer, and says so", async || {
            let log = world.log("controller");
            let told = [
                "can't read or write the Lease; trying again",
                "no longer leading; standing by",
            ];
            !leads(&world, admin).await && told.iter().all(|told| log.contains(told))
        })
        .await;

    let others = Calls::writes().but("leases");
    let (began, tries) = (Instant::now(), proxy.count(&leases));
    let (calls, writes) = (world.kernel.call_count(), proxy.count(&others));
    let new = world.add("1006", |_| {}).await;
    let asked = json!({REQUESTED_AT: "meanwhile"});
    world
        .patch_channel(&verified, json!({"metadata": {"annotations": asked}}))
        .await;
    let watched = if trouble == Trouble::GoneForLong {
        LONGER_THAN_A_LEASE
    } else {
        TRIES
    };
    proxy.wait_requests(&leases, tries + watched, SOON).await.unwrap();
    let (within, made) = (began.elapsed(), proxy.count(&leases) - tries);
    // A read and a write each time, where the read succeeds.
    let most = 2 * (within.as_millis() / BETWEEN.as_millis() + 2);
    assert!(
        made as u128 <= most,
        "{trouble:?}: {made} requests within {within:?}, which should be {most} at most"
    );
    if trouble == Trouble::LimitedFor {
        let all: Vec<_> = proxy
            .requests()
            .into_iter()
            .filter(|one| leases.fit(one))
            .collect();
        let since: Vec<_> = all[tries..].iter().map(|one| one.at).collect();
        let short = waits_too_short(&since);
        assert!(
            short.is_empty(),
            "asked again after {short:?}, told to wait {ASKED} s"
        );
    }
    assert_eq!(
        world.kernel.call_count(),
        calls,
        "{trouble:?}: {:?}",
        world.kernel.calls_since(calls)
    );
    assert_eq!(
        proxy.count(&others),
        writes,
        "{trouble:?}: {:#?}",
        proxy.requests()
    );

    proxy.clear_faults();
    world.kernel.clear_faults();
    world
        .wait_for(&verified, "to be looked at", |channel| {
            handled(channel) == Some("meanwhile")
        })
        .await;
    world.wait_ready(&new).await;
    world.wait_ready(&retried).await;
    assert!(leads(&world, admin).await);
    let controller = world.controller.as_ref().unwrap();
    assert!(controller.try_wait().unwrap().is_none(), "it was not restarted");
}

#[tokio::test]
async fn each_trouble_with_the_lease_ends_the_lead_and_nothing_is_done_until_it_is_over() {
    side_by_side(CELLS.iter().map(|trouble| (trouble, run(*trouble)))).await;
}
