//! A certificate authority to try TLS with, and files of certificates as a kubelet mounts them.

use std::{fs, io, path::Path};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, Error, IsCa, Issuer, KeyPair, SanType,
    date_time_ymd,
};

/// A certificate authority.
pub struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key, in PEM.
#[derive(Clone)]
pub struct Signed {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn new(name: &str) -> Result<Self, Error> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        Ok(Self {
            certificate: params.self_signed(&key)?,
            issuer: Issuer::new(params, key),
        })
    }

    /// Its own certificate in PEM.
    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// Signs a certificate for these DNS names, addresses or URIs until the first day of a year.
    ///
    /// # Errors
    /// When a name is none.
    pub fn sign(&self, names: &[&str], until: i32) -> Result<Signed, Error> {
        let mut params = CertificateParams::new(Vec::new())?;
        for name in names {
            params.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) if name.contains("://") => SanType::URI((*name).try_into()?),
                Err(_) => SanType::DnsName((*name).try_into()?),
            });
        }
        params.not_after = date_time_ymd(until, 1, 1);
        self.finish(&params)
    }

    /// Signs a certificate that has a common name alone.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn sign_common_name(&self, name: &str) -> Result<Signed, Error> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        self.finish(&params)
    }

    fn finish(&self, params: &CertificateParams) -> Result<Signed, Error> {
        let key = KeyPair::generate()?;
        Ok(Signed {
            certificate: params.signed_by(&key, &self.issuer)?.pem(),
            key: key.serialize_pem(),
        })
    }
}

impl Signed {
    /// Writes `tls.crt` and `tls.key` into a folder.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        for (name, text) in [("tls.crt", &self.certificate), ("tls.key", &self.key)] {
            // As a whole, or a reader would see half of it.
            let new = folder.join(format!("{name}.new"));
            fs::write(&new, text)?;
            fs::rename(new, folder.join(name))?;
        }
        Ok(())
    }
}
