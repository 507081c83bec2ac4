//! The segmented log: messages per sync, processor time, what the device writes, stalls, and memory for what waits.
//!
//! A message is 1 KiB, sealed as in the bridge; it is accepted, and settled once that is durable. Processor time is that
//! of the journal's own threads unless said otherwise; sealing is done by the callers and stands beside it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use aura_whatsapp_operator::journal::ids::{Born, Ids, RunDirectory, RunStorage as _};
use aura_whatsapp_operator::journal::{
    self, Address, Appended, ContactKey, Direction, Journal, Keyring, NewEntry, Options, Origin, Outcome,
    Seq, Surroundings, WrappingKey,
};
use bytes::Bytes;

use super::figures::{Table, number, percentile};
use super::ids::{key, memory};

const BODY: usize = 1024;
/// Conversations that messages are of.
const CONVERSATIONS: u64 = 10_000;

fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or_default()
}

fn message(number: u64, body: &Bytes) -> NewEntry {
    let mut contact = [0; 16];
    contact[..8].copy_from_slice(&(number % CONVERSATIONS).to_le_bytes());
    let now = wall_ms();
    NewEntry {
        address: Address {
            direction: Direction::ToAura,
            channel: [u8::try_from(number % 100).unwrap_or_default(); 16],
            environment: [1; 8],
            tag: [2; 6],
            contact: ContactKey(contact),
        },
        contact: "34600000001".to_owned(),
        dedup: key(number),
        born_ms: Some(now),
        accepted_at_ms: now,
        request: None,
        trace: String::new(),
        body: body.clone(),
        origin: Origin::Peer,
        set_aside: None,
    }
}

/// Syncs of a run, as they come.
#[derive(Clone, Default)]
struct Syncs(Arc<Mutex<Vec<Duration>>>);

impl Syncs {
    fn take(&self) -> Vec<Duration> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

fn open(dir: &Path, syncs: &Syncs) -> anyhow::Result<(Journal, Vec<journal::Pending>)> {
    let keyring = Keyring::open(&dir.join("keys"), vec![WrappingKey::new([7; 64])])?;
    let syncs = syncs.clone();
    let surroundings = Surroundings {
        keyring: Some(Arc::new(keyring)),
        on_commit: Arc::new(move |_, took| {
            syncs
                .0
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .push(took);
        }),
        ..Surroundings::default()
    };
    let options = Options {
        max_bytes: 64 << 30,
        channel_share: 100,
        environment_share: 100,
        ..Options::default()
    };
    Ok(Journal::open(&dir.join("journal"), options, surroundings)?)
}

/// Processor time of this process's threads whose name begins so, in all.
fn cpu(name: &str) -> anyhow::Result<Duration> {
    let mut sum = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        let comm = std::fs::read_to_string(task.join("comm")).unwrap_or_default();
        let spent = std::fs::read_to_string(task.join("schedstat")).unwrap_or_default();
        if comm.starts_with(name) {
            let spent = spent.split_whitespace().next();
            sum += spent.and_then(|ns| ns.parse::<u64>().ok()).unwrap_or_default();
        }
    }
    Ok(Duration::from_nanos(sum))
}

fn since(name: &str, before: Duration) -> anyhow::Result<Duration> {
    Ok(cpu(name)?.saturating_sub(before))
}

/// Bytes that the device under a path has written since the machine started.
fn device_written(path: &Path) -> anyhow::Result<u64> {
    use std::os::linux::fs::MetadataExt as _;
    let device = std::fs::metadata(path)?.st_dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let stat = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat"))?;
    let sectors = stat.split_whitespace().nth(6).context("no seventh field")?;
    Ok(sectors.parse::<u64>()? * 512)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Microseconds of each.
fn per(duration: Duration, count: u64) -> f64 {
    duration.as_secs_f64() * 1e6 / number(count.max(1))
}

fn ratio(one: u64, other: u64) -> f64 {
    number(one) / number(other.max(1))
}

async fn one(journal: &Journal, number: u64, body: &Bytes, settle: bool) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let appended = journal.append(vec![message(number, body)]).await?;
    let took = start.elapsed();
    if let (true, Some(Appended::New(seq))) = (settle, appended.first()) {
        journal
            .settle(*seq, Outcome::Delivered { reference: None })
            .await?;
    }
    Ok(took)
}

/// What a paced run showed.
struct Paced {
    messages: u64,
    acks: Vec<Duration>,
    took: Duration,
}

/// So many messages a second for so long, each on a task of its own.
async fn paced(
    journal: &Journal,
    numbers: &AtomicU64,
    rate: u64,
    length: Duration,
    settle: bool,
) -> anyhow::Result<Paced> {
    let body = Bytes::from(vec![b'x'; BODY]);
    let acks = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = tokio::task::JoinSet::new();
    let start = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    let mut sent = 0;
    while start.elapsed() < length {
        ticks.tick().await;
        let due = u64::try_from(start.elapsed().as_micros()).unwrap_or_default() * rate / 1_000_000;
        while sent < due {
            sent += 1;
            let (journal, body, acks) = (journal.clone(), body.clone(), Arc::clone(&acks));
            let number = numbers.fetch_add(1, Ordering::Relaxed);
            tasks.spawn(async move {
                let took = one(&journal, number, &body, settle).await?;
                acks.lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .push(took);
                anyhow::Ok(())
            });
        }
        while let Some(done) = tasks.try_join_next() {
            done??;
        }
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let mut acks = std::mem::take(&mut *acks.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    acks.sort_unstable();
    Ok(Paced {
        messages: sent,
        acks,
        took: start.elapsed(),
    })
}

/// Callers that send their next message when the last one is settled.
async fn closed_loop(
    journal: &Journal,
    numbers: &Arc<AtomicU64>,
    callers: u64,
    length: Duration,
) -> anyhow::Result<u64> {
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..callers {
        let (journal, numbers, stop, done) = (journal.clone(), numbers.clone(), stop.clone(), done.clone());
        tasks.spawn(async move {
            let body = Bytes::from(vec![b'x'; BODY]);
            while !stop.load(Ordering::Relaxed) {
                one(&journal, numbers.fetch_add(1, Ordering::Relaxed), &body, true).await?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    tokio::time::sleep(length).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(done.load(Ordering::Relaxed))
}

/// The disk alone: so many writes a second, each with its fdatasync, into a file that has its blocks.
fn floor(dir: &Path, a_second: u32, length: Duration) -> anyhow::Result<Vec<Duration>> {
    let file: File = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .open(dir.join("floor"))?;
    let size = 64 << 20;
    file.write_all_at(&vec![0; size], 0)?;
    file.sync_all()?;
    let piece = vec![b'x'; 10 * 1200];
    let mut took = Vec::new();
    let start = Instant::now();
    let mut next = Duration::ZERO;
    let mut at = 0;
    while start.elapsed() < length {
        std::thread::sleep(next.saturating_sub(start.elapsed()));
        next += Duration::from_secs(1) / a_second;
        let clock = Instant::now();
        file.write_all_at(&piece, at)?;
        file.sync_data()?;
        took.push(clock.elapsed());
        at = (at + piece.len() as u64) % (size as u64 - piece.len() as u64);
    }
    took.sort_unstable();
    Ok(took)
}

/// Processor time of one write of so many bytes and its fdatasync, into a file that has its blocks: what no journal
/// can do without.
fn raw(dir: &Path, bytes: usize) -> anyhow::Result<Duration> {
    const COMMITS: u32 = 500;
    let size = 64 << 20;
    let file = File::create(dir.join("raw"))?;
    file.write_all_at(&vec![0; size], 0)?;
    file.sync_all()?;
    let piece = vec![b'x'; bytes.min(size)];
    let commits = std::thread::Builder::new()
        .name("raw-floor".to_owned())
        .spawn(move || {
            let (before, mut at) = (cpu("raw-floor")?, 64);
            for _ in 0..COMMITS {
                if at + piece.len() > size {
                    at = 64;
                }
                file.write_all_at(&piece, at as u64)?;
                file.sync_data()?;
                at += piece.len();
            }
            anyhow::Ok(since("raw-floor", before)? / COMMITS)
        })?;
    commits
        .join()
        .map_err(|_| anyhow::anyhow!("the raw writes failed"))?
}

/// How long what is measured takes, and how much of it there is.
pub struct Extent {
    /// Of each phase.
    pub seconds: u64,
    /// Before anything is measured: until segments are written again, not made, which a million ids bring about.
    pub warm_seconds: u64,
    /// Of the watch for stalls.
    pub stall_seconds: u64,
    /// Messages.
    pub queued: u64,
    /// Millions of remembered ids.
    pub ids: u64,
}

/// Everything but the ids by themselves.
pub fn measure(dir: &Path, extent: &Extent) -> anyhow::Result<Table> {
    let seconds = extent.seconds;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let mut table = Table::default();
    let directory = tempfile::tempdir_in(dir)?;
    let syncs = Syncs::default();
    runtime.block_on(async {
        let (journal, _) = open(directory.path(), &syncs)?;
        let numbers = Arc::new(AtomicU64::new(1));
        closed_loop(&journal, &numbers, 1024, Duration::from_secs(extent.warm_seconds)).await?;
        commits(directory.path(), &journal, &numbers, seconds, &mut table).await?;
        steady(directory.path(), &journal, &numbers, &syncs, extent, &mut table).await?;
        journal.close().await;
        anyhow::Ok(())
    })?;
    drop(directory);
    runtime.block_on(backlog(
        dir,
        seconds,
        extent.queued,
        extent.ids * 1_000_000,
        &mut table,
    ))?;
    Ok(table)
}

async fn commits(
    dir: &Path,
    journal: &Journal,
    numbers: &Arc<AtomicU64>,
    seconds: u64,
    table: &mut Table,
) -> anyhow::Result<()> {
    for callers in [64, 256, 1024] {
        let (before, own, all) = (journal.stats(), cpu("journal")?, cpu("")?);
        let keeper = cpu("journal-keeper")?;
        let done = closed_loop(journal, numbers, callers, Duration::from_secs(seconds)).await?;
        let after = journal.stats();
        let commits = after.commits - before.commits;
        let records = after.committed_records - before.committed_records;
        let share = ratio(records, commits) / ratio(callers, 1);
        table.figure(
            format!("records per fdatasync / in flight, {callers} in flight"),
            format!("{share:.2}"),
            ">= 0.4",
            share >= 0.4,
        );
        let cost = per(since("journal", own)?, done);
        table.note(
            format!("of it the keeper's, {callers} in flight"),
            format!("{:.2} us", per(since("journal-keeper", keeper)?, done)),
        );
        let each = usize::try_from(done * (BODY as u64 + 200) / commits.max(1)).unwrap_or(BODY);
        table.note(
            format!("raw writes and syncs alone, {callers} in flight"),
            format!("{:.2} us", per(raw(dir, each)?, 1) * ratio(commits, done)),
        );
        let name = format!("journal CPU per message, {callers} in flight");
        if callers == 256 {
            table.figure(name, format!("{cost:.2} us"), "<= 2 us", cost <= 2.0);
        } else {
            table.note(name, format!("{cost:.2} us"));
        }
        table.note(
            format!("whole process, {callers} in flight"),
            format!(
                "{:.2} us, {:.0} messages/s",
                per(since("", all)?, done),
                ratio(done, seconds)
            ),
        );
    }
    Ok(())
}

async fn steady(
    dir: &Path,
    journal: &Journal,
    numbers: &AtomicU64,
    syncs: &Syncs,
    extent: &Extent,
    table: &mut Table,
) -> anyhow::Result<()> {
    let (seconds, stall_seconds) = (extent.seconds, extent.stall_seconds);
    paced(journal, numbers, 10_000, Duration::from_secs(2), true).await?;
    let length = Duration::from_secs(seconds);
    let commits = journal.stats().commits;
    let (own, all, written) = (cpu("journal")?, cpu("")?, device_written(dir)?);
    let keeper = cpu("journal-keeper")?;
    let run = paced(journal, numbers, 10_000, length, true).await?;
    // What is not synced yet belongs to the run as well.
    File::open(dir)?.sync_all()?;
    let cost = per(since("journal", own)?, run.messages);
    let on_disk = per(since("", all)?, run.messages);
    let keeper = per(since("journal-keeper", keeper)?, run.messages);
    table.note("of it the keeper's at 10,000/s", format!("{keeper:.2} us"));
    let amplification = ratio(device_written(dir)? - written, run.messages * BODY as u64);
    table.figure(
        "journal CPU per message at 10,000/s",
        format!("{cost:.2} us"),
        "<= 6 us",
        cost <= 6.0,
    );
    let commits = journal.stats().commits - commits;
    let each = usize::try_from(run.messages * (BODY as u64 + 200) / commits.max(1)).unwrap_or(BODY);
    table.note(
        "raw writes and syncs alone, as many and as large",
        format!(
            "{:.2} us, {commits} commits",
            per(raw(dir, each)?, 1) * ratio(commits, run.messages)
        ),
    );
    table.figure(
        "bytes the device writes per byte of body at 10,000/s",
        format!("{amplification:.2}"),
        "<= 2",
        amplification <= 2.0,
    );
    table.note(
        "messages a second, paced",
        format!("{:.0}", ratio(run.messages, 1) / run.took.as_secs_f64()),
    );

    let memory_only = Journal::in_memory();
    let all = cpu("")?;
    let run = paced(&memory_only, numbers, 10_000, length, true).await?;
    let in_memory = per(since("", all)?, run.messages);
    let adds = on_disk - in_memory;
    table.figure(
        "CPU the disk adds per message, whole process",
        format!("{adds:.2} us ({on_disk:.2} beside {in_memory:.2})"),
        "<= 3 us",
        adds <= 3.0,
    );

    syncs.take();
    let run = paced(journal, numbers, 10_000, Duration::from_secs(stall_seconds), true).await?;
    let mut journals = syncs.take();
    journals.sort_unstable();
    let disk = floor(dir, 1_000, Duration::from_secs(stall_seconds))?;
    let (worst, worst_floor) = (percentile(&journals, 1.0), percentile(&disk, 1.0));
    let floor_p99 = percentile(&disk, 0.99);
    table.figure(
        format!("longest commit in {stall_seconds} s at 10,000/s"),
        format!("{:.1} ms (floor {:.1} ms)", millis(worst), millis(worst_floor)),
        "<= 20 ms, if the floor's is",
        millis(worst) <= 20.0 || millis(worst_floor) > 20.0,
    );
    let long = |times: &[Duration]| {
        times
            .iter()
            .filter(|time| **time > Duration::from_millis(20))
            .count()
    };
    table.note(
        "syncs of over 20 ms in that time, the journal's and the floor's",
        format!("{}, {}", long(&journals), long(&disk)),
    );
    ack(table, "ack p99 at 10,000/s", &run, floor_p99);
    Ok(())
}

/// The gather window, three times the disk's own sync, and half a millisecond.
fn ack(table: &mut Table, name: &str, run: &Paced, floor_p99: Duration) {
    let p99 = percentile(&run.acks, 0.99);
    let bound = millis(Options::default().gather) + 3.0 * millis(floor_p99) + 0.5;
    table.figure(
        name,
        format!(
            "{:.2} ms (p50 {:.2})",
            millis(p99),
            millis(percentile(&run.acks, 0.5))
        ),
        &format!("<= {bound:.2} ms"),
        millis(p99) <= bound,
    );
}

async fn backlog(dir: &Path, seconds: u64, queued: u64, ids: u64, table: &mut Table) -> anyhow::Result<()> {
    let directory = tempfile::tempdir_in(dir)?;
    let syncs = Syncs::default();
    let (journal, _) = open(directory.path(), &syncs)?;
    let numbers = AtomicU64::new(1);
    paced(&journal, &numbers, 1_000, Duration::from_secs(1), true).await?;
    let before = memory()?.0;
    let body = Bytes::from(vec![b'x'; BODY]);
    let mut left = queued;
    while left > 0 {
        let batch = left.min(100);
        let first = numbers.fetch_add(batch, Ordering::Relaxed);
        let entries = (first..first + batch)
            .map(|number| message(number, &body))
            .collect();
        journal.append(entries).await?;
        left -= batch;
    }
    let each = (memory()?.0 - before) * 1024.0 * 1024.0 / ratio(queued, 1);
    table.figure(
        format!("memory per message with {queued} queued (journal alone)"),
        format!("{each:.0} B"),
        "<= 150 B with the lanes",
        each <= 150.0,
    );
    let disk = floor(directory.path(), 1_000, Duration::from_secs(seconds))?;
    let run = paced(&journal, &numbers, 2_000, Duration::from_secs(seconds), false).await?;
    ack(
        table,
        &format!("ack p99 at 2,000/s, {queued} queued and none delivered"),
        &run,
        percentile(&disk, 0.99),
    );
    journal.close().await;

    remember(&directory.path().join("journal"), ids)?;
    let clock = Instant::now();
    let (journal, pending) = open(directory.path(), &syncs)?;
    let first = journal
        .append(vec![message(numbers.fetch_add(1, Ordering::Relaxed), &body)])
        .await?;
    let took = clock.elapsed();
    anyhow::ensure!(matches!(first[..], [Appended::New(_)]), "not accepted");
    table.figure(
        format!("start with {} queued and {ids} ids remembered", pending.len()),
        format!("{:.2} s", took.as_secs_f64()),
        "< 2 s",
        took < Duration::from_secs(2),
    );
    drop(pending);
    table.note("memory after that start", format!("{:.0} MiB", memory()?.0));
    journal.close().await;
    Ok(())
}

/// Puts ids onto the disk that are remembered beside those of the log.
fn remember(journal: &Path, count: u64) -> anyhow::Result<()> {
    let runs = RunDirectory::open(journal)?;
    let mut ids = Ids::open(&runs, journal::ids::Options::default())?;
    let now = wall_ms();
    for number in 0..count {
        let born = now - 6 * 24 * 3_600_000 + number * 5 * 24 * 3_600_000 / count;
        ids.insert(&key((1 << 50) + number), Born::At(born), born, Seq(1));
        if ids.freeze_due(born)
            && let Some(frozen) = ids.freeze()
        {
            for file in ids.adopt(frozen.write(&runs)?) {
                runs.remove(file)?;
            }
            while let Some(merge) = ids.merge() {
                for file in ids.adopt(merge.write(&runs)?) {
                    runs.remove(file)?;
                }
            }
        }
    }
    if let Some(frozen) = ids.freeze() {
        ids.adopt(frozen.write(&runs)?);
    }
    Ok(())
}
