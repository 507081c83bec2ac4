//! Follows the files that the bridge was started with: the configuration, the credentials that it names, the
//! listeners' certificates, and the installation key. What can't be used is told once, and the last good one stays in force.

use std::{path::PathBuf, sync::Arc};

use tokio_util::sync::CancellationToken;

use super::{
    certificates::Certificate,
    run::keys,
    state::{Setup, Shared},
};
use crate::config::follow::{EVERY, Follow, Look};

/// What is followed.
pub(super) struct Reload {
    pub state: Shared,
    pub config: PathBuf,
    pub installation_key: PathBuf,
    pub certificates: Vec<Certificate>,
}

impl Reload {
    /// Follows until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut follow = Follow::new(&self.config, &self.state.setup.load().installation);
        let mut told = Told::default();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
            let (state, dir) = (self.state.clone(), self.installation_key.clone());
            let mut certificates = std::mem::take(&mut self.certificates);
            let looked = tokio::task::spawn_blocking(move || {
                for certificate in &mut certificates {
                    certificate.look(&state);
                }
                let look = follow.look();
                let installation = match &look {
                    Look::New(installation) => installation.as_ref().clone(),
                    _ => state.setup.load().installation.clone(),
                };
                (follow, look, Setup::new(installation), keys(&dir), certificates)
            });
            let Ok((back, look, setup, keys, certificates)) = looked.await else {
                return;
            };
            (follow, self.certificates) = (back, certificates);
            let changed = matches!(look, Look::New(_));
            if let Look::Bad(error) = &look {
                tracing::error!(%error, "the configuration can't be used; the last good one stays in force");
                self.state.metrics.config.reloaded(false);
            }
            match setup {
                Ok(setup) => {
                    told.credential = None;
                    // Also where the configuration is the same: a credential's file may hold another by now.
                    self.state.setup.store(Arc::new(setup));
                    if changed {
                        // In force, and counted, when the routes and the lanes have it.
                        self.state.setup_changed.notify_one();
                    }
                }
                Err(error) => {
                    let error = error.to_string();
                    if told.credential.as_ref() != Some(&error) {
                        tracing::error!(
                            error,
                            "a credential's file can't be used; the last good ones stay in force"
                        );
                        told.credential = Some(error);
                    }
                    if changed {
                        self.state.metrics.config.reloaded(false);
                        // Tried again: its file may follow in a moment.
                        follow.again();
                    }
                }
            }
            match keys {
                Ok(keys) => {
                    told.key = None;
                    if keys.id() != self.state.keys.load().id() {
                        tracing::info!(key = keys.id(), "the installation key was rotated");
                    }
                    self.state.keys.store(Arc::new(keys));
                }
                Err(error) => {
                    let error = error.to_string();
                    if told.key.as_ref() != Some(&error) {
                        tracing::error!(
                            error,
                            "the installation key can't be used; the last good one stays in force"
                        );
                        told.key = Some(error);
                    }
                }
            }
        }
    }
}

/// What was told last, so that it is told once.
#[derive(Default)]
struct Told {
    credential: Option<String>,
    key: Option<String>,
}
