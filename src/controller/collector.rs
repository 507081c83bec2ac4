//! What the metrics tell of each channel, read from the roster when the page is asked for: nothing is kept per
//! channel, and what is gone is no longer told of.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
};

use super::{context::Context, object_key::ObjectKey};

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
        let mut channels: Vec<(ObjectKey, String)> = context
            .roster()
            .channels(None)
            .map(|entry| (entry.key.clone(), entry.uid().to_owned()))
            .collect();
        channels.sort();
        let mut family = encoder.encode_descriptor(
            "channel_condition",
            "1 for each condition of each channel, by its status",
            None,
            MetricType::Gauge,
        )?;
        for (key, uid) in &channels {
            let mut conditions = Vec::new();
            context.memories.conditions(uid, |kind, value, _| {
                conditions.push((kind.to_owned(), value.to_owned()));
            });
            for (kind, value) in &conditions {
                let labels = [
                    ("namespace", &*key.namespace),
                    ("name", &*key.name),
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
        for (key, uid) in &channels {
            let Some(at) = context.memories.of(uid).looked_at else {
                continue;
            };
            let labels = [("namespace", &*key.namespace), ("name", &*key.name)];
            ConstGauge::new(at).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
