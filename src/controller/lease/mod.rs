//! Who of several controllers acts: leader election on a Lease (Law 10).
//!
//! `decide` says what to ask of the API server next and what an answer means for our claim, `timing` holds the three
//! times that make it safe: both pure. `runner` carries it out, `leadership` is what the rest of the controller holds
//! and asks before each call that changes something.
//!
//! `docs/decisions/0008-one-leader-by-a-lease-of-our-own.md` tells why this is our own code and what it can't promise.

mod decide;
mod leadership;
mod runner;
mod timing;

pub use self::{
    leadership::{Leadership, channel},
    runner::{Stop, run},
    timing::{InvalidTiming, Timing},
};

/// The Lease's name unless another is set; the chart's roles name it too.
pub const DEFAULT_NAME: &str = "aura-whatsapp-operator-controller";

/// Which Lease is contended for, by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The namespace of the Lease: the release's.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who we are: no other process, not even our own successor, may have the same. See [`identity`].
    pub identity: String,
    /// The times.
    pub timing: Timing,
}

/// A name for this process that people recognise and no other process has: the pod's or host's name and a random
/// suffix.
pub fn identity() -> String {
    let host = std::env::var("HOSTNAME")
        .ok()
        .or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "controller".to_owned());
    format!("{host}_{:08x}", fastrand::u32(..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_processes_on_one_host_differ() {
        let (one, other) = (identity(), identity());
        assert_ne!(one, other);
        assert_eq!(one.rsplit_once('_').unwrap().0, other.rsplit_once('_').unwrap().0);
    }
}
