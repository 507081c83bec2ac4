//! What is measured, one function each.

use std::{collections::HashSet, time::Duration};

use anyhow::Context;
use aura_whatsapp_operator::sim::{
    controlplane::{Child, Requests},
    dev::site::{cpu_time, resident_bytes},
    fault::Endpoint,
};
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::Instant};

use super::{
    Arguments,
    board::Board,
    figures::{Table, ms, number, per, percentile, s},
    load,
    world::{Load, PERIOD, World},
};

/// How long after a restart nothing may happen.
const QUIET: Duration = Duration::from_secs(30);
/// The shortest period that the resource allows.
const SHORT_PERIOD: Duration = Duration::from_secs(60);
/// Channels that are changed, one after the other, and again as many at a steady pace.
const CHANGES: usize = 200;
/// The steady pace.
const PACE: Duration = Duration::from_millis(100);
/// How long a stop may take.
const STOP: Duration = Duration::from_secs(20);
/// How long an allocator gets to settle before memory is read.
const SETTLE: Duration = Duration::from_secs(3);
/// The largest overshoot of resident memory that a channel may cost.
const KIB_PER_CHANNEL: f64 = 4.0;

/// The resident memory of a controller without channels, in bytes.
pub async fn idle(world: &World) -> anyhow::Result<u64> {
    let controller = world.site.start_controller().await?;
    let idle = settled_bytes(&controller).await?;
    controller.stop_within(STOP).await?;
    println!("idle: {:.1} MiB", mib(idle));
    Ok(idle)
}

async fn settled_bytes(controller: &Child) -> anyhow::Result<u64> {
    tokio::time::sleep(SETTLE).await;
    resident_bytes(controller.pid()).context("the controller is gone")
}

fn mib(bytes: u64) -> f64 {
    number(bytes) / (1024.0 * 1024.0)
}

fn cpu(controller: &Child) -> anyhow::Result<Duration> {
    cpu_time(controller.pid()).context("the controller is gone")
}

/// How many looks come due by themselves in this time, on average.
fn due_looks(channels: usize, time: Duration) -> f64 {
    number(channels as u64) * time.as_secs_f64() / PERIOD.as_secs_f64()
}

/// The calls that may come of it, if chance is not very unkind: each look is a GET, and a token where none is held.
fn due_calls(channels: usize, time: Duration) -> f64 {
    let due = due_looks(channels, time);
    2.0 * (due + 3.0 * due.sqrt()).ceil()
}

/// A controller with its registered channels.
pub struct Run {
    world: World,
    board: Board,
    channels: usize,
    controller: Child,
}

impl Run {
    /// Starts the controller and has all channels registered.
    pub async fn register(
        world: World,
        board: Board,
        arguments: &Arguments,
        table: &mut Table,
        report: bool,
    ) -> anyhow::Result<Self> {
        let channels = arguments.channels;
        println!("registering");
        let (before, machine) = (world.requests().await?, Load::read()?);
        let own = cpu_time(std::process::id()).unwrap_or_default();
        let start = Instant::now();
        let controller = world.site.start_controller().await?;
        let patience = Duration::from_secs(120) + Duration::from_millis(100) * u32::try_from(channels)?;
        let took = board.all_ready(channels, patience).await? - start;
        let cpu_used = cpu(&controller)?;
        let busy = machine.since()?;
        let own = cpu_time(std::process::id())
            .unwrap_or_default()
            .saturating_sub(own);
        // What was still to be written after the last channel was Ready belongs to it too.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let wrote = world.requests().await?.since(&before);
        let calls = world.kernel.calls_since(0);
        let run = Self {
            world,
            board,
            channels,
            controller,
        };
        if report {
            let count = |endpoint| calls.iter().filter(|call| call.endpoint == endpoint).count() as u64;
            let all = calls.len() as u64;
            let of_each = [Endpoint::Token, Endpoint::WebhookGet, Endpoint::WebhookSet]
                .map(|endpoint| format!("{:.2}", per(count(endpoint), channels)));
            let answers: Vec<f64> = calls
                .iter()
                .filter_map(|call| Some(call.answered_at?.duration_since(call.at).as_secs_f64()))
                .collect();
            // As it was, not as it was asked for: the simulator has a timer, and cores to share.
            let latency = answers.iter().sum::<f64>() / number(answers.len().max(1) as u64);
            let ideal = latency * number(all) / f64::from(arguments.kernel_concurrent);
            let share = ideal / took.as_secs_f64();
            table.note("registration: all Ready after", s(took));
            table.note(
                "registration: channels per second",
                format!("{:.1}", number(channels as u64) / took.as_secs_f64()),
            );
            table.figure(
                "registration: throughput / ideal",
                format!("{share:.2}"),
                ">= 0.85",
                share >= 0.85,
            );
            table.note(
                "registration: what the simulated Kernel took over a call, mean",
                ms(Duration::from_secs_f64(latency)),
            );
            let stated = Duration::from_millis(arguments.kernel_latency).as_secs_f64();
            table.note(
                format!(
                    "registration: the same if it had taken {} ms",
                    arguments.kernel_latency
                ),
                format!("{:.2}", share * stated / latency),
            );
            let between = |first: Option<Timestamp>, last: Option<Timestamp>| {
                Some(last?.duration_since(first?).as_secs_f64()).filter(|time| *time > 0.0)
            };
            let times = || calls.iter().map(|call| call.at);
            if let Some(time) = between(times().min(), times().max()) {
                table.note(
                    "registration: the same from Kernel's first call to its last",
                    format!("{:.2}", ideal / time),
                );
            }
            table.figure(
                "registration: calls per channel (token + GET + PATCH)",
                format!("{} ({all} in all)", of_each.join(" + ")),
                "1 + 1 + 1",
                // A channel whose own moment comes meanwhile is looked at once more.
                number(all) <= number(3 * channels as u64) + due_calls(channels, took),
            );
            run.writes(table, &wrote).await?;
            table.note(
                "registration: controller's CPU per 1,000 channels",
                s(cpu_used.mul_f64(1000.0 / number(channels as u64))),
            );
            table.note(
                "registration: the machine's cores were busy",
                format!("{:.0} %", busy * 100.0),
            );
            table.note(
                "registration: CPU of the simulated Kernel and the measurement itself",
                s(own),
            );
        }
        Ok(run)
    }

    async fn writes(&self, table: &mut Table, wrote: &Requests) -> anyhow::Result<()> {
        let status = per(wrote.writes_to("whatsappchannels", "status"), self.channels);
        let finalizer = per(wrote.writes_to("whatsappchannels", ""), self.channels);
        let own = self.world.metric("aura_whatsapp_status_writes_total").await?;
        table.figure(
            "registration: status writes per channel, by the API server",
            format!("{status:.3}"),
            "<= 2",
            status <= 2.0,
        );
        table.note(
            "registration: status writes per channel, by the controller",
            format!("{:.3}", own / number(self.channels as u64)),
        );
        table.figure(
            "registration: finalizer writes per channel",
            format!("{finalizer:.3}"),
            "<= 1",
            finalizer <= 1.0,
        );
        Ok(())
    }

    /// The controller's resident memory above that of an idle one.
    pub async fn memory(&self, table: &mut Table, when: &str, idle: u64) -> anyhow::Result<()> {
        let bytes = settled_bytes(&self.controller).await?;
        let each = number(bytes.saturating_sub(idle)) / 1024.0 / number(self.channels as u64);
        table.note(
            format!("memory {when} (idle)"),
            format!("{:.1} ({:.1}) MiB", mib(bytes), mib(idle)),
        );
        table.figure(
            format!("memory {when}: above idle per channel"),
            format!("{each:.2} KiB"),
            "<= 4 KiB",
            each <= KIB_PER_CHANNEL,
        );
        Ok(())
    }

    /// Stops the controller, starts it again, and watches it do nothing.
    pub async fn restart(&mut self, table: &mut Table, report: bool) -> anyhow::Result<()> {
        println!("restarting, and watching for {} s", QUIET.as_secs());
        let stopping = Instant::now();
        self.controller.stop_within(STOP).await?;
        let stopped = stopping.elapsed();
        let (before, calls) = (self.world.requests().await?, self.world.kernel.call_count());
        let start = Instant::now();
        self.controller = self.world.site.start_controller().await?;
        let ready = start.elapsed();
        tokio::time::sleep_until(start + QUIET).await;
        let used = cpu(&self.controller)?;
        let did = self.world.requests().await?.since(&before);
        let calls = self.world.kernel.call_count() - calls;
        if !report {
            return Ok(());
        }
        table.note("restart: stopped after", s(stopped));
        table.note("restart: ready after", s(ready));
        table.note("restart: CPU used in 30 s", s(used));
        // Each channel has its moment in the period: those that fall into these seconds are no storm.
        let due = due_looks(self.channels, QUIET);
        table.figure(
            format!("restart: calls to Kernel in 30 s ({due:.1} looks were due)"),
            calls,
            "0",
            number(calls as u64) <= due_calls(self.channels, QUIET),
        );
        quiet(table, "restart: writes to the API server in 30 s", &did);
        table.note(
            "restart: reads of Secrets",
            did.of("secrets", "GET") + did.of("secrets", "LIST"),
        );
        Ok(())
    }

    /// Gives some channels the shortest period and watches one of it.
    pub async fn resync(&self, table: &mut Table) -> anyhow::Result<()> {
        let chosen: Vec<usize> = (0..self.channels.min(CHANGES)).collect();
        let names: Vec<String> = chosen.iter().map(|n| load::name(*n)).collect();
        println!(
            "{} channels with a resyncPeriod of 1m, watched for one",
            chosen.len()
        );
        for name in &names {
            self.patch(name, json!({"spec": {"resyncPeriod": "1m"}})).await?;
        }
        self.board.all_observed(&names, 2).await?;
        let clients: HashSet<String> = chosen.iter().map(|n| load::client_id(*n)).collect();
        let (before, calls) = (self.world.requests().await?, self.world.kernel.call_count());
        tokio::time::sleep(SHORT_PERIOD).await;
        let calls = self.world.kernel.calls_since(calls);
        let did = self.world.requests().await?.since(&before);
        let count = |endpoint| {
            let of_theirs = |id: &String| clients.contains(id);
            let made = calls
                .iter()
                .filter(|call| call.endpoint == endpoint && call.client_id.as_ref().is_some_and(of_theirs));
            made.count() as u64
        };
        let gets = per(count(Endpoint::WebhookGet), chosen.len());
        table.figure(
            "resync: GETs per channel and period",
            format!("{gets:.3}"),
            "1",
            (0.98..=1.02).contains(&gets),
        );
        let others = count(Endpoint::WebhookSet) + count(Endpoint::Token);
        table.figure("resync: PATCHes and tokens", others, "0", others == 0);
        quiet(table, "resync: writes to the API server", &did);
        Ok(())
    }

    /// Changes channels and looks when Kernel hears of it.
    pub async fn latency(&self, table: &mut Table) -> anyhow::Result<()> {
        let each = (self.channels / 2).min(CHANGES);
        anyhow::ensure!(each > 0, "--channels must be at least 2 to change some");
        println!("changing {each} channels one after the other");
        let last = self.channels - 1;
        let mut samples = Vec::new();
        for n in last - each + 1..=last {
            samples.push(self.change(n).await?);
        }
        report(table, "change, one by one", &samples);

        println!("changing {each} channels, one each {PACE:?}");
        let mut tick = tokio::time::interval(PACE);
        let mut changes = JoinSet::new();
        for n in 0..each {
            tick.tick().await;
            let change = Change::of(&self.world, n);
            changes.spawn(change.make());
        }
        let samples = changes.join_all().await;
        let samples = samples.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        report(table, "change, 10 a second", &samples);
        Ok(())
    }

    async fn change(&self, n: usize) -> anyhow::Result<Sample> {
        Change::of(&self.world, n).make().await
    }

    async fn patch(&self, name: &str, patch: Value) -> anyhow::Result<()> {
        let patch = Patch::Merge(patch);
        self.world
            .channels()
            .patch(name, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    /// Stops everything.
    pub async fn end(self) -> anyhow::Result<()> {
        let Self {
            world,
            board,
            controller,
            ..
        } = self;
        // Its watch would complain of the API server's end.
        drop(board);
        controller.stop_within(STOP).await?;
        world.shutdown().await
    }
}

/// A change of one channel that makes Kernel be called.
struct Change {
    api: kube::Api<aura_whatsapp_operator::api::WhatsAppChannel>,
    kernel: aura_whatsapp_operator::sim::kernel::KernelSim,
    n: usize,
}

/// How long a change took to reach Kernel.
struct Sample {
    /// From just before the request that changes the resource.
    from_request: Duration,
    /// From the API server's answer to it; nothing if Kernel was called before that.
    from_answer: Duration,
}

impl Change {
    fn of(world: &World, n: usize) -> Self {
        Self {
            api: world.channels(),
            kernel: world.kernel.clone(),
            n,
        }
    }

    async fn make(self) -> anyhow::Result<Sample> {
        let client = load::client_id(self.n);
        let calls = self.kernel.call_count();
        let patch = Patch::Merge(json!({"spec": {"webhook": {"keyGeneration": 2}}}));
        let asked = Timestamp::now();
        self.api
            .patch(&load::name(self.n), &PatchParams::default(), &patch)
            .await?;
        let answered = Timestamp::now();
        self.kernel
            .wait_call_of(&client, Endpoint::WebhookSet, calls, Duration::from_secs(30))
            .await?;
        let first = self.kernel.calls_since(calls).into_iter();
        let first = first
            .filter(|call| call.client_id.as_ref() == Some(&client))
            .map(|call| call.at)
            .min();
        let first = first.context("Kernel was not called")?;
        let from = |start: Timestamp| Duration::try_from(first.duration_since(start)).unwrap_or_default();
        Ok(Sample {
            from_request: from(asked),
            from_answer: from(answered),
        })
    }
}

fn report(table: &mut Table, what: &str, samples: &[Sample]) {
    let of = |part: fn(&Sample) -> Duration| {
        let mut times: Vec<_> = samples.iter().map(part).collect();
        times.sort();
        times
    };
    let shares = |times: &[Duration]| {
        [0.5, 0.9, 0.99, 1.0]
            .map(|share| ms(percentile(times, share)))
            .join(", ")
    };
    let (request, answer) = (of(|sample| sample.from_request), of(|sample| sample.from_answer));
    let p99 = percentile(&request, 0.99);
    table.figure(
        format!("{what}: request to Kernel's first call, p50, p90, p99, max"),
        shares(&request),
        "p99 <= 100 ms",
        p99 <= Duration::from_millis(100),
    );
    table.note(format!("{what}: from the API server's answer"), shares(&answer));
}

/// What was written, but for Leases: those are renewed, and by the API server itself too.
fn quiet(table: &mut Table, name: &str, did: &Requests) {
    let leases: u64 = did.writes_to("leases", "");
    let others: Vec<_> = did
        .writes()
        .filter(|(kind, _)| kind.resource != "leases")
        .map(|(kind, count)| format!("{count} {} {}/{}", kind.verb, kind.resource, kind.subresource))
        .collect();
    let shown = if others.is_empty() {
        "0".to_owned()
    } else {
        others.join(", ")
    };
    table.figure(
        format!("{name} (and {leases} of Leases)"),
        shown,
        "0",
        others.is_empty(),
    );
}
