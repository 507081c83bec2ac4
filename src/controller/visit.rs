//! The way to Kernel for whoever calls it once without being the controller: through gates of the same kind, with the
//! same limits, so that it is no busier than the controller; and once nobody's calls get through, no more are made.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};

use super::{
    gate::{Gate, Side},
    object_key::ObjectKey,
};
use crate::{
    config::Installation,
    kernel::{KernelError, Operation, Turn, Turnstile},
};

/// The gates of all environments.
pub(crate) struct Gates(HashMap<String, Arc<Gate>>);

impl Gates {
    /// Gates with each environment's limits.
    pub fn new(installation: &Installation) -> Self {
        let gates = installation.environments.iter().map(|(name, environment)| {
            let gate = Gate::new(&environment.registration, Arc::new(|_| {}), Arc::default());
            (name.clone(), Arc::new(gate))
        });
        Self(gates.collect())
    }

    /// One channel's way through its environment's gate; `population` is how many channels go through it.
    pub fn visit(
        &self,
        environment: &str,
        namespace: &str,
        name: &str,
        population: usize,
    ) -> Option<Arc<dyn Turnstile>> {
        let visit = Visit {
            gate: self.0.get(environment)?.clone(),
            who: ObjectKey::new(namespace, name),
            population,
        };
        Some(Arc::new(visit))
    }
}

struct Visit {
    gate: Arc<Gate>,
    who: ObjectKey,
    population: usize,
}

impl Turnstile for Visit {
    fn enter(&self, operation: Operation) -> BoxFuture<'_, Result<Turn, KernelError>> {
        async move {
            let side = Side::of(operation);
            self.gate.admit(side, &self.who, false)?;
            let place = self.gate.turn().await;
            // What held before the wait may hold no longer.
            self.gate.admit(side, &self.who, false)?;
            Ok(Turn {
                lost: std::future::pending().boxed(),
                place: Box::new(place),
            })
        }
        .boxed()
    }

    fn left(&self, operation: Operation, ended: Result<u16, &KernelError>, _took: Duration) {
        let outage = match ended {
            Err(error) if error.is_outage() => Some(error),
            // It says nothing of the environment.
            Err(_) | Ok(408 | 429) => return,
            Ok(_) => None,
        };
        self.gate
            .ended(Side::of(operation), &self.who, outage, || self.population);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gates() -> Gates {
        let text = r"
environments:
  es:
    namespaces: [n]
    publicUrl: https://svc.example.com
    kernel: {apiUrl: https://k.example.com, authUrl: https://k.example.com}
    aura: {messagesUrl: https://a.example.com, replyUrl: http://b, outboundAuth: {apiKeyFile: /x}, inboundAuth: {apiKeyFile: /x}}
    registration: {perSecond: 2, concurrent: 1}
";
        Gates::new(&Installation::parse(text, "t").unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn calls_are_no_more_frequent_than_the_environment_allows() {
        let (gates, start) = (gates(), tokio::time::Instant::now());
        for n in 0..10 {
            let visit = gates.visit("es", "n", &n.to_string(), 10).unwrap();
            drop(visit.enter(Operation::Token).await.unwrap());
            visit.left(Operation::Token, Ok(200), Duration::ZERO);
        }
        assert_eq!(
            start.elapsed(),
            Duration::from_secs(3),
            "four at once, then two a second"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn when_nobodys_calls_get_through_no_more_are_made() {
        let gates = gates();
        let mut made = 0;
        for n in 0..10 {
            let visit = gates.visit("es", "n", &n.to_string(), 10).unwrap();
            match visit.enter(Operation::Token).await {
                Ok(turn) => {
                    made += 1;
                    drop(turn);
                    visit.left(Operation::Token, Err(&KernelError::TimedOut), Duration::ZERO);
                }
                Err(error) => assert_eq!(error, KernelError::TimedOut),
            }
        }
        assert_eq!(made, 3);
        let visit = gates.visit("es", "n", "other", 10).unwrap();
        assert!(
            visit.enter(Operation::WebhookGet).await.is_ok(),
            "the other server is another matter"
        );
    }
}
