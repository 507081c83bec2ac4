//! One channel's way through its environment's gate: each call to Kernel waits for its turn, is made under the leader's
//! claim and no longer than that lasts, and its end is counted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{
    circuit::Change,
    context::Context,
    gate::{Gate, Side},
    object_key::ObjectKey,
};
use crate::kernel::{KernelError, Operation, Turn, Turnstile};
use futures::{FutureExt, future::BoxFuture};

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
            let mut leadership = self.context.leadership.clone();
            if !leadership.is_leader() {
                return Err(KernelError::StoodDown);
            }
            Ok(Turn {
                lost: async move { leadership.lost().await }.boxed(),
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
            // The call was not made, or was ended by us: it says nothing of the environment.
            Err(KernelError::StoodDown) => return,
            // Whatever it answers, it is there.
            Err(_) | Ok(_) => None,
        };
        let population = || self.context.roster().population(&self.environment);
        match self.gate.ended(side, &self.key, outage, population) {
            Change::None => {}
            Change::Opened => self.context.environment_changed(&self.environment, side, outage),
            Change::Closed(_) => self.context.environment_changed(&self.environment, side, None),
        }
    }
}
