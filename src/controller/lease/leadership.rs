//! What the rest of the controller knows of the election: until when we may act. Asked before each call that changes
//! something, it is right by the clock, also when the election itself hangs or was stopped for a while.

use tokio::{sync::watch, time::Instant};

/// A handle on our claim to lead; cheap to clone.
#[derive(Clone, Debug)]
pub struct Leadership {
    /// When the claim ends; `None` without one.
    claim: watch::Receiver<Option<Instant>>,
}

/// The two ends of a claim: the election's, and the one that is asked.
pub fn channel() -> (watch::Sender<Option<Instant>>, Leadership) {
    let (publish, claim) = watch::channel(None);
    (publish, Leadership { claim })
}

impl Leadership {
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
    use std::time::Duration;

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
}
