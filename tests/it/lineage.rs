//! A journal that is older than what the cluster has recorded of it: nothing of it is sent again before a person says so.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use aura_whatsapp_operator::{
    lineage::{DEFAULT_RECORD, Mark, Record, Told},
    sim::{
        dev::site,
        fault::{Endpoint, Fault},
    },
};
use k8s_openapi::api::{core::v1::ConfigMap, events::v1::Event};
use kube::{Api, api::ListParams};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{PROGRAM, SOON, World};

const USER: &str = "349876543210987";
const OTHER: &str = "349876543210988";

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for item in fs::read_dir(from).unwrap() {
        let path = item.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

fn journal(world: &World) -> PathBuf {
    world.site.dir().join("data").join("journal")
}

async fn recorded(world: &World) -> Option<Record> {
    let records: Api<ConfigMap> = Api::namespaced(world.client.clone(), &world.namespace);
    let found = records.get_opt(DEFAULT_RECORD).await.unwrap()?;
    Some(Record::read(&found.data.unwrap()).unwrap())
}

async fn told(world: &World) -> Option<Record> {
    let (status, page) = site::get(world.site.bridge_admin, "/v1/journal").await.unwrap();
    assert_eq!(status, 200);
    serde_json::from_str::<Told>(&page).unwrap().journal
}

/// Waits until the cluster's record is as far as the journal.
async fn wait_recorded(world: &World) -> Record {
    world
        .until("the journal is recorded as it is", async || {
            let (told, recorded) = (told(world).await, recorded(world).await);
            told.is_some() && told.map(|told| (told.id, told.mark)) == recorded.map(|is| (is.id, is.mark))
        })
        .await;
    recorded(world).await.unwrap()
}

/// Runs `messages` with these arguments: its exit status and what it printed.
fn messages(world: &World, arguments: &[&str]) -> (i32, Value) {
    let output = Command::new(PROGRAM)
        .arg("messages")
        .args(arguments)
        .args([
            "--output",
            "json",
            "--url",
            &format!("http://{}", world.site.messages),
        ])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let json = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{errors}"));
    (output.status.code().unwrap(), json)
}

async fn stop_bridge(world: &mut World) {
    world.bridge.take().unwrap().stop_within(SOON).await.unwrap();
}

async fn withheld(world: &World) -> f64 {
    world
        .metric(world.site.bridge_admin, "aura_whatsapp_withheld_messages")
        .await
}

/// A copy of the journal as it is now; then the bridge goes on with the journal, and Kernel is well again.
async fn copied_while_kernel_fails(world: &mut World) -> TempDir {
    stop_bridge(world).await;
    let aside = tempfile::tempdir().unwrap();
    copy(&journal(world), aside.path());
    world.kernel.clear_faults();
    world.start_bridge().await;
    aside
}

/// The copy in the place of the journal, and a bridge that finds it there.
async fn put_back(world: &mut World, aside: &TempDir) {
    fs::remove_dir_all(journal(world)).unwrap();
    copy(aside.path(), &journal(world));
    world.start_bridge().await;
}

fn texts(world: &World, user: &str) -> Vec<String> {
    let received = world.kernel.received(user);
    received.into_iter().map(|message| message.text).collect()
}

#[tokio::test]
async fn an_older_journal_that_is_put_back_sends_nothing_of_the_old_until_a_person_releases_it() {
    let mut world = World::builder("rewound").asks_bridge_every("100ms").start().await;
    let number = world.ready_number("1002").await;
    // A reply waits when the copy is made,
    world.kernel.inject(Fault::status(503).on(Endpoint::Send));
    world.kernel.user_sends("1002", USER, "old").unwrap();
    world.aura.wait_replies(1, SOON).await.unwrap();
    let aside = copied_while_kernel_fails(&mut world).await;
    // and is delivered, and the next ones, after it.
    world.wait_received(USER, 1).await;
    world.converse(&number, USER, "later", 2).await;
    world.wait_settled().await;
    let before = wait_recorded(&world).await;
    let delivered = texts(&world, USER);
    stop_bridge(&mut world).await;

    put_back(&mut world, &aside).await;
    world
        .until("the journal is found to be rewound", async || {
            world
                .metric(world.site.bridge_admin, "aura_whatsapp_journal_rewound")
                .await
                > 0.0
        })
        .await;
    assert!(world.log("bridge").contains("JournalRewound"));
    world.wait_delivering(&number, "False", "JournalRewound").await;
    let (_, ready) = site::get(world.site.bridge_admin, "/readyz").await.unwrap();
    assert!(
        ready.starts_with("ready; 1 message of before this start"),
        "{ready}"
    );
    // New messages are delivered, also those of the conversation that has one withheld.
    world.converse(&number, OTHER, "another's", 1).await;
    world.converse(&number, USER, "new", 3).await;
    assert_eq!(texts(&world, USER)[..2], delivered);
    assert!(
        texts(&world, USER)[2].contains("new"),
        "{:?}",
        texts(&world, USER)
    );

    // It is another journal from now on, whose numbers have never been given before.
    let after = wait_recorded(&world).await;
    assert_ne!(after.id, before.id);
    assert!(after.next_number > before.next_number);
    let events: Api<Event> = Api::namespaced(world.client.clone(), &world.namespace);
    world
        .until("an event tells of it", async || {
            let events = events.list(&ListParams::default()).await.unwrap();
            let mut reasons = events.items.iter().filter_map(|event| event.reason.as_deref());
            reasons.any(|reason| reason == "JournalChanged")
        })
        .await;

    // A restart changes nothing about it.
    world.kill_bridge().await;
    world.start_bridge().await;
    world
        .until("the journal is judged", async || told(&world).await.is_some())
        .await;
    world.converse(&number, OTHER, "after the restart", 2).await;
    assert!((withheld(&world).await - 1.0).abs() < f64::EPSILON);
    assert_eq!(texts(&world, USER).len(), 3);
    let (code, shown) = messages(&world, &["journal"]);
    assert_eq!(
        (code, shown["withheld"][&number.channel_id].as_u64()),
        (1, Some(1)),
        "{shown}"
    );

    let (code, _) = messages(&world, &["release", "--journal", "--because", "INC-79"]);
    assert_eq!(code, 0);
    let received = world.wait_received(USER, 4).await;
    assert_eq!(
        received[3].text, delivered[0],
        "now it is sent again, as was decided"
    );
    world.wait_delivering(&number, "True", "Flowing").await;
    assert!((withheld(&world).await).abs() < f64::EPSILON);
    let log = world.log("bridge");
    let audited = log.lines().find(|line| line.contains("releaseJournal")).unwrap();
    assert!(audited.contains("INC-79"), "{audited}");
    // It is on disk: the next start withholds nothing.
    world.kill_bridge().await;
    world.start_bridge().await;
    world.converse(&number, USER, "the end", 5).await;
    assert_eq!(messages(&world, &["journal"]).0, 0);
}

#[tokio::test]
async fn what_a_rewound_journal_withholds_can_be_given_up_and_becomes_dead_letters() {
    let mut world = World::builder("rewound-drop")
        .asks_bridge_every("100ms")
        .start()
        .await;
    let number = world.ready_number("1002").await;
    world.kernel.inject(Fault::status(503).on(Endpoint::Send));
    for user in [USER, OTHER] {
        world.kernel.user_sends("1002", user, "old").unwrap();
    }
    world.aura.wait_replies(2, SOON).await.unwrap();
    let aside = copied_while_kernel_fails(&mut world).await;
    world.wait_received(USER, 1).await;
    world.wait_received(OTHER, 1).await;
    world.wait_settled().await;
    wait_recorded(&world).await;
    stop_bridge(&mut world).await;
    put_back(&mut world, &aside).await;
    world.wait_delivering(&number, "False", "JournalRewound").await;
    let arguments = ["drop", "--journal", "--because", "they were delivered before"];
    let (code, would) = messages(&world, &arguments);
    assert_eq!((code, &would["meant"]), (2, &2.into()), "{would}");
    let (code, dropped) = messages(&world, &[&arguments[..], &["--yes"]].concat());
    assert_eq!((code, &dropped["dropped"]), (0, &2.into()), "{dropped}");
    world.wait_delivering(&number, "True", "DeadLetters").await;
    world.wait_settled().await;
    assert_eq!((texts(&world, USER).len(), texts(&world, OTHER).len()), (1, 1));
}

#[tokio::test]
async fn without_the_api_server_what_was_pending_waits_and_new_conversations_do_not() {
    let mut world = World::builder("unjudged")
        .asks_bridge_every("100ms")
        .bridge_through_proxy()
        .start()
        .await;
    world.ready_number("1002").await;
    world.aura.inject(Fault::status(503).on(Endpoint::Messages));
    world.kernel.user_sends("1002", USER, "old").unwrap();
    world.aura.wait_calls(1, SOON).await.unwrap();
    wait_recorded(&world).await;
    world.kill_bridge().await;
    world.aura.clear_faults();
    world.proxy().stop().await;
    world.start_bridge().await;
    world.kernel.user_sends("1002", USER, "behind it").unwrap();
    world.kernel.user_sends("1002", OTHER, "another's").unwrap();
    world.aura.wait_activities(1, SOON).await.unwrap();
    world
        .until("both of the conversation wait", async || {
            (withheld(&world).await - 2.0).abs() < f64::EPSILON
        })
        .await;
    let arrived = |world: &World| -> Vec<String> {
        let activities = world.aura.activities();
        activities.into_iter().filter_map(|one| one.text).collect()
    };
    assert_eq!(arrived(&world), ["another's"]);
    let (status, ready) = site::get(world.site.bridge_admin, "/readyz").await.unwrap();
    assert_eq!(status, 200, "it takes calls");
    assert!(ready.contains("until the cluster's record"), "{ready}");
    assert_eq!(
        told(&world).await,
        None,
        "nothing is recorded before it is judged"
    );
    world.proxy().restart().await.unwrap();
    world
        .aura
        .wait_activities(3, Duration::from_secs(60))
        .await
        .unwrap();
    assert_eq!(arrived(&world), ["another's", "old", "behind it"]);
    assert!((withheld(&world).await).abs() < f64::EPSILON);
}

#[tokio::test]
async fn an_empty_journal_in_the_place_of_a_lost_one_is_told_of_and_goes_on() {
    let mut world = World::builder("replaced")
        .asks_bridge_every("100ms")
        .start()
        .await;
    let number = world.ready_number("1002").await;
    world.kernel.inject(Fault::status(503).on(Endpoint::Send));
    world.kernel.user_sends("1002", USER, "lost").unwrap();
    world.aura.wait_replies(1, SOON).await.unwrap();
    let before = wait_recorded(&world).await;
    assert!(before.mark > Mark::default() && before.pending > 0, "{before:?}");
    world.kill_bridge().await;
    world.kernel.clear_faults();
    fs::remove_dir_all(journal(&world)).unwrap();
    world.start_bridge().await;
    world.converse(&number, USER, "new", 1).await;
    world
        .until("the log tells of it", async || {
            world
                .log("bridge")
                .contains("the one that the cluster has recorded is gone")
        })
        .await;
    let after = wait_recorded(&world).await;
    assert_ne!(after.id, before.id);
    assert!(after.next_number > before.next_number);
    assert_eq!(messages(&world, &["journal"]).1["verdict"], "replaced");
    world.wait_delivering(&number, "True", "Flowing").await;
}
