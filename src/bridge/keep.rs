//! Makes what was received durable, in a bounded time.

use std::{
    sync::{MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    public::Refusal,
    refusing::{self, Why},
    state::State,
};
use crate::journal::{AppendError, Appended, NewEntry};

impl State {
    /// Makes entries durable before anybody is told that they were taken (Law 1).
    ///
    /// What takes longer than `patience` is answered like a full journal. It may become durable all the same: when its
    /// sender comes back, its id is remembered.
    ///
    /// # Errors
    /// What to answer instead.
    pub(super) async fn keep(
        &self,
        entries: Vec<NewEntry>,
        patience: Duration,
    ) -> Result<Vec<Appended>, Refusal> {
        let why = match in_time(patience, self.journal.append(entries)).await {
            Ok(appended) => {
                // What was there already says nothing of the disk.
                if appended.iter().any(|one| matches!(one, Appended::New(_))) {
                    self.refusals().kept();
                }
                return Ok(appended);
            }
            Err(NotKept::TooLarge) => return Err(Refusal::TooLarge),
            Err(NotKept::Share) => {
                // One channel's or environment's backlog: the journal takes what others send.
                self.metrics.not_kept("share");
                return Err(Refusal::NotNow);
            }
            Err(NotKept::Refused(why)) => why,
        };
        self.metrics.not_kept(match why {
            Why::Full => "full",
            Why::Failing => "failing",
            Why::Slow => "slow",
        });
        self.refusing(|refusing, journal, now| refusing.refused(why, journal, now));
        Err(Refusal::NotNow)
    }

    /// What is missing for readiness, in words; none when ready.
    pub(super) fn missing(&self) -> Option<String> {
        self.health.missing().or_else(|| {
            self.refusing(|refusing, journal, now| refusing.missing(journal, now))
                .map(ToOwned::to_owned)
        })
    }

    fn refusing<T>(&self, act: impl FnOnce(&mut refusing::Refusing, refusing::Journal, Instant) -> T) -> T {
        let stats = self.journal.stats();
        let journal = refusing::Journal {
            commits: stats.commits,
            failing: stats.failing,
            bytes: stats.bytes_on_disk,
            max_bytes: self.journal_max_bytes,
        };
        act(&mut self.refusals(), journal, Instant::now())
    }

    fn refusals(&self) -> MutexGuard<'_, refusing::Refusing> {
        self.health
            .refusing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why something is not durable.
#[derive(Debug, PartialEq, Eq)]
enum NotKept {
    /// It never will be.
    TooLarge,
    /// Its channel or environment has taken its share.
    Share,
    /// The journal does not take it now.
    Refused(Why),
}

/// Waits for an append, but not for ever. The journal lets its caller go at any time.
async fn in_time<T>(
    patience: Duration,
    append: impl Future<Output = Result<T, AppendError>>,
) -> Result<T, NotKept> {
    match tokio::time::timeout(patience, append).await {
        Ok(Ok(appended)) => Ok(appended),
        Ok(Err(AppendError::TooLarge)) => Err(NotKept::TooLarge),
        Ok(Err(error @ (AppendError::ChannelFull | AppendError::EnvironmentFull))) => {
            tracing::warn!(%error, "can't keep a message: its sender is asked to come back");
            Err(NotKept::Share)
        }
        Ok(Err(error)) => {
            tracing::error!(%error, "can't keep a message: its sender is asked to come back");
            Err(NotKept::Refused(match error {
                AppendError::Full => Why::Full,
                _ => Why::Failing,
            }))
        }
        Err(_) => {
            tracing::warn!(
                after = ?patience,
                "a message did not become durable in time: its sender is asked to come back"
            );
            Err(NotKept::Refused(Why::Slow))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_append_is_waited_for_as_long_as_patience_lasts() {
        let patience = Duration::from_secs(2);
        let takes = |seconds| async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            Ok(seconds)
        };
        assert_eq!(in_time(patience, takes(1)).await, Ok(1));
        let start = tokio::time::Instant::now();
        assert_eq!(
            in_time(patience, takes(3600)).await,
            Err(NotKept::Refused(Why::Slow))
        );
        assert_eq!(start.elapsed(), patience);
        let fails = async |error| in_time::<()>(patience, async { Err(error) }).await.unwrap_err();
        assert_eq!(fails(AppendError::Full).await, NotKept::Refused(Why::Full));
        assert_eq!(fails(AppendError::Closed).await, NotKept::Refused(Why::Failing));
        assert_eq!(fails(AppendError::ChannelFull).await, NotKept::Share);
        assert_eq!(fails(AppendError::TooLarge).await, NotKept::TooLarge);
    }
}
