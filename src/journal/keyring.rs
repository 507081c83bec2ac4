//! The keys of the bodies: one per environment and day, each in a file of its own, wrapped by the installation key.
//!
//! Not for sealing (`seal.rs`). A body's retention ends by the end of its day's key: the file is overwritten and
//! removed, and what was sealed with it is noise from then on, wherever its bytes still lie.
//!
//! ```text
//! key file, 96 bytes, little endian; named by its number: 0000000001.key
//!    0  8  magic "AWOBKEY\n"
//!    8  1  format version, 1
//!    9  3  zero
//!   12  4  CRC-32C of bytes 0..12 and 16..96
//!   16  4  number of the key, as in the name
//!   20  4  day: days since the epoch
//!   24  8  environment, by digest
//!   32 48  AES-256-SIV (RFC 5297) of the key's 32 bytes under the wrapping key; header: bytes 16..32
//!   80 16  zero
//! ```

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aes_siv::{KeyInit, siv::Aes256Siv};
use zeroize::Zeroizing;

use super::seal::{self, BodyKey};

const MAGIC: [u8; 8] = *b"AWOBKEY\n";
const VERSION: u8 = 1;
const LEN: usize = 96;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// A key that wraps body keys: 64 bytes, derived from the installation key.
pub type WrappingKey = Zeroizing<[u8; 64]>;

/// Why the keys can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// None of the wrapping keys opens it.
    #[error(
        "{} can't be opened with the installation key at hand: it was written under another one; restore the \
         installation Secret's entry as `previous`", .0.display()
    )]
    WrongKey(PathBuf),
    /// It is not what was written.
    #[error("{} is damaged: what is sealed with it can't be read", .0.display())]
    Damaged(PathBuf),
    /// The file system refused.
    #[error("could not {doing} {}", .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

struct Known {
    day: u64,
    environment: [u8; 8],
    key: Arc<BodyKey>,
}

#[derive(Default)]
struct Keys {
    by_id: BTreeMap<u32, Known>,
    current: HashMap<([u8; 8], u64), Arc<BodyKey>>,
    next_id: u32,
}

/// The keys of one journal.
pub struct Keyring {
    dir: PathBuf,
    /// The first wraps new keys; all are tried to open old ones.
    wrapping: Vec<WrappingKey>,
    keys: Mutex<Keys>,
    /// Held while a key is made, so that two do not make the same.
    making: Mutex<()>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({} keys)", self.len())
    }
}

impl Keyring {
    /// Reads the keys in `dir`, which is created if it is not there. A key that was wrapped by an older wrapping key is
    /// wrapped anew, so that the older one may go.
    ///
    /// # Errors
    /// [`KeyringError`]; nothing was changed.
    pub fn open(dir: &Path, wrapping: Vec<WrappingKey>) -> Result<Self, KeyringError> {
        let io = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| KeyringError::Io { doing, path, source }
        };
        if !dir.is_dir() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(io("create", dir))?;
        }
        let mut keys = Keys::default();
        let (mut old, mut empty) = (Vec::new(), Vec::new());
        for item in std::fs::read_dir(dir).map_err(io("list", dir))? {
            let path = item.map_err(io("list", dir))?.path();
            if path.extension().is_none_or(|extension| extension != "key") {
                continue;
            }
            let bytes = std::fs::read(&path).map_err(io("read", &path))?;
            // A key whose file was never finished sealed nothing; one that was destroyed seals nothing any more. Its number
            // is not given again: a record must never find another key.
            if bytes.iter().all(|byte| *byte == 0) {
                let number = path
                    .file_stem()
                    .and_then(|stem| stem.to_str()?.parse::<u32>().ok());
                keys.never_reuse(number.unwrap_or_default());
                empty.push((number.unwrap_or_default(), path));
                continue;
            }
            let file = KeyFile::decode(&bytes).ok_or_else(|| KeyringError::Damaged(path.clone()))?;
            let (place, material) = wrapping
                .iter()
                .enumerate()
                .find_map(|(place, wrapping)| Some((place, file.unwrap(wrapping)?)))
                .ok_or_else(|| KeyringError::WrongKey(path.clone()))?;
            let key = BodyKey::new(file.id, &material).ok_or_else(|| KeyringError::Damaged(path.clone()))?;
            if place > 0 {
                old.push((file.clone(), material));
            }
            keys.take(&file, Arc::new(key));
        }
        for (number, path) in empty {
            if number.saturating_add(1) < keys.next_id {
                // The next opening finds it again.
                let _ = std::fs::remove_file(path);
            }
        }
        let keyring = Self {
            dir: dir.to_owned(),
            wrapping,
            keys: Mutex::new(keys),
            making: Mutex::default(),
        };
        for (file, material) in old {
            let path = keyring.path(file.id);
            keyring.write(&file, &material).map_err(io("wrap anew", &path))?;
        }
        Ok(keyring)
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many keys there are.
    pub(super) fn len(&self) -> usize {
        self.keys().by_id.len()
    }

    /// The key that a record names.
    pub(super) fn get(&self, id: u32) -> Option<Arc<BodyKey>> {
        Some(Arc::clone(&self.keys().by_id.get(&id)?.key))
    }

    /// The key of an environment's bodies on the day of this moment, if there is one already.
    pub(super) fn ready(&self, environment: [u8; 8], at_ms: u64) -> Option<Arc<BodyKey>> {
        self.keys().current.get(&(environment, at_ms / DAY_MS)).cloned()
    }

    /// As [`Keyring::ready`], made if there is none: durable when this returns. Blocks.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn make(&self, environment: [u8; 8], at_ms: u64) -> io::Result<Arc<BodyKey>> {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = self.ready(environment, at_ms) {
            return Ok(key);
        }
        let material = seal::random_key().map_err(|_| io::Error::other("no randomness"))?;
        let id = {
            let mut keys = self.keys();
            // A number is used once, also when its file can't be written: a record must never find another key.
            keys.next_id = keys.next_id.max(1);
            let id = keys.next_id;
            keys.next_id = id.checked_add(1).ok_or(io::ErrorKind::QuotaExceeded)?;
            id
        };
        let file = KeyFile {
            id,
            day: u32::try_from(at_ms / DAY_MS).map_err(|_| io::ErrorKind::InvalidInput)?,
            environment,
            wrapped: [0; 48],
        };
        self.write(&file, &material[..])?;
        let key = BodyKey::new(id, &material[..]).ok_or(io::ErrorKind::InvalidData)?;
        let key = Arc::new(key);
        self.keys().take(&file, Arc::clone(&key));
        Ok(key)
    }

    fn path(&self, id: u32) -> PathBuf {
        self.dir.join(format!("{id:010}.key"))
    }

    fn write(&self, file: &KeyFile, material: &[u8]) -> io::Result<()> {
        let wrapping = self.wrapping.first().ok_or(io::ErrorKind::InvalidInput)?;
        let bytes = file.wrap(wrapping, material).encode();
        let path = self.path(file.id);
        let fresh = path.with_extension("new");
        let mut out = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&fresh)?;
        out.write_all(&bytes)?;
        out.sync_all()?;
        std::fs::rename(&fresh, &path)?;
        File::open(&self.dir)?.sync_all()
    }

    /// The keys whose day was over before `ms`: what is sealed with them is to end.
    pub(super) fn ended_before(&self, ms: u64) -> Vec<u32> {
        self.keys()
            .by_id
            .iter()
            .filter(|(_, known)| (known.day + 1) * DAY_MS <= ms)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Destroys a key: its file is overwritten, synced and removed, but for the one with the highest number, of which an
    /// empty shell stays, so that the number stays known. Nothing may need the key any more.
    ///
    /// # Errors
    /// The file system's; the key may be destroyed all the same.
    pub(super) fn destroy(&self, id: u32) -> io::Result<()> {
        let path = self.path(id);
        let file = OpenOptions::new().write(true).open(&path)?;
        file.write_all_at(&[0; LEN], 0)?;
        file.sync_all()?;
        if id.saturating_add(1) < self.keys().next_id {
            std::fs::remove_file(&path)?;
            File::open(&self.dir)?.sync_all()?;
        }
        let mut keys = self.keys();
        if let Some(known) = keys.by_id.remove(&id) {
            keys.current.remove(&(known.environment, known.day));
        }
        Ok(())
    }
}

impl Keys {
    fn never_reuse(&mut self, id: u32) {
        self.next_id = self.next_id.max(id.saturating_add(1));
    }

    fn take(&mut self, file: &KeyFile, key: Arc<BodyKey>) {
        let known = Known {
            day: u64::from(file.day),
            environment: file.environment,
            key: Arc::clone(&key),
        };
        self.never_reuse(file.id);
        self.current.insert((known.environment, known.day), key);
        self.by_id.insert(file.id, known);
    }
}

/// What a key file holds.
#[derive(Clone)]
struct KeyFile {
    id: u32,
    day: u32,
    environment: [u8; 8],
    wrapped: [u8; 48],
}

impl KeyFile {
    fn header(&self) -> [u8; 16] {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&self.id.to_le_bytes());
        header[4..8].copy_from_slice(&self.day.to_le_bytes());
        header[8..].copy_from_slice(&self.environment);
        header
    }

    fn wrap(&self, wrapping: &WrappingKey, material: &[u8]) -> Self {
        let mut wrapped = [0; 48];
        // SIV takes any plaintext and up to 126 headers: this cannot fail.
        let sealed = Aes256Siv::new((&**wrapping).into())
            .encrypt([self.header()], material)
            .unwrap_or_default();
        if let Some(bytes) = sealed.first_chunk::<48>() {
            wrapped = *bytes;
        }
        Self {
            wrapped,
            ..self.clone()
        }
    }

    fn unwrap(&self, wrapping: &WrappingKey) -> Option<Zeroizing<Vec<u8>>> {
        Aes256Siv::new((&**wrapping).into())
            .decrypt([self.header()], &self.wrapped)
            .ok()
            .map(Zeroizing::new)
    }

    fn encode(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        out[..8].copy_from_slice(&MAGIC);
        out[8] = VERSION;
        out[16..32].copy_from_slice(&self.header());
        out[32..80].copy_from_slice(&self.wrapped);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&out[..12]), &out[16..]);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LEN] = bytes.try_into().ok()?;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..]);
        if bytes[..8] != MAGIC || bytes[8] != VERSION || bytes[12..16] != crc.to_le_bytes() {
            return None;
        }
        let u32_at = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        Some(Self {
            id: u32_at(16)?,
            day: u32_at(20)?,
            environment: *bytes.get(24..)?.first_chunk()?,
            wrapped: *bytes.get(32..)?.first_chunk()?,
        })
    }
}
