//! The loop beneath each listener: accepts connections within a bound, and ends them in order when told to stop.
//!
//! `axum::serve` has no deadline for a request's headers, so one slow client could hold a connection for ever: the
//! connection is driven by hyper here, with its own (Law 11).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Bounds of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at once; more wait in the kernel's own queue.
    pub connections: usize,
    /// Time to send a request's headers, also the time that an idle connection is kept.
    pub header_timeout: Duration,
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

/// Largest head of a request, in bytes, and the most headers in it.
const MAX_HEAD: usize = 32 * 1024;
const MAX_HEADERS: usize = 64;
/// How long to wait after `accept` failed (out of file descriptors, mostly) before it is tried again.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// Serves until told to stop; then takes no more connections, lets requests under way end, and returns when all
/// have ended or `grace` has passed.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    bounds: Bounds,
    stop: CancellationToken,
    grace: Duration,
) {
    let places = Arc::new(Semaphore::new(bounds.connections));
    let tracker = TaskTracker::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(bounds.header_timeout)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .keep_alive(true);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = async {
                let place = places.clone().acquire_owned().await;
                (listener.accept().await, place)
            } => accepted,
        };
        let (Ok((stream, _)), Ok(place)) = accepted else {
            tokio::time::sleep(ACCEPT_AGAIN).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app.clone()));
        let stop = stop.clone();
        tracker.spawn(async move {
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                _ = connection.as_mut() => {}
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    let _ = connection.await;
                }
            }
            drop(place);
        });
    }
    drop(listener);
    tracker.close();
    if tokio::time::timeout(grace, tracker.wait()).await.is_err() {
        tracing::warn!(connections = tracker.len(), "stopped with connections open");
    }
}
