//! A channel as GitOps tools and `kubectl wait` see it, at every moment of its life: each version that the API server
//! ever showed is judged by their rules.

use std::{collections::BTreeMap, time::Duration};

use aura_whatsapp_operator::{
    api::{WhatsAppChannel, conditions::Reason},
    sim::{
        apiproxy::StatusWrite,
        fault::{Endpoint, Fault},
    },
};
use jiff::Timestamp;
use kube::{ResourceExt, api::DeleteParams};
use serde_json::{Value, json};
use url::Url;

use crate::support::{
    Number, Recorder, Seen, World, cluster, condition as of,
    kstatus::{Kstatus, condition, conditions, kstatus, kubectl_wait, text},
};

/// What trying again mends.
const HEALS: &[&str] = &[
    "Progressing",
    "ProgressingWithRetry",
    "SecretNotFound",
    "EnvironmentHeld",
    "RateLimited",
    "UpstreamUnavailable",
    "UpstreamTimeout",
    "InvalidResponse",
];
/// What a person must mend.
const NEEDS_A_PERSON: &[&str] = &[
    "SecretNotAllowed",
    "SecretKeyMissing",
    "SecretInvalid",
    "EnvironmentUnknown",
    "EnvironmentNotAllowed",
    "CredentialsRejected",
    "ScopeNotGranted",
    "PermissionDenied",
    "ChannelConflict",
    "WebhookForeign",
];

/// What is wrong with a history of versions; nothing, if all is well.
fn offences(history: &[Seen]) -> Vec<String> {
    let mut offences = Vec::new();
    for seen in history {
        offences.extend(alone(seen).into_iter().map(|what| told(&what, &seen.object)));
    }
    for pair in history.windows(2) {
        let [before, after] = [&pair[0].object, &pair[1].object];
        offences.extend(together(before, after).into_iter().map(|what| told(&what, after)));
    }
    let mut messages: BTreeMap<_, &str> = BTreeMap::new();
    for one in history.iter().flat_map(|seen| conditions(&seen.object)) {
        let message = text(one, "message");
        let masked = message.replace(|c: char| c.is_ascii_digit(), "#");
        let said = messages
            .entry((
                text(one, "type"),
                text(one, "status"),
                text(one, "reason"),
                masked,
            ))
            .or_insert(message);
        if *said != message {
            offences.push(format!("a number varies in a message: {said:?} and {message:?}"));
        }
    }
    offences
}

fn told(what: &str, object: &Value) -> String {
    format!(
        "{what}\n  at version {} of generation {}: {}",
        object["metadata"]["resourceVersion"], object["metadata"]["generation"], object["status"]
    )
}

/// What is wrong with one version.
fn alone(seen: &Seen) -> Vec<String> {
    let object = &seen.object;
    let mut offences = Vec::new();
    let status_of = |kind: &str| condition(object, kind).map_or("", |found| text(found, "status"));
    let ready = condition(object, "Ready");
    let reason = ready.map_or("", |ready| text(ready, "reason"));
    let judged = kstatus(object);
    if judged == Kstatus::Current && !seen.taken.iter().any(|url| is_webhook_of(url, object)) {
        offences.push("Current, and Kernel has taken no webhook of this generation".to_owned());
    }
    if judged == Kstatus::Failed && HEALS.contains(&reason) {
        offences.push(format!("Failed for {reason}, which heals by itself"));
    }
    if judged == Kstatus::InProgress && is_observed(object) && NEEDS_A_PERSON.contains(&reason) {
        offences.push(format!("InProgress for {reason}, which waits for a person"));
    }
    if judged == Kstatus::Current && !kubectl_wait(object, "Ready") {
        offences.push("Current, and `kubectl wait` would wait".to_owned());
    }
    if status_of("Reconciling") == "True" && status_of("Stalled") == "True" {
        offences.push("Reconciling and Stalled together".to_owned());
    }
    if status_of("Ready") == "True" && status_of("Reconciling") == "True" {
        offences.push("Ready and Reconciling together".to_owned());
    }
    let generation = object["metadata"]["generation"].as_i64().unwrap();
    let all = conditions(object);
    let observed = all.iter().map(|one| &one["observedGeneration"]);
    for observed in observed.chain([&object["status"]["observedGeneration"]]) {
        match observed.as_i64() {
            Some(observed) if observed <= generation => {}
            _ => offences.push(format!("observedGeneration is {observed}")),
        }
    }
    offences
}

/// What is wrong with a version after the one before it.
fn together(before: &Value, after: &Value) -> Vec<String> {
    let mut offences = Vec::new();
    let observed = |object: &Value| object["status"]["observedGeneration"].as_i64().unwrap_or(-1);
    if observed(after) < observed(before) {
        offences.push("observedGeneration goes back".to_owned());
    }
    for now in conditions(after) {
        let Some(then) = condition(before, text(now, "type")) else {
            continue;
        };
        let (kind, time) = (text(now, "type"), |one| text(one, "lastTransitionTime"));
        let flipped = text(now, "status") != text(then, "status");
        if !flipped && time(now) != time(then) {
            offences.push(format!("the time of {kind} changes, its status does not"));
        }
        // Two changes within one second have one time, and the API server may stamp their write a moment later.
        let at_once = || seconds_between(time(now), written_at(after)) <= MOMENT;
        if flipped && (time(now) < time(then) || (time(now) == time(then) && !at_once())) {
            offences.push(format!("the status of {kind} changes, its time does not"));
        }
    }
    offences
}

/// How long a write may take from the pass that makes it to the API server's stamp, in seconds, on a busy machine.
const MOMENT: f64 = 3.0;

fn seconds_between(one: &str, other: &str) -> f64 {
    let parse = |text: &str| text.parse::<Timestamp>().ok();
    match (parse(one), parse(other)) {
        (Some(one), Some(other)) => other.duration_since(one).as_secs_f64(),
        _ => f64::INFINITY,
    }
}

/// When the API server took the last write of the status.
fn written_at(object: &Value) -> &str {
    let entries = object["metadata"]["managedFields"].as_array();
    let of_status = |entry: &&Value| text(entry, "subresource") == "status";
    entries
        .into_iter()
        .flatten()
        .filter(of_status)
        .map(|entry| text(entry, "time"))
        .max()
        .unwrap_or_default()
}

fn is_observed(object: &Value) -> bool {
    object["status"]["observedGeneration"] == object["metadata"]["generation"]
}

/// Whether a URL is the webhook that a channel's spec asks for: for its channelId, with a key of its generation
/// (`TAG.GENERATION.MAC`).
fn is_webhook_of(url: &str, object: &Value) -> bool {
    let url = Url::parse(url).unwrap();
    let value = |name: &str| {
        url.query_pairs()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value)
    };
    let generation = object["spec"]["webhook"]["keyGeneration"].as_u64().unwrap_or(1);
    let key = value("apikey").unwrap_or_default();
    value("channelId").as_deref() == object["spec"]["channelId"].as_str()
        && key.split('.').nth(1) == Some(&*generation.to_string())
}

/// Writes of a status that say what the one before them said.
fn repeated(writes: &[StatusWrite]) -> Vec<&StatusWrite> {
    let said = |write: &StatusWrite| {
        let mut status = write.body["status"].clone();
        if let Some(conditions) = status["conditions"].as_array_mut() {
            conditions.sort_by_key(|one| text(one, "type").to_owned());
        }
        status
    };
    let pairs = writes.windows(2).filter(|pair| said(&pair[0]) == said(&pair[1]));
    pairs.map(|pair| &pair[1]).collect()
}

async fn told_of(world: &World, recorder: &mut Recorder, number: &Number, reason: Reason) -> WhatsAppChannel {
    let channel = world.wait_reason(number, reason).await;
    recorder.caught_up(&channel).await;
    channel
}

#[tokio::test]
async fn at_every_moment_of_its_life_a_channel_is_what_kstatus_makes_of_it() {
    let world = World::builder("kstatus")
        .through_proxy()
        .without_bridge()
        .start()
        .await;
    let number = Number::new("1002");
    world.kernel.add_client(number.client());
    let mut recorder = Recorder::start(&world, &number).await;

    world.apply(number.channel()).await;
    told_of(&world, &mut recorder, &number, Reason::SecretNotFound).await;
    let mut secret = number.secret();
    secret["stringData"]["secret"] = json!("fake-wrong-secret");
    world.apply(secret).await;
    told_of(&world, &mut recorder, &number, Reason::CredentialsRejected).await;
    // The right one, while Kernel has troubles of its own.
    world
        .kernel
        .inject(Fault::status(503).on(Endpoint::WebhookGet).times(1));
    world.kernel.inject(
        Fault::status(429)
            .retry_after(1)
            .on(Endpoint::WebhookGet)
            .times(1),
    );
    world
        .patch_secret(&number, json!({"stringData": {"secret": number.client_secret}}))
        .await;
    told_of(&world, &mut recorder, &number, Reason::Succeeded).await;

    let next_key = json!({"spec": {"webhook": {"keyGeneration": 2}}});
    world.patch_channel(&number, next_key).await;
    let channel = world.wait_ready(&number).await;
    recorder.caught_up(&channel).await;
    assert_eq!(world.kernel.webhook_sets(&number.client_id), 2);

    world.kernel.stop().await;
    let channel = world.look_now(&number, "while-kernel-is-away").await;
    assert_eq!(of(&channel, "Ready").0, "True", "what was verified stays so");
    world.kernel.restart().await.unwrap();

    let suspend = |yes: Value| json!({"spec": {"suspend": yes}});
    world.patch_channel(&number, suspend(json!(true))).await;
    world
        .wait_for(&number, "to be suspended", |channel| {
            of(channel, "Suspended").0 == "True"
        })
        .await;
    world.patch_channel(&number, suspend(Value::Null)).await;
    let resumed = |channel: &WhatsAppChannel| of(channel, "Suspended").0.is_empty();
    let channel = world.wait_for(&number, "to be resumed", resumed).await;
    recorder.caught_up(&channel).await;

    let foreign = "https://old.example.com/hook";
    assert!(world.kernel.set_webhook(&number.client_id, foreign));
    world.look_now(&number, "after-a-foreign-hand").await;
    told_of(&world, &mut recorder, &number, Reason::WebhookForeign).await;
    let taken = recorder.seen().last().unwrap().taken.len();
    // So that the next change can't be of the same moment as the last.
    tokio::time::sleep(Duration::from_secs_f64(MOMENT + 2.0)).await;
    world
        .patch_channel(&number, json!({"spec": {"webhook": {"existing": "TakeOver"}}}))
        .await;
    let channel = world.wait_ready(&number).await;
    recorder.caught_up(&channel).await;
    assert_eq!(recorder.seen().last().unwrap().taken.len(), taken + 1);

    let delete = DeleteParams::default();
    world.channels().delete(&number.name, &delete).await.unwrap();
    recorder.gone().await;

    let history = recorder.seen();
    let life: Vec<_> = history
        .iter()
        .map(|seen| kstatus(&seen.object))
        .fold(Vec::new(), |mut life, now| {
            if life.last() != Some(&now) {
                life.push(now);
            }
            life
        });
    for expected in [Kstatus::InProgress, Kstatus::Failed, Kstatus::Current] {
        assert!(life.contains(&expected), "{life:?}");
    }
    assert_eq!(life[..2], [Kstatus::InProgress, Kstatus::Failed], "{life:?}");
    let offences = offences(&history);
    assert!(offences.is_empty(), "{}\nin {life:?}", offences.join("\n"));
    let writes = world.proxy().status_writes();
    assert!(
        writes.iter().all(|write| write.status == Some(200)),
        "{writes:#?}"
    );
    assert!(repeated(&writes).is_empty(), "{:#?}", repeated(&writes));
    let taken_over = |seen: &&Seen| seen.object["spec"]["webhook"]["existing"] == "TakeOver";
    for seen in history.iter().filter(taken_over) {
        assert!(
            kstatus(&seen.object) != Kstatus::Current || seen.taken.len() > taken,
            "Current before it was taken over: {seen:?}"
        );
    }
}

#[tokio::test]
async fn a_channel_that_is_cleared_on_deletion_is_terminating_until_it_is_gone() {
    let world = World::builder("kstatus-end")
        .through_proxy()
        .without_bridge()
        .start()
        .await;
    let number = Number::new("1002");
    let mut recorder = Recorder::start(&world, &number).await;
    world.kernel.add_client(number.client());
    world.apply(number.secret()).await;
    let mut channel = number.channel();
    channel["spec"]["webhook"] = json!({"onDelete": "Clear"});
    world.apply(channel).await;
    let channel = world.wait_ready(&number).await;
    recorder.caught_up(&channel).await;
    // Longer than nothing, so that there is a version to be judged.
    world
        .kernel
        .inject(Fault::status(503).on(Endpoint::WebhookSet).times(1));
    world
        .channels()
        .delete(&number.name, &DeleteParams::default())
        .await
        .unwrap();
    recorder.gone().await;
    let history = recorder.seen();
    let deleting = |seen: &&Seen| !seen.object["metadata"]["deletionTimestamp"].is_null();
    assert!(history.iter().any(|seen| deleting(&seen)));
    assert!(
        history
            .iter()
            .filter(deleting)
            .all(|seen| kstatus(&seen.object) == Kstatus::Terminating)
    );
    let offences = offences(&history);
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

#[tokio::test]
async fn kubectl_waits_for_the_new_spec_and_for_the_end() {
    let world = World::builder("kubectl-wait").without_bridge().start().await;
    let number = world.ready_number("1002").await;
    let cluster = cluster().await;
    let resource = format!("whatsappchannel/{}", number.name);
    let wait = async |condition: &str, timeout: &str| {
        let condition = format!("--for={condition}");
        let timeout = format!("--timeout={timeout}");
        let arguments = ["wait", &condition, &timeout, "-n", &world.namespace, &resource];
        cluster.kubectl(&arguments).await
    };
    let (met, output) = wait("condition=Ready", "20s").await;
    assert!(met, "{output}");

    world.kernel.inject(Fault::status(503).on(Endpoint::WebhookGet));
    let next_key = json!({"spec": {"webhook": {"keyGeneration": 2}}});
    world.patch_channel(&number, next_key).await;
    let (met, output) = wait("condition=Ready", "2s").await;
    assert!(!met && output.contains("timed out"), "{output}");
    let (met, output) = wait(
        "jsonpath={.status.conditions[?(@.type==\"Reconciling\")].status}=True",
        "20s",
    )
    .await;
    assert!(met, "{output}");
    world.kernel.clear_faults();
    let (met, output) = wait("condition=Ready", "20s").await;
    assert!(met, "{output}");
    let set = world.kernel.webhook_of(&number.client_id).unwrap();
    let channel = world.channels().get(&number.name).await.unwrap();
    assert!(is_webhook_of(&set, &serde_json::to_value(&channel).unwrap()));

    let deleted = async {
        let (met, output) = wait("delete", "20s").await;
        assert!(met, "{output}");
    };
    let (channels, name) = (world.channels(), channel.name_any());
    let delete = DeleteParams::default();
    let ((), gone) = tokio::join!(deleted, channels.delete(&name, &delete));
    gone.unwrap();
}

/// The rules above, each broken once: what is never red says nothing.
mod rules {
    use super::*;

    const URL: &str = "http://h/x?apikey=tag.1.mac&channelId=c";

    fn version(generation: i64, observed: i64, conditions: &[(&str, &str, &str)]) -> Value {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|(kind, status, reason)| {
                json!({
                    "type": kind, "status": status, "reason": reason, "message": "m",
                    "observedGeneration": observed, "lastTransitionTime": "2026-11-22T10:00:00Z",
                })
            })
            .collect();
        json!({
            "metadata": {"generation": generation, "resourceVersion": "1"}, "spec": {"channelId": "c"},
            "status": {"observedGeneration": observed, "conditions": conditions},
        })
    }

    fn judged(object: Value, taken: &[&str]) -> String {
        let taken = taken.iter().map(ToString::to_string).collect();
        let seen = Seen {
            object,
            deleted: false,
            taken,
        };
        offences(&[seen]).join(" ")
    }

    #[test]
    fn each_offence_of_one_version_is_seen() {
        let fine = version(1, 1, &[("Ready", "True", "Succeeded")]);
        assert_eq!(judged(fine.clone(), &[URL]), "");
        assert!(judged(fine.clone(), &[]).contains("taken no webhook"));
        let mut next = fine;
        next["spec"]["webhook"]["keyGeneration"] = json!(2);
        assert!(
            judged(next, &[URL]).contains("taken no webhook"),
            "that of the key before"
        );
        let heals = [
            ("Ready", "False", "RateLimited"),
            ("Stalled", "True", "RateLimited"),
        ];
        assert!(judged(version(1, 1, &heals), &[]).contains("heals by itself"));
        let person = [
            ("Ready", "False", "WebhookForeign"),
            ("Reconciling", "True", "WebhookForeign"),
        ];
        assert!(judged(version(1, 1, &person), &[]).contains("waits for a person"));
        let both = [("Reconciling", "True", ""), ("Stalled", "True", "")];
        assert!(judged(version(1, 1, &both), &[]).contains("Stalled together"));
        let both = [("Ready", "True", ""), ("Reconciling", "True", "")];
        assert!(judged(version(1, 1, &both), &[]).contains("Ready and Reconciling"));
        assert!(judged(version(1, 2, &[]), &[URL]).contains("observedGeneration is 2"));
    }

    #[test]
    fn each_offence_of_two_versions_is_seen() {
        let base = version(2, 2, &[("Ready", "False", "a")]);
        let mut after = base.clone();
        assert!(together(&base, &after).is_empty());
        after["status"]["observedGeneration"] = json!(1);
        assert!(together(&base, &after)[0].contains("goes back"));
        after = base.clone();
        after["status"]["conditions"][0]["lastTransitionTime"] = json!("2026-11-22T10:00:01Z");
        assert!(together(&base, &after)[0].contains("its status does not"));
        after = version(2, 2, &[("Ready", "True", "a")]);
        assert!(together(&base, &after)[0].contains("its time does not"));
        after["status"]["conditions"][0]["lastTransitionTime"] = json!("2026-11-22T10:00:01Z");
        assert!(together(&base, &after).is_empty());
        let seen = |message: &str| {
            let mut object = base.clone();
            object["status"]["conditions"][0]["message"] = json!(message);
            Seen {
                object,
                deleted: false,
                taken: Vec::new(),
            }
        };
        assert!(
            offences(&[seen("try 1"), seen("try 2")])
                .join(" ")
                .contains("a number varies")
        );
    }

    #[test]
    fn a_write_that_repeats_the_one_before_is_seen() {
        let write = |reason: &str| StatusWrite {
            name: "n".into(),
            body: json!({"status": {"conditions": [{"type": "Ready", "reason": reason}]}}),
            status: Some(200),
        };
        assert_eq!(repeated(&[write("a"), write("b"), write("a")]).len(), 0);
        assert_eq!(repeated(&[write("a"), write("a")]).len(), 1);
    }
}
