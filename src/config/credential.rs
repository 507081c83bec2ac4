//! Credentials that are mounted as files, never written into the configuration (Law 6).

use std::{fmt, path::PathBuf, sync::Arc};

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::{
    keys::texts_equal,
    tls::{Contents, Files, TlsError},
};

/// Where a credential comes from: exactly one of its fields is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CredentialSource {
    /// A file with an API key, sent as `Authorization: APIKEY <key>`.
    pub api_key_file: Option<PathBuf>,
    /// A file with a bearer token, sent as `Authorization: Bearer <token>`.
    pub bearer_file: Option<PathBuf>,
    /// A certificate, shown in the handshake of TLS.
    pub mtls: Option<Mtls>,
    /// No credential: only with `insecure: true`.
    pub none: bool,
}

/// A certificate as a credential: ours towards Aura by its files, Aura's towards us by the name in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Mtls {
    /// Inbound: the DNS name or URI that the client's certificate must have, or where it has neither its common name.
    pub name: Option<String>,
    /// Outbound: our certificate in PEM, those that signed it after it.
    pub cert_file: Option<PathBuf>,
    /// Outbound: its key in PEM.
    pub key_file: Option<PathBuf>,
    /// Outbound: the certificates of those who may have signed Aura's. Not set: those that the system trusts.
    pub ca_file: Option<PathBuf>,
}

/// A credential that was read.
#[derive(Clone, Debug)]
pub enum Credential {
    /// The whole value of an `Authorization` header.
    Header(SecretString),
    /// A certificate of ours.
    Identity(Identity),
    /// A name that the other side's certificate must have.
    Name(String),
    /// None is asked for or sent.
    None,
}

/// A certificate with its key. Its `Debug` shows neither.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity(Arc<Contents>);

impl Identity {
    /// What its files held.
    pub fn contents(&self) -> &Contents {
        &self.0
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
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
    /// A certificate or its key can't be used.
    #[error("certificate of a credential: {0}")]
    Certificate(#[from] TlsError),
}

impl CredentialSource {
    /// How many of its fields are set.
    pub(super) fn named(&self) -> usize {
        usize::from(self.api_key_file.is_some())
            + usize::from(self.bearer_file.is_some())
            + usize::from(self.mtls.is_some())
            + usize::from(self.none)
    }

    /// Reads the credential. A line break at its end is left out: editors and `echo` put one there.
    ///
    /// # Errors
    /// When the file can't be read or holds nothing that a header can carry.
    pub fn read(&self) -> Result<Credential, CredentialError> {
        if let Some(mtls) = &self.mtls {
            return mtls.read();
        }
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

impl Mtls {
    fn read(&self) -> Result<Credential, CredentialError> {
        if let (Some(certificate), Some(key)) = (&self.cert_file, &self.key_file) {
            let files = Files {
                certificate,
                key,
                ca: self.ca_file.as_deref(),
            };
            let contents = files.read()?;
            // Whether they can be used is found out here, not with the first message.
            files.parse(&contents)?;
            return Ok(Credential::Identity(Identity(Arc::new(contents))));
        }
        Ok(Credential::Name(self.name.clone().unwrap_or_default()))
    }
}

impl Credential {
    /// Whether a presented `Authorization` header is this one, in constant time; or whether one of the names in the
    /// client's verified certificate is.
    pub fn admits(&self, presented: Option<&str>, names: &[String]) -> bool {
        match self {
            Self::Header(expected) => texts_equal(expected.expose_secret(), presented.unwrap_or_default()),
            // A name is no secret.
            Self::Name(expected) => !expected.is_empty() && names.iter().any(|name| name == expected),
            // Ours towards others admits nobody.
            Self::Identity(_) => false,
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
        assert!(credential.admits(Some("APIKEY fake-key-for-tests"), &[]));
        assert!(!credential.admits(Some("Bearer fake-key-for-tests"), &[]));
        assert!(!credential.admits(None, &[]));
        assert!(!format!("{credential:?}").contains("fake-key"));
        std::fs::write(&path, " \n").unwrap();
        assert!(matches!(source.read(), Err(CredentialError::Unusable(_))));
    }

    #[test]
    fn a_name_is_that_of_the_certificate_as_a_whole() {
        let named = |name: &str| {
            let mtls = Mtls {
                name: Some(name.into()),
                ..Mtls::default()
            };
            let source = CredentialSource {
                mtls: Some(mtls),
                ..CredentialSource::default()
            };
            source.read().unwrap()
        };
        let names = ["aura.example".to_owned(), "spiffe://cluster/ns/aura".to_owned()];
        assert!(named("aura.example").admits(None, &names));
        assert!(named("spiffe://cluster/ns/aura").admits(None, &names));
        for (name, names) in [
            ("aura", &names[..]),
            ("AURA.example", &names),
            ("", &[String::new()]),
            ("aura.example", &[]),
        ] {
            assert!(!named(name).admits(Some("APIKEY aura.example"), names), "{name}");
        }
    }
}
