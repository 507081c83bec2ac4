//! The remembered ids: what a look-up costs, what an id takes on disk, what all take in memory.
//!
//! So many ids a second, every other one without an own time, as replies have none. Each is looked for and then inserted,
//! as the writer does; sealing and merging happen in between, on the same thread.

use std::fs::File;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use aura_whatsapp_operator::journal::ids::{Born, Ids, Options, RunDirectory, RunStorage};
use aura_whatsapp_operator::journal::{DedupKey, Seq};
use rustix::fs::{Advice, fadvise};

const START_MS: u64 = 490_000 * HOUR_MS;
const HOUR_MS: u64 = 3_600_000;
/// Numbers from here on are of ids that were never inserted.
const UNKNOWN: u64 = 1 << 40;

/// The digest of the id with this number (`SplitMix64` twice).
pub fn key(number: u64) -> DedupKey {
    let half = |seed: u64| {
        let mut mixed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    };
    let key = u128::from(half(2 * number + 1)) << 64 | u128::from(half(2 * number + 2));
    DedupKey(key.to_be_bytes())
}

/// When ids are accepted and born.
#[derive(Clone, Copy)]
struct Times {
    per_second: u64,
}

impl Times {
    fn accepted_at_ms(self, number: u64) -> u64 {
        START_MS + number * 1_000 / self.per_second
    }

    /// Every other id has a time of its own, up to 20 s before its acceptance.
    fn born(self, number: u64) -> Born {
        if number.is_multiple_of(2) {
            Born::At(self.accepted_at_ms(number) - number % 20_000)
        } else {
            Born::Unknown
        }
    }

    /// The first id of the hour of this one, of which all are surely born in it.
    fn of_hour(self, number: u64) -> u64 {
        let hour_began = self.accepted_at_ms(number) / HOUR_MS * HOUR_MS;
        (hour_began - START_MS) * self.per_second / 1_000 + self.per_second * 20
    }

    /// The first id that this one's window still holds.
    fn oldest(self, number: u64) -> u64 {
        number.saturating_sub(167 * 3_600 * self.per_second)
    }
}

/// Memory of this process in MiB: now, and at most since it was asked last.
pub fn memory() -> anyhow::Result<(f64, f64)> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let field = |name: &str| -> anyhow::Result<f64> {
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .context("no such field")?;
        let kib = line.split_whitespace().nth(1).context("no number")?;
        Ok(kib.parse::<f64>()? / 1024.0)
    };
    let memory = (field("VmRSS:")?, field("VmHWM:")?);
    // Where this is refused, the peak is that of the whole run.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    Ok(memory)
}

struct World {
    storage: RunDirectory,
    ids: Ids,
    times: Times,
    /// So many ids were inserted.
    count: u64,
    idle_mib: f64,
    sealing: Vec<Duration>,
    merging: Duration,
}

pub fn measure(millions: &[u64], per_second: u64) -> anyhow::Result<()> {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let (idle_mib, _) = memory()?;
    let storage = RunDirectory::open(directory.path())?;
    let ids = Ids::open(&storage, Options::default())?;
    let mut world = World {
        storage,
        ids,
        times: Times { per_second },
        count: 0,
        idle_mib,
        sealing: Vec::new(),
        merging: Duration::ZERO,
    };
    for millions in millions {
        println!("\n{millions} M ids, {per_second} a second\n\n| figure | value |\n| --- | ---: |");
        world.fill(millions * 1_000_000)?;
        world.look_up()?;
        world.memory()?;
        world.open("opening")?;
    }
    world.cold(directory.path())
}

fn row(figure: &str, value: impl std::fmt::Display) {
    println!("| {figure} | {value} |");
}

#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^53")]
fn number(count: u64) -> f64 {
    count as f64
}

impl World {
    fn fill(&mut self, to: u64) -> anyhow::Result<()> {
        memory()?;
        let (from, began) = (self.count, Instant::now());
        while self.count < to {
            let number = self.count;
            let (key, at_ms) = (key(number), self.times.accepted_at_ms(number));
            let born = self.times.born(number);
            anyhow::ensure!(self.ids.find(&key, born, at_ms)?.is_none(), "known before");
            self.ids.insert(&key, born, at_ms, Seq(number));
            self.count += 1;
            if self.ids.freeze_due(at_ms) {
                self.seal()?;
            }
        }
        let each = began.elapsed().as_secs_f64() * 1e9 / number(to - from);
        row(
            "look-up, insertion, sealing and merging of an id, all told",
            format!("{each:.0} ns"),
        );
        self.sealing.sort_unstable();
        if let Some(slowest) = self.sealing.last() {
            let median = self.sealing[self.sealing.len() / 2];
            row(
                "sealing, median and longest",
                format!("{median:.0?}, {slowest:.0?}"),
            );
        }
        row("merging, of all", format!("{:.1?}", self.merging));
        Ok(())
    }

    fn memory(&mut self) -> anyhow::Result<()> {
        let (now, peak) = memory()?;
        let held = self.ids.stats();
        let mib = |bytes: u64| number(bytes) / 1_048_576.0;
        row(
            "memory held as counted (filters)",
            format!(
                "{:.1} ({:.1}) MiB",
                mib(held.memory_bytes),
                mib(held.filter_bytes)
            ),
        );
        row(
            "resident memory above the start, now and at most",
            format!("{:.1}, {:.1} MiB", now - self.idle_mib, peak - self.idle_mib),
        );
        let on_disk = number(held.bytes_on_disk) / number(held.ids - held.ids_in_memory);
        row("bytes of an id on disk", format!("{on_disk:.1}"));
        row("runs", held.runs);
        Ok(())
    }

    fn seal(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        let frozen = self.ids.freeze().context("nothing to freeze")?;
        let run = frozen.write(&self.storage)?;
        drop(frozen);
        self.ids.adopt(run);
        self.sealing.push(began.elapsed());
        let began = Instant::now();
        while let Some(merge) = self.ids.merge() {
            for file in self.ids.adopt(merge.write(&self.storage)?) {
                self.storage.remove(file)?;
            }
        }
        self.merging += began.elapsed();
        Ok(())
    }

    /// The mean time of so many look-ups at the present time.
    fn time(
        &mut self,
        figure: &str,
        known: bool,
        count: u64,
        mut next: impl FnMut() -> (DedupKey, Born),
    ) -> anyhow::Result<()> {
        const BATCH: u64 = 1_000;
        let now_ms = self.times.accepted_at_ms(self.count);
        let mut took = Duration::ZERO;
        for _ in 0..count / BATCH {
            let ids: Vec<_> = (0..BATCH).map(|_| next()).collect();
            let began = Instant::now();
            for (key, born) in &ids {
                let found = black_box(self.ids.find(key, *born, now_ms)?);
                anyhow::ensure!(found.is_some() == known, "{figure}: a wrong answer");
            }
            took += began.elapsed();
        }
        let each = took.as_secs_f64() * 1e9 / number(count);
        row(figure, format!("{each:.0} ns"));
        Ok(())
    }

    fn look_up(&mut self) -> anyhow::Result<()> {
        let (count, times) = (self.count, self.times);
        let now_ms = times.accepted_at_ms(count);
        let (of_hour, oldest) = (times.of_hour(count), times.oldest(count));
        anyhow::ensure!(
            of_hour + 1_000 < count,
            "the hour has just begun: choose another number of ids"
        );
        let mut rng = fastrand::Rng::with_seed(1);
        let new = |rng: &mut fastrand::Rng| key(rng.u64(UNKNOWN..UNKNOWN << 1));
        let known = |number: u64| (key(number & !1), times.born(number & !1));
        self.time("a new id of this hour", false, 1_000_000, || {
            (new(&mut rng), Born::At(now_ms))
        })?;
        self.time("a known id of this hour", true, 200_000, || {
            known(rng.u64(of_hour..count))
        })?;
        self.time(
            "a new id without a time, 24 h looked through",
            false,
            200_000,
            || (new(&mut rng), Born::Unknown),
        )?;
        self.time("a known id of any hour", true, 200_000, || {
            known(rng.u64(oldest..count))
        })?;
        self.time("a new id of any hour", false, 200_000, || {
            (new(&mut rng), known(rng.u64(oldest..count)).1)
        })
    }

    /// Opens what is on disk a second time.
    fn open(&mut self, figure: &str) -> anyhow::Result<Ids> {
        let began = Instant::now();
        let opened = black_box(Ids::open(&self.storage, Options::default())?);
        row(figure, format!("{:.1?}", began.elapsed()));
        Ok(opened)
    }

    /// Opening and look-ups without the page cache.
    fn cold(&mut self, directory: &Path) -> anyhow::Result<()> {
        for file in std::fs::read_dir(directory.join("ids"))? {
            let file = File::open(file?.path())?;
            file.sync_all()?;
            fadvise(&file, 0, None, Advice::DontNeed)?;
        }
        self.ids = self.open("opening, nothing cached")?;
        // Those after it would come from the log.
        let (sealed, times) = (self.ids.sealed_through().0, self.times);
        let mut rng = fastrand::Rng::with_seed(2);
        let oldest = times.oldest(self.count);
        self.time("a known id of any hour, nothing cached", true, 1_000, || {
            let number = rng.u64(oldest..sealed) & !1;
            (key(number), times.born(number))
        })
    }
}
