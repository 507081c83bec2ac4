//! Sending: what reaches a user and what does not.

use super::*;

#[tokio::test]
async fn a_sent_message_reaches_its_user_from_the_tokens_number() {
    let world = world(quick()).await;
    let token = world.token("bank", MESSAGING).await;
    let answer = world
        .send(&token, &text("hola"))
        .header("x-correlator", "corr-1")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 201);
    let answer = body(answer).await;
    let received = world.sim.wait_received(USER, 1, SOON).await.unwrap();
    assert_eq!(answer["messages"][0]["id"], received[0].wamid);
    assert!(answer["meta"]["version"].is_string());
    assert_eq!(
        (received[0].from_number.as_str(), received[0].client_id.as_str()),
        ("34600001004", "bank")
    );
    assert_eq!(
        (received[0].kind.as_str(), received[0].text.as_str()),
        ("text", "hola")
    );
    assert_eq!(received[0].correlator.as_deref(), Some("corr-1"));
    let v2 = world
        .http
        .post(world.sim.url() + "/whatsapp/v2/messages")
        .bearer_auth(&token)
        .json(&text("b"));
    assert_eq!(v2.send().await.unwrap().status(), 201);
    let versions: Vec<_> = world
        .sim
        .all_received()
        .iter()
        .map(|message| message.api_version)
        .collect();
    assert_eq!(versions, [ApiVersion::V1, ApiVersion::V2]);
    assert!(world.sim.received("34699999999").is_empty());
}

#[tokio::test]
async fn a_malformed_message_reaches_nobody() {
    let world = world(quick()).await;
    let token = world.token("shop", MESSAGING).await;
    refused(world.send(&token, &text("")), 400, "INVALID_ARGUMENT").await;
    refused(world.send(&token, &json!({})), 400, "INVALID_ARGUMENT").await;
    let request = world.http.post(world.sim.url() + MESSAGES).bearer_auth(&token);
    refused(request.body(text("a").to_string()), 415, "INVALID_ARGUMENT").await;
    refused(world.send("made-up", &text("a")), 401, "UNAUTHENTICATED").await;
    assert!(world.sim.all_received().is_empty());
    let statuses: Vec<_> = world.sim.sends().iter().map(|call| call.status).collect();
    assert_eq!(statuses, [Some(400), Some(400), Some(415), Some(401)]);
    let late = world
        .sim
        .wait_received(USER, 1, Duration::ZERO)
        .await
        .unwrap_err();
    assert_eq!((late.seen, late.wanted), (0, 1));
}

#[tokio::test]
async fn a_removed_client_can_do_nothing_more() {
    let world = world(quick()).await;
    let token = world.token("shop", MESSAGING).await;
    assert!(world.sim.remove_client("shop") && !world.sim.remove_client("shop"));
    refused(world.send(&token, &text("a")), 401, "UNAUTHENTICATED").await;
}
