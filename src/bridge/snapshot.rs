//! The routes across a restart: what the resources said last, on the journal's volume, without any secret. A bridge
//! that starts while the API server is away serves from it (Law 8).

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize, Serializer};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    issued::{Issued, Kept},
    views::{ChannelView, KnownViews},
};

const FILE: &str = "routes.json";
const FORMAT: u32 = 1;
/// How many times longer than a save the rest after it is: of many channels, each change writes them all.
const REST: u32 = 9;
/// The longest rest. What is told in it is lost to a start only if the bridge is killed before it ends and the API
/// server can't be asked then.
const LONGEST_REST: Duration = Duration::from_secs(5);

#[derive(Serialize)]
struct Written<'a> {
    format: u32,
    channels: Rows<'a>,
    issued: Vec<Kept>,
}

#[derive(Deserialize)]
struct Read {
    format: u32,
    channels: KnownViews,
    #[serde(default)]
    issued: Vec<Kept>,
}

/// What was known.
#[derive(Debug)]
pub(super) struct Known {
    /// The resources.
    pub channels: KnownViews,
    /// The keys issued elsewhere, as digests.
    pub issued: Issued,
    /// When that was, in seconds since 1970; 0 where the volume does not say.
    pub saved_s: u64,
}

fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

/// The resources in the file, written one after the other.
struct Rows<'a>(&'a [Arc<ChannelView>]);

impl Serialize for Rows<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(Arc::as_ref))
    }
}

/// Writes the snapshot.
///
/// # Errors
/// When the volume does not take it.
pub(super) fn save(dir: &Path, channels: &[Arc<ChannelView>], issued: &Issued) -> io::Result<()> {
    write_json(
        &path(dir),
        &Written {
            format: FORMAT,
            channels: Rows(channels),
            issued: issued.kept(),
        },
    )
}

/// What is to be saved.
#[derive(Clone, Default)]
pub(super) struct Save {
    /// The resources.
    pub channels: Vec<Arc<ChannelView>>,
    /// The keys issued elsewhere, as digests.
    pub issued: Issued,
}

/// Saves what it is told last, until told to stop or nobody is left to tell it; what it was told before that is saved
/// in any case. Between two saves it rests.
pub(super) async fn keep(dir: PathBuf, mut told: watch::Receiver<Save>, stop: CancellationToken) {
    while told.changed().await.is_ok() {
        let start = Instant::now();
        let (dir, save_now) = (dir.clone(), told.borrow_and_update().clone());
        let saved =
            tokio::task::spawn_blocking(move || save(&dir, &save_now.channels, &save_now.issued)).await;
        match saved {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "can't save the route snapshot"),
            Err(error) => tracing::error!(%error, "saving the route snapshot failed"),
        }
        let rest = (REST * start.elapsed()).min(LONGEST_REST);
        let _ = stop.run_until_cancelled(tokio::time::sleep(rest)).await;
    }
}

/// Writes a file of JSON: beside the old one, synced, then in its place, so that there is always a whole one.
///
/// # Errors
/// When the volume does not take it.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let new = path.with_extension("json.new");
    let mut file = io::BufWriter::new(fs::File::create(&new)?);
    serde_json::to_writer(&mut file, value)?;
    file.into_inner()?.sync_all()?;
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
    match serde_json::from_reader::<_, Read>(io::BufReader::new(file)) {
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
    use super::{super::views::tests::view, *};

    #[test]
    fn what_was_saved_is_loaded_and_damage_is_no_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).is_none());
        let views = [view("a", "b", 1, 1), view("a", "c", 2, 2)].map(Arc::new);
        save(dir.path(), &views, &Issued::default()).unwrap();
        let known = load(dir.path()).unwrap();
        assert_eq!(known.channels.views, views);
        assert_eq!(known.issued, Issued::default());
        let ago = UNIX_EPOCH.elapsed().unwrap().as_secs() - known.saved_s;
        assert!(ago < 60, "{ago}");
        fs::write(path(dir.path()), "{\"format\":1,\"chan").unwrap();
        assert!(load(dir.path()).is_none());
    }

    #[tokio::test]
    async fn what_was_told_last_is_saved_also_when_all_stops_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (tell, told) = watch::channel(Save::default());
        let stop = CancellationToken::new();
        for id in 1..4 {
            tell.send_replace(Save {
                channels: vec![Arc::new(view("a", "b", 1, id))],
                issued: Issued::default(),
            });
        }
        stop.cancel();
        drop(tell);
        keep(dir.path().to_owned(), told, stop).await;
        let known = load(dir.path()).unwrap().channels.views;
        assert_eq!(*known[0], view("a", "b", 1, 3));
    }

    /// As the release before this one wrote it, with a phone number and another order of fields.
    #[test]
    fn a_file_of_a_release_before_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"format":1,"channels":[{"namespace":"a","name":"b","created":1,"leaving":false,"spec":{
            "channelId":"01010101-0101-0101-0101-010101010101","phoneNumber":"34600001002","environment":"es-dev",
            "kernel":{"credentialsSecretRef":{"name":"shop"}}},"secretVersion":null,"apiKeyVersion":null,
            "webhookKey":{"generation":1,"installationKeyId":"abcd"}}],"issued":[]}"#;
        fs::write(path(dir.path()), text).unwrap();
        let known = load(dir.path()).unwrap();
        let mut expected = view("a", "b", 1, 1);
        expected.webhook_key = Some(crate::api::WebhookKeyStatus {
            generation: Some(1),
            ..Default::default()
        });
        assert_eq!(*known.channels.views[0], expected);
    }
}
