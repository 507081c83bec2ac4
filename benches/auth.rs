//! Whether the time that a refusal takes tells why it was refused, in the manner of dudect: calls of each kind by turns,
//! many rounds, and the medians side by side. What each figure means: docs/performance.md.
//!
//! ```console
//! cargo bench --bench auth
//! ```
//!
//! Ends with an error where a median is off that of the first kind by more than the bound: coarse, because the machine's
//! own noise is measured as well. What holds at any speed is in the code: fixed-length digests, compared in full.

#![allow(clippy::print_stdout, reason = "a report for a person at a terminal")]
#![allow(clippy::cast_precision_loss, reason = "nanoseconds, for a person")]

use std::{hint::black_box, process::ExitCode, sync::Arc, time::Instant};

use anyhow::Context as _;
use aura_whatsapp_operator::{
    api::ChannelId,
    bridge::{ChannelView, Commons, Issued, RouteTable, Verdict, judge},
    config::Installation,
    keys::{KeyMaterial, Keys, Tag},
};
use jiff::Timestamp;
use serde_json::json;

/// How far a median may be off, as a part of the first kind's.
const BOUND: f64 = 0.05;
/// Rounds, and calls of each kind in one. A call alone is too short for the clock.
const ROUNDS: usize = 4000;
const CALLS: usize = 64;
/// Channels that are routed.
const CHANNELS: u16 = 1000;

const CONFIG: &str = "
environments:
  es-dev:
    namespaces: [aura-es]
    publicUrl: http://127.0.0.1:8080
    insecure: true
    kernel: {apiUrl: http://127.0.0.1:1, authUrl: http://127.0.0.1:1}
    aura: {messagesUrl: http://127.0.0.1:2, replyUrl: http://127.0.0.1:8081, outboundAuth: {none: true}, inboundAuth: {none: true}}
";

fn channel(number: u16) -> ChannelId {
    let mut bytes = [7; 16];
    bytes[..2].copy_from_slice(&number.to_be_bytes());
    ChannelId::from_bytes(bytes)
}

fn view(commons: &mut Commons, number: u16) -> anyhow::Result<Arc<ChannelView>> {
    let resource = serde_json::from_value(json!({
        "apiVersion": "channels.auracognitive.com/v1alpha1",
        "kind": "WhatsAppChannel",
        "metadata": {
            "namespace": "aura-es",
            "name": format!("number-{number}"),
            "creationTimestamp": "2026-11-22T10:00:00Z",
        },
        "spec": {
            "channelId": channel(number).to_string(),
            "environment": "es-dev",
            "kernel": {"credentialsSecretRef": {"name": "x"}},
        },
    }))?;
    let view = commons.view(&resource).context("a channel that was stored")?;
    Ok(Arc::new(view))
}

/// A key with one character of its MAC changed.
fn off_at(key: &str, place: usize) -> String {
    let mut bytes = key.as_bytes().to_vec();
    if let Some(byte) = bytes.get_mut(place) {
        *byte = if *byte == b'A' { b'B' } else { b'A' };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn median(mut times: Vec<u128>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default() as f64 / CALLS as f64
}

fn main() -> anyhow::Result<ExitCode> {
    let installation = Installation::parse(CONFIG, "the measurement's")?;
    let material = KeyMaterial::new(|name| (name != "previous").then(|| vec![3; 32]))?;
    let keys = Keys::derive(&material);
    let mut commons = Commons::default();
    let views: Vec<_> = (0..CHANNELS)
        .map(|number| view(&mut commons, number))
        .collect::<anyhow::Result<_>>()?;
    let routes = RouteTable::build(&views, &installation, &Issued::default(), &RouteTable::default());
    let known = channel(CHANNELS / 2);
    let right = keys.api_key(Tag::new("es-dev", "aura-es"), 1, known);
    let right = right.expose();
    let mac = right.rfind('.').context("a key has dots")? + 1;
    let call = |key: &str, channel: ChannelId| format!("apikey={key}&channelId={channel}");
    let kinds = [
        (
            "unknown channel, a key of another",
            call(right, channel(CHANNELS + 1)),
        ),
        (
            "unknown channel, its last byte off",
            call(&off_at(right, right.len() - 2), channel(CHANNELS + 1)),
        ),
        (
            "known channel, first byte of the MAC off",
            call(&off_at(right, mac), known),
        ),
        (
            "known channel, last byte of the MAC off",
            call(&off_at(right, right.len() - 2), known),
        ),
        (
            "known channel, another generation's MAC",
            call(&right.replacen(".1.", ".2.", 1), known),
        ),
        ("known channel, the key of another", {
            let other = keys.api_key(Tag::new("es-dev", "aura-es"), 1, channel(3));
            call(other.expose(), known)
        }),
    ];
    let now = Timestamp::now();
    for (name, query) in &kinds {
        let verdict = judge(Some(query), None, &keys, &routes, true, now);
        anyhow::ensure!(matches!(verdict, Verdict::Refused), "{name} is not refused");
    }
    let mut times = vec![Vec::with_capacity(ROUNDS); kinds.len()];
    for _ in 0..ROUNDS {
        // Another order in each round: what comes after what must not decide.
        let mut order: Vec<usize> = (0..kinds.len()).collect();
        fastrand::shuffle(&mut order);
        for kind in order {
            let (query, begun) = (kinds[kind].1.as_str(), Instant::now());
            for _ in 0..CALLS {
                black_box(judge(black_box(Some(query)), None, &keys, &routes, true, now));
            }
            times[kind].push(begun.elapsed().as_nanos());
        }
    }
    let medians: Vec<f64> = times.into_iter().map(median).collect();
    let mut fine = true;
    for ((name, _), median) in kinds.iter().zip(&medians) {
        let ratio = median / medians[0];
        let is_fine = (ratio - 1.0).abs() <= BOUND;
        fine &= is_fine;
        println!(
            "{name:42} {median:8.0} ns  x{ratio:.3}{}",
            if is_fine { "" } else { "  OFF" }
        );
    }
    Ok(if fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
