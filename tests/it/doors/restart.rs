//! How the bridge stops.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use aura_whatsapp_operator::sim::{aura::Behaviour, dev::site};
use rustix::process::Signal;

use super::{USER, request, target, text};
use crate::support::{Raw, SOON, World};

/// A client as there is one behind a Service: a new connection only to a bridge that is ready, an old one until it is
/// told that it closes. How many of its calls were acknowledged; the first one that was not ends the test.
async fn client(
    world: &World,
    target: &str,
    name: usize,
    acknowledged: &AtomicUsize,
    stop: &AtomicBool,
) -> usize {
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        let ready = site::get(world.site.bridge_admin, "/readyz").await;
        if ready.is_none_or(|(status, _)| status != 200) {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        let mut connection = Raw::to(world.site.public).await;
        loop {
            let body = text(
                &format!("3460000000{name}"),
                &format!("wamid.{name}-{sent}"),
                &sent.to_string(),
            );
            assert!(
                connection.send(request(target, "", &body.to_string())).await,
                "client {name}, call {sent}"
            );
            let answer = connection.answer().await;
            let answer = answer.unwrap_or_else(|| panic!("client {name} has no answer to call {sent}"));
            assert_eq!(answer.status, 200, "client {name}, call {sent}");
            sent += 1;
            acknowledged.fetch_add(1, Ordering::Relaxed);
            if answer.closes() || stop.load(Ordering::Relaxed) {
                break;
            }
        }
    }
    sent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_while_the_bridge_is_restarted_again_and_again() {
    let mut world = World::builder("rolling")
        .aura(Behaviour::Silent)
        .without_bridge()
        .start()
        .await;
    world.site.drain = 1;
    world.start_bridge().await;
    let number = world.ready_number("1002").await;
    let target = target(&world, &number);
    let (acknowledged, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    // The processes change hands while the clients look at the rest of the world.
    let bridge = tokio::sync::Mutex::new(world.bridge.take());
    let restarts = async {
        for _ in 0..3 {
            let so_far = acknowledged.load(Ordering::Relaxed);
            world
                .until("the clients get on", async || {
                    acknowledged.load(Ordering::Relaxed) > so_far + 200
                })
                .await;
            let mut bridge = bridge.lock().await;
            let status = bridge.take().unwrap().stop_within(SOON).await.unwrap();
            assert!(status.success(), "{status}\n{}", world.log("bridge"));
            *bridge = Some(world.site.start_bridge().await.unwrap());
        }
        let so_far = acknowledged.load(Ordering::Relaxed);
        world
            .until("the clients get on", async || {
                acknowledged.load(Ordering::Relaxed) > so_far + 200
            })
            .await;
        stop.store(true, Ordering::Relaxed);
    };
    let clients =
        futures::future::join_all((0..4).map(|name| client(&world, &target, name, &acknowledged, &stop)));
    let (sent, ()) = futures::join!(clients, restarts);
    let all: usize = sent.iter().sum();
    world.aura.wait_activities(all, SOON).await.unwrap();
    world.wait_settled().await;
    assert_eq!(
        (world.aura.activities().len(), world.aura.duplicates().len()),
        (all, 0)
    );
    for (name, sent) in sent.into_iter().enumerate() {
        let user = format!("3460000000{name}");
        let texts: Vec<usize> = world
            .aura
            .activities()
            .iter()
            .filter(|activity| activity.from_id == user)
            .filter_map(|activity| activity.text.as_ref()?.parse().ok())
            .collect();
        assert_eq!(texts, (0..sent).collect::<Vec<_>>(), "{user}");
    }
}

/// A call of which all has come but the end, and the end.
async fn under_way(world: &World, target: &str) -> (Raw, String) {
    let call = request(target, "", &text(USER, "wamid.late", "hola").to_string());
    let (begin, end) = call.split_at(call.len() - 5);
    let mut client = Raw::to(world.site.public).await;
    client.send(begin).await;
    (client, end.to_owned())
}

async fn is_stopping(world: &World) {
    world
        .until("readiness says so", async || {
            let ready = site::get(world.site.bridge_admin, "/readyz").await;
            ready.is_some_and(|(status, text)| status == 503 && text.contains("stopping"))
        })
        .await;
}

#[tokio::test]
async fn a_call_under_way_is_answered_and_nobody_is_let_in_after_it() {
    let world = World::start("stopping").await;
    let number = world.ready_number("1002").await;
    let (mut client, end) = under_way(&world, &target(&world, &number)).await;
    let bridge = world.bridge.as_ref().unwrap();
    bridge.signal(Signal::TERM).unwrap();
    is_stopping(&world).await;
    world
        .until("nobody is let in", async || {
            tokio::net::TcpStream::connect(world.site.public).await.is_err()
        })
        .await;
    client.send(end).await;
    let answer = client.answer().await.expect("an answer");
    assert_eq!((answer.status, answer.closes()), (200, true));
    assert_eq!(client.rest().await, "");
    let status = tokio::time::timeout(SOON, bridge.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn a_second_signal_ends_the_bridge_at_once_and_says_so() {
    for second in [Signal::TERM, Signal::INT] {
        let world = World::start("second-signal").await;
        let number = world.ready_number("1002").await;
        // It would hold up the end for the whole grace.
        let (_client, _) = under_way(&world, &target(&world, &number)).await;
        let bridge = world.bridge.as_ref().unwrap();
        bridge.signal(Signal::TERM).unwrap();
        is_stopping(&world).await;
        assert!(bridge.try_wait().unwrap().is_none());
        let asked = Instant::now();
        bridge.signal(second).unwrap();
        let status = tokio::time::timeout(SOON, bridge.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(1));
        assert!(
            asked.elapsed() < Duration::from_secs(2),
            "the grace is five seconds"
        );
    }
}
