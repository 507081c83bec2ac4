//! What the rest of the controller knows of the election: until when we may act. Asked before each call that changes
//! something, it is right by the clock, also when the election itself hangs or was stopped for a while.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

/// Longer than any process lives.
const FOR_EVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// A handle on our claim to lead; cheap to clone.
#[derive(Clone, Debug)]
pub struct Leadership {
    /// When the claim ends; `None` without one.
    claim: watch::Receiver<Option<Instant>>,
    /// Of a leadership without election, which nobody else publishes.
    _own: Option<Arc<watch::Sender<Option<Instant>>>>,
}

/// The two ends of a claim: the election's, and the one that is asked.
pub fn channel() -> (watch::Sender<Option<Instant>>, Leadership) {
    let (publish, claim) = watch::channel(None);
    (publish, Leadership { claim, _own: None })
}

impl Leadership {
    /// Leads for ever: for a controller that runs without election.
    pub fn always() -> Self {
        let (own, claim) = watch::channel(Some(Instant::now() + FOR_EVER));
        Self {
            claim,
            _own: Some(Arc::new(own)),
        }
    }

    /// When our claim ends, if we have one now. It is extended while the election goes well: ask again before each
    /// call that changes something, and let none last longer than this.
    pub fn until(&self) -> Option<Instant> {
        self.claim.borrow().filter(|end| Instant::now() < *end)
    }

    /// Whether we lead at this moment.
    pub fn is_leader(&self) -> bool {
        self.until().is_some()
    }

    /// Waits until we lead. Never ends once the election has: wait for the stop beside it. Safe to cancel.
    pub async fn acquired(&mut self) {
        let leads = |claim: &Option<Instant>| claim.is_some_and(|end| Instant::now() < end);
        let gone = self.claim.wait_for(leads).await.is_err();
        if gone {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until we no longer lead, be it that the election says so or that the claim has run out. Safe to cancel.
    pub async fn lost(&mut self) {
        loop {
            let claim = *self.claim.borrow_and_update();
            let Some(end) = claim.filter(|end| Instant::now() < *end) else {
                return;
            };
            tokio::select! {
                () = tokio::time::sleep_until(end) => {}
                gone = self.claim.changed() => {
                    // The election has ended, and nobody will extend the claim.
                    if gone.is_err() {
                        tokio::time::sleep_until(end).await;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_claim_ends_by_the_clock_though_nobody_says_so() {
        let (publish, mut leadership) = channel();
        assert!(!leadership.is_leader());
        let start = Instant::now();
        publish.send_replace(Some(start + SECOND * 8));
        leadership.acquired().await;
        assert_eq!(leadership.until(), Some(start + SECOND * 8));
        leadership.lost().await;
        assert_eq!(start.elapsed().as_secs(), 8);
        assert!(!leadership.is_leader());
        assert!(publish.borrow().is_some(), "the message is still the old one");
    }

    #[tokio::test(start_paused = true)]
    async fn an_extended_claim_is_not_lost_and_a_revoked_one_is_at_once() {
        let (publish, mut leadership) = channel();
        let start = Instant::now();
        publish.send_replace(Some(start + SECOND * 8));
        tokio::spawn(async move {
            tokio::time::sleep_until(start + SECOND * 7).await;
            publish.send_replace(Some(start + SECOND * 15));
            tokio::time::sleep_until(start + SECOND * 10).await;
            publish.send_replace(None);
            std::future::pending::<()>().await;
        });
        leadership.lost().await;
        assert_eq!(start.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_outlives_an_election_that_died_by_no_moment() {
        let (publish, mut leadership) = channel();
        let start = Instant::now();
        publish.send_replace(Some(start + SECOND * 3));
        drop(publish);
        leadership.lost().await;
        assert_eq!(start.elapsed().as_secs(), 3);
        let again = tokio::time::timeout(SECOND * 60, leadership.acquired()).await;
        assert!(again.is_err(), "nobody can give it any more");
    }

    #[tokio::test(start_paused = true)]
    async fn without_election_the_claim_stays() {
        let mut leadership = Leadership::always();
        leadership.acquired().await;
        let year = SECOND * 365 * 24 * 3600;
        assert!(leadership.until().unwrap() > Instant::now() + year);
        assert!(tokio::time::timeout(year, leadership.lost()).await.is_err());
        assert!(leadership.clone().is_leader());
    }
}
