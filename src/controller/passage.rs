//! One channel's way through its environment's gate: each call to Kernel waits for its turn, is made under the leader's
//! claim and no longer than that lasts, and its end is counted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use tokio::time::Instant;

use super::{
    circuit::Change,
    context::Context,
    gate::{Gate, Side},
    roster::ObjectKey,
};
use crate::kernel::{KernelError, Operation, Turn, Turnstile};

/// The calls of one pass.
pub(super) struct Passage {
    context: Arc<Context>,
    gate: Arc<Gate>,
    environment: String,
    key: ObjectKey,
    /// The resource or its Secret is another than when it failed: it may try although the circuit is open.
    changed: bool,
    parked: AtomicBool,
}

impl Passage {
    pub fn new(
        context: &Arc<Context>,
        gate: &Arc<Gate>,
        environment: &str,
        key: &ObjectKey,
        changed: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            context: context.clone(),
            gate: gate.clone(),
            environment: environment.to_owned(),
            key: key.clone(),
            changed,
            parked: AtomicBool::new(false),
        })
    }

    /// Whether a call was not made because nobody's get through: the gate wakes the channel when they do again.
    pub fn is_parked(&self) -> bool {
        self.parked.load(Ordering::Relaxed)
    }

    fn admit(&self, operation: Operation) -> Result<(), KernelError> {
        self.gate
            .admit(Side::of(operation), &self.key, self.changed)
            .inspect_err(|_| self.parked.store(true, Ordering::Relaxed))
    }
}

impl Turnstile for Passage {
    fn enter(&self, operation: Operation) -> BoxFuture<'_, Result<Turn, KernelError>> {
        async move {
            self.admit(operation)?;
            let place = self.gate.turn().await;
            // What held before the wait may hold no longer.
            self.admit(operation)?;
            let until = self.context.leadership.until().ok_or(KernelError::StoodDown)?;
            Ok(Turn {
                at_most: Some(until.saturating_duration_since(Instant::now())),
                place: Box::new(place),
            })
        }
        .boxed()
    }

    fn left(&self, operation: Operation, ended: Result<u16, &KernelError>, took: Duration) {
        self.context.metrics.called(operation.as_str(), ended, took);
        let side = Side::of(operation);
        let outage = match ended {
            // It was cut short by the end of our claim, or this process was stopped for a while: no fault of Kernel's.
            Err(_) if !self.context.leadership.is_leader() => return,
            Err(error) if error.is_outage() => Some(error),
            // Neither a word of the server's own nor its silence: it says nothing of the environment.
            Err(_) | Ok(429) => return,
            Ok(_) => None,
        };
        let population = || self.context.roster().population(&self.environment);
        match self.gate.ended(side, &self.key, outage, population) {
            Change::None => {}
            Change::Opened => self.context.environment_changed(&self.environment, side, outage),
            Change::Closed(_) => self.context.environment_changed(&self.environment, side, None),
        }
    }
}
