//! Many connections that ask for nothing, or slowly.

use std::time::{Duration, Instant};

use aura_whatsapp_operator::sim::{aura::Behaviour, dev::site};
use rustix::process::{Resource, getrlimit};

use super::{USER, request, target, text, told};
use crate::support::{Raw, SOON, World};

/// As many slow clients as the cases name, or as this process may have open files.
fn slow_clients() -> usize {
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(allowed.saturating_sub(1000)).unwrap().min(5000)
}

/// How long each of some calls took, each on a connection of its own; the slowest but one in a hundred.
async fn healthy(world: &World, target: &str, word: &str) -> Duration {
    let mut took = Vec::new();
    for n in 0..200 {
        let begun = Instant::now();
        let body = text(USER, &format!("wamid.{word}-{n}"), word).to_string();
        let answer = told(world, &request(target, "connection: close\r\n", &body)).await;
        assert_eq!(answer.status, 200);
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    took[took.len() - 3]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_slow_clients_do_not_stop_a_healthy_one_and_are_shut_out() {
    let world = World::builder("slowloris")
        .aura(Behaviour::Silent)
        .config("bridge: {headerTimeout: 5s}")
        .start()
        .await;
    let number = world.ready_number("1002").await;
    let target = target(&world, &number);
    let alone = healthy(&world, &target, "alone").await;
    let clients = slow_clients();
    let mut slow = Vec::with_capacity(clients);
    for _ in 0..clients {
        let mut client = Raw::to(world.site.public).await;
        client
            .send("POST /aura-services/v1/whatsapp/messages HTTP/1.1\r\nhost: x\r\nx-slow: ")
            .await;
        slow.push(client);
    }
    // Each sends a byte every second until it is shut out.
    let drip = tokio::spawn(async move {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        let deadline = Instant::now() + 2 * SOON;
        while !slow.is_empty() {
            second.tick().await;
            assert!(Instant::now() < deadline, "{} are still there", slow.len());
            slow.retain(|client| client.0.try_write(b"x").is_ok());
        }
    });
    let beside = healthy(&world, &target, "beside").await;
    println!("p99 of a healthy client: {alone:?} alone, {beside:?} beside {clients} slow ones");
    assert!(
        beside < alone + Duration::from_secs(1),
        "{beside:?}, and {alone:?} alone"
    );
    drip.await.unwrap();
    let closed = world
        .metric(world.site.bridge_admin, "aura_whatsapp_connections_closed_total")
        .await;
    assert!(closed >= f64::from(u32::try_from(clients).unwrap()), "{closed}");
}

#[tokio::test]
async fn health_and_metrics_are_there_while_the_public_listener_is_full() {
    let world = World::builder("full")
        .config("bridge: {maxConnections: 8, bodyTimeout: 60s}")
        .start()
        .await;
    let number = world.ready_number("1002").await;
    let target = target(&world, &number);
    let body = text(USER, "wamid.full", "hola").to_string();
    let half = request(&target, "", &body);
    let (begin, rest) = half.split_at(half.len() - 10);
    let mut busy = Vec::new();
    for _ in 0..8 {
        let mut client = Raw::to(world.site.public).await;
        client.send(begin).await;
        busy.push(client);
    }
    let full = async || {
        let (_, page) = site::get(world.site.bridge_admin, "/metrics").await.unwrap();
        page.contains("aura_whatsapp_connections{listener=\"public\"} 8\n")
    };
    world.until("the public listener is full", full).await;
    let mut waiting = Raw::to(world.site.public).await;
    waiting.send(request(&target, "", &body)).await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(
            site::get(world.site.bridge_admin, path).await.unwrap().0,
            200,
            "{path}"
        );
    }
    assert!(full().await, "who waits is not let in");
    for mut client in busy {
        client.send(rest).await;
        assert_eq!(client.answer().await.unwrap().status, 200);
    }
    assert_eq!(waiting.answer().await.unwrap().status, 200);
}
