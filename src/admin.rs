//! The admin listener of both roles: health and metrics. It shows nothing of any message.

use std::sync::Arc;

use axum::{
    Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};

use crate::telemetry::Registry;

/// Says what is missing for readiness, or for health; `None` when nothing is.
pub type Readiness = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// `/healthz` (nothing is stuck that only a new start would mend), `/readyz` (it can do its work) and `/metrics`; where
/// one of the first two is not so, the body says what is missing; where it is ready and something is to be known all the same,
/// that is what `noted` says. `refresh` is called before each page of metrics.
pub fn router(
    registry: Registry,
    healthy: Readiness,
    ready: Readiness,
    noted: Readiness,
    refresh: Arc<dyn Fn() + Send + Sync>,
) -> Router {
    Router::new()
        .route(
            "/healthz",
            get(move || {
                let stuck = healthy();
                async move {
                    match stuck {
                        None => (StatusCode::OK, "ok\n".to_owned()),
                        Some(stuck) => (StatusCode::SERVICE_UNAVAILABLE, format!("not healthy: {stuck}\n")),
                    }
                }
            }),
        )
        .route(
            "/readyz",
            get(move || {
                let (missing, note) = (ready(), noted());
                async move {
                    match (missing, note) {
                        (None, None) => (StatusCode::OK, "ready\n".to_owned()),
                        (None, Some(note)) => (StatusCode::OK, format!("ready; {note}\n")),
                        (Some(missing), _) => {
                            (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {missing}\n"))
                        }
                    }
                }
            }),
        )
        .route(
            "/metrics",
            get(move || {
                refresh();
                let page = registry.page();
                async move {
                    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                    ([(header::CONTENT_TYPE, kind)], page).into_response()
                }
            }),
        )
}
