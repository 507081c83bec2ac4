//! `cargo dev --smoke`: the main job, end to end, step by step with times, and a last line of JSON.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
    runtime::{conditions, wait::await_condition},
};
use serde_json::json;

use super::{
    cli::Request,
    say, site,
    up::{Steps, World},
};
use crate::api::WhatsAppChannel;

const USER: &str = "34600000001";
const NAMESPACE: &str = "aura-es";
const SOON: Duration = Duration::from_secs(10);

/// What the smoke run saw.
#[derive(Default)]
struct Seen {
    rotation: Duration,
    webhooks_registered: usize,
}

/// Runs the smoke run. Exit status 0 only if every step did what it should.
#[allow(
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "what the user sees, to one decimal"
)]
pub(super) async fn run(request: Request) -> anyhow::Result<ExitCode> {
    let mut steps = Steps::new();
    let world = match World::up(&request, &mut steps).await {
        Ok(world) => world,
        Err(error) => {
            say(&format!("  failed: {error:#}"));
            say(&json!({"channels": 0, "messages_in": 0, "replies_out": 0, "webhooks_registered": 0, "passed": false}).to_string());
            return Ok(ExitCode::FAILURE);
        }
    };
    let mut seen = Seen::default();
    let result = drive(&world, &mut steps, &mut seen).await;
    let channels = world.ready_after.len();
    let messages_in = world.aura.activities().len();
    let replies_out = world.kernel.all_received().len();
    let ready: serde_json::Map<_, _> = world
        .ready_after
        .iter()
        .map(|(name, after)| {
            (
                name.clone(),
                json!(u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
            )
        })
        .collect();
    let megabytes = |pid| site::resident_bytes(pid).map(|bytes| (bytes / 100_000) as f64 / 10.0);
    let memory =
        json!({"controller": megabytes(world.controller.pid()), "bridge": megabytes(world.bridge.pid())});
    let stopped = world.down().await;
    steps.done("everything stopped");
    if let Err(error) = result.as_ref().and(stopped.as_ref()) {
        say(&format!("  failed: {error:#}"));
    }
    let passed = result.is_ok() && stopped.is_ok();
    say(&json!({
        "channels": channels,
        "messages_in": messages_in,
        "replies_out": replies_out,
        "webhooks_registered": seen.webhooks_registered,
        "apply_to_ready_ms": ready,
        "secret_to_token_ms": u64::try_from(seen.rotation.as_millis()).unwrap_or(u64::MAX),
        "resident_mb": memory,
        "seconds": (steps.total().as_secs_f64() * 100.0).round() / 100.0,
        "passed": passed,
    })
    .to_string());
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn drive(world: &World, steps: &mut Steps, seen: &mut Seen) -> anyhow::Result<()> {
    seen.webhooks_registered = ["1002", "1004"]
        .iter()
        .filter(|number| world.kernel.webhook_of(&client_of(number)).is_some())
        .count();
    ensure!(
        seen.webhooks_registered == 2,
        "Kernel holds {} webhooks, not 2",
        seen.webhooks_registered
    );
    for number in ["1002", "1004"] {
        let user = user_of(number);
        converse(world, number, &user, "hola", 1).await?;
        steps.done(&format!("{number}: a message to Aura and its reply to the user"));
    }

    let secrets: Api<Secret> = Api::namespaced(world.client.clone(), NAMESPACE);
    let start = Instant::now();
    let patch = json!({"stringData": {"secret": "example-secret-1002-rotated"}});
    // Kernel first: from this moment on the old secret and its tokens are refused.
    world
        .kernel
        .rotate_secret(&client_of("1002"), "example-secret-1002-rotated");
    secrets
        .patch(
            "number-1002-kernel",
            &PatchParams::default(),
            &Patch::Merge(patch),
        )
        .await?;
    converse(world, "1002", &user_of("1002"), "adiós", 2).await?;
    seen.rotation = start.elapsed();
    steps.done("1002: Secret rotated, a reply sent with a new token");

    let channels: Api<WhatsAppChannel> = Api::namespaced(world.client.clone(), NAMESPACE);
    let uid = channels
        .get("number-1004")
        .await?
        .metadata
        .uid
        .unwrap_or_default();
    channels.delete("number-1004", &DeleteParams::default()).await?;
    tokio::time::timeout(
        SOON,
        await_condition(channels.clone(), "number-1004", conditions::is_deleted(&uid)),
    )
    .await
    .context("number-1004 does not go away")??;
    ensure!(
        world
            .kernel
            .webhook_of(&client_of("1004"))
            .is_some_and(|url| !url.is_empty()),
        "onDelete is Keep, but Kernel's webhook is gone"
    );
    converse(world, "1002", &user_of("1002"), "otra vez", 3).await?;
    steps.done("1004 deleted and gone; 1002 still answers");
    Ok(())
}

/// One message of a user to a number; waits for the `n`-th reply and looks whether it is the right one.
async fn converse(world: &World, number: &str, user: &str, text: &str, n: usize) -> anyhow::Result<()> {
    world
        .kernel
        .user_sends(number, user, text)
        .with_context(|| format!("{number} has no webhook"))?;
    let received = world
        .kernel
        .wait_received(user, n, SOON)
        .await
        .with_context(|| format!("{number}: no reply; see {}", world.site.log("bridge").display()))?;
    ensure!(
        received.len() == n,
        "{number}: {} replies, not {n}",
        received.len()
    );
    let last = received.last().context("no reply")?;
    ensure!(
        last.from_number.ends_with(number),
        "the reply came from another number"
    );
    ensure!(
        last.client_id == client_of(number),
        "the reply was sent with another channel's token"
    );
    Ok(())
}

fn client_of(number: &str) -> String {
    format!("example-client-{number}")
}

fn user_of(number: &str) -> String {
    format!("{USER}{}", &number[3..])
}
