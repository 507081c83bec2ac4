//! The routes across a restart: what the resources said last, on the journal's volume, without any secret. A bridge
//! that starts while the API server is away serves from it (Law 8).

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use serde::{Deserialize, Serialize};

use super::{
    issued::{Issued, Kept},
    routes::ChannelView,
};

const FILE: &str = "routes.json";
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Snapshot {
    format: u32,
    channels: Vec<ChannelView>,
    #[serde(default)]
    issued: Vec<Kept>,
}

/// What was known.
#[derive(Debug, PartialEq)]
pub(super) struct Known {
    /// The resources.
    pub channels: Vec<ChannelView>,
    /// The keys issued elsewhere, as digests.
    pub issued: Issued,
    /// When that was, in seconds since 1970; 0 where the volume does not say.
    pub saved_s: u64,
}

fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

/// Writes the snapshot.
///
/// # Errors
/// When the volume does not take it.
pub(super) fn save(dir: &Path, channels: Vec<ChannelView>, issued: &Issued) -> io::Result<()> {
    let snapshot = Snapshot {
        format: FORMAT,
        channels,
        issued: issued.kept(),
    };
    write_whole(&path(dir), &serde_json::to_vec(&snapshot)?)
}

/// Writes a file: beside the old one, synced, then in its place, so that there is always a whole one.
///
/// # Errors
/// When the volume does not take it.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("json.new");
    let file = fs::File::create(&new)?;
    (&file).write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(dir) => fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

/// Reads the snapshot; `None` where there is none, or none that this release understands.
pub(super) fn load(dir: &Path) -> Option<Known> {
    let file = fs::File::open(path(dir)).ok()?;
    let saved = file.metadata().and_then(|about| about.modified()).ok();
    let since = saved.and_then(|saved| saved.duration_since(UNIX_EPOCH).ok());
    match serde_json::from_reader::<_, Snapshot>(io::BufReader::new(file)) {
        Ok(snapshot) if snapshot.format == FORMAT => Some(Known {
            channels: snapshot.channels,
            issued: Issued::restore(snapshot.issued),
            saved_s: since.unwrap_or_default().as_secs(),
        }),
        Ok(snapshot) => {
            tracing::warn!(
                format = snapshot.format,
                "the route snapshot is of another format: not used"
            );
            None
        }
        Err(error) => {
            tracing::warn!(line = error.line(), "the route snapshot can't be read: not used");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::routes::tests::view, *};

    #[test]
    fn what_was_saved_is_loaded_and_damage_is_no_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()), None);
        let views = vec![view("a", "b", 1, 1), view("a", "c", 2, 2)];
        save(dir.path(), views.clone(), &Issued::default()).unwrap();
        let known = load(dir.path()).unwrap();
        assert_eq!(known.channels, views);
        let ago = UNIX_EPOCH.elapsed().unwrap().as_secs() - known.saved_s;
        assert!(ago < 60, "{ago}");
        fs::write(path(dir.path()), "{\"format\":1,\"chan").unwrap();
        assert_eq!(load(dir.path()), None);
    }
}
