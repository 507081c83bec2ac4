//! Who leads (provisional).
use tokio::time::{Duration, Instant};

/// A handle on the claim.
#[derive(Clone)]
pub(super) struct Leadership;

impl Leadership {
    /// Always leads.
    pub fn always() -> Self {
        Self
    }

    /// The end of the claim, while there is one.
    pub fn until(&self) -> Option<Instant> {
        Some(Instant::now() + Duration::from_secs(3600))
    }
}
