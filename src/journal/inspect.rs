//! For people in trouble: what the files of a journal hold, what of them is damaged, and a journal made of what is whole.
//!
//! Not for opening one (`replay.rs` refuses damage; this is what its refusal points to). Upholds law 1 as far as it can
//! be after damage: what is whole is kept, what may have been delivered already is left to a person, nothing is guessed,
//! and the damaged files stay. Law 6: bodies are never shown.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::format::{
    ALIGN, HeaderBytes, Link, Part, Place, Record, SEGMENT_HEADER, Salt, SegmentHeader, decode_frame,
    encode_frame, salvage,
};
use super::ids::{Ids, IdsError, Options as IdsOptions, RunDirectory};
use super::replay::recover;
use super::storage::{Directory, DirectoryError, SegmentFile, Storage};
use super::{OpenError, Outcome, Seq};

/// What one segment file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentReport {
    /// The file.
    pub file: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    /// Commits that are whole.
    pub commits: u64,
    /// Records in these.
    pub records: u64,
    /// Places that are damaged.
    pub damage: Vec<DamageReport>,
}

/// One damaged place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamageReport {
    /// Where it begins, in bytes.
    pub from: u64,
    /// Where what is whole goes on; the end of the file if nothing does.
    pub to: u64,
    /// What is there.
    pub problem: &'static str,
    /// Records in it that are whole by their own checksums.
    pub salvaged: u64,
}

/// What a journal's files hold.
#[derive(Debug)]
pub struct Report {
    /// Each segment, oldest first.
    pub segments: Vec<SegmentReport>,
    /// Messages that are neither settled nor dead letters.
    pub pending: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Why it does not open; `None` if it does.
    pub refused: Option<OpenError>,
}

/// What a repair kept and what it could not.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Repaired {
    /// Messages that are to be delivered.
    pub pending: u64,
    /// Messages that may have been delivered: their end may have stood where the damage is. They are dead letters, with
    /// the reason `Repaired`.
    pub uncertain: u64,
    /// Dead letters from before.
    pub dead_letters: u64,
    /// Damaged places.
    pub damaged: u64,
    /// Bytes in these.
    pub damaged_bytes: u64,
    /// Files of remembered ids that can't be used: what comes again of their hours is not known.
    pub lost_ids: Vec<PathBuf>,
    /// Where the damaged journal is now.
    pub kept_as: PathBuf,
}

/// One record, without anything personal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dumped {
    /// The segment's number.
    pub segment: u64,
    /// Where it lies, in bytes.
    pub offset: u64,
    /// accepted, settled, trimmed, noted, part, parked or erased.
    pub kind: &'static str,
    /// The message, if it speaks of one.
    pub seq: Option<Seq>,
    /// The rest, as `name=value`.
    pub rest: String,
}

/// Opens a journal's directory for looking.
fn directory(dir: &Path) -> Result<(Directory, impl Sized), OpenError> {
    // Of a directory that is something else nothing is changed, least of all put in order.
    if !Directory::is_one(dir).map_err(io("find the journal's directory"))? {
        return Err(OpenError::NoJournal(dir.to_owned()));
    }
    Directory::open(dir).map_err(|error| match error {
        DirectoryError::Locked => OpenError::Locked(dir.to_owned()),
        DirectoryError::Io(source) => OpenError::Io {
            doing: "open the journal's directory",
            source,
        },
    })
}

fn io(doing: &'static str) -> impl Fn(io::Error) -> OpenError {
    move |source| OpenError::Io { doing, source }
}

/// Reads everything and says what is there. The journal must not be in use, and can't be on a volume that is only to be
/// read: what was never finished (a file that was being written when the machine stopped) is removed, and the last
/// segment is made durable as it is, as a start of the bridge does. Nothing else is changed.
///
/// # Errors
/// [`OpenError::Locked`], or the file system's; damage is part of the report.
pub fn check(dir: &Path) -> Result<Report, OpenError> {
    let (storage, _lock) = directory(dir)?;
    let found = read(&storage).map_err(io("read the segments"))?;
    let runs = RunDirectory::open(dir).map_err(io("open the remembered ids"))?;
    let opened = Ids::open(&runs, IdsOptions::default())
        .map_err(OpenError::from)
        .and_then(|mut ids| recover(&storage, &mut ids));
    let (pending, dead_letters, refused) = match opened {
        Ok(recovered) => (
            recovered.pending.len() as u64,
            recovered.state.dead_letter_count(),
            None,
        ),
        Err(error) => (0, 0, Some(error)),
    };
    Ok(Report {
        segments: found.into_iter().map(|segment| segment.report).collect(),
        pending,
        dead_letters,
        refused,
    })
}

/// Tells of each record that is whole, in order. The journal must not be in use.
///
/// # Errors
/// [`OpenError::Locked`], or the file system's.
pub fn dump(dir: &Path, mut tell: impl FnMut(Dumped)) -> Result<(), OpenError> {
    let (storage, _lock) = directory(dir)?;
    let sealed = sealed(&storage).map_err(io("read the segments' headers"))?;
    for number in storage.list().map_err(io("list the segments"))? {
        let file = storage
            .read(number, 0, usize::MAX)
            .map_err(io("read a segment"))?;
        walk(
            &storage,
            (number, sealed.get(&number).copied()),
            &file,
            |place, record, _| {
                tell(dumped(number, place, record));
            },
        );
    }
    Ok(())
}

fn dumped(segment: u64, place: Place, record: &Record<'_>) -> Dumped {
    let (kind, seq, rest) = match record {
        Record::Accepted(entry) => {
            let head = &entry.head;
            let rest = format!(
                "direction={:?} channel={} contact={} accepted_at_ms={} key={} bytes={} written_again={} replayed={} origin={:?}",
                head.address.direction,
                uuid::Uuid::from_bytes(head.address.channel),
                head.address.contact,
                head.accepted_at_ms,
                head.key,
                place.len,
                head.written_again,
                head.replayed,
                head.origin,
            );
            ("accepted", Some(head.seq), rest)
        }
        Record::Settled { seq, outcome, at_ms } => {
            let outcome = match outcome {
                Outcome::Delivered { .. } => "delivered".to_owned(),
                Outcome::DeadLetter { reason } => format!("dead_letter reason={reason}"),
                Outcome::Dropped { reason } => format!("dropped reason={reason}"),
            };
            ("settled", Some(*seq), format!("at_ms={at_ms} outcome={outcome}"))
        }
        Record::Trimmed { first_live } => ("trimmed", None, format!("first_live={first_live}")),
        Record::Noted { seq, note } => {
            let rest = format!(
                "attempts={} parts={} unknown={} told={}",
                note.attempts, note.parts, note.unknown, note.told
            );
            ("noted", Some(*seq), rest)
        }
        Record::Part { seq, part, .. } => ("part", Some(*seq), format!("part={part}")),
        Record::Parked { lane, parked } => {
            let channel = uuid::Uuid::from_bytes(lane.channel);
            let rest = format!("channel={channel} contact={} parked={parked}", lane.contact);
            ("parked", None, rest)
        }
        Record::Erased(head) => {
            let channel = uuid::Uuid::from_bytes(head.address.channel);
            let rest = format!("channel={channel} accepted_at_ms={}", head.accepted_at_ms);
            ("erased", Some(head.seq), rest)
        }
    };
    Dumped {
        segment,
        offset: place.offset,
        kind,
        seq,
        rest,
    }
}

/// A segment as it was read.
struct Found {
    report: SegmentReport,
    header: Option<SegmentHeader>,
    number: u64,
}

fn read(storage: &dyn Storage) -> io::Result<Vec<Found>> {
    let sealed = sealed(storage)?;
    let mut segments = Vec::new();
    for number in storage.list()? {
        let file = storage.read(number, 0, usize::MAX)?;
        segments.push(walk(
            storage,
            (number, sealed.get(&number).copied()),
            &file,
            |_, _, _| {},
        ));
    }
    Ok(segments)
}

/// How many bytes of each segment the one after it vouches for.
fn sealed(storage: &dyn Storage) -> io::Result<BTreeMap<u64, u64>> {
    let mut sealed = BTreeMap::new();
    for number in storage.list()? {
        let bytes = storage.read(number, 0, SEGMENT_HEADER)?;
        if let HeaderBytes::Valid(header) = SegmentHeader::decode(&bytes)
            && header.salt.number == number
        {
            sealed.insert(header.previous.number, header.previous.len);
        }
    }
    Ok(sealed)
}

/// Goes through one file, of which the next segment vouches for so many bytes: tells of each record that is whole, with
/// its bytes, and reports.
fn walk(
    storage: &dyn Storage,
    (number, sealed): (u64, Option<u64>),
    file: &[u8],
    mut tell: impl FnMut(Place, &Record<'_>, &[u8]),
) -> Found {
    let mut report = SegmentReport {
        file: storage.name(number),
        bytes: file.len() as u64,
        commits: 0,
        records: 0,
        damage: Vec::new(),
    };
    let header = match SegmentHeader::decode(file) {
        HeaderBytes::Valid(header) if header.salt.number == number => header,
        HeaderBytes::Unfinished => {
            return Found {
                report,
                header: None,
                number,
            };
        }
        _ => {
            report.damage.push(DamageReport {
                from: 0,
                to: file.len() as u64,
                problem: "not a segment header: without it nothing in the file can be trusted",
                salvaged: 0,
            });
            return Found {
                report,
                header: None,
                number,
            };
        }
    };
    let mut bytes_of = |places: &[(Place, Record<'_>)]| {
        for (place, record) in places {
            let from = usize::try_from(place.offset).unwrap_or(usize::MAX);
            let bytes = file.get(from..).and_then(|rest| rest.get(..place.len as usize));
            tell(*place, record, bytes.unwrap_or_default());
        }
    };
    let mut at = SEGMENT_HEADER;
    let end = sealed
        .and_then(|sealed| usize::try_from(sealed).ok())
        .unwrap_or(usize::MAX);
    while at < file.len().min(end) {
        match decode_frame(header.salt, file, at) {
            Ok(frame) => {
                report.commits += 1;
                report.records += frame.records.len() as u64;
                bytes_of(&frame.records);
                at = usize::try_from(frame.end).unwrap_or(usize::MAX);
            }
            Err(fault) => {
                let next = (at + ALIGN..file.len())
                    .step_by(ALIGN)
                    .find(|next| decode_frame(header.salt, file, *next).is_ok());
                // What stands behind the last whole commit was never answered for, or belongs to what the file was,
                // unless the next segment vouches for it.
                let vouched = sealed
                    .and_then(|sealed| usize::try_from(sealed).ok())
                    .filter(|sealed| *sealed > at);
                let Some(next) = next.or(vouched) else { break };
                let whole = salvage(header.salt, file, at);
                report.damage.push(DamageReport {
                    from: at as u64,
                    to: next as u64,
                    problem: fault.describe(),
                    salvaged: whole.len() as u64,
                });
                bytes_of(&whole);
                at = next;
            }
        }
    }
    Found {
        report,
        header: Some(header),
        number,
    }
}

/// Makes a journal of what is whole, in place of a damaged one, which is kept beside it. The journal must not be in use.
///
/// # Errors
/// [`OpenError::Locked`], or the file system's: then the journal is as it was.
pub fn repair(dir: &Path, segment_bytes: u64, now_ms: u64) -> Result<Repaired, OpenError> {
    let fresh = sibling(dir, "repaired");
    let kept_as = sibling(dir, &format!("damaged-{}", now_ms / 1000));
    let mut repaired = {
        let (storage, _lock) = directory(dir)?;
        if fresh.exists() {
            // A repair that did not come to its end.
            std::fs::remove_dir_all(&fresh).map_err(io("remove what an unfinished repair left"))?;
        }
        let target = Directory::open(&fresh).map_err(|_| OpenError::Locked(fresh.clone()))?;
        let mut repaired =
            rebuild(&storage, &target.0, segment_bytes, now_ms).map_err(io("write the repaired journal"))?;
        let ids = dir.join("ids");
        if ids.is_dir() {
            copy_files(&ids, &fresh.join("ids")).map_err(io("copy the remembered ids"))?;
            repaired.lost_ids = leave_out_damaged_ids(&fresh)?;
        }
        repaired
    };
    std::fs::rename(dir, &kept_as).map_err(io("set the damaged journal aside"))?;
    std::fs::rename(&fresh, dir).map_err(io("put the repaired journal in its place"))?;
    if let Some(parent) = dir.parent() {
        let _ = std::fs::File::open(parent).and_then(|parent| parent.sync_all());
    }
    repaired.kept_as = kept_as;
    Ok(repaired)
}

/// Removes the files of remembered ids that do not open from a copy; says which.
fn leave_out_damaged_ids(dir: &Path) -> Result<Vec<PathBuf>, OpenError> {
    let mut lost = Vec::new();
    loop {
        let runs = RunDirectory::open(dir).map_err(io("open the remembered ids"))?;
        match Ids::open(&runs, IdsOptions::default()) {
            Ok(_) => return Ok(lost),
            Err(IdsError::Damaged(damage)) => {
                std::fs::remove_file(&damage.file).map_err(io("leave damaged ids out"))?;
                lost.extend(damage.file.file_name().map(|name| Path::new("ids").join(name)));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn sibling(dir: &Path, word: &str) -> PathBuf {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    dir.with_file_name(format!("{name}.{word}"))
}

fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for item in std::fs::read_dir(from)? {
        let path = item?.path();
        if let (true, Some(name)) = (path.is_file(), path.file_name()) {
            std::fs::copy(&path, to.join(name))?;
            std::fs::File::open(to.join(name))?.sync_all()?;
        }
    }
    std::fs::File::open(to)?.sync_all()
}

/// What is known of the messages while a journal is rebuilt.
#[derive(Default)]
struct Fates {
    pending: BTreeSet<Seq>,
    dead: BTreeSet<Seq>,
    /// Pending when damage was met: their end may have been in it.
    uncertain: BTreeSet<Seq>,
}

impl Fates {
    fn take(&mut self, record: &Record<'_>) {
        match record {
            // Written again, a dead letter stays one: what it is follows.
            Record::Accepted(entry) if !self.dead.contains(&entry.head.seq) => {
                self.pending.insert(entry.head.seq);
            }
            Record::Settled { seq, outcome, .. } => {
                self.pending.remove(seq);
                self.uncertain.remove(seq);
                self.dead.remove(seq);
                if matches!(outcome, Outcome::DeadLetter { .. }) {
                    self.dead.insert(*seq);
                }
            }
            _ => {}
        }
    }

    fn damage(&mut self) {
        self.uncertain.extend(self.pending.iter().copied());
    }
}

/// Writes what is whole of one journal into another, empty one. Segments that were given up stay out.
fn rebuild(from: &dyn Storage, to: &dyn Storage, segment_bytes: u64, now_ms: u64) -> io::Result<Repaired> {
    let mut out = Rewriter::new(to, segment_bytes);
    let mut fates = Fates::default();
    let mut repaired = Repaired::default();
    let found = read(from)?;
    let sealed = sealed(from)?;
    let first_live = first_live(from, &sealed)?;
    let files: BTreeMap<u64, _> = found.iter().map(|found| (found.number, found)).collect();
    // What a crash left of segments that were given up needs nobody, and what is missing between them is no gap.
    for (number, found) in files.range(first_live..) {
        let file = from.read(*number, 0, usize::MAX)?;
        if let Some(header) = &found.header {
            out.never_below(header.next_seq, header.newest_ms);
            // A segment that is missing in front of this one may have held the end of anything.
            let missing =
                header.previous.number >= first_live.max(1) && !files.contains_key(&header.previous.number);
            if missing && header.previous.number != 0 && out.any {
                repaired.damaged += 1;
                fates.damage();
            }
        }
        repaired.damaged += found.report.damage.len() as u64;
        let mut damage = found.report.damage.iter().peekable();
        let mut problem = None;
        let vouched = sealed.get(number).copied();
        walk(from, (*number, vouched), &file, |place, record, bytes| {
            while damage.next_if(|damage| damage.to <= place.offset).is_some() {
                fates.damage();
            }
            fates.take(record);
            if matches!(record, Record::Trimmed { .. }) {
                return;
            }
            // The record's head is made anew: its checksum belongs to its place.
            if let Err(error) = out.push(&bytes[8..]) {
                problem.get_or_insert(error);
            }
        });
        for left in damage {
            let _ = left;
            fates.damage();
        }
        repaired.damaged_bytes += found
            .report
            .damage
            .iter()
            .map(|damage| damage.to - damage.from)
            .sum::<u64>();
        if let Some(error) = problem {
            return Err(error);
        }
    }
    for seq in &fates.uncertain {
        let outcome = Outcome::DeadLetter {
            reason: "Repaired".to_owned(),
        };
        out.push_record(&Record::Settled {
            seq: *seq,
            outcome,
            at_ms: now_ms,
        })?;
    }
    out.finish()?;
    repaired.pending = (fates.pending.len() - fates.uncertain.len()) as u64;
    repaired.uncertain = fates.uncertain.len() as u64;
    repaired.dead_letters = fates.dead.len() as u64;
    Ok(repaired)
}

/// The first segment that was not given up, as far as any record that is whole says.
fn first_live(from: &dyn Storage, sealed: &BTreeMap<u64, u64>) -> io::Result<u64> {
    let mut first = 0;
    for number in from.list()? {
        let file = from.read(number, 0, usize::MAX)?;
        walk(
            from,
            (number, sealed.get(&number).copied()),
            &file,
            |_, record, _| {
                if let Record::Trimmed { first_live } = record {
                    first = first.max(*first_live);
                }
            },
        );
    }
    Ok(first)
}

/// Writes segments, one after another.
struct Rewriter<'a> {
    to: &'a dyn Storage,
    segment_bytes: u64,
    active: Option<(Box<dyn SegmentFile>, Salt, u64)>,
    last: Link,
    contents: Vec<Vec<u8>>,
    bytes: u64,
    next_seq: u64,
    newest_ms: u64,
    any: bool,
}

/// Bytes of a frame, about.
const FRAME: u64 = 1 << 20;

impl<'a> Rewriter<'a> {
    fn new(to: &'a dyn Storage, segment_bytes: u64) -> Self {
        Self {
            to,
            segment_bytes,
            active: None,
            last: Link::default(),
            contents: Vec::new(),
            bytes: 0,
            next_seq: 1,
            newest_ms: 0,
            any: false,
        }
    }

    fn never_below(&mut self, next_seq: u64, newest_ms: u64) {
        self.next_seq = self.next_seq.max(next_seq);
        self.newest_ms = self.newest_ms.max(newest_ms);
    }

    fn push(&mut self, content: &[u8]) -> io::Result<()> {
        self.any = true;
        self.bytes += content.len() as u64;
        self.contents.push(content.to_vec());
        if self.bytes >= FRAME { self.flush() } else { Ok(()) }
    }

    fn push_record(&mut self, record: &Record<'_>) -> io::Result<()> {
        let mut content = Vec::new();
        super::format::encode_content(&mut content, record);
        self.push(&content)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.contents.is_empty() {
            return Ok(());
        }
        if self
            .active
            .as_ref()
            .is_none_or(|(_, _, at)| at + self.bytes > self.segment_bytes)
        {
            self.next_segment()?;
        }
        let Some((file, salt, at)) = self.active.as_mut() else {
            return Ok(());
        };
        let parts: Vec<_> = self
            .contents
            .iter()
            .map(|content| Part::Content(content))
            .collect();
        let mut frame = Vec::new();
        encode_frame(&mut frame, *salt, *at, self.newest_ms, &parts)?;
        file.write_all_at(*at, &frame)?;
        *at += frame.len() as u64;
        self.last.len = *at;
        self.contents.clear();
        self.bytes = 0;
        Ok(())
    }

    fn next_segment(&mut self) -> io::Result<()> {
        if let Some((file, ..)) = self.active.take() {
            file.sync()?;
        }
        let salt = Salt {
            number: self.last.number + 1,
            nonce: fastrand::u64(..),
        };
        let header = SegmentHeader {
            salt,
            previous: self.last,
            next_seq: self.next_seq,
            newest_ms: self.newest_ms,
        };
        let (file, _) = self.to.create(salt.number)?;
        file.write_all_at(0, &header.encode())?;
        self.last = Link {
            number: salt.number,
            len: SEGMENT_HEADER as u64,
        };
        self.active = Some((file, salt, SEGMENT_HEADER as u64));
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        // One more: its header has the lowest number that was never given out.
        self.next_segment()?;
        if let Some((file, ..)) = self.active.take() {
            file.sync()?;
        }
        self.to.sync_directory()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::tests::{Bench, Disk, Runs, Wall, dead, entry, roomy, seqs, small_segments};

    fn filled() -> Bench {
        let mut bench = Bench::new(&small_segments());
        for number in 1..=9 {
            bench.append(vec![entry(number), entry(number + 100)]).unwrap();
        }
        bench.settle(Seq(1)).unwrap();
        bench.settle_as(Seq(2), dead("TooOld")).unwrap();
        bench.writer.mark();
        bench
    }

    fn rebuilt(disk: &Disk) -> (Repaired, Bench, Vec<u64>) {
        let fresh = Disk::default();
        let repaired = rebuild(disk, &fresh, 4096, 77).unwrap();
        let (bench, pending) =
            Bench::open_with(&fresh, &Runs::default(), &roomy(), &Wall::default()).unwrap();
        (repaired, bench, seqs(&pending))
    }

    #[test]
    fn a_whole_journal_is_the_same_after_a_repair() {
        let bench = filled();
        let (repaired, rebuilt, pending) = rebuilt(&bench.disk);
        assert_eq!(pending, (3..=18).collect::<Vec<_>>());
        assert_eq!(
            (repaired.pending, repaired.uncertain, repaired.damaged),
            (16, 0, 0)
        );
        assert_eq!(rebuilt.read(Seq(3)).unwrap().body, entry(2).body);
        assert_eq!(rebuilt.writer.shared().state().dead_letters()[0].reason, "TooOld");
        assert_eq!(rebuilt.writer.shared().state().next_seq(), 19);
    }

    #[test]
    fn after_damage_what_is_whole_is_kept_and_what_may_have_ended_in_it_is_left_to_a_person() {
        let bench = filled();
        let before = bench.writer.shared().state().position(Seq(5)).unwrap().0;
        let damaged = before.segment;
        let at = usize::try_from(before.place.offset).unwrap() + 60;
        bench.disk.edit(damaged, |bytes| bytes[at] ^= 1);
        let found = read(&bench.disk).unwrap();
        let reports: Vec<_> = found.iter().flat_map(|found| &found.report.damage).collect();
        assert_eq!((reports.len(), reports[0].salvaged), (1, 1), "{reports:?}");
        let (repaired, rebuilt, pending) = rebuilt(&bench.disk);
        assert_eq!(repaired.damaged, 1);
        let dead = rebuilt.writer.shared().state().dead_letters();
        let repaired_dead = dead.iter().filter(|dead| dead.reason == "Repaired").count() as u64;
        assert_eq!(repaired_dead, repaired.uncertain);
        assert!(
            repaired.uncertain > 0 && !pending.contains(&5),
            "{repaired:?} {pending:?}"
        );
        // Whatever was accepted after the damage is to be delivered, with its bytes.
        assert!(pending.contains(&18));
        assert_eq!(rebuilt.read(Seq(18)).unwrap().body, entry(109).body);
        assert!(rebuilt.read(Seq(5)).is_err(), "the damaged one is gone");
        assert_eq!(pending.len() as u64 + repaired.uncertain, 15);
    }
}
