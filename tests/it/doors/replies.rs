//! What a reply or a message can make the bridge do, and what not.

use std::sync::{Arc, Mutex};

use aura_whatsapp_operator::sim::aura::Behaviour;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};

use super::{USER, request, target, told};
use crate::support::{SOON, World};

/// Whoever is called there, and what they were told.
struct Wire {
    address: std::net::SocketAddr,
    calls: Arc<Mutex<Vec<String>>>,
    _accepting: JoinHandle<()>,
}

impl Wire {
    /// Answers each call with this head.
    async fn answering(head: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, calls) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let seen = calls.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (mut text, mut part) = (String::new(), [0; 4096]);
                let length = |text: &str| -> Option<usize> {
                    let (head, _) = text.split_once("\r\n\r\n")?;
                    let line = head
                        .lines()
                        .find_map(|line| line.strip_prefix("content-length: "));
                    Some(head.len() + 4 + line.unwrap_or("0").parse::<usize>().unwrap())
                };
                while length(&text).is_none_or(|length| text.len() < length) {
                    match stream.read(&mut part).await {
                        Ok(read) if read > 0 => text.push_str(&String::from_utf8_lossy(&part[..read])),
                        _ => break,
                    }
                }
                seen.lock().unwrap().push(text);
                let _ = stream
                    .write_all(format!("{head}content-length: 0\r\nconnection: close\r\n\r\n").as_bytes())
                    .await;
            }
        });
        Self {
            address,
            calls,
            _accepting: accepting,
        }
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn a_credential_of_another_environment_does_not_reach_a_users_conversation() {
    let world = World::builder("tenants")
        .environment("es-other", None)
        .aura(Behaviour::Silent)
        .start()
        .await;
    let own = world.site.dir().join("credentials").join("other-in");
    std::fs::write(&own, "fake-key-of-the-other-aura").unwrap();
    let usual = world.site.dir().join("credentials").join("aura-in");
    world.reconfigure(|text| {
        let (first, second) = text.split_at(text.find("  es-other:").unwrap());
        format!(
            "{first}{}",
            second.replace(usual.to_str().unwrap(), own.to_str().unwrap())
        )
    });
    let number = world.ready_number("1002").await;
    world.kernel.user_sends(&number.digits, USER, "hola").unwrap();
    let activity = world.aura.wait_activities(1, SOON).await.unwrap().remove(0);
    let url = format!(
        "http://{}/v3/conversations/{}/activities",
        world.site.internal, activity.conversation_id
    );
    let reply = json!({"type": "message", "text": "robado", "channelData": {"channelId": number.channel_id}});
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let answered = async |key: &str| {
        let call = http
            .post(&url)
            .header("authorization", format!("APIKEY {key}"))
            .json(&reply);
        call.send().await.unwrap().status().as_u16()
    };
    world
        .until("the other environment's key is known", async || {
            answered("fake-key-of-the-other-aura").await != 401
        })
        .await;
    assert_eq!(answered("fake-key-of-the-other-aura").await, 403);
    assert!(world.kernel.received(USER).is_empty());
}

/// Every URL that the bridge calls stands in the installation's file.
#[tokio::test]
async fn no_url_of_a_message_or_a_reply_is_called_and_no_redirect_followed() {
    let canary = Wire::answering("HTTP/1.1 200 OK\r\n".to_owned()).await;
    let link = format!("http://{}/secret", canary.address);
    let world = {
        let link = link.clone();
        World::builder("ssrf")
            .aura(Behaviour::script(move |_| {
                vec![json!({"text": format!("mira {link}"), "serviceUrl": link, "replyToUrl": link, "attachments": [
                    {"contentType": "image/png", "contentUrl": link, "thumbnailUrl": link},
                    {"contentType": "application/vnd.microsoft.card.hero", "content": {"text": "una carta",
                        "images": [{"url": link}], "buttons": [{"type": "openUrl", "title": "ver", "value": link}]}}]})]
            }))
            .start()
            .await
    };
    let number = world.ready_number("1002").await;
    let target = target(&world, &number);
    let body = json!({"contacts": [{"wa_id": USER, "profile": {"name": link}}], "messages": [
        {"from": USER, "id": "wamid.link", "type": "image", "image": {"link": link, "url": link, "id": "1", "caption": link}},
        {"from": USER, "id": "wamid.text", "type": "text", "text": {"body": link}}]});
    let headers = format!("x-forwarded-host: {0}\r\nreferer: {link}\r\n", canary.address);
    assert_eq!(
        told(&world, &request(&target, &headers, &body.to_string()))
            .await
            .status,
        200
    );
    let received = world.wait_received(USER, 1).await;
    assert!(!received.is_empty());
    world.wait_settled().await;

    let aura = Wire::answering(format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: {link}\r\n")).await;
    world.reconfigure(|text| {
        let url = world.aura.messages_url();
        text.replace(&url, &format!("http://{}/messages", aura.address))
    });
    world
        .until("the other Aura is called", async || {
            let body = super::text(USER, &uuid::Uuid::new_v4().to_string(), "hola").to_string();
            told(&world, &request(&target, "", &body)).await;
            aura.calls().len() > 2
        })
        .await;
    assert_eq!(canary.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn line_breaks_in_names_and_ids_make_neither_a_header_nor_a_line_of_log() {
    let world = World::builder("injection").log_filter("debug").start().await;
    let number = world.ready_number("1002").await;
    let target = target(&world, &number);
    let aura = Wire::answering("HTTP/1.1 200 OK\r\n".to_owned()).await;
    world.reconfigure(|text| {
        let url = world.aura.messages_url();
        text.replace(&url, &format!("http://{}/messages", aura.address))
    });
    let evil = "x\r\nx-injected: yes\r\n\r\n";
    for message in [
        json!({"from": evil, "id": "wamid.1", "type": "text", "text": {"body": "hola"}}),
        json!({"from": USER, "id": evil, "type": "text", "text": {"body": "hola"}}),
    ] {
        let body = json!({"messages": [message]}).to_string();
        assert_eq!(told(&world, &request(&target, "", &body)).await.status, 400);
    }
    let call = |id: String| {
        json!({"contacts": [{"wa_id": USER, "profile": {"name": evil}}],
            "messages": [{"from": USER, "id": id, "type": evil, "text": {"body": evil}, evil: evil}]})
        .to_string()
    };
    world
        .until("the message reaches Aura", async || {
            let call = call(uuid::Uuid::new_v4().to_string());
            assert_eq!(told(&world, &request(&target, "", &call)).await.status, 200);
            !aura.calls().is_empty()
        })
        .await;
    for call in aura.calls() {
        let (head, body) = call.split_once("\r\n\r\n").unwrap();
        assert!(!head.to_ascii_lowercase().contains("injected"), "{head}");
        assert!(
            body.starts_with('{') && body.contains(r"x\r\nx-injected"),
            "{body}"
        );
    }
    // In a reply's own id, too.
    let url = format!(
        "/v3/conversations/{}/activities",
        "v1.AAAA%0d%0ax-injected:%20yes"
    );
    let mut client = crate::support::Raw::to(world.site.internal).await;
    client
        .send(request(
            &url,
            "authorization: APIKEY fake-key-from-aura-000002\r\n",
            "{}",
        ))
        .await;
    let answer = client.answer().await.unwrap();
    assert_eq!(answer.status, 404);
    assert!(answer.header("x-injected").is_none());
    let log = world.log("bridge");
    assert!(
        !log.lines()
            .any(|line| line.to_ascii_lowercase().starts_with("x-injected")),
        "{log}"
    );
}
