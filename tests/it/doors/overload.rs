//! What the bridge says when it can't keep more.

use aura_whatsapp_operator::{
    failpoint::{Place, VARIABLE},
    sim::{aura::Behaviour, dev::site},
};
use serde_json::json;

use super::{USER, request, target, text, told};
use crate::support::World;

#[tokio::test]
async fn a_full_journal_is_answered_503_and_readiness_tells_while_health_does_not() {
    let world = World::builder("overload")
        .environment("es-other", None)
        .environment("es-third", None)
        .config("bridge: {journalMaxBytes: 67108864}")
        .start()
        .await;
    let mut numbers = Vec::new();
    for n in 0..16 {
        let change = |channel: &mut serde_json::Value| {
            channel["spec"]["delivery"] = json!({"mode": "Hold"});
            // Two environments' shares are all of it, and would stop their channels first.
            if let Some(other) = [None, Some("es-other"), Some("es-third")][n % 3] {
                channel["spec"]["environment"] = other.into();
            }
        };
        numbers.push(world.add(&format!("{}", 1002 + n), change).await);
    }
    for number in &numbers {
        world.wait_ready(number).await;
    }
    let ready = async || site::get(world.site.bridge_admin, "/readyz").await.unwrap();
    let large = "x".repeat(3 << 20);
    // A channel's share is a tenth: it stops that channel, and is no reason to send nobody here any more.
    let mut shares = 0;
    let mut full = None;
    'all: for number in &numbers {
        let target = target(&world, number);
        for n in 0.. {
            let body = text(USER, &format!("wamid.{n}"), &large).to_string();
            let answer = told(&world, &request(&target, "", &body)).await;
            let (status, said) = ready().await;
            if status == 503 {
                full = Some((answer, said));
                break 'all;
            }
            if answer.status != 200 {
                assert_eq!(answer.status, 503);
                shares += 1;
                break;
            }
        }
    }
    let (answer, said) = full.expect("64 MiB are less than sixteen tenths of them");
    assert!(shares > 5, "{shares}");
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")));
    assert!(said.contains("the journal is full"), "{said}");
    assert_eq!(
        site::get(world.site.bridge_admin, "/healthz").await.unwrap().0,
        200
    );
    let (_, page) = site::get(world.site.bridge_admin, "/metrics").await.unwrap();
    assert!(
        page.contains("aura_whatsapp_journal_refusals_total{reason=\"full\"} 1\n"),
        "{page}"
    );
}

/// The disk has what it was given, and does not say so for as long as a file is there.
#[tokio::test]
async fn what_does_not_become_durable_in_time_is_answered_503_and_is_known_when_it_comes_again() {
    let mut world = World::builder("slow-disk")
        .aura(Behaviour::Silent)
        .config("bridge: {commitTimeout: 1s}")
        .start()
        .await;
    let number = world.ready_number("1002").await;
    let target = target(&world, &number);
    let dir = tempfile::tempdir().unwrap();
    let stuck = dir.path().join("stuck");
    world.wait_snapshot([&number]).await;
    world.kill_bridge().await;
    world.site.bridge_variable = Some((VARIABLE.to_owned(), Place::JournalWritten.held_by(&stuck)));
    world.start_bridge().await;
    let call = |n: usize| {
        let body = text(USER, &format!("wamid.{n}"), &n.to_string()).to_string();
        request(&target, "", &body)
    };
    assert_eq!(told(&world, &call(1)).await.status, 200);
    world.wait_settled().await;

    std::fs::write(&stuck, "").unwrap();
    let answer = told(&world, &call(2)).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")));
    let again = told(&world, &call(2)).await;
    assert_eq!(again.status, 503, "it is not known to be durable");
    let arrived = |world: &World| world.aura.activities().len();
    assert_eq!(arrived(&world), 1, "what is not durable goes nowhere");
    let (_, page) = site::get(world.site.bridge_admin, "/metrics").await.unwrap();
    assert!(
        page.contains("aura_whatsapp_journal_refusals_total{reason=\"slow\"} 2\n"),
        "{page}"
    );

    std::fs::remove_file(&stuck).unwrap();
    assert_eq!(told(&world, &call(2)).await.status, 200);
    assert_eq!(told(&world, &call(3)).await.status, 200);
    world.wait_settled().await;
    assert_eq!((arrived(&world), world.aura.duplicates().len()), (3, 0));
}
