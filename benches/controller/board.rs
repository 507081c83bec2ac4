//! Which channels are Ready, as a watch of the measurement's own sees it: the API server's word, not the controller's.

use std::{collections::HashMap, time::Duration};

use anyhow::Context;
use aura_whatsapp_operator::api::WhatsAppChannel;
use futures::TryStreamExt;
use kube::{
    Api, ResourceExt,
    runtime::{
        WatchStreamExt,
        watcher::{self, watcher},
    },
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

/// What is known of all channels. Ends its watch with itself.
pub struct Board {
    seen: watch::Receiver<Seen>,
    _watch: DropGuard,
}

/// What is known of the channels.
#[derive(Default)]
pub struct Seen {
    channels: HashMap<String, View>,
    ready: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct View {
    observed_generation: Option<i64>,
    ready: bool,
}

impl Seen {
    fn note(&mut self, channel: &WhatsAppChannel) {
        let status = channel.status.as_ref();
        let observed_generation = status.and_then(|status| status.observed_generation);
        let view = View {
            observed_generation,
            ready: observed_generation == channel.metadata.generation
                && status
                    .into_iter()
                    .flat_map(|status| &status.conditions)
                    .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        };
        let before = self.channels.insert(channel.name_any(), view);
        self.ready -= usize::from(before.is_some_and(|before| before.ready));
        self.ready += usize::from(view.ready);
    }
}

impl Board {
    /// Watches a namespace's channels; returns when the first list of them was read.
    pub async fn watch(api: Api<WhatsAppChannel>, channels: usize) -> anyhow::Result<Self> {
        let (noting, mut seen) = watch::channel(Seen::default());
        let stop = CancellationToken::new();
        let events = async move {
            let events = watcher(api, watcher::Config::default())
                .default_backoff()
                .applied_objects();
            let mut events = std::pin::pin!(events);
            loop {
                match events.try_next().await {
                    Ok(Some(channel)) => noting.send_modify(|seen| seen.note(&channel)),
                    Ok(None) => break,
                    // The watch goes on by itself.
                    Err(error) => println!("the measurement's watch: {error}"),
                }
            }
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(events));
        let listed = seen.wait_for(|seen| seen.channels.len() >= channels);
        tokio::time::timeout(Duration::from_secs(120), listed)
            .await
            .context("the measurement's own watch does not see all channels")??;
        Ok(Self {
            seen,
            _watch: stop.drop_guard(),
        })
    }

    /// Waits until so many channels are Ready; when that was.
    pub async fn all_ready(&self, channels: usize, within: Duration) -> anyhow::Result<Instant> {
        let mut seen = self.seen.clone();
        let mut told = Instant::now();
        let all = async {
            loop {
                let ready = seen.borrow_and_update().ready;
                if ready >= channels {
                    return Ok(Instant::now());
                }
                if told.elapsed() > Duration::from_secs(5) {
                    println!("  {ready} of {channels} Ready");
                    told = Instant::now();
                }
                seen.changed().await.context("the measurement's watch ended")?;
            }
        };
        match tokio::time::timeout(within, all).await {
            Ok(at) => at,
            Err(_) => anyhow::bail!(
                "{} of {channels} channels Ready after {within:?}",
                self.seen.borrow().ready
            ),
        }
    }

    /// Waits until the status of all these channels speaks of their generation, or a later one.
    pub async fn all_observed(&self, names: &[String], generation: i64) -> anyhow::Result<()> {
        let observed = |seen: &Seen| {
            names.iter().all(|name| {
                seen.channels
                    .get(name)
                    .is_some_and(|view| view.ready && view.observed_generation >= Some(generation))
            })
        };
        tokio::time::timeout(Duration::from_secs(120), self.seen.clone().wait_for(observed))
            .await
            .context("not all changed channels were taken up")??;
        Ok(())
    }
}
