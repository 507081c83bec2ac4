//! What people on call have the delivery do: hold a conversation, let it go on, try it now, give a message up.
//!
//! What a person has decided is on disk when he is answered, so that it outlives a restart.

use std::future::Future;

use crate::{
    delivery::{Dropped, OfChannel, RunnerHandle, Standing},
    journal::{AppendError, Journal, Lane, Seq},
};

/// What a change of a lane or of a message that waits needs of the delivery.
pub(in crate::bridge) trait Desk: Clone + Send + Sync + 'static {
    /// Nothing of this lane is delivered from now on; what is under way ends.
    fn park(&self, lane: Lane) -> impl Future<Output = Result<(), AppendError>> + Send;
    /// The lane goes on.
    fn unpark(&self, lane: Lane) -> impl Future<Output = Result<(), AppendError>> + Send;
    /// What waits in the lane for its next attempt is tried now.
    fn retry(&self, lane: Lane) -> impl Future<Output = Result<(), AppendError>> + Send;
    /// A message that waits becomes a dead letter.
    fn give_up(&self, seq: Seq) -> impl Future<Output = Result<Dropped, AppendError>> + Send;
    /// Withheld messages go on. Says which.
    fn release_withheld(&self, of: OfChannel) -> impl Future<Output = Result<Vec<Seq>, AppendError>> + Send;
    /// Withheld messages become dead letters, as many as may at once. Says which.
    fn give_up_withheld(&self, of: OfChannel) -> impl Future<Output = Result<Vec<Seq>, AppendError>> + Send;
    /// How the channels stand.
    fn standing(&self) -> impl Future<Output = Result<Standing, AppendError>> + Send;
}

/// The journal and the delivery.
#[derive(Clone)]
pub(in crate::bridge) struct Hands {
    pub journal: Journal,
    pub runner: RunnerHandle,
}

impl Desk for Hands {
    async fn park(&self, lane: Lane) -> Result<(), AppendError> {
        self.journal.park(lane, true).await?;
        self.runner.park(lane.into()).await.ok_or(AppendError::Closed)?;
        Ok(())
    }

    async fn unpark(&self, lane: Lane) -> Result<(), AppendError> {
        self.runner.unpark(lane.into()).await.ok_or(AppendError::Closed)?;
        self.journal.park(lane, false).await
    }

    async fn retry(&self, lane: Lane) -> Result<(), AppendError> {
        self.runner
            .retry_now(lane.into())
            .await
            .ok_or(AppendError::Closed)?;
        Ok(())
    }

    async fn give_up(&self, seq: Seq) -> Result<Dropped, AppendError> {
        self.runner.drop_message(seq).await.ok_or(AppendError::Closed)
    }

    async fn release_withheld(&self, of: OfChannel) -> Result<Vec<Seq>, AppendError> {
        self.runner.release(of).await.ok_or(AppendError::Closed)
    }

    async fn give_up_withheld(&self, of: OfChannel) -> Result<Vec<Seq>, AppendError> {
        self.runner.give_up(of).await.ok_or(AppendError::Closed)
    }

    async fn standing(&self) -> Result<Standing, AppendError> {
        self.runner.standing().await.ok_or(AppendError::Closed)
    }
}
