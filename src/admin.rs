//! The admin listener of both roles: health and metrics. It shows nothing of any message.

use std::sync::Arc;

use axum::{
    Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};

use crate::telemetry::Registry;

/// Says what is missing for readiness; `None` when ready.
pub type Readiness = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// `/healthz` (the process answers), `/readyz` (it can do its work; else the body says what is missing) and
/// `/metrics`. `refresh` is called before each page of metrics.
pub fn router(registry: Registry, ready: Readiness, refresh: Arc<dyn Fn() + Send + Sync>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route(
            "/readyz",
            get(move || {
                let missing = ready();
                async move {
                    match missing {
                        None => (StatusCode::OK, "ready\n".to_owned()),
                        Some(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {missing}\n")),
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
