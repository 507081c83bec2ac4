//! `journal check`, `dump` and `repair`, as somebody in trouble runs them: on a journal that no bridge has open.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use aura_whatsapp_operator::journal::{
    Address, Appended, ContactKey, DedupKey, Direction, Journal, Keyring, NewEntry, Options, Origin, Outcome,
    Pending, ReadError, Seq, Surroundings, WrappingKey,
};
use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::PROGRAM;

/// How many messages a journal has here: the first was delivered, the second is a dead letter, the others wait.
const MESSAGES: u64 = 16;
/// When all of it happens, ms since the epoch.
const AT_MS: u64 = 1_728_000_001_000;
/// Places in a segment's file: in its header; the first frame; in that one's header; its first record, and in that.
const IN_HEADER: usize = 20;
const FRAME: usize = 64;
const IN_FRAME_HEADER: usize = 70;
const RECORD: usize = 96;
const IN_RECORD: usize = 120;
const NOT_ITS_CHECKSUM: &str = "a frame whose content does not match its checksum";

/// What each verb is called with, where it is to do all that it can.
const VERBS: [(&str, &[&str]); 3] = [("check", &[]), ("dump", &[]), ("repair", &["--yes"])];

fn contact(number: u64) -> String {
    format!("349876543210{number:03}")
}

fn trace(number: u64) -> String {
    format!("sentinel-trace-{number:03}")
}

/// Long enough for four messages to fill a segment.
fn body(number: u64) -> String {
    format!("sentinel-words-of-the-user-{number:03}-{}", "x".repeat(180))
}

fn entry(number: u64) -> NewEntry {
    let digest = [u8::try_from(number).unwrap(); 16];
    NewEntry {
        address: Address {
            direction: Direction::ToAura,
            channel: [3; 16],
            environment: [4; 8],
            tag: [5; 6],
            contact: ContactKey(digest),
        },
        contact: contact(number),
        dedup: DedupKey(digest),
        born_ms: Some(AT_MS),
        accepted_at_ms: AT_MS,
        request: None,
        trace: trace(number),
        body: Bytes::from(body(number)),
        origin: Origin::Peer,
        set_aside: None,
    }
}

/// Names in a directory, in order.
fn names(dir: &Path) -> Vec<String> {
    let items = fs::read_dir(dir).unwrap().map(|item| item.unwrap().file_name());
    let mut names: Vec<_> = items.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

/// Every file below a directory, by its path there.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for name in names(dir) {
        let path = dir.join(&name);
        if path.is_dir() {
            let inner = files(&path).into_iter();
            found.extend(inner.map(|(inner, bytes)| (Path::new(&name).join(inner), bytes)));
        } else {
            found.insert(PathBuf::from(name), fs::read(path).unwrap());
        }
    }
    found
}

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 1;
    fs::write(file, bytes).unwrap();
}

/// Runs `journal VERB DIR`: its exit status, stdout and stderr.
fn run(verb: &str, dir: &Path, more: &[&str]) -> (i32, String, String) {
    let output = Command::new(PROGRAM)
        .args(["journal", verb])
        .arg(dir)
        .args(more)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// A bridge's volume: a journal of several segments, and the keys that it is sealed with.
struct Volume {
    dir: TempDir,
    is_sealed: bool,
}

impl Volume {
    async fn sealed() -> Self {
        Self::filled(true).await
    }

    /// One without keys: contacts and texts stand in its files as they are.
    async fn in_the_clear() -> Self {
        Self::filled(false).await
    }

    async fn filled(is_sealed: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let volume = Self { dir, is_sealed };
        let (journal, _) = volume.open();
        for number in 1..=MESSAGES {
            journal.append(vec![entry(number)]).await.unwrap();
        }
        let delivered = Outcome::Delivered { reference: None };
        journal.settle(Seq(1), delivered).await.unwrap();
        let reason = "TooOld".to_owned();
        journal
            .settle(Seq(2), Outcome::DeadLetter { reason })
            .await
            .unwrap();
        journal.close().await;
        volume.wait_for_nobody();
        assert!(volume.segments().len() > 3, "{:?}", volume.segments());
        volume
    }

    /// As a bridge opens it.
    fn open(&self) -> (Journal, Vec<Pending>) {
        let keys = self.dir.path().join("journal-keys");
        let keyring = || Keyring::open(&keys, vec![WrappingKey::new([7; 64])]).unwrap();
        let options = Options {
            segment_bytes: 2_048,
            preallocate: false,
            ..Options::default()
        };
        let surroundings = Surroundings {
            keyring: self.is_sealed.then(|| Arc::new(keyring())),
            wall: Arc::new(|| AT_MS),
            ..Surroundings::default()
        };
        Journal::open(&self.journal(), options, surroundings).unwrap()
    }

    /// Waits until nobody has the journal open. A process that another test is just starting has all of our files for a
    /// moment, and with them the lock.
    fn wait_for_nobody(&self) {
        let lock = fs::File::open(self.journal().join("LOCK")).unwrap();
        lock.lock().unwrap();
        lock.unlock().unwrap();
    }

    fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    /// The segments' files, oldest first.
    fn segments(&self) -> Vec<PathBuf> {
        let paths = names(&self.journal())
            .into_iter()
            .map(|name| self.journal().join(name));
        let is_segment = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "seg");
        paths.filter(is_segment).collect()
    }

    /// Damages the first record of the second segment; says which message it was.
    fn damage(&self) -> u64 {
        let (_, dump, _) = run("dump", &self.journal(), &[]);
        let second = 2;
        let start = format!("{second:020}+{RECORD} accepted seq=");
        let line = dump.lines().find_map(|line| line.strip_prefix(start.as_str()));
        let line = line.unwrap_or_else(|| panic!("no message begins segment 2:\n{dump}"));
        flip(&self.segments()[1], IN_RECORD);
        line.split(' ').next().unwrap().parse().unwrap()
    }
}

/// Asserts that a report shows nothing of any message.
fn nothing_personal(what: &str, text: &str) {
    for number in 1..=MESSAGES {
        for word in [contact(number), trace(number), body(number)] {
            assert!(!text.contains(&word), "{what} shows {word}:\n{text}");
        }
    }
}

#[tokio::test]
async fn a_whole_journal_is_said_to_be_whole_and_what_is_in_it_is_counted() {
    let volume = Volume::sealed().await;
    let before = files(&volume.journal());
    let (code, said, error) = run("check", &volume.journal(), &[]);
    assert_eq!((code, error.as_str()), (0, ""), "{said}");
    let lines: Vec<&str> = said.lines().collect();
    let (last, segments) = lines.split_last().unwrap();
    assert_eq!(
        *last,
        format!("whole: {} messages to be delivered, 1 dead letters", MESSAGES - 2)
    );
    assert_eq!(segments.len(), volume.segments().len(), "{said}");
    for (line, file) in segments.iter().zip(volume.segments()) {
        let bytes = fs::metadata(&file).unwrap().len();
        assert!(
            line.starts_with(&format!("{}  {bytes} bytes, ", file.display())),
            "{line}"
        );
    }

    let (code, said, _) = run("check", &volume.journal(), &["--output", "json"]);
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (
            code,
            &report["pending"],
            &report["deadLetters"],
            &report["refused"]
        ),
        (0, &json!(MESSAGES - 2), &json!(1), &Value::Null)
    );
    let segments = report["segments"].as_array().unwrap();
    let records = segments
        .iter()
        .map(|segment| segment["records"].as_u64().unwrap());
    assert_eq!(records.sum::<u64>(), MESSAGES + 2, "each message, and two ends");
    assert_eq!(files(&volume.journal()), before, "a look changes nothing");
}

#[tokio::test]
async fn a_changed_byte_in_any_segment_is_found_with_its_file_and_place_and_nothing_else_is_changed() {
    let volume = Volume::sealed().await;
    let journal = volume.journal();
    for segment in volume.segments() {
        for (at, from) in [(IN_HEADER, 0), (IN_FRAME_HEADER, FRAME), (IN_RECORD, FRAME)] {
            flip(&segment, at);
            let before = files(&journal);
            let (code, said, error) = run("check", &journal, &[]);
            assert_eq!((code, error.as_str()), (1, ""), "byte {at}: {said}");
            let own = format!("{}  ", segment.display());
            let told = said.lines().skip_while(|line| !line.starts_with(&own)).nth(1);
            let damaged = format!("  DAMAGED  bytes {from} to ");
            assert!(told.is_some_and(|line| line.starts_with(&damaged)), "{said}");
            assert_eq!(said.matches("DAMAGED").count(), 1, "{said}");
            let refused = format!(
                "the bridge does not open it: the journal is damaged: {} at byte {from}: ",
                segment.display()
            );
            assert!(said.contains(&refused), "{said}");
            assert_eq!(said.contains(NOT_ITS_CHECKSUM), at == IN_RECORD, "{said}");
            assert_eq!(files(&journal), before);
            flip(&segment, at);
        }
    }
    assert_eq!(run("check", &journal, &[]).0, 0);
}

#[tokio::test]
async fn a_segment_that_is_missing_is_named() {
    let volume = Volume::sealed().await;
    let gone = volume.segments().remove(1);
    fs::remove_file(&gone).unwrap();
    let (code, said, _) = run("check", &volume.journal(), &[]);
    let missing = format!("{} is missing and still needed", gone.display());
    assert!(code == 1 && said.contains(&missing), "{said}");
}

#[tokio::test]
async fn a_dump_tells_of_each_record_that_is_whole() {
    let volume = Volume::sealed().await;
    let (code, said, error) = run("dump", &volume.journal(), &[]);
    assert_eq!((code, error.as_str()), (0, ""));
    let told = |said: &str, of: &str| said.lines().filter(|line| line.contains(of)).count();
    for number in 1..=MESSAGES {
        assert_eq!(told(&said, &format!(" accepted seq={number} ")), 1, "{said}");
    }
    for (seq, outcome) in [(1, "delivered"), (2, "dead_letter reason=TooOld")] {
        let settled = format!(" settled seq={seq} at_ms={AT_MS} outcome={outcome}");
        assert!(said.lines().any(|line| line.ends_with(&settled)), "{said}");
    }
    assert_eq!(said.lines().count() as u64, MESSAGES + 2, "{said}");

    // Of a damaged one, all the rest.
    let lost = volume.damage();
    let (code, rest, _) = run("dump", &volume.journal(), &[]);
    assert_eq!(code, 0);
    assert_eq!(told(&rest, &format!(" accepted seq={lost} ")), 0, "{rest}");
    assert_eq!(rest.lines().count() as u64, MESSAGES + 1, "{rest}");
}

#[tokio::test]
async fn no_verb_shows_a_contact_or_a_text_where_they_stand_in_the_clear() {
    let volume = Volume::in_the_clear().await;
    let first = fs::read(&volume.segments()[0]).unwrap();
    for word in [contact(1), trace(1), body(1)] {
        let stands = first.windows(word.len()).any(|window| window == word.as_bytes());
        assert!(stands, "{word} would be there to be shown");
    }
    let whole = run("dump", &volume.journal(), &[]).1;
    assert!(whole.contains(" accepted seq=1 "), "{whole}");
    nothing_personal("dump", &whole);

    volume.damage();
    let verbs: [(&str, &[&str], i32); 5] = [
        ("check", &[], 1),
        ("check", &["--output", "json"], 1),
        ("dump", &[], 0),
        ("repair", &[], 1),
        ("repair", &["--yes"], 0),
    ];
    for (verb, more, expected) in verbs {
        let (code, said, error) = run(verb, &volume.journal(), more);
        assert_eq!(code, expected, "{verb} {more:?}: {said}{error}");
        assert!(!said.is_empty());
        nothing_personal(verb, &said);
        nothing_personal(verb, &error);
    }
}

#[tokio::test]
async fn a_repair_makes_a_journal_of_what_is_whole_and_keeps_the_damaged_one_beside_it() {
    let volume = Volume::sealed().await;
    let journal = volume.journal();
    let lost = volume.damage();
    // Of the messages before it all but the first two may have ended in it.
    assert!(lost > 3 && lost < MESSAGES, "{lost}");
    let (pending, uncertain) = (MESSAGES - lost, lost - 3);
    let damaged = files(&journal);

    let (code, said, _) = run("repair", &journal, &[]);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("DAMAGED") && said.ends_with("\nnothing was changed: add --yes to repair\n"),
        "{said}"
    );
    assert_eq!(files(&journal), damaged);
    assert_eq!(names(volume.dir.path()), ["journal", "journal-keys"]);

    let (_, report, _) = run("check", &journal, &["--output", "json"]);
    let report: Value = serde_json::from_str(&report).unwrap();
    let place = &report["segments"][1]["damage"][0];
    let bytes = place["to"].as_u64().unwrap() - place["from"].as_u64().unwrap();
    let (code, said, error) = run("repair", &journal, &["--yes"]);
    assert_eq!((code, error.as_str()), (0, ""), "{said}");
    let beside = names(volume.dir.path());
    let [_, _, kept_as] = &beside[..] else {
        panic!("{beside:?}")
    };
    assert!(kept_as.starts_with("journal.damaged-"), "{beside:?}");
    let kept_as = volume.dir.path().join(kept_as);
    assert_eq!(
        said,
        format!(
            "repaired: {pending} messages to be delivered, 1 dead letters from before\n\
             {uncertain} more are dead letters with the reason Repaired: they may have been delivered; look at them \
             with `messages list`\n\
             lost: 1 damaged places, {bytes} bytes\n\
             the damaged journal is kept as {}; remove it when nobody needs it any more\n",
            kept_as.display()
        )
    );
    assert_eq!(
        files(&kept_as),
        damaged,
        "not a byte of the damaged one is touched"
    );

    let (code, said, _) = run("check", &journal, &[]);
    assert_eq!(code, 0, "{said}");
    let whole = format!(
        "whole: {pending} messages to be delivered, {} dead letters\n",
        uncertain + 1
    );
    assert!(said.ends_with(&whole), "{said}");

    // The bridge takes it, with the keys that are where they were.
    let (open, waiting) = volume.open();
    let waiting: Vec<u64> = waiting.iter().map(|message| message.seq.0).collect();
    assert_eq!(waiting, (lost + 1..=MESSAGES).collect::<Vec<_>>());
    for number in (2..=MESSAGES).filter(|number| *number != lost) {
        let found = open.read(Seq(number)).await.unwrap();
        assert_eq!(
            (found.contact, found.trace, found.body),
            (contact(number), trace(number), Bytes::from(body(number)))
        );
    }
    for gone in [1, lost] {
        let found = open.read(Seq(gone)).await;
        assert!(matches!(found, Err(ReadError::NotKept(_))), "{found:?}");
    }
    let dead: BTreeMap<u64, String> = open
        .dead_letters()
        .into_iter()
        .map(|dead| (dead.seq.0, dead.reason))
        .collect();
    let reason = |number| if number == 2 { "TooOld" } else { "Repaired" };
    let expected: BTreeMap<u64, String> = (2..lost)
        .map(|number| (number, reason(number).to_owned()))
        .collect();
    assert_eq!(dead, expected);
    // What is whole is known when it comes again; what stood in the damaged place alone is new.
    assert_eq!(
        open.append(vec![entry(1), entry(lost)]).await.unwrap(),
        [Appended::Duplicate(Seq(1)), Appended::New(Seq(MESSAGES + 1))]
    );
    open.close().await;
}

#[tokio::test]
async fn a_journal_in_use_is_left_alone() {
    let volume = Volume::sealed().await;
    let (open, _) = volume.open();
    for (verb, more) in VERBS {
        let (code, said, error) = run(verb, &volume.journal(), more);
        assert_eq!((code, said.as_str()), (2, ""), "{verb}");
        let in_use = format!(
            "error: the journal {} is in use by another process\n",
            volume.journal().display()
        );
        assert_eq!(error, in_use, "{verb}");
    }
    assert_eq!(names(volume.dir.path()), ["journal", "journal-keys"]);
    let next = Seq(MESSAGES + 1);
    assert_eq!(
        open.append(vec![entry(next.0)]).await.unwrap(),
        [Appended::New(next)]
    );
    open.close().await;
}

#[test]
fn a_path_that_is_no_directory_is_told_of_and_nothing_is_made_there() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a-file");
    fs::write(&file, "no journal").unwrap();
    for path in [dir.path().join("nowhere"), file.clone()] {
        for (verb, more) in VERBS {
            let (code, said, error) = run(verb, &path, more);
            assert_eq!((code, said.as_str()), (2, ""), "{verb}: {error}");
            assert!(
                error.starts_with("error: could not find the journal's directory"),
                "{verb}: {error}"
            );
            assert_eq!(names(dir.path()), ["a-file"], "{verb}");
        }
    }
    assert_eq!(fs::read_to_string(file).unwrap(), "no journal");
}

#[test]
fn a_directory_that_holds_no_journal_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    // As the volume is, one level above the journal.
    let volume = dir.path().join("data");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("routes.json"), "{}").unwrap();
    for (verb, more) in VERBS {
        let (code, said, error) = run(verb, &volume, more);
        assert_eq!((code, said.as_str()), (2, ""), "{verb}: {error}");
        assert!(error.contains("data is no journal"), "{verb}: {error}");
    }
    assert_eq!(names(dir.path()), ["data"]);
    assert_eq!(names(&volume), ["routes.json"]);
}

#[tokio::test]
async fn a_repair_leaves_remembered_ids_out_that_cannot_be_read_and_says_which() {
    let volume = Volume::sealed().await;
    let journal = volume.journal();
    let name = "00000000000000000009.ids";
    fs::write(journal.join("ids").join(name), [7; 4096]).unwrap();
    let (code, said, _) = run("check", &journal, &[]);
    assert_eq!(code, 1);
    assert!(said.contains(name) && said.contains("journal repair"), "{said}");
    let (code, said, error) = run("repair", &journal, &["--yes"]);
    assert_eq!((code, error.as_str()), (0, ""), "{said}");
    let lost = format!("lost: the ids in ids/{name}: what Kernel or Aura sends again");
    assert!(said.contains(&lost), "{said}");
    let (code, said, _) = run("check", &journal, &[]);
    assert_eq!(code, 0, "{said}");
    let (open, waiting) = volume.open();
    assert_eq!(waiting.len() as u64, MESSAGES - 2);
    open.close().await;
}
