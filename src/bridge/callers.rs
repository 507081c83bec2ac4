//! What becomes of calls with a wrong credential: counted, and limited for each address that makes them.
//!
//! A right credential is looked at first and is never held back, whoever else calls from the same address: Kernel calls
//! for all channels from a few addresses, and one channel with a wrong key must not stop the others (Law 4).

use std::{net::IpAddr, sync::PoisonError, time::Instant};

use axum::http::request::Parts;

use super::{public::Refusal, state::State};
use crate::server::{Peer, client};

impl State {
    /// What to answer a call with a wrong credential; alike for all that is wrong with it.
    pub(super) fn unauthorized(&self, listener: &'static str, parts: &Parts) -> Refusal {
        let mut wait = None;
        if let Some(throttle) = &self.throttle
            && let Some(address) = self.client(parts)
        {
            let mut throttle = throttle.lock().unwrap_or_else(PoisonError::into_inner);
            wait = throttle.failed(address, Instant::now()).err();
        }
        self.metrics.auth_failed(listener, wait.is_some());
        wait.map_or(Refusal::Unauthorized, |wait| {
            Refusal::TooMany(wait.as_secs().saturating_add(1))
        })
    }

    /// The address that a call comes from; `None` where it is not known whether a proxy stands in front.
    fn client(&self, parts: &Parts) -> Option<IpAddr> {
        let Peer(peer) = parts.extensions.get::<Peer>()?;
        let header = self.client_header;
        let lines = parts.headers.get_all(header.name()).into_iter();
        let lines: Vec<&str> = lines.map(|line| line.to_str().unwrap_or_default()).collect();
        Some(client(
            peer.ip(),
            header,
            lines.into_iter(),
            self.trusted_proxies.as_deref()?,
        ))
    }
}
