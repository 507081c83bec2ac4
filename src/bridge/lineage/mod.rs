//! The journal's lineage: before anything that a run before accepted is delivered, the journal is compared with what the
//! cluster has recorded of it. A restored or copied one keeps its messages for a person (Law 2): last week's messages are
//! not sent again.
//!
//! The bridge reads the record and writes nothing in the cluster; the controller writes it from what [`Lineage::told`]
//! tells. `kept` is the file in the journal's directory and, with `crate::lineage`, all that is decided.

mod kept;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::kept::Kept;
use super::{snapshot, state::Shared};
use crate::{
    cluster,
    delivery::{OfChannel, RunnerHandle, backoff::Backoff},
    journal::{Journal, Pending, Seq},
    lineage::{JournalId, Record, Told, Verdict},
};

const FILE: &str = "lineage.json";

/// How soon the record is asked for again while it can't be had.
const AGAIN: Backoff = Backoff {
    base: Duration::from_millis(500),
    cap: Duration::from_secs(15),
};
/// How soon a journal that is not recorded yet looks whether it is.
const RECORDED: Backoff = Backoff {
    base: Duration::from_secs(5),
    cap: Duration::from_secs(300),
};

/// What is known of the open journal.
pub(super) struct Lineage {
    path: PathBuf,
    journal: Journal,
    inner: Mutex<Inner>,
}

struct Inner {
    kept: Kept,
    verdict: Option<Verdict>,
    /// A person has released all before the journal was judged.
    waived: bool,
}

fn fresh() -> JournalId {
    JournalId(Uuid::new_v4().as_u128())
}

impl Lineage {
    /// Reads the file of the journal in `dir`, which was just opened. Blocks.
    ///
    /// # Errors
    /// When the volume does not take it: a start that is not noted could make an old copy look young at the next one.
    pub fn open(dir: &Path, journal: Journal) -> io::Result<Self> {
        let path = dir.join(FILE);
        let kept = match fs::read(&path) {
            Ok(bytes) => Kept::read(&bytes).unwrap_or_else(|| {
                tracing::error!("the journal's lineage can't be read: it is taken for another journal");
                Kept::new(fresh())
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Kept::new(fresh()),
            Err(error) => return Err(error),
        };
        let kept = kept.found(journal.found(), journal.next_seq().0);
        save(&path, &kept)?;
        journal.never_reuse_below(Seq(kept.next_number()));
        let inner = Mutex::new(Inner {
            kept,
            verdict: None,
            waived: false,
        });
        Ok(Self { path, journal, inner })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a message waits for a person, as a run before has judged.
    pub fn holds(&self, message: &Pending) -> bool {
        self.inner().kept.holds(message)
    }

    /// What is so of the journal, once that is known.
    pub fn verdict(&self) -> Option<Verdict> {
        self.inner().verdict
    }

    /// What the cluster is to record.
    pub fn told(&self) -> Told {
        let id = {
            let inner = self.inner();
            inner.verdict.map(|_| inner.kept.id())
        };
        let Some(id) = id else { return Told::default() };
        let stats = self.journal.stats();
        Told {
            journal: Some(Record {
                id,
                mark: self.journal.mark(),
                next_number: self.journal.next_seq().0,
                pending: stats.pending_to_aura + stats.pending_to_kernel,
            }),
        }
    }

    /// Judges the journal. Blocks.
    ///
    /// # Errors
    /// When the volume does not take it: then nothing is judged.
    fn judge(&self, recorded: Option<&Record>) -> io::Result<Verdict> {
        let mut inner = self.inner();
        let (kept, verdict) = inner.kept.judged(recorded, fresh(), inner.waived);
        save(&self.path, &kept)?;
        self.journal.never_reuse_below(Seq(kept.next_number()));
        (inner.kept, inner.verdict) = (kept, Some(verdict));
        Ok(verdict)
    }

    /// Looks whether the journal stands in the record. Blocks.
    fn sees(&self, recorded: Option<&Record>) -> io::Result<bool> {
        let mut inner = self.inner();
        let mut kept = inner.kept.clone();
        let is_there = kept.sees(recorded);
        if kept != inner.kept {
            save(&self.path, &kept)?;
            inner.kept = kept;
        }
        Ok(is_there)
    }

    /// A person releases what waits for him, for good: it is on disk when this returns. Blocks.
    ///
    /// # Errors
    /// When the volume does not take it.
    pub fn release(&self, of: OfChannel) -> io::Result<()> {
        let mut inner = self.inner();
        let kept = inner.kept.released(of);
        save(&self.path, &kept)?;
        inner.kept = kept;
        inner.waived |= of.is_none() && inner.verdict.is_none();
        Ok(())
    }
}

fn save(path: &Path, kept: &Kept) -> io::Result<()> {
    snapshot::write_json(path, kept)
}

/// Compares the journal with the cluster's record.
pub(super) struct Comparison {
    pub client: Client,
    /// The record's namespace and name.
    pub namespace: String,
    pub name: String,
    pub state: Shared,
    pub runner: RunnerHandle,
}

impl Comparison {
    /// Has the journal judged as soon as the record can be read, and told to the delivery; then waits until it is recorded
    /// itself. Ends only when told to.
    pub async fn run(self, stop: CancellationToken) {
        let work = async {
            self.judge().await;
            self.wait_recorded().await;
            std::future::pending::<()>().await;
        };
        stop.run_until_cancelled(work).await;
    }

    /// Reads the record.
    async fn recorded(&self) -> Result<Option<Record>, String> {
        let records: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        match records.get_opt(&self.name).await {
            Ok(None) => Ok(None),
            Ok(Some(found)) => Record::read(&found.data.unwrap_or_default())
                .map(Some)
                .map_err(|error| error.to_string()),
            Err(error) => Err(cluster::error_class(&error).to_owned()),
        }
    }

    async fn judge(&self) {
        let mut failures = 0;
        loop {
            let why = match self.recorded().await {
                Ok(recorded) => match self.judged_by(recorded).await {
                    Ok(()) => return,
                    Err(error) => format!("the journal's volume: {error}"),
                },
                Err(why) => why,
            };
            failures += 1;
            // The first may be a blink; later ones are told of less and less often.
            if failures == 2_u32 || failures.is_multiple_of(20) {
                tracing::warn!(
                    config_map = self.name,
                    why,
                    "can't read the cluster's record of the journal: messages of before this start wait until it is known \
                     that they were not delivered since"
                );
            }
            tokio::time::sleep(AGAIN.wait(failures, fastrand::f64())).await;
        }
    }

    async fn judged_by(&self, recorded: Option<Record>) -> io::Result<()> {
        let state = self.state.clone();
        let judging = tokio::task::spawn_blocking(move || state.lineage.judge(recorded.as_ref()));
        let verdict = judging.await.map_err(io::Error::other)??;
        let is_rewound = matches!(verdict, Verdict::Rewound(_));
        self.runner.judged(!is_rewound);
        self.state.metrics.journal_is_judged(is_rewound);
        match verdict {
            Verdict::Current => {}
            Verdict::Replaced => tracing::warn!(
                lost = recorded.map_or(0, |record| record.pending),
                "the journal is empty, and the one that the cluster has recorded is gone: what that one had not delivered \
                 is lost"
            ),
            Verdict::Rewound(why) => tracing::error!(
                why = why.as_str(),
                "JournalRewound: what the journal held may have been delivered already; it waits for a person: \
                 \"messages release --journal\" or \"messages drop --journal\". New messages are delivered"
            ),
        }
        Ok(())
    }

    /// From then on a start without a record is one in another cluster, or its record is lost.
    async fn wait_recorded(&self) {
        let mut looks = 0;
        loop {
            if let Ok(recorded) = self.recorded().await {
                let state = self.state.clone();
                let seen = tokio::task::spawn_blocking(move || state.lineage.sees(recorded.as_ref())).await;
                match seen {
                    Ok(Ok(true)) => return,
                    Ok(Ok(false)) => {}
                    Ok(Err(error)) => tracing::warn!(%error, "can't note that the journal is recorded"),
                    Err(error) => tracing::error!(%error, "noting that the journal is recorded failed"),
                }
            }
            looks += 1;
            tokio::time::sleep(RECORDED.wait(looks, fastrand::f64())).await;
        }
    }
}
