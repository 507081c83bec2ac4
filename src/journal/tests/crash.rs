//! Crashes: at every file operation and for many seeds, nothing acknowledged is lost, nothing is half there.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use tokio::sync::oneshot;

use super::disk::{Disk, Trouble};
use super::{
    AppendError, Appended, Bench, Command, NewEntry, OpenError, Options, Outcome, Reference, Runs, START_MS,
    Seq, Wall, dead, delivered, encoded, entry, small_segments,
};

/// What the journal has said so far, and so what it must know after any crash.
struct Model {
    rng: fastrand::Rng,
    now_ms: u64,
    next: u64,
    runs: Runs,
    accepted: BTreeMap<Seq, NewEntry>,
    settled: BTreeSet<Seq>,
    dead: BTreeSet<Seq>,
    /// What was new in batches that failed: it may come back, as a whole, by a crash before the next commit.
    uncertain: Vec<Vec<NewEntry>>,
    uncertain_settles: BTreeSet<Seq>,
}

enum Asked {
    Append(
        Vec<NewEntry>,
        oneshot::Receiver<Result<Vec<Appended>, AppendError>>,
    ),
    Settle(Seq, bool, oneshot::Receiver<Result<(), AppendError>>),
}

impl Model {
    fn new(seed: u64) -> Self {
        Self {
            rng: fastrand::Rng::with_seed(seed),
            now_ms: START_MS,
            next: 0,
            runs: Runs::default(),
            accepted: BTreeMap::new(),
            settled: BTreeSet::new(),
            dead: BTreeSet::new(),
            uncertain: Vec::new(),
            uncertain_settles: BTreeSet::new(),
        }
    }

    fn new_entry(&mut self) -> NewEntry {
        self.next += 1;
        let made = entry(self.next).at(self.now_ms);
        // Bodies of several sectors, some of zeros, so that torn writes have many shapes.
        let mut body = made.body.to_vec();
        body.extend(std::iter::repeat_n(
            if self.rng.bool() { b'x' } else { 0 },
            self.rng.usize(..1500),
        ));
        made.with_body(body)
    }

    fn group(&mut self) -> (Vec<Command>, Vec<Asked>) {
        // Now and then an hour ends: then ids go to the disk, and segments without anything live may go.
        self.now_ms += if self.rng.u8(..4) == 0 {
            self.rng.u64(..3_000_000)
        } else {
            self.rng.u64(..50)
        };
        let mut commands = Vec::new();
        let mut asked = Vec::new();
        for _ in 0..self.rng.usize(1..4) {
            let open: Vec<Seq> = self
                .accepted
                .keys()
                .filter(|seq| !self.settled.contains(seq))
                .copied()
                .collect();
            if self.rng.u8(..5) < 2 && !open.is_empty() {
                let seq = open[self.rng.usize(..open.len())];
                let (reply, answer) = oneshot::channel();
                let (outcome, is_dead) = match self.rng.u8(..4) {
                    0 => (dead("RefusedByKernel"), true),
                    1 => {
                        let reference = Some(Reference(self.rng.u128(..).to_le_bytes()));
                        (Outcome::Delivered { reference }, false)
                    }
                    _ => (delivered(), false),
                };
                commands.push(Command::Settle {
                    seq,
                    outcome,
                    at_ms: self.now_ms,
                    reply,
                });
                asked.push(Asked::Settle(seq, is_dead, answer));
            } else {
                let mut entries: Vec<_> = (0..self.rng.usize(1..4)).map(|_| self.new_entry()).collect();
                let known: Vec<_> = self.accepted.values().map(|known| known.dedup).collect();
                if self.rng.u8(..3) == 0 && !known.is_empty() {
                    entries[0].dedup = known[self.rng.usize(..known.len())];
                }
                let (reply, answer) = oneshot::channel();
                commands.push(Command::Append {
                    entries: encoded(entries.clone()),
                    reply,
                });
                asked.push(Asked::Append(entries, answer));
            }
        }
        (commands, asked)
    }

    fn known(&self, entry: &NewEntry) -> Option<Seq> {
        let known = self.accepted.iter().find(|(_, known)| known.dedup == entry.dedup);
        known.map(|(seq, _)| *seq)
    }

    #[allow(clippy::single_match_else)]
    fn take_answers(&mut self, asked: Vec<Asked>) {
        let mut failed = (Vec::new(), Vec::new());
        let mut committed = false;
        for asked in asked {
            match asked {
                Asked::Append(entries, mut answer) => match answer.try_recv().unwrap() {
                    Ok(answers) => {
                        for (entry, answer) in entries.into_iter().zip(answers) {
                            let known = self.known(&entry);
                            match answer {
                                Appended::New(seq) => {
                                    committed = true;
                                    assert_eq!(known, None, "accepted twice");
                                    assert!(
                                        self.accepted.keys().all(|older| *older < seq),
                                        "{seq:?} used twice"
                                    );
                                    self.accepted.insert(seq, entry);
                                }
                                Appended::Duplicate(seq) => assert_eq!(known, Some(seq)),
                            }
                        }
                    }
                    Err(_) => {
                        let fresh = entries.into_iter().filter(|entry| self.known(entry).is_none());
                        failed.0.push(fresh.collect());
                    }
                },
                Asked::Settle(seq, is_dead, mut answer) => match answer.try_recv().unwrap() {
                    Ok(()) => {
                        // Twice in one group: the first one counts.
                        if self.settled.insert(seq) {
                            committed = true;
                            if is_dead {
                                self.dead.insert(seq);
                            }
                        }
                    }
                    Err(_) => failed.1.push(seq),
                },
            }
        }
        if committed {
            // A new file was started before this commit was answered: what failed earlier can't come back.
            self.uncertain.clear();
            self.uncertain_settles.clear();
        }
        self.uncertain.extend(failed.0);
        self.uncertain_settles.extend(failed.1);
    }

    /// Opens the journal, trouble at opening included, and compares it with what was said.
    fn reopen(&mut self, mut disk: Disk, options: &Options) -> Bench {
        loop {
            let wall = Wall::default();
            wall.set(self.now_ms);
            let (mut bench, pending) = match Bench::open_with(&disk, &self.runs, options, &wall) {
                Ok(opened) => opened,
                Err(OpenError::Io { .. }) => {
                    disk = disk.after_power_loss(&mut self.rng);
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            let kept: BTreeSet<Seq> = bench
                .writer
                .shared()
                .state()
                .dead_letters()
                .iter()
                .map(|dead| dead.seq)
                .collect();
            for seq in &self.dead {
                assert!(kept.contains(seq), "{seq:?} is a dead letter and is lost");
                assert_eq!(bench.read(*seq).unwrap().body, self.accepted[seq].body);
            }
            let mut found: BTreeSet<Seq> = pending.iter().map(|message| message.seq).collect();
            for (seq, entry) in &self.accepted {
                let here = found.remove(seq);
                if self.settled.contains(seq) {
                    assert!(!here, "{seq:?} was settled and is pending");
                } else if self.uncertain_settles.contains(seq) {
                    if !here {
                        self.settled.insert(*seq);
                        self.dead.extend(kept.get(seq));
                    }
                } else {
                    assert!(here, "{seq:?} was acknowledged and is lost");
                }
                if here {
                    assert_eq!(bench.read(*seq).unwrap().body, entry.body);
                }
            }
            let mut back_keys = HashSet::new();
            for mut fresh in std::mem::take(&mut self.uncertain) {
                // Two callers of one failed group may have sent the same id.
                fresh.retain(|entry| !back_keys.contains(&entry.dedup));
                let bodies: BTreeMap<_, _> = found
                    .iter()
                    .map(|seq| (bench.read(*seq).unwrap().body, *seq))
                    .collect();
                let back: Vec<Seq> = fresh
                    .iter()
                    .filter_map(|entry| bodies.get(&entry.body).copied())
                    .collect();
                assert!(
                    back.is_empty() || back.len() == fresh.len(),
                    "half a batch came back"
                );
                for (seq, entry) in back.into_iter().zip(fresh) {
                    back_keys.insert(entry.dedup);
                    found.remove(&seq);
                    self.accepted.insert(seq, entry);
                }
            }
            assert!(found.is_empty(), "{found:?} were never accepted");
            self.uncertain_settles.clear();
            for known in self.accepted.values().cloned().collect::<Vec<_>>() {
                if let Some(seq) = self.known(&known) {
                    let again = known.at(self.now_ms);
                    assert_eq!(bench.append(vec![again]).unwrap(), [Appended::Duplicate(seq)]);
                }
            }
            return bench;
        }
    }

    fn crash(&mut self, disk: &Disk) -> Disk {
        if self.rng.bool() {
            disk.after_power_loss(&mut self.rng)
        } else {
            disk.after_kill(&mut self.rng)
        }
    }
}

fn live(seed: u64) {
    let mut model = Model::new(seed);
    let mut disk = Disk::seeded(seed);
    for _ in 0..4 {
        let options = Options {
            segment_bytes: model.rng.u64(100..9000),
            preallocate: model.rng.bool(),
            ..small_segments()
        };
        for _ in 0..model.rng.usize(..4) {
            let trouble = [Trouble::Stop, Trouble::NoSpace, Trouble::Error][model.rng.usize(..3)];
            disk.plan(model.rng.u64(..50), trouble);
        }
        let mut bench = model.reopen(disk.clone(), &options);
        for _ in 0..model.rng.usize(1..12) {
            let (commands, asked) = model.group();
            bench.wall.set(model.now_ms);
            bench.commit(commands);
            if model.rng.bool() {
                bench.writer.mark();
            }
            model.take_answers(asked);
            if model.rng.u8(..3) == 0 {
                bench.keep();
            }
        }
        disk = model.crash(&bench.disk);
    }
    model.reopen(disk, &small_segments());
}

/// As many as `AURA_CRASH_SEEDS` says, from `AURA_CRASH_SEED` on.
#[test]
fn for_thousands_of_seeds_of_crashes_and_errors_nothing_acknowledged_is_lost() {
    let setting = |name| {
        std::env::var(name)
            .ok()
            .and_then(|text: String| text.parse().ok())
    };
    let first = setting("AURA_CRASH_SEED").unwrap_or(0);
    for seed in first..first + setting("AURA_CRASH_SEEDS").unwrap_or(2_000) {
        let result = std::panic::catch_unwind(|| live(seed));
        assert!(result.is_ok(), "seed {seed}");
    }
}

#[test]
fn a_stop_at_every_file_operation_loses_nothing_acknowledged() {
    let run = |stop: Option<u64>, seed: u64| {
        // The same work each time: only the place of the stop and what the power loss leaves differ.
        let mut model = Model::new(1);
        let disk = Disk::seeded(seed);
        if let Some(stop) = stop {
            disk.plan(stop, Trouble::Stop);
        }
        let opened = Bench::open_with(&disk, &model.runs, &small_segments(), &Wall::default());
        let Ok((mut bench, _)) = opened else {
            return disk.operations();
        };
        for _ in 0..25 {
            let (commands, asked) = model.group();
            bench.wall.set(model.now_ms);
            bench.commit(commands);
            model.take_answers(asked);
            bench.keep();
        }
        model.rng = fastrand::Rng::with_seed(seed);
        let after = model.crash(&disk);
        model.reopen(after, &small_segments());
        disk.operations()
    };
    let operations = run(None, 0);
    assert!(operations > 60, "{operations}");
    for stop in 0..operations {
        for seed in 0..8 {
            run(Some(stop), seed);
        }
    }
}
