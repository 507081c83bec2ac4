//! Once Kernel answers 429 for an environment, `plan` asks it nothing more there: whoever only looks does not use up
//! what the controller needs, and waits for nobody. Wraps the way to Kernel.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};

use crate::kernel::{KernelError, Operation, Turn, Turnstile};

/// The environments that Kernel limits, and how long it asks to wait, where it does.
#[derive(Clone, Default)]
pub(super) struct Limited(Arc<Mutex<BTreeMap<String, Option<Duration>>>>);

impl Limited {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Option<Duration>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A way to an environment's Kernel that ends with its first 429.
    pub fn turnstile(&self, environment: &str, way: Arc<dyn Turnstile>) -> Arc<dyn Turnstile> {
        Arc::new(Way {
            limited: self.clone(),
            environment: environment.to_owned(),
            way,
        })
    }

    /// Kernel has answered a call with 429.
    pub fn answered(&self, environment: &str, error: &KernelError) {
        if let KernelError::RateLimited { retry_after } = error {
            let mut limited = self.lock();
            let longest = limited.entry(environment.to_owned()).or_default();
            *longest = (*longest).max(*retry_after);
        }
    }

    /// What to tell a person of each environment that is limited.
    pub fn notes(&self) -> Vec<String> {
        let limited = self.lock();
        let note = |(environment, wait): (&String, &Option<Duration>)| {
            let when = wait.map_or_else(
                || "in a minute".to_owned(),
                |wait| format!("in {} s", wait.as_secs()),
            );
            format!(
                "Kernel limits the rate of calls (429) in environment {environment}: no more were made there; try again {when}"
            )
        };
        limited.iter().map(note).collect()
    }
}

struct Way {
    limited: Limited,
    environment: String,
    way: Arc<dyn Turnstile>,
}

impl Way {
    fn open(&self) -> Result<(), KernelError> {
        match self.limited.lock().get(&self.environment) {
            Some(retry_after) => Err(KernelError::RateLimited {
                retry_after: *retry_after,
            }),
            None => Ok(()),
        }
    }
}

impl Turnstile for Way {
    fn enter(&self, operation: Operation) -> BoxFuture<'_, Result<Turn, KernelError>> {
        async move {
            self.open()?;
            let turn = self.way.enter(operation).await?;
            // Another's call may have been answered with 429 during the wait.
            self.open()?;
            Ok(turn)
        }
        .boxed()
    }

    fn left(&self, operation: Operation, ended: Result<u16, &KernelError>, took: Duration) {
        // At once, and not when its caller hears of it; how long to wait is told by then.
        if ended == Ok(429) {
            self.limited.lock().entry(self.environment.clone()).or_default();
        }
        self.way.left(operation, ended, took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets everybody through.
    struct Open;

    impl Turnstile for Open {
        fn enter(&self, _: Operation) -> BoxFuture<'_, Result<Turn, KernelError>> {
            let turn = Turn {
                lost: std::future::pending().boxed(),
                place: Box::new(()),
            };
            std::future::ready(Ok(turn)).boxed()
        }

        fn left(&self, _: Operation, _: Result<u16, &KernelError>, _: Duration) {}
    }

    #[tokio::test]
    async fn after_a_429_an_environment_is_asked_nothing_more_and_others_are() {
        let limited = Limited::default();
        let (es, br) = (
            limited.turnstile("es", Arc::new(Open)),
            limited.turnstile("br", Arc::new(Open)),
        );
        for status in [200, 404, 503] {
            assert!(es.enter(Operation::Token).await.is_ok());
            es.left(Operation::Token, Ok(status), Duration::ZERO);
        }
        es.left(Operation::Token, Ok(429), Duration::ZERO);
        let wait = Some(Duration::from_secs(7));
        limited.answered("es", &KernelError::RateLimited { retry_after: wait });
        limited.answered("es", &KernelError::RateLimited { retry_after: None });
        // Neither of the other server, nor on the way of another channel.
        let other = limited.turnstile("es", Arc::new(Open));
        for way in [&es, &other] {
            let refused = way.enter(Operation::WebhookGet).await.err();
            assert_eq!(refused, Some(KernelError::RateLimited { retry_after: wait }));
        }
        assert!(br.enter(Operation::Token).await.is_ok());
        let notes = limited.notes().join("\n");
        assert!(
            notes.contains("environment es") && notes.contains("try again in 7 s"),
            "{notes}"
        );
        assert!(!notes.contains("environment br"), "{notes}");
    }
}
