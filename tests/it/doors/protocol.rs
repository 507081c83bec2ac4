//! What is odd in a request, and what is asked of the journal by one.

use serde_json::json;

use super::{USER, auth_failures, key, request, target, text, told};
use crate::support::{Raw, SOON, World};

/// A text with each byte in hexadecimal, and this before it.
fn encoded(before: &str, text: &str) -> String {
    text.bytes().fold(String::new(), |so_far, byte| {
        format!("{so_far}{before}{byte:02x}")
    })
}

#[tokio::test]
async fn odd_credentials_are_refused_alike_and_nothing_of_them_is_logged() {
    const TEXT: &str = "sentinel-words-of-the-user-1138";
    const WRONG: &str = "sentinel-wrong-key-2187-2187";
    let world = World::builder("odd-keys").log_filter("trace").start().await;
    let number = world.ready_number("1002").await;
    let (target, key, id) = (target(&world, &number), key(&world, &number), &number.channel_id);
    let (path, _) = target.split_once('?').unwrap();
    let body = text(USER, "wamid.odd", TEXT).to_string();
    let first = encoded("%25", &key);
    let mut answers = Vec::new();
    for (query, headers) in [
        (format!("apikey={WRONG}&channelId={id}"), String::new()),
        (format!("apikey={key}&apikey={key}&channelId={id}"), String::new()),
        (
            format!("apikey={key}&apiKey={WRONG}&channelId={id}"),
            String::new(),
        ),
        (format!("apikey={first}&channelId={id}"), String::new()),
        (format!("APIKEY={key}&channelId={id}"), String::new()),
        (
            format!("apikey={}&channelId={id}", key.to_uppercase()),
            String::new(),
        ),
        (format!("apikey=&channelId={id}"), String::new()),
        (format!("apikey=+{key}&channelId={id}"), String::new()),
        (format!("apikey={key}%00&channelId={id}"), String::new()),
        (format!("apikey={key}"), String::new()),
        (
            format!("apikey={key}&channelId={id}"),
            format!("authorization: APIKEY {key}\r\n"),
        ),
        (
            format!("channelId={id}"),
            format!("authorization: Bearer {key}\r\n"),
        ),
        (
            format!("channelId={id}"),
            format!("authorization: APIKEY {WRONG}\r\n"),
        ),
        (format!("channelId={id}"), format!("x-api-key: {key}\r\n")),
        (format!("channelId={id}"), format!("cookie: apikey={key}\r\n")),
    ] {
        let mut answer = told(&world, &request(&format!("{path}?{query}"), &headers, &body)).await;
        assert_eq!(answer.status, 401, "{query} {headers}");
        answer.headers.retain(|(name, _)| name != "date");
        answers.push(answer);
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "one answer for all: {answers:?}");
    assert_eq!(auth_failures(&world).await, "15");
    // The right one, in either place, and a key that is merely encoded.
    let encoded = encoded("%", &key);
    for (query, headers) in [
        (format!("apikey={key}&channelId={id}"), String::new()),
        (format!("apikey={encoded}&channelId={id}"), String::new()),
        (
            format!("channelId={id}"),
            format!("authorization: APIKEY {key}\r\n"),
        ),
    ] {
        assert_eq!(
            told(&world, &request(&format!("{path}?{query}"), &headers, &body))
                .await
                .status,
            200
        );
    }
    world.wait_received(USER, 1).await;
    let log = world.log("bridge");
    assert!(log.contains("TRACE"));
    for word in [TEXT, WRONG, &key, &key.to_uppercase(), &first, USER] {
        assert!(!log.contains(word), "{word} is in the log");
    }
}

#[tokio::test]
async fn a_body_without_a_declared_length_is_taken_and_one_without_end_takes_no_memory() {
    let world = World::builder("chunks")
        .config("bridge: {maxBodyBytes: 1048576}")
        .start()
        .await;
    let number = world.ready_number("1002").await;
    let target = target(&world, &number);
    let head = format!(
        "POST {target} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    let body = text(USER, "wamid.chunked", "hola").to_string();
    let (one, two) = body.split_at(20);
    let chunks = format!(
        "{:x}\r\n{one}\r\n{:x};x=y\r\n{two}\r\n0\r\nx-trailer: 1\r\n\r\n",
        one.len(),
        two.len()
    );
    assert_eq!(told(&world, &format!("{head}{chunks}")).await.status, 200);
    world.wait_received(USER, 1).await;

    let status = format!("/proc/{}/status", world.bridge.as_ref().unwrap().pid());
    let most = || -> usize {
        let text = std::fs::read_to_string(&status).unwrap();
        let line = text.lines().find(|line| line.starts_with("VmHWM")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let before = most();
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let endless = (0..40).map(async |_| {
        let mut client = Raw::to(world.site.public).await;
        client.send(&head).await;
        // Far more than the limit, were it taken.
        for _ in 0..400 {
            if !client.send(&chunk).await {
                break;
            }
        }
        client
            .answer()
            .await
            .map(|answer| (answer.status, answer.closes()))
    });
    for answer in futures::future::join_all(endless).await {
        // A client that sends on and on may be reset before it sees the answer.
        assert!(matches!(answer, None | Some((413, true))), "{answer:?}");
    }
    let grown = most() - before;
    assert!(grown < 128 * 1024, "{grown} KiB more");
    // A declared length over the limit is refused before any of it has come.
    let declared = format!(
        "POST {target} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1048577\r\n\r\n"
    );
    let answer = told(&world, &declared).await;
    assert_eq!((answer.status, answer.closes()), (413, true));
}

#[tokio::test]
async fn nonsense_in_json_is_refused_or_passed_on_as_it_came() {
    let world = World::start("nonsense").await;
    let number = world.ready_number("1002").await;
    let target = target(&world, &number);
    let with =
        |field: &str| format!(r#"{{"messages":[{{"from":"{USER}","id":"wamid.x","type":"text",{field}}}]}}"#);
    let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
    let refused: Vec<Vec<u8>> = vec![
        deep.clone().into_bytes(),
        with(&format!(r#""new":{deep}"#)).into_bytes(),
        format!("[{}]", "9".repeat(1 << 20)).into_bytes(),
        with(r#""id":"wamid.y""#).into_bytes(),
        with(r#""timestamp":1,"timestamp":2"#).into_bytes(),
        format!(r#"{{"messages":[{{"from":"{USER}","id":"\ud800"}}]}}"#).into_bytes(),
        format!(r#"{{"messages":[{{"from":"{USER}","id":"a\u0000b"}}]}}"#).into_bytes(),
        with("\"new\":\"a\0b\"").into_bytes(),
        [
            b"\xef\xbb\xbf".to_vec(),
            text(USER, "wamid.bom", "x").to_string().into_bytes(),
        ]
        .concat(),
        [b"{\"messages\":[{\"from\":\"1\",\"id\":\"\xff\"}]}".to_vec()].concat(),
        with("\"new\":NaN").into_bytes(),
        with("\"new\":01").into_bytes(),
        b"{\"messages\":{}}".to_vec(),
        b"null".to_vec(),
        b"{}{}".to_vec(),
    ];
    for body in refused {
        let mut client = Raw::to(world.site.public).await;
        client
            .send(request(&target, "", &" ".repeat(body.len())).trim_end())
            .await;
        client.send(b"\r\n\r\n").await;
        client.send(&body).await;
        let answer = client.answer().await.expect("an answer");
        assert_eq!(
            answer.status,
            400,
            "{}",
            String::from_utf8_lossy(&body[..body.len().min(80)])
        );
        assert!(answer.body.len() < 100, "nothing is echoed");
    }
    // What JSON allows in a field that nobody here reads reaches Aura as it came.
    let number = "1".repeat(5000);
    let body = with(&format!(
        r#""new":{{"large":{number},"lone":"\ud800","twice":1,"twice":2}}"#
    ));
    assert_eq!(told(&world, &request(&target, "", &body)).await.status, 200);
    world.aura.wait_calls(1, SOON).await.unwrap();
}

#[tokio::test]
async fn what_holds_no_message_is_taken_and_makes_none() {
    let world = World::start("empty").await;
    let number = world.ready_number("1002").await;
    let target = target(&world, &number);
    for body in [
        json!({}),
        json!({"messages": []}),
        json!({"messages": null, "statuses": null, "contacts": null, "errors": [{"code": 1}]}),
        json!({"contacts": [{"wa_id": USER}]}),
        json!({"statuses": [{"id": "wamid.s", "recipient_id": USER, "status": "read"}]}),
        json!({"statuses": [{}]}),
        json!({"later": {"something": "new"}}),
    ] {
        assert_eq!(
            told(&world, &request(&target, "", &body.to_string()))
                .await
                .status,
            200,
            "{body}"
        );
    }
    let system = json!({"messages": [{"from": USER, "id": "wamid.sys", "type": "system", "system": {"body": "changed"}}]});
    assert_eq!(
        told(&world, &request(&target, "", &system.to_string()))
            .await
            .status,
        200
    );
    let activities = world.aura.wait_activities(1, SOON).await.unwrap();
    world.wait_settled().await;
    assert_eq!((activities.len(), world.aura.activities().len()), (1, 1));
    assert_eq!(
        activities[0].body["channelData"]["payload"]["whatsapp"]["system"]["body"],
        "changed"
    );
}

#[tokio::test]
async fn a_client_that_is_gone_before_its_answer_has_sent_its_message_once() {
    let world = World::start("gone-early").await;
    let number = world.ready_number("1002").await;
    let target = target(&world, &number);
    let mut taken = 0;
    for n in 0..50 {
        let mut client = Raw::to(world.site.public).await;
        let body = text(USER, &format!("wamid.early-{n}"), &n.to_string()).to_string();
        client.send(request(&target, "", &body)).await;
        // In some rounds the bridge has a moment to begin with it.
        for _ in 0..n {
            tokio::task::yield_now().await;
        }
        drop(client);
        // Kernel saw no answer, so it comes again.
        taken += 1;
        assert_eq!(told(&world, &request(&target, "", &body)).await.status, 200);
    }
    world.wait_received(USER, taken).await;
    world.wait_settled().await;
    assert_eq!(
        (world.aura.activities().len(), world.aura.duplicates().len()),
        (taken, 0)
    );
}

#[tokio::test]
async fn a_batch_is_kept_as_a_whole_or_not_at_all_whenever_the_bridge_is_killed() {
    let mut world = World::builder("batch")
        .aura(aura_whatsapp_operator::sim::aura::Behaviour::Silent)
        .start()
        .await;
    let number = world.ready_number("1002").await;
    world.wait_snapshot([&number]).await;
    let target = target(&world, &number);
    let mut outcomes = Vec::new();
    for round in 0..6 {
        let messages: Vec<_> = (0..100)
            .map(|n| {
                json!({"from": format!("3460000{:04}", n % 30), "id": format!("wamid.{round}-{n}"), "type": "text",
                       "text": {"body": format!("round {round}")}})
            })
            .collect();
        let mut client = Raw::to(world.site.public).await;
        client
            .send(request(&target, "", &json!({"messages": messages}).to_string()))
            .await;
        // The last rounds are killed after the answer, the others before or while it is made.
        let answered = if round >= 4 { client.answer().await } else { None };
        for _ in 0..round * 20 {
            tokio::task::yield_now().await;
        }
        world.kill_bridge().await;
        world.start_bridge().await;
        world.wait_settled().await;
        let word = format!("round {round}");
        let there = world
            .aura
            .activities()
            .iter()
            .filter(|one| one.text.as_deref() == Some(&word))
            .count();
        assert!(
            there == 100 || (there == 0 && answered.is_none()),
            "{there} of round {round}"
        );
        outcomes.push(there);
    }
    assert_eq!(outcomes[4..], [100, 100]);
}
