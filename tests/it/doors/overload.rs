//! What the bridge says when it can't keep more.

use aura_whatsapp_operator::{
    failpoint::{Place, VARIABLE},
    sim::{aura::Behaviour, dev::site},
};
use serde_json::json;

use super::{USER, request, target, text, told};
use crate::support::World;

/// And when its channels deliver, there is room again: no restart is needed.
#[tokio::test]
async fn a_full_journal_is_answered_503_and_readiness_tells_while_health_does_not() {
    let world = World::builder("overload")
        .aura(Behaviour::Silent)
        .environment("es-other", None)
        .environment("es-third", None)
        // The simulated Aura reads what is large slowly: few at once.
        .config("bridge: {journalMaxBytes: 67108864, deliveryConcurrency: 4}")
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
    // An activity would hold a text twice, and be more than the simulated Aura takes.
    let large = json!({"filename": "x".repeat(3 << 20)});
    let document = |n: usize| {
        let id = format!("wamid.{n}");
        json!({"messages": [{"from": USER, "id": id, "type": "document", "document": large}]}).to_string()
    };
    // A channel's share is a tenth: it stops that channel, and is no reason to send nobody here any more.
    let mut kept: Vec<u32> = Vec::new();
    let mut full = None;
    'all: for number in &numbers {
        let target = target(&world, number);
        kept.push(0);
        for n in 0.. {
            let call = request(&target, "", &document(n));
            let answer = told(&world, &call).await;
            let (status, said) = ready().await;
            if status == 503 {
                full = Some((call, answer, said));
                break 'all;
            }
            if answer.status != 200 {
                assert_eq!(answer.status, 503);
                break;
            }
            *kept.last_mut().unwrap() += 1;
        }
    }
    let (call, answer, said) = full.expect("64 MiB are less than sixteen tenths of them");
    // All but the last one have taken their share.
    let last = kept.len() - 1;
    assert!(last > 5, "{kept:?}");
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

    // Those that came first, and those of the channel whose call found no room.
    let mut delivered = 0;
    for at in [0, 1, 2, last] {
        let deliver = json!({"spec": {"delivery": {"mode": "Deliver"}}});
        world.patch_channel(&numbers[at], deliver).await;
        delivered += kept[at];
    }
    let deliveries = async |count: u32| {
        let name = "aura_whatsapp_deliveries_total";
        let ended = world.metric(world.site.bridge_admin, name).await;
        (ended - f64::from(count)).abs() < 0.1
    };
    world
        .until("they are delivered", async || deliveries(delivered).await)
        .await;
    // By the room alone: no message has been kept since.
    world
        .until("readiness is back", async || ready().await.0 == 200)
        .await;
    assert_eq!(told(&world, &call).await.status, 200);
    world
        .until("so is what was refused", async || deliveries(delivered + 1).await)
        .await;
    let arrived = world.aura.activities().len();
    assert_eq!(arrived, usize::try_from(delivered + 1).unwrap());
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
