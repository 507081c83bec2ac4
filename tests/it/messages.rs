//! What somebody on call sees and repairs: through the messages listener, and with the program's own subcommand.

use std::process::Command;

use aura_whatsapp_operator::{
    delivery::DRAIN,
    sim::{
        aura::Behaviour,
        fault::{Endpoint, Fault},
    },
};
use kube::api::DeleteParams;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Number, PROGRAM, SOON, World};

const USER: &str = "349876543210987";
const TEXT: &str = "sentinel-words-of-the-user-5150";

/// An answer, whatever it is.
struct Answer {
    status: u16,
    text: String,
    json: Value,
}

async fn call(world: &World, method: Method, path: &str, body: Option<Value>) -> Answer {
    let client = Client::builder().no_proxy().build().unwrap();
    let mut request = client.request(method, format!("http://{}{path}", world.site.messages));
    if let Some(body) = body {
        request = request.json(&body);
    }
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    let json = serde_json::from_str(&text).unwrap_or_default();
    Answer { status, text, json }
}

async fn get(world: &World, path: &str) -> Answer {
    call(world, Method::GET, path, None).await
}

async fn post(world: &World, path: &str, body: Value) -> Answer {
    call(world, Method::POST, path, Some(body)).await
}

/// The numbers of the messages that a list shows.
fn seqs(answer: &Answer) -> Vec<u64> {
    let messages = answer.json["messages"]
        .as_array()
        .unwrap_or_else(|| panic!("{}", answer.text));
    messages
        .iter()
        .map(|message| message["seq"].as_u64().unwrap())
        .collect()
}

/// Runs `messages` against a world's bridge: its exit status, stdout and stderr.
fn run(world: &World, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(PROGRAM)
        .arg("messages")
        .args(arguments)
        .args(["--url", &format!("http://{}", world.site.messages)])
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// A world in which Kernel refuses the replies that Aura sends, until [`Fault`]s are cleared.
async fn refusing(prefix: &'static str, config: &str) -> (World, Number) {
    let world = World::builder(prefix)
        .aura(Behaviour::Echo)
        .config(config)
        .start()
        .await;
    let number = world.ready_number("1002").await;
    world.kernel.inject(Fault::status(400).on(Endpoint::Send));
    (world, number)
}

/// The user writes, and the reply becomes the `n`-th dead letter.
async fn dead_letters(world: &World, n: usize) -> Vec<u64> {
    let before = seqs(&get(world, "/v1/messages?state=dead").await).len();
    for _ in before..n {
        world.kernel.user_sends("1002", USER, TEXT).unwrap();
    }
    world
        .until("the replies are given up", async || {
            seqs(&get(world, "/v1/messages?state=dead").await).len() == n
        })
        .await;
    seqs(&get(world, "/v1/messages?state=dead").await)
}

/// The lines of the audit stream.
fn audited(world: &World) -> Vec<Value> {
    let log = world.log("bridge");
    let lines = log.lines().filter_map(|line| line.split_once(" audit: "));
    lines
        .map(|(_, line)| serde_json::from_str(line).unwrap())
        .collect()
}

fn nothing_personal(place: &str, text: &str) {
    for word in [USER, TEXT, "wamid."] {
        assert!(!text.contains(word), "{place} shows {word}: {text}");
    }
}

#[tokio::test]
async fn a_dead_letter_is_found_explained_and_sent_again_and_arrives_once() {
    let (world, number) = refusing("on-call", "").await;
    let dead = dead_letters(&world, 1).await[0];

    let list = get(&world, "/v1/messages?state=dead").await;
    let shown = &list.json["messages"][0];
    assert_eq!(
        (
            &shown["reason"],
            &shown["direction"],
            &shown["channel"],
            &shown["attempts"]
        ),
        (
            &json!("RefusedByKernel"),
            &json!("to_user"),
            &json!(number.channel_id),
            &json!(1)
        ),
    );
    let contact = shown["contact"].as_str().unwrap().to_owned();
    assert!(
        world.log("bridge").contains(&contact),
        "the digest that logs show"
    );
    let one = get(&world, &format!("/v1/messages/{dead}")).await;
    assert!(
        one.json["request"].is_string(),
        "the reply answers something: {}",
        one.text
    );
    nothing_personal("list", &list.text);
    nothing_personal("show", &one.text);

    // For each filter, one value that takes it and one that does not.
    for (query, found) in [
        (format!("channel={}", number.channel_id), true),
        ("channel=6f1c2a9e-5f0e-4a57-9d2c-0b7a3c1d8e42".to_owned(), false),
        (format!("contact={contact}"), true),
        ("contact=000000000000".to_owned(), false),
        ("direction=to_user".to_owned(), true),
        ("direction=to_aura".to_owned(), false),
        ("olderThan=0s".to_owned(), true),
        ("olderThan=1h".to_owned(), false),
        ("reason=RefusedByKernel".to_owned(), true),
        ("reason=TooOld".to_owned(), false),
        (format!("after={dead}"), false),
    ] {
        let list = get(&world, &format!("/v1/messages?state=dead&{query}")).await;
        assert_eq!(seqs(&list) == [dead], found, "{query}: {}", list.text);
    }

    let path = format!("/v1/messages/{dead}/replay");
    let silent = post(&world, &path, json!({})).await;
    assert_eq!(silent.status, 400, "a change says why: {}", silent.text);
    let dry = post(&world, &path, json!({"because": "INC-77", "dryRun": true})).await;
    assert_eq!(dry.status, 200);
    assert_eq!(audited(&world), Vec::<Value>::new(), "nothing was done yet");

    world.kernel.clear_faults();
    let replayed = post(&world, &path, json!({"because": "INC-77: Kernel is right again"})).await;
    let new = replayed.json["replayedAs"]
        .as_u64()
        .unwrap_or_else(|| panic!("{}", replayed.text));
    let received = world.wait_received(USER, 1).await;
    world.wait_settled().await;
    assert_eq!(world.kernel.received(USER).len(), 1, "once");
    assert_eq!(received[0].client_id, number.client_id);
    assert_eq!(
        post(&world, &path, json!({"because": "again"})).await.status,
        404,
        "it is gone"
    );
    assert_eq!(
        seqs(&get(&world, "/v1/messages?state=dead").await),
        Vec::<u64>::new()
    );

    let lines = audited(&world);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(
        (
            &lines[0]["verb"],
            &lines[0]["seqs"],
            &lines[0]["contact"],
            &lines[0]["outcome"],
            &lines[0]["because"]
        ),
        (
            &json!("replay"),
            &json!([dead]),
            &json!(contact),
            &json!("done"),
            &json!("INC-77: Kernel is right again"),
        )
    );

    // Each id by which somebody may know it leads to it, with all that happened.
    let words = |answer: &Answer| -> Vec<String> {
        let steps = answer.json["steps"]
            .as_array()
            .unwrap_or_else(|| panic!("{}", answer.text));
        steps
            .iter()
            .map(|step| step["step"].as_str().unwrap().to_owned())
            .collect()
    };
    let key = received[0].idempotency_key.clone().unwrap();
    for id in [new.to_string(), key, received[0].wamid.replace('/', "%2F")] {
        let trace = get(&world, &format!("/v1/trace/{id}")).await;
        assert_eq!(trace.json["seq"], new, "{id}: {}", trace.text);
        assert_eq!(
            words(&trace),
            [
                "accepted",
                "committed",
                "fatal",
                "deadLetter",
                "replayed",
                "delivered",
                "settled"
            ]
        );
        nothing_personal("trace", &trace.text);
    }
    nothing_personal("the log", &world.log("bridge"));
}

#[tokio::test]
async fn what_the_bridge_no_longer_remembers_is_told_by_the_journal() {
    let mut world = World::builder("on-call-restart")
        .aura(Behaviour::Echo)
        .start()
        .await;
    world.ready_number("1002").await;
    world.kernel.user_sends("1002", USER, TEXT).unwrap();
    let received = world.wait_received(USER, 1).await;
    world.wait_settled().await;
    world.aura.inject(Fault::status(503).on(Endpoint::Messages));
    let waiting = world.kernel.user_sends("1002", USER, TEXT).unwrap();
    world
        .until("the message waits", async || {
            seqs(&get(&world, "/v1/messages?state=pending").await).len() == 1
        })
        .await;
    world.kill_bridge().await;
    world.start_bridge().await;
    let sent = get(
        &world,
        &format!("/v1/trace/{}", received[0].wamid.replace('/', "%2F")),
    )
    .await;
    assert_eq!(sent.json["message"]["state"], "sent", "{}", sent.text);
    let pending = get(&world, &format!("/v1/trace/{}", waiting.replace('/', "%2F"))).await;
    assert_eq!(pending.json["message"]["state"], "pending", "{}", pending.text);
    assert_eq!(pending.json["steps"][0]["step"], "accepted");
    let unknown = get(&world, "/v1/trace/wamid.nobody").await;
    assert_eq!(unknown.status, 404);
}

#[tokio::test]
async fn a_conversation_that_is_held_waits_also_through_a_restart_and_then_goes_on() {
    let mut world = World::start("on-call-park").await;
    let number = world.ready_number("1002").await;
    world.aura.inject(Fault::status(503).on(Endpoint::Messages));
    let (seq, contact) = waits(&world).await;
    let lane = |because: &str| {
        json!({
            "channel": number.channel_id, "contact": contact, "direction": "to_aura", "because": because,
        })
    };
    assert_eq!(
        seqs(&get(&world, "/v1/messages?state=parked").await),
        Vec::<u64>::new()
    );
    assert_eq!(post(&world, "/v1/lanes/unpark", lane("INC-1")).await.status, 409);
    assert_eq!(post(&world, "/v1/lanes/park", lane("")).await.status, 400);
    let held = post(&world, "/v1/lanes/park", lane("INC-1")).await;
    assert_eq!(
        (held.status, &held.json["contact"], &held.json["parked"]),
        (200, &json!(contact), &json!(true)),
        "{}",
        held.text
    );
    assert_eq!(seqs(&get(&world, "/v1/messages?state=parked").await), [seq]);

    world.kill_bridge().await;
    world.start_bridge().await;
    world.aura.clear_faults();
    // Another conversation goes on meanwhile.
    world.kernel.user_sends("1002", "34600000001", "another").unwrap();
    let activities = world.aura.wait_activities(1, SOON).await.unwrap();
    assert_eq!(activities.len(), 1);
    assert_eq!(seqs(&get(&world, "/v1/messages?state=parked").await), [seq]);

    let flags = [
        "--channel",
        &number.channel_id,
        "--contact",
        &contact,
        "--direction",
        "to_aura",
    ];
    let (code, said, _) = run(
        &world,
        &[&["unpark", "--because", "INC-1", "--dry-run"], &flags[..]].concat(),
    );
    assert_eq!(
        (code, said),
        (0, format!("contact {contact}, to_aura: would be let go on\n"))
    );
    let (code, said, _) = run(&world, &[&["unpark", "--because", "INC-1"], &flags[..]].concat());
    assert_eq!(
        (code, said),
        (0, format!("contact {contact}, to_aura: let go on\n"))
    );
    world.aura.wait_activities(2, SOON).await.unwrap();
    world.wait_settled().await;
    let verbs: Vec<Value> = audited(&world).iter().map(|line| line["verb"].clone()).collect();
    assert_eq!(verbs, ["park", "unpark"]);
    nothing_personal("the log", &world.log("bridge"));
}

#[tokio::test]
async fn a_message_that_waits_is_tried_now_or_given_up_and_a_dead_letter_that_is_dropped_is_gone() {
    let world = World::builder("on-call-drop")
        .config("bridge: {retryFirst: 10m, retryLongest: 10m}")
        .start()
        .await;
    let number = world.ready_number("1002").await;
    world.aura.inject(Fault::status(500).on(Endpoint::Messages));
    let (seq, contact) = waits(&world).await;
    let tried = async |n: u64| {
        world
            .until("it was tried", async || {
                get(&world, &format!("/v1/messages/{seq}")).await.json["attempts"] == n
            })
            .await;
    };
    tried(1).await;
    let lane = json!({
        "channel": number.channel_id, "contact": contact, "direction": "to_aura", "because": "INC-2",
    });
    // The next attempt is minutes away, but a person is not.
    world
        .until("a second attempt is made", async || {
            assert_eq!(post(&world, "/v1/lanes/retry", lane.clone()).await.status, 200);
            let shown = get(&world, &format!("/v1/messages/{seq}")).await;
            shown.json["attempts"].as_u64() >= Some(2)
        })
        .await;
    let path = format!("/v1/messages/{seq}/drop");
    let dropped = post(&world, &path, json!({"because": "INC-2"})).await;
    assert_eq!(dropped.status, 200, "{}", dropped.text);
    // It can still be looked at, and sent again; a dead letter that is dropped is gone.
    world
        .until("it is a dead letter", async || {
            get(&world, &format!("/v1/messages/{seq}")).await.json["reason"] == "Dropped"
        })
        .await;
    let dropped = post(&world, &path, json!({"because": "INC-2"})).await;
    assert_eq!(dropped.json["dropped"], "gone", "{}", dropped.text);
    assert_eq!(get(&world, &format!("/v1/messages/{seq}")).await.status, 404);
    let lines = audited(&world);
    assert!(
        lines.iter().filter(|line| line["verb"] == "drop").count() == 2,
        "{lines:?}"
    );
}

/// The user writes, and the message waits: its number, and its contact's digest.
async fn waits(world: &World) -> (u64, String) {
    world.kernel.user_sends("1002", USER, TEXT).unwrap();
    world
        .until("the message waits", async || {
            seqs(&get(world, "/v1/messages?state=pending").await).len() == 1
        })
        .await;
    let list = get(world, "/v1/messages?state=pending").await;
    let contact = list.json["messages"][0]["contact"].as_str().unwrap();
    (seqs(&list)[0], contact.to_owned())
}

#[tokio::test]
async fn texts_and_numbers_are_shown_only_where_the_configuration_says_so() {
    let (world, _) = refusing("on-call-hidden", "").await;
    let dead = dead_letters(&world, 1).await[0];
    for path in [
        format!("/v1/messages/{dead}?body=true"),
        "/v1/dead-letters/export".to_owned(),
    ] {
        let answer = get(&world, &path).await;
        assert_eq!(answer.status, 403, "{path}");
        assert!(answer.text.contains("bridge.showBodies"), "{}", answer.text);
        nothing_personal(&path, &answer.text);
    }
    world.reconfigure(|text| format!("bridge: {{showBodies: true}}\n{text}"));
    world
        .until("the configuration is in force", async || {
            get(&world, &format!("/v1/messages/{dead}?body=true"))
                .await
                .status
                == 200
        })
        .await;
    let shown = get(&world, &format!("/v1/messages/{dead}?body=true")).await;
    assert_eq!(shown.json["user"], USER);
    assert!(shown.text.contains(TEXT), "{}", shown.text);
    assert!(audited(&world).iter().all(|line| line["verb"] == "showBody"));
    nothing_personal("the log", &world.log("bridge"));
}

#[tokio::test]
async fn dead_letters_leave_to_a_file_and_come_back_once() {
    let (mut world, number) = refusing("on-call-export", "bridge: {showBodies: true}").await;
    let dead = dead_letters(&world, 3).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dead.ndjson");
    let path = file.to_str().unwrap();
    let (code, _, said) = run(
        &world,
        &["export", "--channel", &number.channel_id, "--out", path],
    );
    assert_eq!((code, said.as_str()), (0, "3 dead letters exported\n"));
    let exported = std::fs::read_to_string(&file).unwrap();
    assert_eq!(exported.lines().count(), 3);

    // The journal still has them: nothing is doubled.
    let because = ["--because", "a new volume", "--yes"];
    let (code, said, _) = run(&world, &[&["import", path], &because[..]].concat());
    assert_eq!(
        (code, said.as_str()),
        (0, "0 imported as dead letters, 3 known already\n")
    );
    assert_eq!(dead_letters(&world, 3).await, dead);

    // A journal that is lost: the dead letters come back, once.
    world.kill_bridge().await;
    std::fs::remove_dir_all(world.site.config().with_file_name("data").join("journal")).unwrap();
    world.start_bridge().await;
    assert_eq!(
        seqs(&get(&world, "/v1/messages?state=dead").await),
        Vec::<u64>::new()
    );
    let (_, said, _) = run(&world, &[&["import", path], &because[..]].concat());
    assert_eq!(said, "3 imported as dead letters, 0 known already\n");
    let (_, said, _) = run(&world, &[&["import", path], &because[..]].concat());
    assert_eq!(said, "0 imported as dead letters, 3 known already\n");
    let list = get(&world, "/v1/messages?state=dead").await;
    assert_eq!(seqs(&list).len(), 3);
    assert_eq!(list.json["messages"][0]["reason"], "RefusedByKernel");

    // What was changed on the way is not taken, and neither is anything beside it.
    std::fs::write(&file, exported.replace(USER, "349876543210988")).unwrap();
    let (code, _, said) = run(&world, &[&["import", path], &because[..]].concat());
    assert_eq!(code, 2);
    assert!(
        said.contains("line 1: not as this installation wrote it"),
        "{said}"
    );

    world.kernel.clear_faults();
    let (code, said, _) = run(&world, &["replay", "--because", "INC-77"]);
    assert_eq!(code, 2, "several need a yes: {said}");
    assert!(
        said.contains("3 messages would be sent again") && said.contains("--yes"),
        "{said}"
    );
    assert_eq!(world.kernel.received(USER).len(), 0);
    let (code, said, _) = run(&world, &["replay", "--because", "INC-77", "--yes"]);
    assert_eq!((code, said.as_str()), (0, "3 messages sent again\n"));
    world.wait_received(USER, 3).await;
    world.wait_settled().await;
    assert_eq!(world.kernel.received(USER).len(), 3);
}

/// It delivers what it can for half a minute: so long this test takes.
#[tokio::test]
async fn what_a_deleted_channel_could_not_deliver_is_sent_again_once_the_channel_is_back() {
    const OTHER: &str = "349876543210911";
    let world = World::start("on-call-back").await;
    let number = world.ready_number("1002").await;
    // A reply waits, and another user's message.
    world.kernel.inject(Fault::status(500).on(Endpoint::Send));
    world.kernel.user_sends("1002", USER, TEXT).unwrap();
    world.aura.wait_replies(1, SOON).await.unwrap();
    world.aura.inject(Fault::status(500).on(Endpoint::Messages));
    world.kernel.user_sends("1002", OTHER, TEXT).unwrap();
    world.aura.wait_calls(2, SOON).await.unwrap();
    world
        .until("both wait, and nothing else", async || {
            seqs(&get(&world, "/v1/messages?state=pending").await).len() == 2
        })
        .await;
    let delete = DeleteParams::default();
    world.channels().delete(&number.name, &delete).await.unwrap();
    let given_up = async || seqs(&get(&world, "/v1/messages?state=dead&reason=ChannelDeleted").await);
    let both_are = async {
        while given_up().await.len() < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    let in_time = tokio::time::timeout(DRAIN + SOON, both_are).await;
    assert!(in_time.is_ok(), "{}", world.log("bridge"));

    world.kernel.clear_faults();
    world.aura.clear_faults();
    world.apply(number.channel()).await;
    world.wait_ready(&number).await;
    world.wait_settled().await;
    assert!(world.kernel.all_received().is_empty(), "nobody asked for it");
    let (code, said, error) = run(
        &world,
        &[
            "replay",
            "--channel",
            &number.channel_id,
            "--reason",
            "ChannelDeleted",
            "--because",
            "INC-80: it is back",
            "--yes",
        ],
    );
    assert_eq!((code, said.as_str()), (0, "2 messages sent again\n"), "{error}");
    for user in [USER, OTHER] {
        let received = world.wait_received(user, 1).await;
        assert_eq!(received[0].client_id, number.client_id);
    }
    world.wait_settled().await;
    assert_eq!(world.kernel.all_received().len(), 2);
    assert_eq!(world.aura.activities().len(), 2);
    assert_eq!(given_up().await, Vec::<u64>::new());
}

#[tokio::test]
async fn the_subcommand_shows_tables_and_says_by_its_exit_status_what_it_found() {
    let (world, _) = refusing("on-call-cli", "").await;
    let (code, said, _) = run(&world, &["list"]);
    assert_eq!((code, said.as_str()), (0, "no messages\n"));
    let dead = dead_letters(&world, 3).await;
    let (first, last) = (dead[0].to_string(), dead[2].to_string());

    let (code, table, _) = run(&world, &["list", "--state", "dead"]);
    assert_eq!(code, 1, "there are dead letters");
    assert!(
        table.starts_with("SEQ") && table.contains("RefusedByKernel"),
        "{table}"
    );
    assert!(table.ends_with("3 messages\n"), "{table}");
    nothing_personal("table", &table);
    let (_, part, _) = run(&world, &["list", "--state", "dead", "--limit", "2", "-o", "json"]);
    let part: Value = serde_json::from_str(&part).unwrap();
    assert_eq!(part["next"], dead[1]);
    let next = part["next"].to_string();
    let (_, rest, _) = run(
        &world,
        &["list", "--state", "dead", "--after", &next, "-o", "json"],
    );
    let rest: Value = serde_json::from_str(&rest).unwrap();
    assert_eq!(
        (&rest["messages"][0]["seq"], &rest["next"]),
        (&json!(dead[2]), &Value::Null)
    );

    let (code, said, _) = run(&world, &["show", &first]);
    assert!(code == 0 && said.contains("RefusedByKernel"), "{said}");
    let (code, _, said) = run(&world, &["show", &first, "--body"]);
    assert!(code == 2 && said.contains("bridge.showBodies"), "{said}");
    let (code, said, _) = run(&world, &["trace", &first]);
    assert!(
        code == 0 && said.contains("attempt 1: refused for good"),
        "{said}"
    );
    let (code, _, said) = run(&world, &["trace", "wamid.nobody"]);
    assert!(
        code == 1 && said.contains("nothing that is remembered or kept"),
        "{said}"
    );

    let (code, _, said) = run(&world, &["drop", &first]);
    assert!(code == 2 && said.contains("--because"), "{said}");
    let (code, said, _) = run(&world, &["drop", &first, &last, "--because", "INC-1"]);
    assert!(code == 2 && said.contains("--yes"), "{said}");
    let (code, said, _) = run(&world, &["drop", &first, "--because", "INC-1", "--dry-run"]);
    assert_eq!((code, said), (0, format!("{first}  would be dropped\n")));
    assert_eq!(dead_letters(&world, 3).await, dead);
    let (code, said, _) = run(&world, &["drop", &first, &last, "--because", "INC-1", "--yes"]);
    assert_eq!((code, said), (0, format!("{first}  dropped\n{last}  dropped\n")));
    let (code, said, _) = run(&world, &["drop", &first, "--because", "INC-1"]);
    assert!(code == 1 && said.contains("is not kept"), "{said}");
    assert_eq!(seqs(&get(&world, "/v1/messages?state=dead").await), [dead[1]]);
}

#[tokio::test]
async fn a_web_page_that_somebody_on_call_has_open_reaches_nothing() {
    let (world, _) = refusing("on-call-page", "").await;
    let dead = dead_letters(&world, 1).await[0];
    let client = Client::builder().no_proxy().build().unwrap();
    let url = format!("http://{}", world.site.messages);
    // A name of the page's own that leads to loopback.
    let rebound = client
        .get(format!("{url}/v1/messages"))
        .header("host", "page.example:8084");
    assert_eq!(rebound.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    // What a form can send without asking first.
    for kind in ["text/plain", "application/x-www-form-urlencoded"] {
        let form = client
            .post(format!("{url}/v1/messages/{dead}/drop"))
            .header("content-type", kind)
            .body(json!({"because": "INC-1"}).to_string());
        assert_eq!(
            form.send().await.unwrap().status(),
            StatusCode::UNSUPPORTED_MEDIA_TYPE
        );
    }
    assert_eq!(dead_letters(&world, 1).await, [dead]);
    let large = client
        .post(format!("{url}/v1/messages/{dead}/drop"))
        .json(&json!({"because": "x".repeat(70_000)}));
    assert_eq!(
        large.send().await.unwrap().status(),
        StatusCode::PAYLOAD_TOO_LARGE
    );
    let nowhere = get(&world, "/v2/messages").await;
    assert_eq!(
        (nowhere.status, &nowhere.json["error"]["code"]),
        (404, &json!("NoSuchPath"))
    );
}

#[tokio::test]
async fn a_user_who_wants_to_be_forgotten_is_taken_out_and_a_receipt_says_what_went() {
    const OTHER: &str = "349876543210911";
    let (world, _) = refusing("erase", "").await;
    let dead = dead_letters(&world, 2).await;
    world.kernel.user_sends("1002", OTHER, TEXT).unwrap();
    world
        .until("the other user's reply is given up", async || {
            seqs(&get(&world, "/v1/messages?state=dead").await).len() == 3
        })
        .await;

    // Who is meant must be clear, and a plan changes nothing.
    for wrong in [
        json!({"because": "DSR-1"}),
        json!({"number": USER, "contact": "0a1b2c3d4e5f", "because": "DSR-1"}),
        json!({"number": "nobody", "because": "DSR-1"}),
        json!({"number": USER}),
    ] {
        let answer = post(&world, "/v1/erase", wrong.clone()).await;
        assert_eq!(answer.status, 400, "{wrong}: {}", answer.text);
    }
    let number = format!("+{USER}");
    let erase = ["erase", "--number", &number, "--because", "DSR-1"];
    let (code, would, _) = run(&world, &erase);
    assert!(
        code == 2 && would.contains("2 dead letters would be given up"),
        "{would}"
    );
    assert_eq!(seqs(&get(&world, "/v1/messages?state=dead").await).len(), 3);

    let (code, receipt, error) = run(&world, &[&erase[..], &["--yes", "-o", "json"]].concat());
    assert_eq!(code, 0, "{receipt} {error}");
    let receipt: Value = serde_json::from_str(&receipt).unwrap();
    // Two questions that Aura had, and two replies that Kernel did not take.
    assert_eq!(
        (&receipt["gaveUp"], &receipt["overwritten"], &receipt["complete"]),
        (&json!({"pending": 0, "deadLetters": 2}), &json!(4), &json!(true)),
        "{receipt}"
    );
    nothing_personal("the receipt", &receipt.to_string());
    let line = audited(&world).pop().unwrap();
    assert_eq!((&line["verb"], &line["receipt"]), (&json!("erase"), &receipt));

    let left = seqs(&get(&world, "/v1/messages?state=dead").await);
    assert!(
        left.len() == 1 && !dead.contains(&left[0]),
        "the other user's is there: {left:?}"
    );
    // Nothing is left to go, and he may write again.
    let (code, again, _) = run(&world, &[&erase[..], &["--yes"]].concat());
    assert!(code == 0 && again.contains("0 records in 0 files"), "{again}");
    world.kernel.clear_faults();
    world.kernel.user_sends("1002", USER, "hola de nuevo").unwrap();
    world.kernel.wait_received(USER, 1, SOON).await.unwrap();
}
