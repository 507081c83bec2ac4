//! Hundreds of channels at once: an outage, a mass deletion that is taken back, the end of a namespace. What is counted
//! here is what would grow into a storm with ten thousand.

use std::collections::{BTreeMap, HashMap, HashSet};

use aura_whatsapp_operator::{
    api::{REQUESTED_AT, WhatsAppChannel},
    sim::{fault::Endpoint, kernel::Outcome},
};
use futures::{StreamExt, stream};
use k8s_openapi::api::{
    core::v1::{Namespace, Secret},
    rbac::v1::RoleBinding,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    runtime::wait::await_condition,
};
use serde_json::{Value, json};

use crate::{
    rights::as_role,
    support::{Number, SOON, World, WorldBuilder, cluster, condition, handled, private_cluster, ready},
};

/// Channels of an installation.
const CHANNELS: usize = 300;
/// Channels of a namespace that is deleted.
const IN_NAMESPACE: usize = 50;
/// Those of them whose secret Kernel does not take any more.
const REVOKED: usize = 5;
/// Channels that are asked to be looked at while Kernel is away.
const ASKED: usize = 20;
/// Without the politeness towards Kernel, which is not the matter here; and no channel's own moment comes meanwhile.
const ENVIRONMENT: &str =
    "    registration: {perSecond: 10000, concurrent: 16}\n    channelDefaults: {resyncPeriod: 168h}";

fn numbers(count: usize) -> Vec<Number> {
    (0..count)
        .map(|n| Number::new(&format!("{}", 1000 + n)))
        .collect()
}

fn is_ready(channel: &WhatsAppChannel) -> bool {
    let observed = channel
        .status
        .as_ref()
        .and_then(|status| status.observed_generation);
    ready(channel).0 == "True" && observed == channel.metadata.generation
}

async fn world_of(prefix: &'static str, numbers: &[Number]) -> (World, BTreeMap<String, WhatsAppChannel>) {
    filled(World::builder(prefix).environment_extra(ENVIRONMENT), numbers).await
}

async fn filled(builder: WorldBuilder, numbers: &[Number]) -> (World, BTreeMap<String, WhatsAppChannel>) {
    let world = builder.start().await;
    world.add_all(numbers).await;
    let channels = world.wait_all(numbers.len(), "Ready", is_ready).await;
    for endpoint in [Endpoint::Token, Endpoint::WebhookGet, Endpoint::WebhookSet] {
        let calls = world.kernel.calls_since(0);
        let made = calls.iter().filter(|call| call.endpoint == endpoint).count();
        assert_eq!(made, numbers.len(), "{endpoint:?}: one of each for each channel");
    }
    (world, channels)
}

async fn status_writes(world: &World) -> f64 {
    world
        .metric(world.site.controller_admin, "aura_whatsapp_status_writes_total")
        .await
}

#[tokio::test]
async fn an_outage_of_kernel_turns_no_channel_red_and_writes_only_what_was_asked_for() {
    let numbers = numbers(CHANNELS);
    let (world, before) = world_of("scale-outage", &numbers).await;
    let (written, passes) = (status_writes(&world).await, reconciles(&world).await);
    world.kernel.stop().await;
    let asked = &numbers[..ASKED];
    for number in asked {
        let annotation = json!({"metadata": {"annotations": {REQUESTED_AT: "during the outage"}}});
        world.patch_channel(number, annotation).await;
    }
    let names: HashSet<&str> = asked.iter().map(|number| number.name.as_str()).collect();
    // Each was looked at in vain, or waits for the others' success: that of a few is enough to tell.
    let start = tokio::time::Instant::now();
    while whole(reconciles(&world).await - passes) < ASKED {
        assert!(start.elapsed() < SOON, "{}", world.log("controller"));
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let during = world.wait_all(CHANNELS, "Ready", is_ready).await;
    let written = status_writes(&world).await - written;
    let changed: Vec<&String> = during
        .iter()
        .filter(|(name, channel)| {
            !names.contains(name.as_str()) && channel.resource_version() != before[*name].resource_version()
        })
        .map(|(name, _)| name)
        .collect();
    println!("{CHANNELS} channels, {ASKED} looked at in vain: {written} status writes");
    assert!(
        changed.is_empty(),
        "written although nothing was asked of them: {changed:?}"
    );
    // That the request was handled, of the few whose look was tried. The others' is made when Kernel is back.
    assert!(whole(written) <= ASKED, "{written}");

    world.kernel.restart().await.unwrap();
    let verified = |channel: &WhatsAppChannel| {
        is_ready(channel)
            && condition(channel, "WebhookVerified").0 == "True"
            && (!names.contains(channel.name_any().as_str()) || handled(channel) == Some("during the outage"))
    };
    let after = world
        .wait_all(
            CHANNELS,
            "Ready and verified, those asked for looked at",
            verified,
        )
        .await;
    let registered_at = |channel: &WhatsAppChannel| channel.status.as_ref().unwrap().registered_at.clone();
    for (name, channel) in &after {
        assert_eq!(
            registered_at(channel),
            registered_at(&before[name]),
            "{name} was not set anew"
        );
    }
}

/// As many as an installation may have.
const MANY: usize = 10_000;
/// Requests at once, where there are that many.
const AT_ONCE: usize = 32;

/// What a channel's status would say if it had been registered as `template` was.
fn as_registered(template: &Value, of: &Number, number: &Number, secret_version: &str) -> Value {
    let text = template.to_string().replace(&of.channel_id, &number.channel_id);
    let mut status: Value = serde_json::from_str(&text).unwrap();
    status["observedSecretVersion"] = json!(secret_version);
    json!({"status": status})
}

/// Ten thousand channels that were registered by a run before, each with a moment of its own within a minute, and a Kernel
/// that is away: every look comes due, and nothing is written.
#[tokio::test]
async fn ten_thousand_looks_that_come_due_while_kernel_is_away_write_nothing_and_make_few_calls() {
    let cluster = private_cluster().await;
    let environment = ENVIRONMENT.replace("168h", "1m");
    let mut world = World::builder("scale-many")
        .environment_extra(&environment)
        .without_bridge()
        .start_on(&cluster)
        .await;
    let first = world.ready_number("999").await;
    let template = world.channels().get(&first.name).await.unwrap();
    let template = serde_json::to_value(template.status).unwrap();
    world.controller.take().unwrap().stop().await.unwrap();
    world.kernel.stop().await;

    let numbers: Vec<_> = (0..MANY)
        .map(|n| Number::new(&format!("{}", 10_000 + n)))
        .collect();
    world.add_all(&numbers).await;
    let secrets = world
        .secrets()
        .list_metadata(&ListParams::default())
        .await
        .unwrap();
    let versions: HashMap<String, String> = secrets
        .iter()
        .map(|secret| (secret.name_any(), secret.resource_version().unwrap()))
        .collect();
    let channels = world.channels();
    let report = |number: &Number| {
        let status = as_registered(&template, &first, number, &versions[&number.secret_name]);
        let (channels, name) = (channels.clone(), number.name.clone());
        async move {
            let patch = Patch::Merge(status);
            channels
                .patch_status(&name, &PatchParams::default(), &patch)
                .await
                .unwrap()
                .resource_version()
                .map(|version| (name, version))
        }
    };
    let before: HashMap<String, String> = stream::iter(numbers.iter().map(report))
        .buffer_unordered(AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await;
    assert_eq!(before.len(), MANY);

    world.start_controller().await;
    // The first pass finds each as it should be; the second is at its own moment.
    let start = tokio::time::Instant::now();
    while whole(reconciles(&world).await) < 2 * MANY {
        assert!(
            start.elapsed() < 9 * SOON,
            "{} passes\n{}",
            reconciles(&world).await,
            world.log("controller")
        );
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let admin = world.site.controller_admin;
    let (written, calls) = (
        status_writes(&world).await,
        world.metric(admin, "aura_whatsapp_kernel_calls_total").await,
    );
    println!(
        "{MANY} looks came due within {:?}: {calls} calls in vain, {written} status writes",
        start.elapsed()
    );
    assert_eq!(whole(written), 0);
    // Those that were under way together when the first failed, and one that tries for all after 1, 2, 4 … s.
    assert!(whole(calls) <= 16 + 8, "{calls} calls");
    let after = world
        .wait_all(MANY + 1, "Ready", |channel| ready(channel).0 == "True")
        .await;
    let changed = after
        .iter()
        .filter(|(name, channel)| {
            before
                .get(*name)
                .is_some_and(|version| channel.resource_version().as_ref() != Some(version))
        })
        .count();
    assert_eq!(changed, 0);
}

/// How many passes there were.
async fn reconciles(world: &World) -> f64 {
    let admin = world.site.controller_admin;
    world.metric(admin, "aura_whatsapp_reconciles_total").await
}

/// A count that came as a metric.
fn whole(count: f64) -> usize {
    format!("{count}").parse().unwrap()
}

#[tokio::test]
async fn all_channels_deleted_by_mistake_and_applied_again_lose_no_message() {
    let numbers = numbers(CHANNELS);
    let (world, before) = world_of("scale-prune", &numbers).await;
    let (delete, all) = (DeleteParams::default(), ListParams::default());
    world.channels().delete_collection(&delete, &all).await.unwrap();
    world.wait_all(0, "there", |_| true).await;
    let routes = || world.metric(world.site.bridge_admin, "aura_whatsapp_routes");
    let start = tokio::time::Instant::now();
    while routes().await > 0.0 {
        assert!(
            start.elapsed() < SOON,
            "the bridge still routes {} channels",
            routes().await
        );
        tokio::task::yield_now().await;
    }

    let user = |number: &Number| format!("34700{}", number.digits);
    for number in &numbers {
        let text = format!("hola {}", number.digits);
        world
            .kernel
            .user_sends(&number.digits, &user(number), &text)
            .unwrap();
    }
    let refused = world.kernel.wait_webhook_calls(CHANNELS, SOON).await.unwrap();
    for call in &refused {
        assert_eq!(
            call.outcome,
            Outcome::Status(503),
            "authentic, and to come again: {call:?}"
        );
    }
    assert!(world.aura.activities().is_empty());

    world.create_channels(&numbers).await;
    let after = world.wait_all(CHANNELS, "Ready", is_ready).await;
    for (name, channel) in &after {
        assert_ne!(channel.uid(), before[name].uid(), "{name} is another resource");
    }
    world.kernel.wait_all_received(CHANNELS, SOON).await.unwrap();
    let start = tokio::time::Instant::now();
    while world.kernel.pending_webhook_calls() > 0 {
        assert!(start.elapsed() < SOON, "webhook calls are still pending");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    world.wait_settled().await;
    let texts: HashMap<String, String> = world
        .kernel
        .all_received()
        .into_iter()
        .map(|message| (message.to, message.text))
        .collect();
    for number in &numbers {
        assert_eq!(
            texts.get(&user(number)),
            Some(&format!("Echo: hola {}", number.digits))
        );
    }
    assert_eq!(world.kernel.all_received().len(), CHANNELS, "each reply once");
    assert_eq!(world.aura.activities().len(), CHANNELS, "each message once");
    let calls = world.kernel.webhook_calls();
    let taken = calls
        .iter()
        .filter(|call| call.outcome == Outcome::Status(200))
        .count();
    println!(
        "{CHANNELS} messages: {} webhook calls, {taken} taken",
        calls.len()
    );
    assert_eq!(taken, CHANNELS);
    for number in &numbers {
        assert_eq!(
            world.kernel.webhook_sets(&number.client_id),
            1,
            "Kernel held it all the time"
        );
    }
}

#[tokio::test]
async fn a_namespace_goes_with_all_its_channels_and_kernel_is_not_called() {
    let numbers = numbers(IN_NAMESPACE);
    let (world, _) = world_of("scale-namespace", &numbers).await;
    let calls = world.kernel.call_count();
    delete_namespace(&world).await;
    wait_namespace_gone(&world).await;
    assert_eq!(
        world
            .channels()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .len(),
        0
    );
    let calls = world.kernel.calls_since(calls);
    assert!(calls.is_empty(), "{calls:?}");
    for number in &numbers {
        let webhook = world.kernel.webhook_of(&number.client_id);
        assert!(
            webhook.is_some_and(|url| url.contains(&number.channel_id)),
            "it is kept"
        );
    }
}

async fn delete_namespace(world: &World) {
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    namespaces
        .delete(&world.namespace, &DeleteParams::default())
        .await
        .unwrap();
}

async fn wait_namespace_gone(world: &World) {
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    let gone = await_condition(namespaces, &world.namespace, |found: Option<&Namespace>| {
        found.is_none()
    });
    let gone = tokio::time::timeout(SOON * 2, gone).await;
    gone.unwrap_or_else(|_| panic!("the namespace stays\n{}", world.log("controller")))
        .unwrap();
}

/// An installation beside a namespace whose channels' deletion clears their webhooks.
fn that_clears(prefix: &'static str) -> WorldBuilder {
    let defaults = "channelDefaults: {resyncPeriod: 168h, webhook: {onDelete: Clear}}";
    World::builder(prefix)
        .release_apart()
        .without_bridge()
        .environment_extra(&format!(
            "    registration: {{perSecond: 10000, concurrent: 16}}\n    {defaults}"
        ))
}

/// The worst order in which the parts of a namespace can go: the controller's role there before all else.
async fn take_the_role_away(world: &World) {
    let bindings: Api<RoleBinding> = Api::namespaced(world.client.clone(), &world.namespace);
    bindings
        .delete("aura-whatsapp-controller", &DeleteParams::default())
        .await
        .unwrap();
    let controller = as_role(world, "aura-whatsapp-controller").await;
    let secrets: Api<Secret> = Api::namespaced(controller, &world.namespace);
    let start = tokio::time::Instant::now();
    // The API server learns of it a moment after it has stored it.
    while secrets.list(&ListParams::default().limit(1)).await.is_ok() {
        assert!(start.elapsed() < SOON, "the role is still in force");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_namespace_goes_with_channels_whose_webhooks_are_cleared_although_the_role_goes_first() {
    let numbers = numbers(IN_NAMESPACE);
    let (world, channels) = filled(that_clears("scale-clear").finalizers_cluster_wide(), &numbers).await;
    let held = |channel: &WhatsAppChannel| !channel.finalizers().is_empty();
    assert!(channels.values().all(held));
    for number in &numbers[..REVOKED] {
        assert!(
            world
                .kernel
                .rotate_secret(&number.client_id, "fake-secret-nobody-knows")
        );
    }
    take_the_role_away(&world).await;
    delete_namespace(&world).await;
    wait_namespace_gone(&world).await;

    let cleared = |number: &&Number| {
        let webhook = world.kernel.webhook_of(&number.client_id);
        webhook.is_none_or(|url| url.is_empty())
    };
    let cleared = numbers.iter().filter(cleared).count();
    let skipped = world
        .metric(
            world.site.controller_admin,
            "aura_whatsapp_cleanups_skipped_total",
        )
        .await;
    println!("of {IN_NAMESPACE} webhooks {cleared} were cleared, {skipped} left and told of");
    assert_eq!(cleared, IN_NAMESPACE - REVOKED);
    assert_eq!(whole(skipped), REVOKED);
    let log = world.log("controller");
    assert_eq!(log.matches("webhook is left behind").count(), REVOKED, "{log}");
}

#[tokio::test]
async fn a_namespace_that_the_finalizer_holds_goes_when_an_administrator_does_what_the_log_says() {
    let numbers = numbers(1);
    let number = &numbers[0];
    let (world, _) = filled(that_clears("scale-held"), &numbers).await;
    take_the_role_away(&world).await;
    delete_namespace(&world).await;
    let log = || world.log("controller");
    let told = |times: usize| {
        let log = log();
        let lines: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("our finalizer may not be removed"))
            .collect();
        (lines.len() >= times).then(|| lines[0].to_owned())
    };
    let start = tokio::time::Instant::now();
    let line = loop {
        // More than once: what was done at Kernel is not done again.
        if let Some(line) = told(3) {
            break line;
        }
        assert!(start.elapsed() < SOON, "{}", log());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert!(world.channels().get_opt(&number.name).await.unwrap().is_some());
    let webhook = world.kernel.webhook_of(&number.client_id);
    assert!(webhook.is_none_or(|url| url.is_empty()), "Kernel was told once");
    assert_eq!(world.kernel.webhook_gets(&number.client_id), 2);
    assert_eq!(world.kernel.webhook_sets(&number.client_id), 2);

    let (_, command) = line.split_once("kubectl ").unwrap();
    let (words, patch) = command.split_once(" --patch '").unwrap();
    let (patch, _) = patch.split_once('\'').unwrap();
    let arguments: Vec<&str> = words.split(' ').chain(["--patch", patch]).collect();
    let (fine, output) = cluster().await.kubectl(&arguments).await;
    assert!(fine, "{arguments:?}: {output}");
    wait_namespace_gone(&world).await;
}
