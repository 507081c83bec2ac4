//! Wrong credentials, by the address that they come from.

use super::{USER, auth_failures, key, request, target, text, told};
use crate::support::{Answer, Number, World};

async fn calls(world: &World, number: &Number, query: &str, forwarded_for: &str) -> Answer {
    let target = target(world, number);
    let (path, _) = target.split_once('?').unwrap();
    let body = text(USER, "wamid.proxied", "hola").to_string();
    let headers = format!("x-forwarded-for: {forwarded_for}\r\n");
    told(world, &request(&format!("{path}?{query}"), &headers, &body)).await
}

#[tokio::test]
async fn an_address_that_fails_too_often_is_held_back_and_a_right_key_never() {
    let world = World::builder("proxied")
        .config("bridge: {trustedProxies: [127.0.0.0/8, 10.0.0.0/8], authFailuresPerMinute: 3}")
        .start()
        .await;
    let number = world.ready_number("1002").await;
    let (key, id) = (key(&world, &number), &number.channel_id);
    let (wrong, right) = (
        format!("apikey=fake-wrong&channelId={id}"),
        format!("apikey={key}&channelId={id}"),
    );
    for _ in 0..3 {
        assert_eq!(calls(&world, &number, &wrong, "192.0.2.1").await.status, 401);
    }
    // Behind another proxy, with an address that it invented before it: the same client.
    let held = calls(&world, &number, &wrong, "198.51.100.9, 192.0.2.1, 10.1.2.3").await;
    let wait: u64 = held.header("retry-after").unwrap().parse().unwrap();
    assert_eq!((held.status, (1..=21).contains(&wait)), (429, true), "{held:?}");
    let unknown = format!("apikey={key}&channelId={}", uuid::Uuid::new_v4());
    let also = calls(&world, &number, &unknown, "192.0.2.1").await;
    assert_eq!(
        (also.status, also.body),
        (429, held.body),
        "an unknown channel is held back alike"
    );
    assert_eq!(calls(&world, &number, &right, "192.0.2.1").await.status, 200);
    assert_eq!(
        calls(&world, &number, &wrong, "192.0.2.2").await.status,
        401,
        "another client"
    );
    assert_eq!(auth_failures(&world).await, "6");
}

#[tokio::test]
async fn where_no_proxy_is_known_failures_are_counted_and_nobody_is_held_back() {
    let world = World::builder("unknown-proxy")
        .config("bridge: {authFailuresPerMinute: 3}")
        .start()
        .await;
    let number = world.ready_number("1002").await;
    let wrong = format!("apikey=fake-wrong&channelId={}", number.channel_id);
    for _ in 0..10 {
        assert_eq!(calls(&world, &number, &wrong, "192.0.2.1").await.status, 401);
    }
    assert_eq!(auth_failures(&world).await, "10");
}
