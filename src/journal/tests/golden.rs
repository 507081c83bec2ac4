//! Stored bytes pin what stands on the disk: a release that writes others, or does not read these, can't go on with a
//! volume that is there.
//!
//! `AURA_GOLDEN=write cargo test --lib journal::tests::golden` writes them anew, which is right only together with
//! another format version.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use aes_siv::{KeyInit, siv::Aes256Siv};
use bytes::Bytes;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use super::Runs;
use crate::journal::format::{
    Accepted, Head, HeaderBytes, Link, Part, Record, SEGMENT_HEADER, Salt, SegmentHeader, encode_frame,
    erase_records,
};
use crate::journal::ids::{Born, Ids, Options as IdsOptions, RunStorage as _};
use crate::journal::replay::scan;
use crate::journal::seal::{self, BodyKey};
use crate::journal::{
    Address, ContactKey, DedupKey, Direction, Keyring, Lane, Note, Origin, Outcome, Reference, RequestId,
    Seq, WrappingKey,
};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
const DAY: u32 = 20_000;
/// On that day.
const AT_MS: u64 = 20_000 * DAY_MS + 1_000;
const SALT: Salt = Salt {
    number: 5,
    nonce: 0x0123_4567_89ab_cdef,
};
const ENVIRONMENT: [u8; 8] = [4; 8];
/// The key of that environment's bodies on that day, and its number.
const BODY_KEY: [u8; 32] = [0x11; 32];
const KEY_NUMBER: u32 = 7;
const SEALED_WITH: [u8; 12] = [0x33; 12];
const CONTACT: &str = "34600000077";
const BODY: &[u8] = b"{\"text\":\"hola\"}";

/// Rows of this many bytes are a line.
const ROW: usize = 32;

/// Bytes as text: each row after its offset, without those that are zeros; at the end the length.
fn to_text(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (row, at) in bytes.chunks(ROW).zip((0_usize..).step_by(ROW)) {
        if row.iter().any(|byte| *byte != 0) {
            write!(text, "{at:08x} ").unwrap();
            for byte in row {
                write!(text, "{byte:02x}").unwrap();
            }
            text.push('\n');
        }
    }
    writeln!(text, "{:08x}", bytes.len()).unwrap();
    text
}

fn from_text(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in text.lines() {
        let (offset, row) = line.split_once(' ').unwrap_or((line, ""));
        bytes.resize(usize::from_str_radix(offset, 16).unwrap(), 0);
        for at in (0..row.len()).step_by(2) {
            bytes.push(u8::from_str_radix(&row[at..at + 2], 16).unwrap());
        }
    }
    bytes
}

/// The bytes that are stored under a name; these, if they are to be written.
fn golden(name: &str, made: &[u8]) -> Vec<u8> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/journal/tests/golden");
    let path = dir.join(format!("{name}.hex"));
    if std::env::var_os("AURA_GOLDEN").is_some_and(|wanted| wanted == "write") {
        fs::create_dir_all(&dir).unwrap();
        fs::write(&path, to_text(made)).unwrap();
    }
    match fs::read_to_string(&path) {
        Ok(text) => from_text(&text),
        Err(error) => panic!("{}: {error}; AURA_GOLDEN=write makes it", path.display()),
    }
}

fn header() -> SegmentHeader {
    SegmentHeader {
        salt: SALT,
        previous: Link {
            number: 4,
            len: 4_096,
        },
        next_seq: 7,
        newest_ms: AT_MS,
    }
}

fn head(seq: u64) -> Head {
    Head {
        seq: Seq(seq),
        address: Address {
            direction: Direction::ToAura,
            channel: [1; 16],
            environment: ENVIRONMENT,
            tag: [3; 6],
            contact: ContactKey([5; 16]),
        },
        written_again: false,
        replayed: false,
        accepted_at_ms: AT_MS,
        born_ms: Some(AT_MS - 500),
        key: KEY_NUMBER,
        dedup: DedupKey([2; 16]),
        request: Some(RequestId([6; 16])),
        origin: Origin::Peer,
    }
}

/// Of a head what is left when its message is erased.
fn erased(head: Head) -> Head {
    Head {
        address: Address {
            contact: ContactKey([0; 16]),
            ..head.address
        },
        key: 0,
        request: None,
        origin: Origin::default(),
        ..head
    }
}

/// Contact and body, as they stand in a message that is not sealed.
fn plain() -> Vec<u8> {
    let mut text = vec![u8::try_from(CONTACT.len()).unwrap()];
    text.extend_from_slice(CONTACT.as_bytes());
    text.extend_from_slice(BODY);
    text
}

/// The same sealed by the table in `format`, and not by the code that is tested: with a nonce that is no random one.
fn sealed() -> Vec<u8> {
    let head = head(7);
    let associated = [head.address.channel, head.dedup.0, head.address.contact.0].concat();
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &BODY_KEY).unwrap());
    let mut text = plain();
    let tag = key
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(SEALED_WITH),
            Aad::from(associated),
            &mut text[..],
        )
        .unwrap();
    [&SEALED_WITH[..], &text[..], tag.as_ref()].concat()
}

/// A length of two bytes.
fn long_trace() -> &'static str {
    static TRACE: [u8; 300] = [b't'; 300];
    str::from_utf8(&TRACE).unwrap()
}

/// One of each kind, and each field with something in it.
fn records<'a>(sealed: &'a [u8], plain: &'a [u8]) -> Vec<Record<'a>> {
    let settled = |seq, outcome| Record::Settled {
        seq: Seq(seq),
        outcome,
        at_ms: AT_MS + 1,
    };
    let lane = Lane {
        direction: Direction::ToAura,
        channel: [1; 16],
        contact: ContactKey([5; 16]),
    };
    vec![
        Record::Accepted(Accepted {
            head: head(7),
            trace: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            sealed,
        }),
        Record::Accepted(Accepted {
            head: Head {
                address: Address {
                    direction: Direction::ToKernel,
                    ..head(8).address
                },
                written_again: true,
                replayed: true,
                born_ms: None,
                key: 0,
                request: None,
                origin: Origin::Resent { times: 3, part: 1 },
                ..head(8)
            },
            trace: long_trace(),
            sealed: plain,
        }),
        settled(1, Outcome::Delivered { reference: None }),
        settled(
            2,
            Outcome::Delivered {
                reference: Some(Reference([9; 16])),
            },
        ),
        settled(
            3,
            Outcome::DeadLetter {
                reason: "TooOld".into(),
            },
        ),
        settled(
            4,
            Outcome::Dropped {
                reason: "Expired".into(),
            },
        ),
        Record::Trimmed { first_live: 3 },
        Record::Noted {
            seq: Seq(5),
            note: Note {
                attempts: 6,
                parts: 258,
                unknown: true,
                begun: true,
                told: 5,
            },
        },
        Record::Part {
            seq: Seq(6),
            part: 259,
            reference: Reference([8; 16]),
        },
        Record::Parked { lane, parked: true },
        Record::Parked { lane, parked: false },
        Record::Erased(erased(head(9))),
    ]
}

/// A segment: its header, one frame with all of these, and the mark behind it.
fn segment(records: &[Record<'_>]) -> Vec<u8> {
    let mut file = header().encode().to_vec();
    for records in [records, &[]] {
        let parts: Vec<_> = records.iter().map(Part::Record).collect();
        let mut frame = Vec::new();
        encode_frame(&mut frame, SALT, file.len() as u64, AT_MS, &parts).unwrap();
        file.extend_from_slice(&frame);
    }
    file
}

/// Asserts that a segment holds these records, and a mark.
fn reads(file: &[u8], expected: &[Record<'_>]) {
    assert_eq!(SegmentHeader::decode(file), HeaderBytes::Valid(header()));
    let (frames, end) = scan(&header(), file, None).unwrap();
    assert_eq!((frames.len(), end), (2, file.len() as u64));
    assert!(frames.iter().all(|frame| frame.newest_ms == AT_MS));
    let read = frames.into_iter().flat_map(|frame| frame.records);
    let read: Vec<_> = read.map(|(_, record)| record).collect();
    assert_eq!(read, expected);
}

/// What a message says to whoever has this key.
fn opened(record: &Record<'_>, key: Option<&BodyKey>) -> Option<(String, Bytes)> {
    let Record::Accepted(message) = record else {
        panic!("{record:?} is no message")
    };
    seal::open(message, key)
}

#[test]
fn a_segment_is_written_and_read_as_it_always_was() {
    let (sealed, plain) = (sealed(), plain());
    let records = records(&sealed, &plain);
    let made = segment(&records);
    let stored = golden("segment", &made);
    assert_eq!(to_text(&made), to_text(&stored));
    reads(&stored, &records);

    let said = Some((CONTACT.to_owned(), Bytes::from_static(BODY)));
    let key = BodyKey::new(KEY_NUMBER, &BODY_KEY).unwrap();
    assert_eq!(opened(&records[0], Some(&key)), said);
    assert_eq!(opened(&records[0], None), None);
    assert_eq!(opened(&records[1], None), said);
}

#[test]
fn a_message_is_erased_as_it_always_was() {
    let (sealed, plain) = (sealed(), plain());
    let mut expected = records(&sealed, &plain);
    let mut made = segment(&expected);
    let end = {
        let (frames, _) = scan(&header(), &made, None).unwrap();
        usize::try_from(frames[0].end).unwrap()
    };
    let frame = &mut made[SEGMENT_HEADER..end];
    let count = erase_records(SALT, SEGMENT_HEADER as u64, frame, &|head| head.seq <= Seq(8));
    assert_eq!(count, 2);
    for record in &mut expected[..2] {
        if let Record::Accepted(message) = record {
            *record = Record::Erased(erased(message.head));
        }
    }
    let stored = golden("erased", &made);
    assert_eq!(to_text(&made), to_text(&stored));
    reads(&stored, &expected);
    for gone in [CONTACT.as_bytes(), BODY, &sealed[..], long_trace().as_bytes()] {
        assert!(!stored.windows(gone.len()).any(|window| window == gone));
    }
}

/// A key file by the table in `keyring`, and not by the code that is tested.
fn key_file(wrapping: &WrappingKey) -> Vec<u8> {
    let numbers = [
        &KEY_NUMBER.to_le_bytes()[..],
        &DAY.to_le_bytes()[..],
        &ENVIRONMENT[..],
    ]
    .concat();
    let wrapped = Aes256Siv::new((&**wrapping).into())
        .encrypt([&numbers[..]], &BODY_KEY)
        .unwrap();
    let mut file = [&b"AWOBKEY\n\x01\0\0\0\0\0\0\0"[..], &numbers[..], &wrapped[..]].concat();
    file.resize(96, 0);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&file[..12]), &file[16..]);
    file[12..16].copy_from_slice(&crc.to_le_bytes());
    file
}

#[test]
fn a_key_file_is_written_and_read_as_it_always_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0000000007.key");
    let [current, previous] = [0x21, 0x22].map(|byte| WrappingKey::new([byte; 64]));
    fs::write(&path, key_file(&previous)).unwrap();
    // It is wrapped anew: so the keyring writes it, and nothing in it is random.
    Keyring::open(dir.path(), vec![current.clone(), previous]).unwrap();
    let made = fs::read(&path).unwrap();
    let stored = golden("key", &made);
    assert_eq!(to_text(&made), to_text(&stored));

    fs::write(&path, &stored).unwrap();
    let keyring = Keyring::open(dir.path(), vec![current]).unwrap();
    let key = keyring.get(KEY_NUMBER).unwrap();
    let of_the_day = keyring.ready(ENVIRONMENT, AT_MS).unwrap();
    assert!(Arc::ptr_eq(&key, &of_the_day));
    let (sealed, plain) = (sealed(), plain());
    let said = Some((CONTACT.to_owned(), Bytes::from_static(BODY)));
    assert_eq!(opened(&records(&sealed, &plain)[0], Some(&key)), said);
}

/// Ids of each kind: two of one hour, one without a time of its own, one whose time is not believed.
const IDS: [(DedupKey, Born, Seq); 4] = [
    (DedupKey([1; 16]), Born::At(AT_MS), Seq(10)),
    (DedupKey([0xfe; 16]), Born::At(AT_MS + 1), Seq(300)),
    (DedupKey([2; 16]), Born::Unknown, Seq(301)),
    (DedupKey([3; 16]), Born::At(AT_MS + 3 * DAY_MS), Seq(70_000)),
];

fn open(runs: &Runs) -> Ids {
    let options = IdsOptions {
        // From the first look-up on, so that filters are read as well.
        filter_after: 1,
        ..IdsOptions::default()
    };
    Ids::open(runs, options).unwrap()
}

/// The file of a run with these ids, by the code that writes one.
fn run_of_ids() -> Vec<u8> {
    let runs = Runs::default();
    let mut ids = open(&runs);
    for (key, born, seq) in &IDS {
        ids.insert(key, *born, AT_MS, *seq);
    }
    // For the file to stay the same where it is written anew.
    fastrand::seed(1);
    let run = ids.freeze().unwrap().write(&runs).unwrap();
    let file = runs.open(run.number()).unwrap();
    let mut bytes = vec![0; usize::try_from(file.size().unwrap()).unwrap()];
    file.read_exact_at(0, &mut bytes).unwrap();
    bytes
}

/// A run without its nonce, and without the sums that it is part of: these are right where the ids can be read.
fn without_chance(run: &[u8]) -> Vec<u8> {
    const PAGE: usize = 4096;
    let mut run = run.to_vec();
    let directory = u64::from_le_bytes(run[56..64].try_into().unwrap());
    let directory = usize::try_from(directory).unwrap();
    for gone in [12..16, 24..32, 68..72] {
        run[gone].fill(0);
    }
    // Each section here is one page, and a filter that fills up another.
    for page in (PAGE..directory).step_by(2 * PAGE) {
        run[page..page + 4].fill(0);
    }
    for section in (directory..run.len()).step_by(32) {
        run[section + 24..section + 28].fill(0);
    }
    run
}

#[test]
fn a_run_of_ids_is_written_and_read_as_it_always_was() {
    let made = run_of_ids();
    let stored = golden("ids", &made);
    assert_eq!(to_text(&without_chance(&made)), to_text(&without_chance(&stored)));

    let runs = Runs::default();
    runs.create(1).unwrap().write_all_at(0, &stored).unwrap();
    runs.publish(1).unwrap();
    let mut ids = open(&runs);
    assert_eq!((ids.count(), ids.sealed_through()), (4, Seq(70_000)));
    // From the pages, and then by the filters.
    for _ in 0..2 {
        for (key, born, seq) in &IDS {
            assert_eq!(ids.find(key, *born, AT_MS).unwrap(), Some(*seq));
        }
        let unknown = ids.find(&DedupKey([7; 16]), Born::At(AT_MS), AT_MS);
        assert_eq!(unknown.unwrap(), None);
    }
}
