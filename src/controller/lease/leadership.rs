//! What the rest of the controller knows of the election: until when we may act. Asked before each call that changes
//! something, it is right by the clock, also when the election itself hangs or was stopped for a while.

use tokio::{sync::watch, time::Instant};

/// Our claim, as the election tells of it.
#[derive(Clone, Copy, Debug, Default)]
struct Claim {
    /// When it ends; `None` without one.
    end: Option<Instant>,
    /// Which of our terms of office it is.
    term: u64,
}

impl Claim {
    /// When it ends, if it has not yet.
    fn until(&self) -> Option<Instant> {
        self.end.filter(|end| Instant::now() < *end)
    }
}

/// Where the election tells of our claim.
#[derive(Debug)]
pub struct Publish(watch::Sender<Claim>);

/// A handle on our claim to lead; cheap to clone.
#[derive(Clone, Debug)]
pub struct Leadership {
    claim: watch::Receiver<Claim>,
}

/// The two ends of a claim: the election's, and the one that is asked.
pub fn channel() -> (Publish, Leadership) {
    let (publish, claim) = watch::channel(Claim::default());
    (Publish(publish), Leadership { claim })
}

impl Publish {
    /// Our claim ends then; `None`: there is none.
    pub fn claim(&self, end: Option<Instant>) {
        self.0.send_if_modified(|claim| {
            let begins = end.is_some() && claim.until().is_none();
            claim.term += u64::from(begins);
            std::mem::replace(&mut claim.end, end) != end
        });
    }
}

impl Leadership {
    /// When our claim ends, if we have one now. It is extended while the election goes well: ask again before each
    /// call that changes something, and let none last longer than this.
    pub fn until(&self) -> Option<Instant> {
        self.claim.borrow().until()
    }

    /// Whether we lead at this moment.
    pub fn is_leader(&self) -> bool {
        self.until().is_some()
    }

    /// Which of our terms of office this is, or was the last: another one once we have not led in between, be it for a
    /// moment that nobody has noticed.
    pub fn term(&self) -> u64 {
        self.claim.borrow().term
    }

    /// Waits until we lead. Never ends once the election has: wait for the stop beside it. Safe to cancel.
    pub async fn acquired(&mut self) {
        let gone = self
            .claim
            .wait_for(|claim| claim.until().is_some())
            .await
            .is_err();
        if gone {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until we no longer lead, be it that the election says so or that the claim has run out. Safe to cancel.
    pub async fn lost(&mut self) {
        let term = self.term();
        self.term_is_over(term).await;
    }

    /// Waits until this term is over, though another may have begun since. Safe to cancel.
    pub async fn term_is_over(&mut self, term: u64) {
        loop {
            let claim = *self.claim.borrow_and_update();
            let Some(end) = claim.until().filter(|_| claim.term == term) else {
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
        publish.claim(Some(start + SECOND * 8));
        leadership.acquired().await;
        assert_eq!(leadership.until(), Some(start + SECOND * 8));
        leadership.lost().await;
        assert_eq!(start.elapsed().as_secs(), 8);
        assert!(!leadership.is_leader());
        assert!(
            publish.0.borrow().end.is_some(),
            "the message is still the old one"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_extended_claim_is_not_lost_and_a_revoked_one_is_at_once() {
        let (publish, mut leadership) = channel();
        let start = Instant::now();
        publish.claim(Some(start + SECOND * 8));
        tokio::spawn(async move {
            tokio::time::sleep_until(start + SECOND * 7).await;
            publish.claim(Some(start + SECOND * 15));
            tokio::time::sleep_until(start + SECOND * 10).await;
            publish.claim(None);
            std::future::pending::<()>().await;
        });
        leadership.lost().await;
        assert_eq!(start.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_outlives_an_election_that_died_by_no_moment() {
        let (publish, mut leadership) = channel();
        let start = Instant::now();
        publish.claim(Some(start + SECOND * 3));
        drop(publish);
        leadership.lost().await;
        assert_eq!(start.elapsed().as_secs(), 3);
        let again = tokio::time::timeout(SECOND * 60, leadership.acquired()).await;
        assert!(again.is_err(), "nobody can give it any more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_term_is_over_though_another_has_begun_since() {
        let (publish, mut leadership) = channel();
        let start = Instant::now();
        publish.claim(Some(start + SECOND * 3));
        let term = leadership.term();
        publish.claim(Some(start + SECOND * 5));
        assert_eq!(leadership.term(), term, "it was extended");
        tokio::time::advance(SECOND * 6).await;
        publish.claim(Some(start + SECOND * 20));
        assert!(leadership.is_leader());
        assert_ne!(leadership.term(), term);
        leadership.term_is_over(term).await;
        assert_eq!(start.elapsed().as_secs(), 6, "it was over already");
    }
}
