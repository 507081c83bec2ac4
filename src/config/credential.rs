//! Credentials that are mounted as files, never written into the configuration (Law 6).

use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::keys::texts_equal;

/// Where a credential comes from: exactly one of its fields is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CredentialSource {
    /// A file with an API key, sent as `Authorization: APIKEY <key>`.
    pub api_key_file: Option<PathBuf>,
    /// A file with a bearer token, sent as `Authorization: Bearer <token>`.
    pub bearer_file: Option<PathBuf>,
    /// No credential: only with `insecure: true`.
    pub none: bool,
}

/// A credential that was read.
#[derive(Clone, Debug)]
pub enum Credential {
    /// The whole value of an `Authorization` header.
    Header(SecretString),
    /// None is asked for or sent.
    None,
}

/// A credential's file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// It can't be read.
    #[error("credential file {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// It is empty, or not what a header can carry.
    #[error("credential file {0}: must hold one line of visible characters")]
    Unusable(String),
}

impl CredentialSource {
    /// How many of its fields are set.
    pub(super) fn named(&self) -> usize {
        usize::from(self.api_key_file.is_some())
            + usize::from(self.bearer_file.is_some())
            + usize::from(self.none)
    }

    /// Reads the credential. A line break at its end is left out: editors and `echo` put one there.
    ///
    /// # Errors
    /// When the file can't be read or holds nothing that a header can carry.
    pub fn read(&self) -> Result<Credential, CredentialError> {
        let (scheme, path) = match (&self.api_key_file, &self.bearer_file) {
            (Some(path), _) => ("APIKEY", path),
            (None, Some(path)) => ("Bearer", path),
            (None, None) => return Ok(Credential::None),
        };
        let name = path.display().to_string();
        let text =
            SecretString::from(
                std::fs::read_to_string(path).map_err(|source| CredentialError::Read {
                    path: name.clone(),
                    source,
                })?,
            );
        let value = text.expose_secret().trim();
        if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(CredentialError::Unusable(name));
        }
        Ok(Credential::Header(SecretString::from(format!(
            "{scheme} {value}"
        ))))
    }
}

impl Credential {
    /// Whether a presented `Authorization` header is this one, in constant time.
    pub fn admits(&self, presented: Option<&str>) -> bool {
        match self {
            Self::Header(expected) => texts_equal(expected.expose_secret(), presented.unwrap_or_default()),
            Self::None => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_one_line_and_admits_itself_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "fake-key-for-tests\n").unwrap();
        let source = CredentialSource {
            api_key_file: Some(path.clone()),
            ..CredentialSource::default()
        };
        let credential = source.read().unwrap();
        assert!(credential.admits(Some("APIKEY fake-key-for-tests")));
        assert!(!credential.admits(Some("Bearer fake-key-for-tests")));
        assert!(!credential.admits(None));
        assert!(!format!("{credential:?}").contains("fake-key"));
        std::fs::write(&path, " \n").unwrap();
        assert!(matches!(source.read(), Err(CredentialError::Unusable(_))));
    }
}
