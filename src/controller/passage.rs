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
use crate::kernel::{KernelError, Operation, Turn, Turnstile, contract::NO_READ_BACK};
use futures::{FutureExt, future::BoxFuture};

/// The calls of one pass.
pub(super) struct Passage {
    context: Arc<Context>,
    gate: Arc<Gate>,
    environment: String,
    key: ObjectKey,
    changed: bool,
    /// Kernel could be read back before: that it can't be now is a trouble.
    readable: bool,
    /// Asked once more when it is the turn of a call that changes something: whether it may still be made.
    may_set: Option<Box<dyn Fn() -> bool + Send + Sync>>,
    parked: AtomicBool,
}

/// What a pass knows of its channel that its calls depend on.
#[derive(Default)]
pub(super) struct About {
    /// The resource or its Secret is another than when it failed: it may try although the circuit is open.
    pub changed: bool,
    /// Kernel could be read back before.
    pub readable: bool,
    /// Whether a call that changes something may still be made when its turn has come; always, if none.
    pub may_set: Option<Box<dyn Fn() -> bool + Send + Sync>>,
}

impl Passage {
    pub fn new(
        context: &Arc<Context>,
        gate: &Arc<Gate>,
        environment: &str,
        key: &ObjectKey,
        about: About,
    ) -> Arc<Self> {
        Arc::new(Self {
            context: context.clone(),
            gate: gate.clone(),
            environment: environment.to_owned(),
            key: key.clone(),
            changed: about.changed,
            readable: about.readable,
            may_set: about.may_set,
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
            let may = operation != Operation::WebhookSet || self.may_set.as_ref().is_none_or(|may| may());
            if !(leadership.is_leader() && may) {
                self.gate.undecided(Side::of(operation), &self.key, None);
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
            // As of an endpoint that is not there, though it was before.
            Ok(status) if self.readable && side == Side::Reads && NO_READ_BACK.contains(&status) => {
                Some(&KernelError::NotReadable)
            }
            // The call was not made, or was ended by us: it says nothing of the environment. Nor is it known what is
            // behind a door that tells everybody to wait.
            Err(error @ (KernelError::StoodDown | KernelError::RateLimited { .. })) => {
                self.gate.undecided(side, &self.key, error.retry_after());
                return;
            }
            Ok(408 | 429) => {
                self.gate.undecided(side, &self.key, None);
                return;
            }
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
