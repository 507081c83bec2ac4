//! What the bridge says when it can't keep more.

use aura_whatsapp_operator::sim::dev::site;
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
