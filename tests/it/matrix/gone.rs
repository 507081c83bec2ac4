//! The cells of a Kernel whose port is shut: for longer than the lease lasts, or just between two calls of one pass.
//!
//! Each cell has a world whose environment has a door of its own to one side of Kernel. The lease there is short.

use std::time::{Duration, Instant};

use aura_whatsapp_operator::{
    api::{WhatsAppChannel, conditions::Reason},
    sim::dev::site,
};
use serde_json::json;

use super::{Dependency, LOOKS, Trouble, most_attempts, side_by_side};
use crate::{
    leader::{QUICK, leads},
    support::{Number, Recorder, Side, World, condition, kstatus, ready},
};

use Dependency::{KernelAuth, WebhookGet, WebhookSet};
use Trouble::{GoneForLong, Refused};

pub const CELLS: &[(Dependency, Trouble)] = &[
    (KernelAuth, GoneForLong),
    (WebhookGet, GoneForLong),
    // The GET goes to the same address just before: the door is shut between the two.
    (WebhookSet, GoneForLong),
    (WebhookSet, Refused),
];

const ENVIRONMENT: &str = "es-door";
/// Longer than the lease of [`QUICK`], and long enough for a probe to be late.
const LONGER_THAN_A_LEASE: Duration = Duration::from_secs(8);

fn operation(at: Dependency) -> &'static str {
    match at {
        KernelAuth => "token",
        WebhookSet => "webhook_set",
        _ => "webhook_get",
    }
}

/// The lines of a metric of the controller with all of these labels, by value.
async fn values(world: &World, name: &str, labels: &[String]) -> Vec<usize> {
    let (_, page) = site::get(world.site.controller_admin, "/metrics").await.unwrap();
    page.lines()
        .filter(|line| line.split('{').next() == Some(name))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
        .collect()
}

/// How many calls found nobody.
async fn refused(world: &World, at: Dependency) -> usize {
    let labels = [
        format!("operation=\"{}\"", operation(at)),
        "result=\"unreachable\"".to_owned(),
    ];
    let counts = values(world, "aura_whatsapp_kernel_calls_total", &labels).await;
    counts.into_iter().sum()
}

async fn is_up(world: &World, at: Dependency) -> bool {
    let labels = [
        format!("environment=\"{ENVIRONMENT}\""),
        format!("operation=\"{}\"", operation(at)),
    ];
    values(world, "aura_whatsapp_environment_up", &labels).await == [1]
}

async fn world(at: Dependency) -> World {
    let side = if at == KernelAuth { Side::Auth } else { Side::Api };
    World::builder("matrix-gone")
        .kernel_timeout("1s")
        .without_bridge()
        .controller_arguments(QUICK)
        .environment(ENVIRONMENT, Some(side))
        .start()
        .await
}

async fn add(world: &World, digits: &str) -> Number {
    world
        .add(digits, |channel| {
            channel["spec"]["environment"] = json!(ENVIRONMENT);
        })
        .await
}

fn verified(channel: &WhatsAppChannel) -> (String, String) {
    let (value, reason, _) = condition(channel, "WebhookVerified");
    (value, reason)
}

/// Neither restarted, nor out of the lead.
async fn is_as_it_was(world: &World) {
    let controller = world.controller.as_ref().unwrap();
    assert!(controller.try_wait().unwrap().is_none(), "it was not restarted");
    assert!(
        leads(world, world.site.controller_admin).await,
        "the lease is not kept at Kernel"
    );
}

/// Of a verified channel only WebhookVerified says so, and not before three looks have failed; a new one waits.
async fn gone_for_long(at: Dependency) {
    let world = world(at).await;
    let before = Number::new("1002");
    let mut recorder = Recorder::start(&world, &before).await;
    let old = add(&world, "1002").await;
    world.wait_ready(&old).await;
    assert!(is_up(&world, at).await);

    world.door(ENVIRONMENT).shut().await;
    if at == KernelAuth {
        // Else the token of before would do.
        world.kernel.revoke_tokens(&old.client_id);
    }
    let began = Instant::now();
    let channel = world.look_now(&old, "while-it-is-gone").await;
    assert_eq!(ready(&channel).0, "True", "{:?}", ready(&channel));
    assert_eq!(verified(&channel).0, "True", "one look may fail");
    let missed = |channel: &WhatsAppChannel| verified(channel).0 == "Unknown";
    let channel = world.wait_for(&old, "not to be verified any more", missed).await;
    assert_eq!(verified(&channel).1, Reason::UpstreamUnavailable.as_str());
    assert!(refused(&world, at).await >= LOOKS, "several looks have failed");
    assert!(!is_up(&world, at).await);

    let new = add(&world, "1004").await;
    let channel = world.wait_reason(&new, Reason::UpstreamUnavailable).await;
    assert_eq!(condition(&channel, "Reconciling").0, "True");
    tokio::time::sleep(LONGER_THAN_A_LEASE.saturating_sub(began.elapsed())).await;
    let (count, within) = (refused(&world, at).await, began.elapsed());
    // Beside the probes, the new one's first call.
    let most = 1 + most_attempts(within, Duration::from_millis(500), Duration::from_secs(60));
    assert!(
        count <= most,
        "{count} calls within {within:?}, which should be {most} at most"
    );
    is_as_it_was(&world).await;

    world.door(ENVIRONMENT).open().await;
    let healed = |channel: &WhatsAppChannel| verified(channel).0 == "True";
    let channel = world.wait_for(&old, "to be verified again", healed).await;
    world.wait_ready(&new).await;
    world
        .until("its calls get through", async || is_up(&world, at).await)
        .await;
    recorder.caught_up(&channel).await;
    let red = recorder
        .seen()
        .into_iter()
        .filter_map(|seen| kstatus::condition(&seen.object, "Ready").cloned())
        .skip_while(|ready| ready["status"] != "True")
        .find(|ready| ready["status"] != "True");
    assert_eq!(red, None, "what is registered stays so");
    assert_eq!(world.kernel.webhook_sets(&old.client_id), 1);
    assert_eq!(world.kernel.webhook_sets(&new.client_id), 1);
    is_as_it_was(&world).await;
}

/// The door is shut when the webhook was read back and before it is set.
async fn shut_before_the_set(trouble: Trouble) {
    let world = world(WebhookSet).await;
    world.door(ENVIRONMENT).shut_after_an_answer().await;
    let began = Instant::now();
    let number = add(&world, "1002").await;
    let channel = world.wait_reason(&number, Reason::UpstreamUnavailable).await;
    for (kind, value) in [
        ("CredentialsValid", "True"),
        ("WebhookRegistered", "False"),
        ("Reconciling", "True"),
    ] {
        assert_eq!(condition(&channel, kind).0, value, "{kind}");
    }
    assert_eq!(refused(&world, WebhookSet).await, 1);
    assert_eq!(world.kernel.webhook_gets(&number.client_id), 1);
    assert!(!is_up(&world, WebhookSet).await);
    if trouble == GoneForLong {
        tokio::time::sleep(LONGER_THAN_A_LEASE.saturating_sub(began.elapsed())).await;
        let count = refused(&world, WebhookSet).await + refused(&world, WebhookGet).await;
        let within = began.elapsed();
        let most = most_attempts(within, Duration::from_millis(500), Duration::from_secs(60));
        assert!(
            (2..=most).contains(&count),
            "{count} calls within {within:?}, which should be 2 to {most}"
        );
    }
    is_as_it_was(&world).await;

    world.door(ENVIRONMENT).open().await;
    let channel = world.wait_ready(&number).await;
    assert_eq!(verified(&channel).0, "True");
    assert_eq!(world.kernel.webhook_sets(&number.client_id), 1);
    for at in [WebhookGet, WebhookSet] {
        world
            .until("its calls get through", async || is_up(&world, at).await)
            .await;
    }
    is_as_it_was(&world).await;
}

async fn run(at: Dependency, trouble: Trouble) {
    match at {
        WebhookSet => shut_before_the_set(trouble).await,
        _ => gone_for_long(at).await,
    }
}

#[tokio::test]
async fn a_kernel_whose_port_is_shut_is_asked_less_and_less_and_nothing_registered_turns_red() {
    side_by_side(
        CELLS
            .iter()
            .map(|(at, trouble)| ((at, trouble), run(*at, *trouble))),
    )
    .await;
}
