//! What the metrics tell of each channel, read from the watch's own store when the page is asked for: nothing is kept per
//! channel, and what is gone is no longer told of.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use kube::ResourceExt;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
};

use super::context::Context;

/// The channels of a controller, once it has begun.
#[derive(Clone, Default)]
pub(super) struct Channels(Arc<OnceLock<Arc<Context>>>);

impl Channels {
    /// The controller has begun.
    pub fn set(&self, context: &Arc<Context>) {
        let _ = self.0.set(context.clone());
    }
}

impl Channels {
    /// The controller, once it has begun.
    pub fn context(&self) -> Option<&Arc<Context>> {
        self.0.get()
    }
}

impl fmt::Debug for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Channels")
    }
}

impl Collector for Channels {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(context) = self.0.get() else {
            return Ok(());
        };
        let channels: Vec<_> = context.scopes().flat_map(|scope| scope.store.state()).collect();
        let mut family = encoder.encode_descriptor(
            "channel_condition",
            "1 for each condition of each channel, by its status",
            None,
            MetricType::Gauge,
        )?;
        for channel in &channels {
            let (namespace, name) = (channel.namespace().unwrap_or_default(), channel.name_any());
            let mut conditions = Vec::new();
            context
                .memories
                .conditions(&channel.uid().unwrap_or_default(), |kind, value, _| {
                    conditions.push((kind.to_owned(), value.to_owned()));
                });
            for (kind, value) in &conditions {
                let labels = [
                    ("namespace", namespace.as_str()),
                    ("name", name.as_str()),
                    ("type", kind.as_str()),
                    ("status", value.as_str()),
                ];
                ConstGauge::new(1_i64).encode(family.encode_family(&labels)?)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "channel_last_look_timestamp_seconds",
            "When Kernel last said which webhook it holds for a channel, in seconds since 1970",
            None,
            MetricType::Gauge,
        )?;
        for channel in &channels {
            let (namespace, name) = (channel.namespace().unwrap_or_default(), channel.name_any());
            let Some(at) = context.memories.of(&channel.uid().unwrap_or_default()).looked_at else {
                continue;
            };
            let labels = [("namespace", namespace.as_str()), ("name", name.as_str())];
            ConstGauge::new(at).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
