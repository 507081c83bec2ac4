//! Keys are rotated in every way there is while Kernel calls two hundred times a second: no call is refused, neither one
//! with the URL that Kernel holds nor one that was on its way.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use aura_whatsapp_operator::{
    api::WhatsAppChannel,
    sim::kernel::{KernelSim, mask_key},
};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::{Number, SOON, World, ready};

/// How long a call takes that comes late with the URL of before.
const ON_ITS_WAY: Duration = Duration::from_millis(300);
/// Between two calls.
const PACE: Duration = Duration::from_millis(5);
/// What is told of a call that was not answered.
const NOBODY: &str = "nobody there";
const BROKEN: &str = "no answer";
const INSTALLATION_KEY: &str = "aura-whatsapp-operator-installation-key";

/// What came of the calls.
#[derive(Default)]
struct Tally {
    begun: AtomicUsize,
    ended: AtomicUsize,
    taken: AtomicUsize,
    /// The answers of 401 and 403, each with the call's masked URL and the part of its key that is no secret.
    refused: Mutex<Vec<String>>,
    /// Answered with anything else, asked to come back, say; or not answered.
    other: Mutex<Vec<Other>>,
    urls: Mutex<HashSet<String>>,
}

/// A call that was neither taken nor refused.
struct Other {
    began: Instant,
    ended: Instant,
    /// Its status, or why there is none.
    what: String,
    /// The same with its masked URL.
    line: String,
}

fn counts<'a>(calls: &[&'a Other], by: impl Fn(&'a Other) -> &'a str) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    for call in calls {
        *counts.entry(by(call)).or_default() += 1;
    }
    counts
}

/// Kernel's calls: to each of the numbers in turn, with the URL that it holds at that moment, and the same again later.
struct Load {
    tally: Arc<Tally>,
    task: JoinHandle<()>,
    /// When the bridge was away.
    away: Mutex<Vec<(Instant, Instant)>>,
}

impl Load {
    fn start(kernel: &KernelSim, numbers: &[Number]) -> Self {
        let tally = Arc::new(Tally::default());
        let (kernel, into) = (kernel.clone(), tally.clone());
        let clients: Vec<String> = numbers.iter().map(|number| number.client_id.clone()).collect();
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(10))
            .build()
            .unwrap();
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(PACE);
            for client in clients.iter().cycle() {
                ticks.tick().await;
                let Some(url) = kernel.webhook_of(client) else {
                    continue;
                };
                into.urls.lock().unwrap().insert(url.clone());
                into.begun.fetch_add(1, Ordering::SeqCst);
                let (tally, http) = (into.clone(), http.clone());
                tokio::spawn(async move {
                    for when in ["at once", "late"] {
                        call(&tally, &http, &url, when).await;
                        if when == "at once" {
                            tokio::time::sleep(ON_ITS_WAY).await;
                        }
                    }
                    tally.ended.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        Self {
            tally,
            task,
            away: Mutex::default(),
        }
    }

    /// Waits until every call that has begun so far has also come late.
    async fn settle(&self) {
        let begun = self.tally.begun.load(Ordering::SeqCst);
        let settled = async {
            while self.tally.ended.load(Ordering::SeqCst) < begun {
                tokio::time::sleep(PACE).await;
            }
        };
        tokio::time::timeout(SOON, settled).await.expect("calls end");
    }

    /// Stops the bridge, in whichever way, and starts it again: until it is ready, nobody can be answered.
    async fn restart(&self, world: &mut World, stop: impl AsyncFnOnce(&mut World)) {
        let from = Instant::now();
        stop(world).await;
        world.start_bridge().await;
        self.away.lock().unwrap().push((from, Instant::now()));
    }

    fn none_was_refused(&self) {
        let refused = self.tally.refused.lock().unwrap();
        assert!(refused.is_empty(), "{} calls: {refused:#?}", refused.len());
    }

    /// Asserts that every call was taken, but for those that met no bridge; those are asked to come back, or find nobody.
    fn all_were_taken(&self) {
        self.none_was_refused();
        let (away, other) = (self.away.lock().unwrap(), self.tally.other.lock().unwrap());
        let met_none = |call: &&Other| {
            ["503", NOBODY, BROKEN].contains(&call.what.as_str())
                && away
                    .iter()
                    .any(|(from, until)| call.began <= *until && *from <= call.ended)
        };
        let (expected, unexpected): (Vec<&Other>, Vec<&Other>) = other.iter().partition(met_none);
        eprintln!(
            "{} calls, each twice, with {} URLs: {} taken; {} while the bridge was away ({} times): {:?}",
            self.tally.begun.load(Ordering::SeqCst),
            self.tally.urls.lock().unwrap().len(),
            self.tally.taken.load(Ordering::SeqCst),
            expected.len(),
            away.len(),
            counts(&expected, |call| &call.what),
        );
        assert!(
            unexpected.is_empty(),
            "{} calls were not taken although the bridge was there: {:#?}",
            unexpected.len(),
            counts(&unexpected, |call| &call.line)
        );
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn call(tally: &Tally, http: &reqwest::Client, url: &str, when: &str) {
    // A status that nobody waits for: what is asked here is who may call.
    let body = json!({"statuses": [{"id": "fake-wamid", "recipient_id": "34600000001", "status": "delivered",
                                    "timestamp": crate::support::now()}]});
    let began = Instant::now();
    let answer = http.post(url).json(&body).send().await;
    let ended = Instant::now();
    let what = match &answer {
        Ok(answer) => answer.status().as_u16().to_string(),
        Err(error) if error.is_connect() => NOBODY.to_owned(),
        Err(_) => BROKEN.to_owned(),
    };
    let generation = url.split('.').nth_back(1).unwrap_or_default();
    let line = format!("{when}: {} of generation {generation}: {what}", mask_key(url));
    match what.as_str() {
        "200" => {
            tally.taken.fetch_add(1, Ordering::SeqCst);
        }
        "401" | "403" => tally.refused.lock().unwrap().push(line),
        _ => {
            let mut others = tally.other.lock().unwrap();
            others.push(Other {
                began,
                ended,
                what,
                line,
            });
        }
    }
}

/// A rotation: what is patched, and the key that Kernel was told afterwards.
enum To {
    Generation(i64),
    Issued(&'static str),
    /// The reference is taken away.
    Derived,
}

fn issued_secret(number: &Number) -> String {
    format!("{}-webhook", number.name)
}

/// Rotates a number's key and waits until the status says that Kernel was told.
async fn rotate(world: &World, number: &Number, to: To) {
    let url = world.kernel.webhook_of(&number.client_id);
    let told = |is: &dyn Fn(&Value) -> bool, channel: &WhatsAppChannel| {
        let key = serde_json::to_value(&channel.status.as_ref().unwrap().webhook_key).unwrap();
        ready(channel).0 == "True" && is(&key) && world.kernel.webhook_of(&number.client_id) != url
    };
    let wait = async |is: &dyn Fn(&Value) -> bool| {
        world
            .wait_for(number, "to have told Kernel", |channel| told(is, channel))
            .await;
    };
    match to {
        To::Generation(generation) => {
            let webhook = json!({"keyGeneration": generation});
            world
                .patch_channel(number, json!({"spec": {"webhook": webhook}}))
                .await;
            wait(&|key| key["generation"] == generation).await;
        }
        To::Derived => {
            let webhook = json!({"apiKeySecretRef": null});
            world
                .patch_channel(number, json!({"spec": {"webhook": webhook}}))
                .await;
            wait(&|key| !key["generation"].is_null()).await;
        }
        To::Issued(key) => {
            let name = issued_secret(number);
            world
                .apply(json!({
                    "apiVersion": "v1", "kind": "Secret",
                    "metadata": {"name": name, "labels": {"channels.auracognitive.com/channel-secret": "true"}},
                    "stringData": {"key": key},
                }))
                .await;
            let version = world
                .secrets()
                .get(&name)
                .await
                .unwrap()
                .resource_version()
                .unwrap();
            let webhook = json!({"apiKeySecretRef": {"name": name, "key": "key"}});
            world
                .patch_channel(number, json!({"spec": {"webhook": webhook}}))
                .await;
            wait(&|told| told["secretVersion"] == version.as_str()).await;
            assert!(world.kernel.webhook_of(&number.client_id).unwrap().contains(key));
        }
    }
}

/// Rotates the installation key: in the Secret, and a moment later in what the kubelet shows to the bridge.
async fn rotate_installation_key(world: &World) {
    let before = world.secrets().get(INSTALLATION_KEY).await.unwrap();
    let previous = before.data.unwrap()["current"].0.clone();
    let current = format!("fake-{}", uuid::Uuid::new_v4()).into_bytes();
    let mut secret = Secret {
        string_data: Some(
            [("previous", &previous), ("current", &current)]
                .map(|(name, value)| (name.to_owned(), String::from_utf8(value.clone()).unwrap()))
                .into(),
        ),
        ..Secret::default()
    };
    secret.metadata.name = Some(INSTALLATION_KEY.to_owned());
    world
        .secrets()
        .patch(
            INSTALLATION_KEY,
            &PatchParams::default(),
            &Patch::Strategic(secret),
        )
        .await
        .unwrap();
    let folder = world.site.installation_key();
    for (name, value) in [("previous", previous), ("current", current)] {
        let partial = world.site.dir().join(format!("{name}.new"));
        std::fs::write(&partial, value).unwrap();
        std::fs::rename(partial, folder.join(name)).unwrap();
    }
}

/// Waits until Kernel was told of a key by another installation key than before.
async fn wait_new_installation_key(world: &World, number: &Number, before: &str) {
    world
        .wait_for(
            number,
            "to be registered with the new installation key",
            |channel| {
                let key = channel.status.as_ref().unwrap().webhook_key.as_ref();
                key.and_then(|key| key.installation_key_id.as_deref())
                    .is_some_and(|id| id != before)
            },
        )
        .await;
}

async fn installation_key_of(world: &World, number: &Number) -> String {
    let status = world.channels().get(&number.name).await.unwrap().status.unwrap();
    status.webhook_key.unwrap().installation_key_id.unwrap()
}

/// Takes every status away, as a restore of the manifests alone does.
async fn lose_statuses(world: &World, numbers: &[Number]) {
    let channels: Api<WhatsAppChannel> = world.channels();
    for number in numbers {
        let lost = Patch::Merge(json!({"status": null}));
        let now = channels
            .patch_status(&number.name, &PatchParams::default(), &lost)
            .await
            .unwrap();
        // What the definition says of a resource without one.
        let left = now.status.unwrap_or_default();
        assert!(
            left.webhook_key.is_none() && left.conditions.is_empty(),
            "{left:?}"
        );
    }
}

#[tokio::test]
async fn keys_that_are_rotated_under_load_refuse_no_call() {
    let mut world = World::builder("rotations")
        .controller_arguments(&["--installation-key-settle", "3s"])
        .start()
        .await;
    let numbers = [
        world.ready_number("1002").await,
        world.ready_number("1004").await,
        world.ready_number("1006").await,
    ];
    let [a, b, c] = &numbers;
    let load = Load::start(&world.kernel, &numbers);
    load.settle().await;

    tokio::join!(
        rotate(&world, a, To::Generation(2)),
        rotate(&world, b, To::Generation(2)),
        rotate(&world, c, To::Issued("fake-issued-key-one")),
    );
    load.settle().await;
    tokio::join!(
        rotate(&world, a, To::Generation(3)),
        rotate(&world, b, To::Generation(7)),
        rotate(&world, c, To::Issued("fake-issued-key-two")),
    );
    load.settle().await;

    // A restore: the statuses are gone, and the controller remembers nothing.
    let held: Vec<_> = numbers
        .iter()
        .map(|one| world.kernel.webhook_of(&one.client_id))
        .collect();
    world.controller.take().unwrap().stop().await.unwrap();
    lose_statuses(&world, &numbers).await;
    load.settle().await;
    world.start_controller().await;
    for (number, held) in numbers.iter().zip(held) {
        world.wait_ready(number).await;
        assert_eq!(
            world.kernel.webhook_of(&number.client_id),
            held,
            "{} goes back to no older key",
            number.name
        );
    }
    load.settle().await;

    load.restart(&mut world, async |world| world.kill_bridge().await)
        .await;
    tokio::join!(
        rotate(&world, a, To::Generation(4)),
        rotate(&world, b, To::Generation(8)),
        rotate(&world, c, To::Issued("fake-issued-key-three")),
    );
    load.settle().await;

    let id = installation_key_of(&world, a).await;
    rotate_installation_key(&world).await;
    tokio::join!(
        rotate(&world, a, To::Generation(5)),
        rotate(&world, b, To::Generation(12)),
        rotate(&world, c, To::Derived),
    );
    for number in &numbers {
        wait_new_installation_key(&world, number, &id).await;
    }
    load.settle().await;

    load.restart(&mut world, async |world| {
        world.bridge.take().unwrap().stop().await.unwrap();
    })
    .await;
    tokio::join!(
        rotate(&world, a, To::Generation(9)),
        rotate(&world, b, To::Generation(13)),
        rotate(&world, c, To::Issued("fake-issued-key-four")),
    );
    load.settle().await;
    let id = installation_key_of(&world, a).await;
    rotate_installation_key(&world).await;
    tokio::join!(
        rotate(&world, a, To::Generation(10)),
        rotate(&world, c, To::Issued("fake-issued-key-five")),
    );
    for number in [a, b] {
        wait_new_installation_key(&world, number, &id).await;
    }
    load.settle().await;

    load.all_were_taken();
    let urls = load.tally.urls.lock().unwrap().len();
    assert!(urls >= 3 + 20, "calls came with {urls} URLs in all");
}

#[tokio::test]
async fn a_status_that_is_lost_under_a_running_controller_brings_no_older_key_back() {
    let world = World::start("lost-status").await;
    let number = world.ready_number("1002").await;
    for generation in [2, 3] {
        rotate(&world, &number, To::Generation(generation)).await;
    }
    let numbers = [number];
    let load = Load::start(&world.kernel, &numbers);
    load.settle().await;
    let number = &numbers[0];
    let (held, sets) = (
        world.kernel.webhook_of(&number.client_id),
        world.kernel.webhook_sets(&number.client_id),
    );
    lose_statuses(&world, &numbers).await;
    load.settle().await;
    let channel = world.look_now(number, "now").await;
    assert_eq!(channel.status.unwrap().webhook_key.unwrap().generation, Some(3));
    assert_eq!(world.kernel.webhook_of(&number.client_id), held);
    assert_eq!(world.kernel.webhook_sets(&number.client_id), sets);
    rotate(&world, number, To::Generation(4)).await;
    load.settle().await;
    load.all_were_taken();
}

#[tokio::test]
async fn a_jump_of_the_generation_after_a_lost_status_refuses_no_call() {
    let world = World::start("lost-jump").await;
    let numbers = [world.ready_number("1002").await];
    let load = Load::start(&world.kernel, &numbers);
    load.settle().await;
    lose_statuses(&world, &numbers).await;
    rotate(&world, &numbers[0], To::Generation(9)).await;
    load.settle().await;
    // Nobody knows any more which key Kernel was told: who calls with the one of before is asked to come back.
    load.none_was_refused();
    let other = load.tally.other.lock().unwrap();
    let other: Vec<_> = other.iter().collect();
    assert!(
        other.iter().all(|call| call.line.ends_with("generation 1: 503")),
        "{:#?}",
        counts(&other, |call| &call.line)
    );
    eprintln!(
        "{} calls, each twice: {} taken, {:?} others",
        load.tally.begun.load(Ordering::SeqCst),
        load.tally.taken.load(Ordering::SeqCst),
        counts(&other, |call| &call.what)
    );
}
