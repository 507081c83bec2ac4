//! Carries the election out: asks the API server what `decide` says, and publishes our claim. It never ends the
//! process: a controller that lost the Lease stands by and may win it again.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client, api::PostParams};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Settings,
    decide::{Answer, Election, Step, Uptime},
    leadership::Publish,
};
use crate::cluster::{Asked, error_class};

/// How an election ends, in two steps, so that no other acts while our work is under way.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// The process is to stop: a Lease that we don't hold is not taken any more; one that we hold is kept.
    pub asked: CancellationToken,
    /// Our work has ended: the Lease is released, and the election ends.
    pub finished: CancellationToken,
}

/// Stands for election until told to stop, and publishes when our claim ends; `None` without one.
///
/// No request lasts longer than the retry period, nor than the claim. An error neither ends a claim at once nor
/// extends it. On the way out the Lease is released if it is still ours; that takes at most the renew deadline.
pub async fn run((client, asked): (Client, Asked), settings: Settings, publish: Publish, stop: Stop) {
    let mut runner = Runner {
        leases: Api::namespaced(client, &settings.namespace),
        election: Election::new(settings.clone()),
        settings,
        publish,
        asked,
        origin: Instant::now(),
        told: Told::default(),
    };
    while !stop.finished.is_cancelled() && (!stop.asked.is_cancelled() || runner.claim().is_some()) {
        let sent = runner.now();
        match runner.election.step(sent, Timestamp::now()) {
            Step::Wait(wait) => {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = stop.asked.cancelled(), if !stop.asked.is_cancelled() => {}
                    () = stop.finished.cancelled() => {}
                }
            }
            step => runner.ask(step, sent).await,
        }
        runner.tell();
    }
    runner.resign().await;
}

struct Runner {
    leases: Api<Lease>,
    settings: Settings,
    election: Election,
    publish: Publish,
    /// What the API server asks for.
    asked: Asked,
    origin: Instant,
    told: Told,
}

/// What was logged last: a line per change, not per request.
#[derive(Default)]
struct Told {
    leading: bool,
    holder: Option<String>,
    failing: bool,
}

impl Runner {
    fn now(&self) -> Uptime {
        self.origin.elapsed()
    }

    fn claim(&self) -> Option<Uptime> {
        self.election.claim(self.now())
    }

    async fn ask(&mut self, step: Step, sent: Uptime) {
        let retry = self.settings.timing.retry_period();
        let limit = self
            .claim()
            .map_or(retry, |end| retry.min(end.saturating_sub(sent)));
        let answer = self.request(step, limit).await;
        let now = self.now();
        self.election.answered(sent, now, fastrand::f64(), answer);
        if let Some(until) = self.asked.until() {
            self.election.put_off(until.duration_since(self.origin), now);
        }
    }

    async fn request(&mut self, step: Step, limit: Duration) -> Answer {
        let (name, parameters) = (&self.settings.name, PostParams::default());
        let writes = !matches!(step, Step::Read);
        let answered = async {
            match step {
                Step::Read => Ok(self
                    .leases
                    .get_opt(name)
                    .await?
                    .map_or(Answer::Absent, Answer::Found)),
                Step::Create(lease) => self.leases.create(&parameters, &lease).await.map(Answer::Written),
                Step::Replace(lease) => match self.leases.replace(name, &parameters, &lease).await {
                    Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Answer::Absent),
                    other => other.map(Answer::Written),
                },
                Step::Wait(_) => Ok(Answer::Failed),
            }
        };
        let (answer, class) = match tokio::time::timeout(limit, answered).await {
            Ok(Ok(answer)) => (answer, None),
            Ok(Err(kube::Error::Api(status))) if status.is_conflict() || status.is_already_exists() => {
                (Answer::Conflict, None)
            }
            // What was refused had no effect; whatever else went wrong may have gone wrong after it.
            Ok(Err(kube::Error::Api(status))) if (400..500).contains(&status.code) => {
                (Answer::Failed, Some(error_class(&kube::Error::Api(status))))
            }
            Ok(Err(error)) => (lost(writes), Some(error_class(&error))),
            Err(_) => (lost(writes), Some("no_answer_in_time")),
        };
        if let (Some(error), false) = (class, self.told.failing) {
            let (lease, namespace) = (&self.settings.name, &self.settings.namespace);
            tracing::warn!(
                lease,
                namespace,
                error,
                "can't read or write the Lease; trying again"
            );
        }
        self.told.failing = class.is_some();
        answer
    }

    /// Publishes our claim, and logs what has changed.
    fn tell(&mut self) {
        let claim = self.claim();
        let end = claim.map(|end| self.origin + end);
        self.publish.claim(end);
        let (identity, holder) = (&self.settings.identity, self.election.holder());
        match (self.told.leading, claim.is_some()) {
            (false, true) => tracing::info!(identity, "leading"),
            (true, false) => tracing::warn!(identity, holder, "no longer leading; standing by"),
            (false, false) if holder.is_some() && holder != self.told.holder.as_deref() => {
                tracing::info!(identity, holder, "standing by");
            }
            _ => {}
        }
        self.told.leading = claim.is_some();
        self.told.holder = holder.map(ToOwned::to_owned);
    }

    /// Ends our claim, then lets the others know.
    async fn resign(&mut self) {
        self.election.resign();
        self.publish.claim(None);
        if std::mem::take(&mut self.told.leading) {
            tracing::info!(identity = self.settings.identity, "leads no longer: stopping");
        }
        let limit = self.settings.timing.renew_deadline();
        let released = async {
            while let Some(step) = self.election.release(Timestamp::now()) {
                let sent = self.now();
                let failed_before = self.told.failing;
                self.ask(step, sent).await;
                if self.told.failing && failed_before {
                    break;
                }
                if self.told.failing {
                    tokio::time::sleep(self.settings.timing.retry_period() / 4).await;
                }
            }
        };
        if tokio::time::timeout(limit, released).await.is_err() || self.told.failing {
            tracing::warn!("the Lease could not be released: another leads when it has run out");
        }
    }
}

fn lost(writes: bool) -> Answer {
    if writes { Answer::Unknown } else { Answer::Failed }
}

#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;
