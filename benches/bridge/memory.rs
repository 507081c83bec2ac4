//! What the bridge takes without channels, and what each channel adds: its route and its credentials. No message is sent,
//! so no token is held.

use std::time::Duration;

use aura_whatsapp_operator::{
    api::WhatsAppChannel,
    kernel::{TOKENS_KEPT, bytes_of_token},
    sim::dev::bulk::create_all,
};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;

use super::{
    Arguments,
    figures::{Table, number},
    load,
    world::{NAMESPACE, World, resident},
};

/// Creations at once.
const AT_ONCE: usize = 32;
/// What is read ahead has come to rest when memory did not grow for so long.
const AT_REST: Duration = Duration::from_secs(5);

/// How long an access token is taken to be.
const TOKEN_BYTES: usize = 1024;

const MIB: f64 = 1024.0 * 1024.0;

pub async fn measure(world: &mut World, arguments: &Arguments, table: &mut Table) -> anyhow::Result<()> {
    // The installation key is the controller's to make.
    let controller = world.site.start_controller().await?;
    let bridge = world.site.start_bridge().await?;
    drop(controller);
    tokio::time::sleep(AT_REST).await;
    let before = world.metric("aura_whatsapp_routes").await;
    let idle = resident(&bridge)?;
    table.figure(
        format!("resident memory with {before} channels"),
        format!("{:.1} MiB", number(idle) / MIB),
        "<= 15 MB",
        idle <= 15_000_000,
    );
    let of_tokens = TOKENS_KEPT * bytes_of_token(TOKEN_BYTES);
    table.note(
        format!("tokens held at most, of {TOKEN_BYTES} bytes each"),
        format!("{TOKENS_KEPT}: {:.1} MiB", number(of_tokens as u64) / MIB),
    );
    let channels = arguments.channels;
    let first = 1_000;
    println!("creating {channels} channels");
    let secrets: Api<Secret> = Api::namespaced(world.client.clone(), NAMESPACE);
    let all = (first..first + channels)
        .map(|n| load::secret(NAMESPACE, n))
        .collect::<Result<Vec<_>, _>>()?;
    create_all(&secrets, all, AT_ONCE, |_| {}).await?;
    let all = (first..first + channels)
        .map(|n| load::channel(NAMESPACE, n))
        .collect::<Result<Vec<_>, _>>()?;
    let api: Api<WhatsAppChannel> = Api::namespaced(world.client.clone(), NAMESPACE);
    create_all(&api, all, AT_ONCE, |_| {}).await?;
    let wanted = before + number(channels as u64);
    world
        .until("all routes are known", async || {
            world.metric("aura_whatsapp_routes").await >= wanted
        })
        .await?;
    let grown = resident(&bridge)?;
    let mut last = grown;
    loop {
        tokio::time::sleep(AT_REST).await;
        let now = resident(&bridge)?;
        if now <= last {
            break;
        }
        last = now;
    }
    let told = |bytes: u64| number(bytes.saturating_sub(idle)) / number(channels as u64) / 1024.0;
    table.note(
        format!("memory per channel that came while it ran, {channels} channels"),
        format!("{:.2} KiB", told(last)),
    );
    drop(bridge);
    let bridge = world.site.start_bridge().await?;
    world
        .until("all routes are known again", async || {
            world.metric("aura_whatsapp_routes").await >= wanted
        })
        .await?;
    let mut last = 0;
    loop {
        tokio::time::sleep(AT_REST).await;
        let now = resident(&bridge)?;
        if now <= last {
            break;
        }
        last = now;
    }
    let each = told(last);
    table.figure(
        format!("memory per channel after a start, {channels} channels"),
        format!("{each:.2} KiB"),
        "<= 1.5 KiB",
        each <= 1.5,
    );
    Ok(())
}
