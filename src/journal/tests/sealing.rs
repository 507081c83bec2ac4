//! Contact and body on the disk: sealed with the key of their environment and day, and gone with it.
//!
//! What callers say of their traces stands in the clear, as docs/security.md says: nobody looks for it here.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::{
    Appended, Bench, Command, Entry, HOUR_MS, Journal, NewEntry, Pending, ReadError, START_MS, Seq,
    Surroundings, Wall, dead, delivered, entry, read, roomy, seqs,
};
use crate::journal::format::{Record, Salt, decode_record};
use crate::journal::seal::{self, BodyKey, Encoded};
use crate::journal::state::Position;
use crate::journal::storage::Storage as _;
use crate::journal::{Keyring, KeyringError, WrappingKey};

const DAY_MS: u64 = 24 * HOUR_MS;
/// The least number of hours after which the key of the tests' first day is destroyed: its day, and the day after.
const HOURS_OF_A_KEY: u64 = 48;

/// Opens the keys in a directory with what some installation keys, each of which is one byte here, wrap others with.
fn keyring(dir: &Path, installation_keys: &[u8]) -> Result<Keyring, KeyringError> {
    let wrapping = installation_keys.iter().map(|byte| WrappingKey::new([*byte; 64]));
    Keyring::open(dir, wrapping.collect())
}

/// Every file below a directory.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for item in fs::read_dir(dir).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let bytes = fs::read(&path).unwrap();
            found.insert(path, bytes);
        }
    }
    found
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// The same message of another environment.
fn elsewhere(mut made: NewEntry) -> NewEntry {
    made.address.environment = [9; 8];
    made
}

/// A bench whose messages are sealed, as the bridge's are.
struct Sealed {
    bench: Bench,
    keyring: Arc<Keyring>,
    keys: TempDir,
}

impl Sealed {
    fn new() -> Self {
        let keys = tempfile::tempdir().unwrap();
        let keyring = keyring(keys.path(), &[1]).unwrap();
        Self::of(Bench::new(&roomy()), keyring, keys)
    }

    fn of(mut bench: Bench, keyring: Keyring, keys: TempDir) -> Self {
        let keyring = Arc::new(keyring);
        bench.keeper.keyring = Some(Arc::clone(&keyring));
        Self { bench, keyring, keys }
    }

    /// As a new process finds it that has these installation keys.
    fn reopen(self, installation_keys: &[u8]) -> (Self, Vec<Pending>) {
        let keyring = keyring(self.keys.path(), installation_keys).unwrap();
        let (bench, pending) = self.bench.reopen().unwrap();
        (Self::of(bench, keyring, self.keys), pending)
    }

    fn append(&mut self, made: &NewEntry) -> Seq {
        let at_ms = made.accepted_at_ms;
        self.bench.wall.set(self.bench.wall.now().max(at_ms));
        let key = self.keyring.make(made.address.environment, at_ms).unwrap();
        let entries = vec![Encoded::new(made, Some(&key)).unwrap()];
        let (reply, mut answer) = oneshot::channel();
        self.bench.commit(vec![Command::Append { entries, reply }]);
        match answer.try_recv().unwrap().unwrap()[..] {
            [Appended::New(seq)] => seq,
            ref other => panic!("{other:?}"),
        }
    }

    /// An hour goes by; more at once would look like a jump of the clock.
    fn an_hour_passes(&mut self) {
        self.bench.wall.set(self.bench.wall.now() + HOUR_MS);
        self.bench.keep();
    }

    fn read(&self, seq: Seq) -> Result<Entry, ReadError> {
        let shared = self.bench.writer.shared();
        read(&shared, &self.bench.disk, Some(&self.keyring), seq).map(|(_, _, entry)| entry)
    }

    /// Asserts that a message reads as it was accepted.
    fn reads(&self, seq: Seq, made: &NewEntry) {
        let found = self.read(seq).unwrap();
        assert_eq!(
            (&found.contact, &found.body, &found.trace),
            (&made.contact, &made.body, &made.trace)
        );
    }

    /// Where a message lies.
    fn place(&self, seq: Seq) -> (Position, Salt) {
        self.bench.writer.shared().state().position(seq).unwrap()
    }

    /// What the bytes at a place say to whoever has this key.
    fn opened(&self, (position, salt): (Position, Salt), key: Option<&BodyKey>) -> Option<(String, Bytes)> {
        let (offset, len) = (position.place.offset, position.place.len as usize);
        let bytes = self.bench.disk.read(position.segment, offset, len).unwrap();
        let (record, _) = decode_record(salt, offset, &bytes).unwrap();
        let Record::Accepted(message) = record else {
            panic!("a message stood there")
        };
        seal::open(&message, key)
    }

    fn key_file(&self, number: u32) -> PathBuf {
        self.keys.path().join(format!("{number:010}.key"))
    }
}

#[tokio::test]
async fn no_contact_and_no_body_stands_in_any_file_and_both_are_read_back_with_the_key() {
    // Without keys both are found: so they would be below.
    for is_sealed in [false, true] {
        let volume = tempfile::tempdir().unwrap();
        let keys = volume.path().join("journal-keys");
        let surroundings = Surroundings {
            keyring: is_sealed.then(|| Arc::new(keyring(&keys, &[1]).unwrap())),
            ..Wall::default().surroundings()
        };
        let (journal, _) = Journal::open(&volume.path().join("journal"), roomy(), surroundings).unwrap();
        journal.append(vec![entry(1), entry(2), entry(3)]).await.unwrap();
        journal.settle(Seq(1), delivered()).await.unwrap();
        journal.settle(Seq(2), dead("TooOld")).await.unwrap();
        let again = journal.replay(Seq(2)).await.unwrap();
        for (seq, number) in [(again, 2), (Seq(3), 3)] {
            let found = journal.read(seq).await.unwrap();
            assert_eq!(
                (found.contact, found.body),
                (entry(number).contact, entry(number).body)
            );
        }
        journal.close().await;

        let files = files(volume.path());
        for number in 1..=3 {
            for text in [format!("contact-{number}"), format!("body {number}")] {
                let stands = files.values().any(|bytes| holds(bytes, &text));
                assert_eq!(stands, !is_sealed, "{text} in {:?}", files.keys());
            }
        }
    }
}

#[test]
fn each_environment_and_each_day_has_a_key_of_its_own() {
    let mut sealed = Sealed::new();
    let made = [entry(1), elsewhere(entry(2)), entry(3).at(START_MS + DAY_MS)];
    let accepted = made.each_ref().map(|made| sealed.append(made));
    let places = accepted.map(|seq| sealed.place(seq));
    let keys = places.map(|(position, _)| sealed.keyring.get(position.key).unwrap());
    for (message, place) in places.iter().enumerate() {
        for (of, key) in keys.iter().enumerate() {
            assert_eq!(
                sealed.opened(*place, Some(key)).is_some(),
                message == of,
                "message {message} with the key of message {of}"
            );
        }
    }
    // What else comes on a day goes with the same key, also at its very end.
    let last_ms = START_MS / DAY_MS * DAY_MS + DAY_MS - 1;
    let again = sealed.append(&entry(4).at(last_ms));
    assert_eq!(sealed.place(again).0.key, places[0].0.key);
    assert_eq!(sealed.keyring.len(), 3);
}

#[test]
fn a_day_ends_with_its_key_and_what_is_still_needed_of_it_is_sealed_again_before() {
    let mut sealed = Sealed::new();
    for number in 1..=3 {
        sealed.append(&entry(number));
    }
    let was = [1, 2, 3].map(|seq| sealed.place(Seq(seq)));
    let old = was[0].0.key;
    sealed.bench.settle(Seq(1)).unwrap();
    sealed.bench.settle_as(Seq(3), dead("TooOld")).unwrap();
    let kept_aside = sealed.keyring.get(old).unwrap();
    for hour in 1..HOURS_OF_A_KEY {
        sealed.an_hour_passes();
        assert!(sealed.keyring.get(old).is_some(), "destroyed after {hour} hours");
    }
    assert!(sealed.key_file(old).exists());
    sealed.an_hour_passes();
    assert!(sealed.keyring.get(old).is_none() && !sealed.key_file(old).exists());

    // The bytes are where they were: whoever had kept the key could read them, and nobody has.
    assert!(matches!(sealed.read(Seq(1)), Err(ReadError::NotKept(Seq(1)))));
    let young = sealed.keyring.get(sealed.place(Seq(2)).0.key).unwrap();
    for (place, number) in was.into_iter().zip(1..) {
        let text = (entry(number).contact, entry(number).body);
        assert_eq!(sealed.opened(place, Some(&kept_aside)), Some(text));
        assert_eq!(sealed.opened(place, sealed.keyring.get(old).as_deref()), None);
        assert_eq!(sealed.opened(place, Some(&young)), None);
    }

    let check = |sealed: &Sealed| {
        for number in [2, 3] {
            sealed.reads(Seq(number), &entry(number));
            assert_ne!(sealed.place(Seq(number)).0.key, old);
        }
        let dead = sealed.bench.writer.shared().state().dead_letters();
        assert_eq!(
            (dead.len(), dead[0].seq, dead[0].reason.as_str()),
            (1, Seq(3), "TooOld")
        );
        for number in 1..=3 {
            let body = format!("body {number}");
            assert!(!sealed.bench.disk.files().values().any(|file| holds(file, &body)));
        }
    };
    check(&sealed);
    let (sealed, pending) = sealed.reopen(&[1]);
    assert_eq!(seqs(&pending), [2]);
    assert_eq!(sealed.keyring.len(), 1);
    check(&sealed);
}

#[test]
fn a_message_whose_key_is_gone_is_refused_by_name_and_the_others_are_read() {
    let mut sealed = Sealed::new();
    let made = [entry(1), elsewhere(entry(2))];
    let [first, second] = made.each_ref().map(|made| sealed.append(made));
    fs::remove_file(sealed.key_file(sealed.place(first).0.key)).unwrap();
    let (sealed, pending) = sealed.reopen(&[1]);
    assert_eq!(seqs(&pending), [1, 2]);
    assert!(matches!(sealed.read(first), Err(ReadError::KeyDestroyed(seq)) if seq == first));
    sealed.reads(second, &made[1]);
}

#[test]
fn under_another_installation_key_nothing_opens_or_changes_and_the_right_one_opens_it_afterwards() {
    let mut sealed = Sealed::new();
    let made = entry(1);
    let seq = sealed.append(&made);
    let own = sealed.key_file(sealed.place(seq).0.key);
    let keys = sealed.keys.path().to_owned();

    let before = files(&keys);
    let error = keyring(&keys, &[2]).unwrap_err();
    let KeyringError::WrongKey(file) = &error else {
        panic!("{error}")
    };
    assert_eq!(*file, own);
    assert!(error.to_string().contains("as `previous`"), "{error}");
    assert_eq!(files(&keys), before);

    // Neither where one of two is under a key that is not there: the other one would have been wrapped anew.
    let strange = tempfile::tempdir().unwrap();
    let others = keyring(strange.path(), &[3]).unwrap();
    for environment in [[1; 8], [2; 8]] {
        others.make(environment, START_MS).unwrap();
    }
    let strangers = keys.join("0000000002.key");
    fs::copy(strange.path().join("0000000002.key"), &strangers).unwrap();
    let before = files(&keys);
    let error = keyring(&keys, &[2, 1]).unwrap_err();
    assert!(
        matches!(&error, KeyringError::WrongKey(file) if *file == strangers),
        "{error}"
    );
    assert_eq!(files(&keys), before);
    fs::remove_file(strangers).unwrap();

    let (sealed, pending) = sealed.reopen(&[1]);
    assert_eq!(seqs(&pending), [1]);
    sealed.reads(seq, &made);
}

#[test]
fn after_a_rotation_of_the_installation_key_each_key_is_wrapped_anew_and_the_old_one_may_go() {
    let mut sealed = Sealed::new();
    let made = [entry(1), elsewhere(entry(2))];
    let accepted = made.each_ref().map(|made| sealed.append(made));
    let before = files(sealed.keys.path());
    assert_eq!(before.len(), 2);

    // The new one, and the one before as `previous`.
    let (sealed, _) = sealed.reopen(&[2, 1]);
    let after = files(sealed.keys.path());
    assert!(after.keys().eq(before.keys()), "{:?}", after.keys());
    assert!(before.iter().all(|(path, bytes)| after[path] != *bytes));

    let (mut sealed, pending) = sealed.reopen(&[2]);
    assert_eq!(seqs(&pending), [1, 2]);
    for (seq, made) in accepted.into_iter().zip(&made) {
        sealed.reads(seq, made);
    }
    let third = sealed.append(&entry(3));
    assert_eq!(
        sealed.place(third).0.key,
        sealed.place(accepted[0]).0.key,
        "the day goes on with its key"
    );
    assert!(matches!(
        keyring(sealed.keys.path(), &[1]),
        Err(KeyringError::WrongKey(_))
    ));
}

#[test]
fn a_changed_byte_anywhere_in_a_key_file_is_refused_by_name() {
    let mut sealed = Sealed::new();
    let made = entry(1);
    let seq = sealed.append(&made);
    let file = sealed.key_file(sealed.place(seq).0.key);
    let whole = fs::read(&file).unwrap();
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(&file, changed).unwrap();
        match keyring(sealed.keys.path(), &[1]) {
            Err(KeyringError::Damaged(damaged)) => assert_eq!(damaged, file),
            other => panic!("byte {at}: {other:?}"),
        }
    }
    fs::write(&file, whole).unwrap();
    let (sealed, _) = sealed.reopen(&[1]);
    sealed.reads(seq, &made);
}

#[test]
fn a_keys_number_is_given_once_also_when_all_keys_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let keys = keyring(dir.path(), &[1]).unwrap();
    let ids = [0, 1].map(|day| keys.make([7; 8], day * DAY_MS).unwrap().id);
    for id in ids {
        keys.destroy(id).unwrap();
    }
    drop(keys);
    for round in 1..=2 {
        let keys = keyring(dir.path(), &[1]).unwrap();
        assert_eq!(keys.len(), 0);
        let made = keys.make([7; 8], 9 * DAY_MS).unwrap().id;
        assert_eq!(made, ids[1] + round);
        keys.destroy(made).unwrap();
    }
    // Of those before, nothing is left.
    drop(keyring(dir.path(), &[1]).unwrap());
    assert_eq!(files(dir.path()).len(), 1);
}
