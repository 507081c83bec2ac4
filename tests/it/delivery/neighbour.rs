//! No neighbour (Law 4): one channel's trouble is its own, and what has piled up goes out within bounds.

use std::time::{Duration, Instant};

use aura_whatsapp_operator::sim::{
    aura::{AuraCall, Behaviour, ReceivedActivity},
    fault::Fault,
};
use jiff::Timestamp;
use serde_json::Value;

use super::{PROMPT, call, http, post, text};
use crate::support::{SOON, World};

/// Deliveries under way at once for one channel.
const AT_ONCE: usize = 4;

/// The most calls that were under way at once.
fn most_at_once(calls: &[AuraCall]) -> usize {
    let begins = calls.iter().map(|call| (call.at, 1));
    let ends = calls
        .iter()
        .map(|call| (call.answered_at.unwrap_or(Timestamp::MAX), -1));
    let mut moments: Vec<(Timestamp, i64)> = begins.chain(ends).collect();
    moments.sort_unstable();
    let under_way = moments.iter().scan(0, |under_way, (_, change)| {
        *under_way += change;
        Some(*under_way)
    });
    usize::try_from(under_way.max().unwrap_or_default()).unwrap()
}

#[tokio::test]
async fn a_channel_whose_aura_hangs_has_so_many_calls_under_way_and_its_neighbour_is_as_prompt_as_before() {
    const TIMES: usize = 20;
    let world = World::builder("capped")
        .config(&format!("bridge: {{channelConcurrency: {AT_ONCE}}}"))
        .start()
        .await;
    let (stuck, fine) = (world.ready_number("1002").await, world.ready_number("1004").await);
    let user = "34600000002";
    let converse = async |from: usize| {
        let mut times = Vec::new();
        for n in from..from + TIMES {
            let start = Instant::now();
            world.converse(&fine, user, "hola", n + 1).await;
            times.push(start.elapsed());
        }
        times.sort_unstable();
        (times[TIMES / 2], times[TIMES - 1])
    };
    let (alone, _) = converse(0).await;
    world
        .aura
        .inject(Fault::hang().only_for(stuck.channel_id.clone()));
    let url = world.kernel.webhook_of(&stuck.client_id).unwrap();
    let many: Vec<Value> = (0..60)
        .map(|n| text(&format!("346100000{n:02}"), &format!("wamid.{n}"), "hola"))
        .collect();
    assert_eq!(post(&http(), &url, &call(&many)).await, 200);
    let (beside, slowest) = converse(TIMES).await;
    println!(
        "a conversation takes {alone:.1?} alone, {beside:.1?} beside a channel that hangs, {slowest:.1?} at most"
    );
    assert!(slowest < PROMPT, "one conversation took {slowest:?}");
    let calls = world.aura.calls();
    let stuck: Vec<AuraCall> = calls
        .into_iter()
        .filter(|call| call.channel_id.as_deref() == Some(&stuck.channel_id))
        .collect();
    assert!(stuck.len() >= AT_ONCE);
    // The timeout of 5 s may have passed once: the calls that it ended are over, though nothing answered them.
    let now = Timestamp::now();
    let last = stuck
        .iter()
        .filter(|call| now.duration_since(call.at).as_secs() < 4);
    assert!(last.count() <= AT_ONCE, "{} calls", stuck.len());
}

#[tokio::test]
async fn what_piled_up_while_aura_was_down_goes_out_within_bounds_in_order_and_callers_do_not_notice() {
    const CONVERSATIONS: usize = 30;
    const MESSAGES: usize = 900;
    let world = World::builder("piled-up")
        .aura(Behaviour::Silent)
        .log_filter("warn")
        .config(&format!("bridge: {{channelConcurrency: {AT_ONCE}}}"))
        .start()
        .await;
    let number = world.ready_number("1002").await;
    let url = world.kernel.webhook_of(&number.client_id).unwrap();
    let http = http();
    let message = |n: usize| {
        let user = format!("346100000{:02}", n % CONVERSATIONS);
        call(&[text(&user, &format!("wamid.{n}"), &n.to_string())])
    };
    let mut slowest = Duration::ZERO;
    world.aura.stop().await;
    for n in 0..MESSAGES - 100 {
        let start = Instant::now();
        assert_eq!(post(&http, &url, &message(n)).await, 200);
        slowest = slowest.max(start.elapsed());
    }
    world.aura.set_latency(Duration::from_millis(5));
    world.aura.restart().await.unwrap();
    // Some while it drains.
    world.aura.wait_activities(20, SOON).await.unwrap();
    for n in MESSAGES - 100..MESSAGES {
        let start = Instant::now();
        assert_eq!(post(&http, &url, &message(n)).await, 200);
        slowest = slowest.max(start.elapsed());
    }
    let activities = world.aura.wait_activities(MESSAGES, SOON).await.unwrap();
    let most = most_at_once(&world.aura.calls());
    println!("{most} calls at once; the slowest 200 took {slowest:.1?}");
    assert!(most <= AT_ONCE, "{most} calls were under way at once");
    assert!(slowest < PROMPT, "a caller waited for {slowest:?}");
    let number = |activity: &ReceivedActivity| activity.text.as_ref()?.parse().ok();
    assert_eq!(world.aura.disorders(number), []);
    assert_eq!((activities.len(), world.aura.duplicates().len()), (MESSAGES, 0));
}
