//! The listeners' certificates: followed as the other files are, the last good pair kept.

use std::sync::Arc;

use super::state::State;
use crate::{
    config::TlsFiles,
    server::{Look, Tls},
    tls::TlsError,
};

/// One listener's certificate.
pub(super) struct Certificate {
    listener: &'static str,
    files: TlsFiles,
    pub tls: Arc<Tls>,
    /// What was wrong with the files at the last look.
    wrong: Option<String>,
    told: bool,
}

impl Certificate {
    /// Reads the files, if there are any.
    ///
    /// # Errors
    /// When they can't be used.
    pub fn open(listener: &'static str, files: Option<&TlsFiles>) -> Result<Option<Self>, TlsError> {
        let Some(files) = files else { return Ok(None) };
        Ok(Some(Self {
            listener,
            tls: Arc::new(Tls::open(&files.files())?),
            files: files.clone(),
            wrong: None,
            told: false,
        }))
    }

    /// Looks at the files. What can't be used is told at the second look: between two reads the pair may have been
    /// replaced.
    pub fn look(&mut self, state: &State) {
        let listener = self.listener;
        match self.tls.look(&self.files.files()) {
            Look::Same => (self.wrong, self.told) = (None, false),
            Look::New => {
                (self.wrong, self.told) = (None, false);
                tracing::info!(
                    listener,
                    expires = self.expires(),
                    "another certificate is in force"
                );
            }
            Look::Bad(error) => {
                let error = error.to_string();
                if self.wrong.as_ref() == Some(&error) && !self.told {
                    tracing::error!(
                        listener,
                        error,
                        expires = self.expires(),
                        "the certificate's files can't be used; the last good pair stays in force"
                    );
                    self.told = true;
                }
                if self.wrong.as_ref() != Some(&error) {
                    (self.wrong, self.told) = (Some(error), false);
                }
            }
        }
        self.show(state);
    }

    /// Shows it in the metrics.
    pub fn show(&self, state: &State) {
        state
            .metrics
            .certificate(self.listener, self.tls.expires(), self.told);
    }

    fn expires(&self) -> String {
        jiff::Timestamp::from_second(self.tls.expires())
            .map_or_else(|_| "never".to_owned(), |at| at.to_string())
    }
}
