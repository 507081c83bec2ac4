//! The small files of a control plane: secrets readable by us alone, kubeconfigs, a signing key, logs read
//! back.
//!
//! All of it is local and throw-away: the API server listens on loopback only and forgets everything with its
//! directory. The files are private all the same, because other people may have accounts on the machine.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

/// Logs are read back from their end, at most this much: kube-apiserver writes long lines.
const LOG_TAIL_BYTES: u64 = 64 * 1024;

/// The last `lines` lines of a log file, of at most its last 64 KiB; empty if there is none.
#[must_use]
pub fn last_lines(path: &Path, lines: usize) -> String {
    last_lines_since(path, 0, lines)
}

/// As [`last_lines`], but nothing from before the offset `start`.
pub(super) fn last_lines_since(path: &Path, start: u64, lines: usize) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(start.max(end.saturating_sub(LOG_TAIL_BYTES))))?;
        let mut tail = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut tail)?;
        Ok(tail)
    };
    let tail = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&tail);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Writes a file that only we can read (mode 0600), whole or not at all.
pub(super) fn write_private(path: &Path, content: &str) -> io::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let unfinished = Path::new(&unfinished);
    // One left behind may have another mode, which opening it would keep.
    let _ = fs::remove_file(unfinished);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(unfinished)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .and_then(|()| fs::rename(unfinished, path))
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// A kubeconfig with one cluster, one token and one namespace, complete in itself.
///
/// `ca_pem` is the certificate bundle that the server is verified with.
pub(super) fn kubeconfig(url: &str, ca_pem: &[u8], user: &str, token: &str, namespace: &str) -> String {
    // JSON is YAML, and quotes whatever a name may contain.
    let [url, user, token, namespace] =
        [url, user, token, namespace].map(|text| serde_json::Value::from(text).to_string());
    let ca = BASE64.encode(ca_pem);
    format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters:\n\
         - name: local\n  \
           cluster:\n    \
             server: {url}\n    \
             certificate-authority-data: {ca}\n\
         users:\n\
         - name: {user}\n  \
           user:\n    \
             token: {token}\n\
         contexts:\n\
         - name: local\n  \
           context:\n    \
             cluster: local\n    \
             user: {user}\n    \
             namespace: {namespace}\n\
         current-context: local\n"
    )
}

/// A new P-256 key for signing ServiceAccount tokens, as PEM.
///
/// Any number below the curve's order is a private key, and the encoding (RFC 5915, section 3) may leave the
/// public half out: readers compute it. So no cryptographic library is needed to make a throw-away one.
pub(super) fn new_signing_key() -> String {
    let mut scalar = [0; 32];
    scalar[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    scalar[16..].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    // The order begins with 32 one bits: with the first bit clear every value is below it. None is zero,
    // because a UUID's version bits are not.
    scalar[0] &= 0x7f;

    // ECPrivateKey ::= SEQUENCE { version INTEGER (1), privateKey OCTET STRING, parameters [0] prime256v1 }
    let mut der = vec![0x30, 0x31, 0x02, 0x01, 0x01, 0x04, 0x20];
    der.extend_from_slice(&scalar);
    der.extend_from_slice(&[
        0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07,
    ]);
    let text = BASE64.encode(der);
    let (first, second) = text.split_at(64);
    format!("-----BEGIN EC PRIVATE KEY-----\n{first}\n{second}\n-----END EC PRIVATE KEY-----\n")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_last_lines_are_the_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(&log, "one\ntwo\nthree\n").unwrap();
        assert_eq!(last_lines(&log, 2), "two\nthree");
        assert_eq!(last_lines(&log, 9), "one\ntwo\nthree");
        assert_eq!(last_lines_since(&log, 4, 9), "two\nthree");
        assert_eq!(last_lines_since(&log, 400, 9), "");
        assert_eq!(last_lines(&dir.path().join("absent"), 2), "");
    }

    #[test]
    fn a_huge_log_is_not_read_whole() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(&log, "é".repeat(200_000) + "\nlast\n").unwrap();
        assert_eq!(last_lines(&log, 1), "last");
        assert!(last_lines(&log, 9).len() < 70_000);
    }

    #[test]
    fn a_private_file_is_private_even_if_it_was_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        write_private(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_kubeconfig_reads_back_as_what_was_meant() {
        let text = kubeconfig("https://127.0.0.1:1", b"PEM", "a: \"b\"", "t#1", "ns");
        let config = kube::config::Kubeconfig::from_yaml(&text).unwrap();
        let user = &config.auth_infos[0];
        assert_eq!(user.name, "a: \"b\"");
        let json = serde_json::to_value(&config).unwrap();
        assert_eq!(json["clusters"][0]["cluster"]["server"], "https://127.0.0.1:1");
        assert_eq!(
            json["clusters"][0]["cluster"]["certificate-authority-data"],
            BASE64.encode("PEM")
        );
        assert_eq!(json["contexts"][0]["context"]["namespace"], "ns");
        assert_eq!(json["contexts"][0]["context"]["user"], "a: \"b\"");
        assert_eq!(json["current-context"], "local");
    }

    #[test]
    fn a_signing_key_is_well_formed_and_never_the_same() {
        let key = new_signing_key();
        assert_ne!(key, new_signing_key());
        let body: String = key.lines().filter(|line| !line.starts_with('-')).collect();
        let der = BASE64.decode(body).unwrap();
        assert_eq!(der.len(), usize::from(der[1]) + 2);
        assert!(key.lines().all(|line| line.len() <= 64));
    }
}
