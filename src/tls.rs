//! Certificates and keys in PEM files, as a mounted Secret of type `kubernetes.io/tls` shows them: read, checked, and
//! what a certificate says of itself. TLS itself is rustls, 1.2 and 1.3 alone, with ring.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use x509_cert::{
    Certificate,
    der::{Decode, oid::db::rfc4519},
    ext::pkix::{SubjectAltName, name::GeneralName},
};
use zeroize::Zeroizing;

/// A certificate or key can't be used. Free of what the files hold.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("{path}: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No certificate in PEM.
    #[error("{}: holds no certificate in PEM (-----BEGIN CERTIFICATE-----)", .0.display())]
    NoCertificate(PathBuf),
    /// No key in PEM.
    #[error("{}: holds no private key in PEM, without a passphrase (-----BEGIN PRIVATE KEY-----)", .0.display())]
    NoKey(PathBuf),
    /// The certificate can't be read.
    #[error("{}: the certificate can't be read", .0.display())]
    Malformed(PathBuf),
    /// The key is another's.
    #[error("{key}: the key is not that of the certificate in {certificate}", key = .key.display(), certificate = .certificate.display())]
    Mismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// rustls does not take it.
    #[error("{path}: {reason}", path = .path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// The files of a certificate with its chain, and of its key.
#[derive(Clone, Debug)]
pub struct Files<'a> {
    /// The certificate, those that signed it after it.
    pub certificate: &'a Path,
    /// Its key.
    pub key: &'a Path,
    /// The certificates of those whose signature is believed.
    pub ca: Option<&'a Path>,
}

/// What the files held when they were read.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Contents {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    ca: Option<Vec<u8>>,
}

/// A certificate with its key, and those who may sign others.
pub struct Pair {
    /// For rustls.
    pub certified: CertifiedKey,
    /// Those who may sign; where a file was named.
    pub roots: Option<RootCertStore>,
    /// When the certificate expires, in seconds since 1970.
    pub expires: i64,
}

/// The crypto provider.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

impl Files<'_> {
    /// Reads the files.
    ///
    /// # Errors
    /// When one can't be read.
    pub fn read(&self) -> Result<Contents, TlsError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| TlsError::Read {
                path: path.to_owned(),
                source,
            })
        };
        Ok(Contents {
            certificate: read(self.certificate)?,
            key: Zeroizing::new(read(self.key)?),
            ca: self.ca.map(read).transpose()?,
        })
    }

    /// What these contents are.
    ///
    /// # Errors
    /// When they are not what they should be, or the key is another's.
    pub fn parse(&self, contents: &Contents) -> Result<Pair, TlsError> {
        let chain = certificates(self.certificate, &contents.certificate)?;
        let key =
            PrivateKeyDer::from_pem_slice(&contents.key).map_err(|_| TlsError::NoKey(self.key.to_owned()))?;
        let expires = chain.first().and_then(|first| expires(first));
        let expires = expires.ok_or_else(|| TlsError::Malformed(self.certificate.to_owned()))?;
        let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => TlsError::Mismatch {
                key: self.key.to_owned(),
                certificate: self.certificate.to_owned(),
            },
            error => TlsError::Unusable {
                path: self.key.to_owned(),
                reason: error.to_string(),
            },
        })?;
        let roots = match (self.ca, &contents.ca) {
            (Some(path), Some(contents)) => Some(roots(path, contents)?),
            _ => None,
        };
        Ok(Pair {
            certified,
            roots,
            expires,
        })
    }
}

impl Contents {
    /// The certificate and its key, one after the other.
    pub fn identity(&self) -> Zeroizing<Vec<u8>> {
        let mut identity = Zeroizing::new(Vec::with_capacity(self.certificate.len() + self.key.len() + 1));
        identity.extend_from_slice(&self.certificate);
        identity.push(b'\n');
        identity.extend_from_slice(&self.key);
        identity
    }

    /// The certificates of those who may sign.
    pub fn ca(&self) -> Option<&[u8]> {
        self.ca.as_deref()
    }
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let none = || TlsError::NoCertificate(path.to_owned());
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|_| none())?;
    if chain.is_empty() { Err(none()) } else { Ok(chain) }
}

fn roots(path: &Path, pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        roots.add(certificate).map_err(|error| TlsError::Unusable {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
    }
    Ok(roots)
}

fn expires(certificate: &[u8]) -> Option<i64> {
    let certificate = Certificate::from_der(certificate).ok()?;
    let expires = certificate
        .tbs_certificate()
        .validity()
        .not_after
        .to_unix_duration();
    i64::try_from(expires.as_secs()).ok()
}

/// The names that a certificate gives: the DNS names and URIs of its subject's alternative names, or where it has none
/// its common name (RFC 6125, section 6.4.4).
pub fn names(certificate: &[u8]) -> Vec<String> {
    let Ok(certificate) = Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let certificate = certificate.tbs_certificate();
    let alternative = certificate.get_extension::<SubjectAltName>().ok().flatten();
    let mut names: Vec<String> = alternative
        .iter()
        .flat_map(|(_, names)| &names.0)
        .filter_map(|name| match name {
            GeneralName::DnsName(name) => Some(name.to_string()),
            GeneralName::UniformResourceIdentifier(uri) => Some(uri.to_string()),
            _ => None,
        })
        .collect();
    if names.is_empty() {
        let common = certificate
            .subject()
            .iter()
            .filter(|attribute| attribute.oid == rfc4519::CN);
        names.extend(common.filter_map(|attribute| {
            let text = std::str::from_utf8(attribute.value.value()).ok()?;
            Some(text.to_owned())
        }));
    }
    names
}
