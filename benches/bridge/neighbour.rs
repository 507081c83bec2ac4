//! One channel is measured while its neighbour does nothing, has an Aura that hangs, or floods the bridge. The control is
//! the same channel, alone, once more: what two runs of the same differ by says what a ratio can mean on this machine.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use aura_whatsapp_operator::sim::fault::Fault;
use jiff::Timestamp;
use reqwest::Client;
use serde_json::json;

use super::{
    Arguments,
    figures::{Table, ms, percentile},
    load,
    world::World,
};

/// Conversations of each channel.
const CONVERSATIONS: u64 = 200;
/// The neighbour's rate while its Aura hangs, messages a second.
const HANGING: u64 = 50;

/// What phases of one kind showed of the channel that is measured.
#[derive(Default)]
struct Phase {
    acks: Vec<Duration>,
    deliveries: Vec<Duration>,
}

impl Phase {
    fn add(&mut self, other: Self) {
        self.acks.extend(other.acks);
        self.deliveries.extend(other.deliveries);
    }
}

pub async fn measure(world: &mut World, arguments: &Arguments, table: &mut Table) -> anyhow::Result<()> {
    let _controller = world.site.start_controller().await?;
    let _bridge = world.site.start_bridge().await?;
    let (one, other) = (world.add(0).await?, world.add(1).await?);
    let urls = |n| world.kernel.webhook_of(&load::client_id(n));
    world
        .until("both channels are registered", async || {
            urls(0).is_some() && urls(1).is_some()
        })
        .await?;
    world
        .until("both are routed", async || {
            world.metric("aura_whatsapp_routes").await >= 2.0
        })
        .await?;
    let (mine, theirs) = (
        urls(0).context("not registered")?,
        urls(1).context("not registered")?,
    );
    let (mine_id, theirs_id) = (one.spec.channel_id, other.spec.channel_id);
    let seconds = arguments.seconds;
    let run = async |beside: u64| {
        let neighbour = tokio::spawn(pour(theirs.clone(), beside, Duration::from_secs(seconds)));
        let phase = phase(
            world,
            &mine,
            &mine_id,
            arguments.rate,
            Duration::from_secs(seconds),
        )
        .await;
        neighbour.await??;
        phase
    };
    println!("warming up");
    run(0).await?;
    let (mut alone, mut again, mut hung, mut flooded) = (
        Phase::default(),
        Phase::default(),
        Phase::default(),
        Phase::default(),
    );
    // By turns, so that what else the machine does falls into all of them.
    for round in 1..=arguments.rounds {
        println!("round {round} of {}", arguments.rounds);
        alone.add(run(0).await?);
        world.aura.inject(Fault::hang().only_for(theirs_id.clone()));
        hung.add(run(HANGING).await?);
        world.aura.clear_faults();
        world
            .until("what piled up is delivered", async || {
                world.metric("aura_whatsapp_pending_messages").await == 0.0
            })
            .await?;
        again.add(run(0).await?);
        flooded.add(run(arguments.flood).await?);
    }
    for (what, of) in [
        (
            "acknowledged",
            (|phase| &phase.acks) as fn(&Phase) -> &Vec<Duration>,
        ),
        ("at Aura", |phase| &phase.deliveries),
    ] {
        let at = |phase: &Phase, share: f64| {
            let mut times = of(phase).clone();
            times.sort_unstable();
            percentile(&times, share)
        };
        let p99 = |phase: &Phase| at(phase, 0.99);
        let ratio = |phase: &Phase| p99(phase).as_secs_f64() / p99(&alone).as_secs_f64();
        table.note(
            format!("p99 {what}, alone, of {} messages", of(&alone).len()),
            ms(p99(&alone)),
        );
        table.note(
            format!("control: alone again, ratio ({what})"),
            format!("{:.2} ({})", ratio(&again), ms(p99(&again))),
        );
        table.note(
            format!("p50 {what}: alone, again, beside one that hangs, floods"),
            [&alone, &again, &hung, &flooded]
                .map(|phase| ms(at(phase, 0.5)))
                .join(", "),
        );
        for (beside, phase) in [("hangs", &hung), ("floods", &flooded)] {
            table.figure(
                format!("beside a neighbour that {beside}, ratio ({what})"),
                format!("{:.2} ({})", ratio(phase), ms(p99(phase))),
                "<= 1.2",
                ratio(phase) <= 1.2,
            );
        }
    }
    Ok(())
}

fn client() -> anyhow::Result<Client> {
    Ok(Client::builder().no_proxy().build()?)
}

fn message(n: u64, id: &str) -> serde_json::Value {
    let user = format!("346{:08}", n % CONVERSATIONS);
    let now = Timestamp::now().as_second().to_string();
    json!({"messages": [{"from": user, "id": id, "timestamp": now, "type": "text", "text": {"body": id}}]})
}

/// The neighbour's messages, so many a second; answers are not looked at.
async fn pour(url: String, rate: u64, length: Duration) -> anyhow::Result<()> {
    if rate == 0 {
        return Ok(());
    }
    let http = client()?;
    let mut tasks = tokio::task::JoinSet::new();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / u32::try_from(rate)?);
    let start = Instant::now();
    let run = fastrand::u64(..);
    let mut n = 0;
    while start.elapsed() < length {
        ticks.tick().await;
        n += 1;
        let request = http
            .post(&url)
            .json(&message(n, &format!("wamid.other.{run}.{n}")));
        tasks.spawn(async move { request.send().await.map(drop) });
        while tasks.try_join_next().is_some() {}
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

async fn phase(
    world: &World,
    url: &str,
    channel: &str,
    rate: u64,
    length: Duration,
) -> anyhow::Result<Phase> {
    let http = client()?;
    let mut tasks = tokio::task::JoinSet::new();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / u32::try_from(rate)?);
    let start = Instant::now();
    let run = fastrand::u64(..);
    let (mut n, mut sent) = (0, HashMap::new());
    while start.elapsed() < length {
        ticks.tick().await;
        n += 1;
        let id = format!("wamid.mine.{run}.{n}");
        let request = http.post(url).json(&message(n, &id));
        sent.insert(id, Timestamp::now());
        tasks.spawn(async move {
            let start = Instant::now();
            let status = request.send().await?.status();
            ensure!(status.is_success(), "answered {status}");
            anyhow::Ok(start.elapsed())
        });
    }
    let mut acks = Vec::new();
    while let Some(done) = tasks.join_next().await {
        acks.push(done??);
    }
    let arrived = || {
        let activities = world.aura.activities();
        let mine = activities
            .into_iter()
            .filter(|activity| activity.channel_id == channel);
        let times = mine.filter_map(|activity| {
            let at = *sent.get(activity.text.as_ref()?)?;
            Duration::try_from(activity.at.duration_since(at)).ok()
        });
        times.collect::<Vec<_>>()
    };
    world
        .until("all is delivered", async || arrived().len() >= sent.len())
        .await?;
    let deliveries = arrived();
    Ok(Phase { acks, deliveries })
}
