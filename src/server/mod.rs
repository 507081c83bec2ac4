//! The loop beneath each listener: accepts connections within bounds, drives them, and ends them in order.
//!
//! `axum::serve` has no deadline for a request's headers, none for an idle connection and none for a peer that does not
//! read its answer: so each connection is driven by hyper here, with all three (Law 11). `framing` refuses what another
//! program could read differently, `pulse` knows when a connection has waited for too long, `crowd` who is connected,
//! `address` whom a proxy speaks for, `throttle` who fails too often, `tls` has
//! a certificate that can be replaced. HTTP/1.1 only, on purpose: no proxy needs HTTP/2
//! towards its backend, and streams would be one more thing to bound.

mod address;
mod connection;
mod crowd;
mod framing;
mod pulse;
mod stream;
mod throttle;
mod tls;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::Router;
use ipnet::IpNet;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{
    address::{ClientHeader, client},
    pulse::Overdue,
    throttle::Throttle,
    tls::{ClientNames, Look, Tls},
};
use self::{connection::Connections, crowd::Crowd, pulse::Pulse};
use crate::telemetry::ListenerMetrics;

/// Bounds of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Connections at once. When they are taken, those that have waited longest are closed; when all are being served,
    /// more wait in the kernel's own queue.
    pub connections: usize,
    /// Connections at once of one address. Only where the peer's address is known to be the client's own: see
    /// [`Listening::trusted`].
    pub connections_per_address: usize,
    /// Time to send a request's head, from its first byte; of the first request from the beginning.
    pub header_timeout: Duration,
    /// How long a connection is kept that nothing is asked of.
    pub idle_timeout: Duration,
    /// How long a peer may take nothing of its answer.
    pub write_timeout: Duration,
    /// Requests on one connection; its last answer says that it closes.
    pub requests: u32,
}

impl Default for Bounds {
    /// For a listener that only few call.
    fn default() -> Self {
        Self {
            connections: 64,
            connections_per_address: 64,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(20),
            requests: 10_000,
        }
    }
}

/// A listener can't be opened.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on {address}: {source}")]
pub struct ListenError {
    address: SocketAddr,
    source: std::io::Error,
}

/// Opens a listener.
///
/// # Errors
/// When the address is taken, or not this machine's.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ListenError { address, source })
}

/// The address at the other end of a request's connection. Behind a proxy it is the proxy's: see [`client`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// How a listener is stopped.
#[derive(Clone, Debug)]
pub struct Stop {
    /// True: the end is near. Connections are still taken, and each answer says that its connection closes.
    pub draining: Arc<AtomicBool>,
    /// Takes no more connections, closes idle ones, and lets requests under way end.
    pub halt: CancellationToken,
    /// How long they may take.
    pub grace: Duration,
}

impl Stop {
    /// Without an announcement.
    pub fn at_once(halt: CancellationToken, grace: Duration) -> Self {
        Self {
            draining: Arc::default(),
            halt,
            grace,
        }
    }
}

/// A listener with what it serves.
pub struct Listening {
    /// Where connections come from.
    pub listener: TcpListener,
    /// What answers.
    pub app: Router,
    /// Its bounds.
    pub bounds: Bounds,
    /// Where it is known which proxies stand in front (none: clients connect themselves), connections of one address
    /// are limited, those of these proxies excepted.
    pub trusted: Option<Vec<IpNet>>,
    /// Its certificate; none: plain HTTP.
    pub tls: Option<Arc<Tls>>,
    /// What is measured of it.
    pub metrics: ListenerMetrics,
}

/// How long to wait after `accept` failed (out of file descriptors, mostly) before it is tried again.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
/// How long to wait for a place before room is made again.
const ROOM_AGAIN: Duration = Duration::from_millis(100);

impl Listening {
    /// Serves until told to stop; then returns when all connections have ended, or the grace has passed.
    pub async fn serve(self, stop: Stop) {
        let places = Arc::new(Semaphore::new(self.bounds.connections));
        let crowd = Arc::new(Crowd::default());
        let tracker = TaskTracker::new();
        let connections = Connections::new(
            self.app,
            self.bounds,
            self.tls,
            stop.clone(),
            self.metrics.clone(),
        );
        loop {
            let place = if let Ok(place) = places.clone().try_acquire_owned() {
                place
            } else {
                self.metrics.closed_by("full", crowd.make_room(Instant::now()));
                tokio::select! {
                    () = stop.halt.cancelled() => break,
                    Ok(place) = places.clone().acquire_owned() => place,
                    () = tokio::time::sleep(ROOM_AGAIN) => continue,
                }
            };
            let accepted = tokio::select! {
                () = stop.halt.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            let Ok((stream, peer)) = accepted else {
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            };
            let pulse = Arc::new(Mutex::new(Pulse::new(Instant::now())));
            let limit = self
                .trusted
                .as_deref()
                .is_some_and(|proxies| !address::is_in(proxies, peer.ip()))
                .then_some(self.bounds.connections_per_address);
            let Some(ticket) = crowd.admit(peer.ip(), limit, &pulse) else {
                self.metrics.closed_by("address", 1);
                continue;
            };
            let _ = stream.set_nodelay(true);
            let connection = connections.drive(stream, peer, pulse, ticket);
            tracker.spawn(async move {
                connection.await;
                drop(place);
            });
        }
        drop(self.listener);
        tracker.close();
        if tokio::time::timeout(stop.grace, tracker.wait()).await.is_err() {
            tracing::warn!(connections = tracker.len(), "stopped with connections open");
        }
    }
}

/// Whether the end was announced.
fn is_draining(stop: &Stop) -> bool {
    stop.draining.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests;
