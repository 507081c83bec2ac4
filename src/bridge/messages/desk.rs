//! What people on call have the delivery do: hold a conversation, let it go on, try it now, give a message up.
//!
//! What a person has decided is on disk when he is answered, so that it outlives a restart.

use std::future::Future;

use crate::{
    delivery::{Dropped, RunnerHandle},
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
}
