//! The log stream: one line per event, on stderr, as text or JSON.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line, for collectors.
    Json,
}

/// Starts logging. `filter` has the form of `tracing`'s `EnvFilter`, such as `info` or `info,kube=debug`.
///
/// # Errors
/// When the filter can't be parsed, or logging was started before.
pub fn init(format: LogFormat, filter: &str) -> Result<(), String> {
    // What people changed is told of whatever else is left out, unless a filter names it.
    let audit = if filter.contains("audit") {
        ""
    } else {
        ",audit=info"
    };
    let filter = EnvFilter::try_new(format!("{filter}{audit}")).map_err(|error| {
        format!("--log-filter {filter:?}: {error}; write it like info or info,kube=debug")
    })?;
    let registry = tracing_subscriber::registry().with(filter);
    let started = match format {
        LogFormat::Text => registry
            .with(
                fmt::layer()
                    .with_writer(std::io::stderr)
                    .with_ansi(std::io::stderr().is_terminal()),
            )
            .try_init(),
        LogFormat::Json => registry
            .with(
                fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_current_span(false)
                    .with_writer(std::io::stderr),
            )
            .try_init(),
    };
    started.map_err(|error| error.to_string())
}
