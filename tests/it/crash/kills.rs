//! The bridge killed again and again under load, at random moments and at each failpoint, and a ledger that is judged
//! at the end (Laws 1 to 3 and 5). `AURA_CRASH_KILLS` says how often, `AURA_CRASH_SEED` which choices are made.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    os::unix::process::ExitStatusExt,
    time::{Duration, Instant},
};

use aura_whatsapp_operator::{
    failpoint::{Place, VARIABLE},
    sim::{
        aura::Behaviour,
        fault::{Endpoint, Fault as Delay},
        ledger::{self, Arrived, Fault, Judgement, Lane, Sent},
    },
};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::load::{Load, Stream, number};
use crate::support::{Number, SOON, World};

/// Kills where the environment says nothing.
const KILLS: usize = 200;
/// Kills in one world: beyond it the journal's replay, which grows with each run, takes most of the time.
const KILLS_PER_WORLD: usize = 250;
/// Messages under way that each kill must find at least.
const UNFINISHED: usize = 50;
/// Messages that the load keeps under way.
const WINDOW: usize = 250;
const CHANNELS: usize = 4;
/// Connections that Kernel has for one channel, and the users on one connection.
const STREAMS: usize = 2;
const USERS: usize = 6;
/// The most that the journal may take, in bytes.
const JOURNAL: u64 = 128 << 20;
/// What Aura and Kernel take for some of the calls, in percent, so that work piles up. The others are answered at once,
/// so that a lane may be further than its records.
const SLOW: u8 = 60;
const AURA_TAKES: Duration = Duration::from_millis(70);
const KERNEL_TAKES: Duration = Duration::from_millis(30);
/// The highest hit at which a failpoint is armed.
const HITS: u64 = 25;
/// How long after its first answer a run is killed from outside at the latest, in milliseconds.
const LONGEST_LIFE: u64 = 250;
/// How long the rest may take to arrive at the end.
const DRAIN: Duration = Duration::from_secs(30);

/// One run of the bridge and how it ended.
struct Run {
    started: Timestamp,
    ended: Timestamp,
    /// The place it ended at; none for a kill from outside.
    place: Option<Place>,
    unfinished: usize,
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test]
async fn killed_again_and_again_the_bridge_loses_nothing_keeps_the_order_and_marks_what_it_repeats() {
    let kills = setting("AURA_CRASH_KILLS").map_or(KILLS, |kills| usize::try_from(kills).unwrap());
    let seed = setting("AURA_CRASH_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("AURA_CRASH_SEED={seed}, {kills} kills");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut runs = Vec::new();
    while runs.len() < kills {
        let count = (kills - runs.len()).min(KILLS_PER_WORLD);
        let first = runs.len();
        runs.extend(one_world(&mut random, first, count, seed).await);
    }
    let mut hits: BTreeMap<&str, usize> = BTreeMap::new();
    for run in &runs {
        *hits
            .entry(run.place.map_or("random moment", Place::name))
            .or_default() += 1;
    }
    for (place, hits) in &hits {
        println!("{hits:5}  {place}");
    }
    let mut unfinished: Vec<usize> = runs.iter().map(|run| run.unfinished).collect();
    unfinished.sort_unstable();
    let (min, median, max) = (
        unfinished[0],
        unfinished[unfinished.len() / 2],
        unfinished[unfinished.len() - 1],
    );
    println!("unfinished at a kill: {min} / {median} / {max} (min/median/max)");
    if kills >= KILLS {
        assert_eq!(hits.len(), Place::ALL.len() + 1, "each place was hit");
        assert!(hits.values().all(|hits| *hits >= 5), "{hits:?}");
    }
}

/// One world, killed so often. `first` is the number of its first kill.
async fn one_world(random: &mut fastrand::Rng, first: usize, count: usize, seed: u64) -> Vec<Run> {
    let setup = Instant::now();
    let mut world = World::builder("kills")
        .aura(Behaviour::Silent)
        .log_filter("warn")
        // Of small segments: a start reads the last one as a whole, and in this build it reads slowly.
        .config(&format!("bridge: {{journalMaxBytes: {JOURNAL}}}"))
        .start()
        .await;
    let mut numbers = Vec::new();
    for n in 0..CHANNELS {
        // Some messages get no reply: what is said to later ones waits for that.
        let change = |channel: &mut Value| channel["spec"]["delivery"] = json!({"unansweredAfter": "1s"});
        numbers.push(world.add(&format!("10{n:02}"), change).await);
    }
    for number in &numbers {
        world.wait_ready(number).await;
    }
    world.wait_snapshot(&numbers).await;
    // It has done its part, and would only take its share of the processor.
    world.controller.take().unwrap().stop().await.unwrap();
    world.bridge.take().unwrap().stop().await.unwrap();
    world.aura.inject(Delay::delay(AURA_TAKES).share(SLOW));
    world
        .kernel
        .inject(Delay::delay(KERNEL_TAKES).share(SLOW).on(Endpoint::Send));
    let mut load = Load::start(
        &world.kernel,
        &world.aura,
        streams(&world, &numbers),
        WINDOW,
        random.u64(..),
    );

    let setup = setup.elapsed();
    let killing = Instant::now();
    let (mut runs, mut serving, mut stuck) = (Vec::new(), Vec::new(), None);
    // Of every run, also of one that did not end as it should.
    let mut starts = Vec::new();
    for n in first..first + count {
        // The first run fills the backlog; after it each kill finds one, however early it comes.
        if runs.is_empty() {
            world.start_bridge().await;
            world
                .until("a backlog is there", async || {
                    load.unfinished() >= WINDOW - UNFINISHED
                })
                .await;
            world.kill_bridge().await;
            quiet(&world).await;
        }
        let place = (n % 2 == 1).then(|| Place::ALL[n / 2 % Place::ALL.len()]);
        starts.push(Timestamp::now());
        let ended = match place {
            Some(place) => end_at(&mut world, &load, place, random.u64(1..=HITS)).await,
            None => end_at_random(&mut world, &load, random, &mut serving).await,
        };
        match ended {
            Ok(run) if run.unfinished < UNFINISHED => {
                stuck = Some(format!(
                    "kill {n} found only {} messages under way",
                    run.unfinished
                ));
                runs.push(run);
            }
            Ok(run) => runs.push(run),
            Err(why) => stuck = Some(format!("kill {n}: {why}")),
        }
        quiet(&world).await;
        // Messages that are lost are a load that never ends: what the ledger says of them tells more.
        if stuck.is_some() {
            break;
        }
    }
    let killing = killing.elapsed();

    let draining = Instant::now();
    starts.push(Timestamp::now());
    world.site.bridge_variable = None;
    world.start_bridge().await;
    let ended = tokio::time::timeout(DRAIN, load.end()).await;
    assert!(
        ended.is_ok(),
        "calls are not answered after {} kills (AURA_CRASH_SEED={seed}): {stuck:?}\n{}",
        runs.len(),
        said(&world)
    );
    while !load.is_over() && draining.elapsed() < DRAIN {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // What is lost is told by the ledger, not by a bridge that waits for ever.
    if load.is_over() {
        world.wait_settled().await;
    }
    let draining = draining.elapsed();
    let tenth = (serving.len() / 10).max(1);
    let median = |times: &[Duration]| {
        let mut times = times.to_vec();
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or_default()
    };
    let (first, last) = (
        &serving[..tenth.min(serving.len())],
        &serving[serving.len().saturating_sub(tenth)..],
    );
    println!(
        "{} kills: setup {setup:.1?}, killing {killing:.1?} ({:.0?} each), draining {draining:.1?}; a start takes {:.0?} until \
         the first 200 (of the first tenth {:.0?}, of the last {:.0?})",
        runs.len(),
        killing / u32::try_from(runs.len().max(1)).unwrap(),
        median(&serving),
        median(first),
        median(last),
    );
    judge(&world, &numbers, &load, &runs, &starts, seed);
    assert_eq!(stuck, None, "AURA_CRASH_SEED={seed}");
    runs
}

fn streams(world: &World, numbers: &[Number]) -> Vec<Stream> {
    let of_channel = |(channel, number): (usize, &Number)| {
        let url = world.kernel.webhook_of(&number.client_id).unwrap();
        let channel_id = number.channel_id.clone();
        (0..STREAMS).map(move |stream| Stream {
            channel: channel_id.clone(),
            url: url.clone(),
            users: (0..USERS)
                .map(|user| format!("3461{channel}{stream}{user:05}"))
                .collect(),
        })
    };
    numbers.iter().enumerate().flat_map(of_channel).collect()
}

/// Waits until what the run before had sent has arrived: what comes from now on is of the next one.
async fn quiet(world: &World) {
    let start = Instant::now();
    let mut times = 0;
    // Twice: for a connection that nobody had accepted at the first look.
    while times < 2 {
        let open = world.aura.connections() + world.kernel.connections();
        times = if open == 0 { times + 1 } else { 0 };
        assert!(
            start.elapsed() < SOON,
            "{open} connections of a process that is gone"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Starts the bridge with a failpoint armed, and waits until it has ended there.
async fn end_at(world: &mut World, load: &Load, place: Place, hit: u64) -> Result<Run, String> {
    world.site.bridge_variable = Some((VARIABLE.to_owned(), place.armed_at(hit)));
    let started = Timestamp::now();
    let child = world.site.spawn_bridge().await.unwrap();
    let Ok(status) = tokio::time::timeout(SOON, child.wait()).await else {
        return Err(format!(
            "{} was not hit {hit} times\n{}",
            place.name(),
            child.output(20)
        ));
    };
    let (status, said) = (status.unwrap(), child.output(5));
    if status.signal() != Some(9) || !said.contains(&place.last_words()) {
        let place = place.name();
        return Err(format!("it ended otherwise than at {place}: {status}\n{said}"));
    }
    Ok(Run {
        started,
        ended: Timestamp::now(),
        place: Some(place),
        unfinished: load.unfinished(),
    })
}

/// Starts the bridge and kills it some time after, now and then before it serves.
async fn end_at_random(
    world: &mut World,
    load: &Load,
    random: &mut fastrand::Rng,
    serving: &mut Vec<Duration>,
) -> Result<Run, String> {
    world.site.bridge_variable = None;
    let (started, start, answered) = (Timestamp::now(), Instant::now(), load.answered());
    let child = world.site.spawn_bridge().await.unwrap();
    if random.u8(..8) > 0 {
        while load.answered() == answered {
            if start.elapsed() > SOON {
                return Err(format!("it does not serve\n{}", child.output(20)));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        serving.push(start.elapsed());
    }
    // Not a wait for something: the moment of the kill.
    tokio::time::sleep(Duration::from_millis(random.u64(0..LONGEST_LIFE))).await;
    let unfinished = load.unfinished();
    if let Some(status) = child.try_wait().unwrap() {
        return Err(format!("it had ended by itself: {status}\n{}", child.output(20)));
    }
    child.kill9().await.unwrap();
    Ok(Run {
        started,
        ended: Timestamp::now(),
        place: None,
        unfinished,
    })
}

/// Judges both directions.
fn judge(world: &World, numbers: &[Number], load: &Load, runs: &[Run], starts: &[Timestamp], seed: u64) {
    assert_eq!(load.odd(), Vec::<String>::new(), "odd answers to webhook calls");
    let run_at = |at: Timestamp| starts.partition_point(|start| *start <= at);

    let to_aura = load.sent();
    let mut activities = world.aura.activities();
    activities.extend(world.aura.duplicates());
    activities.sort_by_key(|activity| activity.at);
    let at_aura: Vec<Arrived> = activities
        .iter()
        .map(|activity| Arrived {
            id: activity.text.clone().unwrap_or_default(),
            lane: Lane {
                channel: activity.channel_id.clone(),
                user: activity.from_id.clone(),
            },
            mark: Some(activity.id.clone()),
            run: run_at(activity.at),
            at: activity.at,
        })
        .collect();

    let lanes: BTreeMap<&str, Lane> = to_aura
        .iter()
        .map(|sent| (sent.id.as_str(), sent.lane.clone()))
        .collect();
    let mut to_user: BTreeMap<String, Sent> = BTreeMap::new();
    for reply in world.aura.replies() {
        let request = reply.text.split('/').next().unwrap_or_default();
        let sent = to_user.entry(reply.id.clone()).or_insert_with(|| Sent {
            id: reply.text.clone(),
            lane: lanes[request].clone(),
            offered: reply.began,
            acknowledged: None,
            after: None,
            turn: number(&reply.text),
        });
        sent.offered = sent.offered.min(reply.began);
        if reply.taken() {
            sent.acknowledged.get_or_insert(reply.at);
        }
    }
    let to_user: Vec<Sent> = to_user.into_values().collect();
    let channels: BTreeMap<&str, &str> = numbers
        .iter()
        .map(|number| (number.client_id.as_str(), number.channel_id.as_str()))
        .collect();
    let at_user: Vec<Arrived> = world
        .kernel
        .all_received()
        .into_iter()
        .map(|message| Arrived {
            id: message.text,
            lane: Lane {
                channel: channels[message.client_id.as_str()].to_owned(),
                user: message.to,
            },
            mark: message.idempotency_key,
            run: run_at(message.at),
            at: message.at,
        })
        .collect();

    let mut found = String::new();
    for (direction, sent, arrived) in [("to Aura", &to_aura, &at_aura), ("to users", &to_user, &at_user)] {
        let Judgement {
            faults,
            arrived: count,
            repeats,
        } = ledger::judge(sent, arrived);
        println!("{direction}: {count} messages arrived, {repeats} of them again after a crash");
        assert!(
            count > runs.len(),
            "there was no load {direction}\n{}",
            said(world)
        );
        for fault in faults.iter().take(5) {
            let _ = writeln!(
                found,
                "{direction}: {fault}\n{}",
                story(fault, sent, arrived, runs)
            );
        }
        if faults.len() > 5 {
            let _ = writeln!(found, "{direction}: and {} more", faults.len() - 5);
        }
    }
    assert!(
        found.is_empty(),
        "AURA_CRASH_SEED={seed}\n{found}\n{}",
        said(world)
    );
}

/// The last lines of the bridge's log, of all runs.
fn said(world: &World) -> String {
    const LINES: usize = 40;
    let log = world.log("bridge");
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// What happened around a fault in its conversation, by time.
fn story(fault: &Fault, sent: &[Sent], arrived: &[Arrived], runs: &[Run]) -> String {
    const AROUND: usize = 15;
    let Some(lane) = fault.lane() else {
        return String::new();
    };
    let mut lines: Vec<(Timestamp, String)> = Vec::new();
    for one in sent.iter().filter(|one| one.lane == *lane) {
        lines.push((one.offered, format!("{} is offered", one.id)));
        if let Some(at) = one.acknowledged {
            lines.push((at, format!("{} is acknowledged", one.id)));
        }
    }
    for one in arrived.iter().filter(|one| one.lane == *lane) {
        lines.push((
            one.at,
            format!("{} arrives, run {}, {:?}", one.id, one.run, one.mark),
        ));
    }
    for (n, run) in (1..).zip(runs) {
        lines.push((run.started, format!("run {n} starts")));
        let place = run.place.map_or("a random moment", Place::name);
        lines.push((run.ended, format!("run {n} is killed at {place}")));
    }
    lines.sort();
    let (Fault::Lost { id, .. }
    | Fault::Unknown { id, .. }
    | Fault::Astray { id, .. }
    | Fault::Disorder { earlier: id, .. }
    | Fault::Repeated { id, .. }
    | Fault::Unmarked { id, .. }
    | Fault::SharedMark { id, .. }) = fault;
    let told = |line: &String| line.split(' ').next() == Some(id);
    let first = lines.iter().position(|(_, line)| told(line)).unwrap_or(0);
    let last = lines.iter().rposition(|(_, line)| told(line)).unwrap_or(0);
    let shown = &lines[first.saturating_sub(AROUND)..(last + AROUND).min(lines.len())];
    shown.iter().fold(String::new(), |mut text, (at, line)| {
        let _ = writeln!(text, "  {at}  {line}");
        text
    })
}
