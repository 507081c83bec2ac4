//! TLS on a listener: a certificate that can be replaced while it serves, and who the client says it is.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    server::WebPkiClientVerifier,
    sign::SingleCertAndKey,
    version::{TLS12, TLS13},
};

use crate::tls::{Contents, Files, Pair, TlsError, names, provider};

/// The names in the certificate that a client showed and that was verified; none where it showed none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientNames(pub Arc<[String]>);

/// A listener's certificate.
pub struct Tls {
    current: ArcSwap<InForce>,
}

struct InForce {
    config: Arc<ServerConfig>,
    contents: Contents,
    expires: i64,
}

/// What a look at a certificate's files found.
#[derive(Debug)]
pub enum Look {
    /// What is in force.
    Same,
    /// Another pair, in force now.
    New,
    /// Nothing that can be used: the last good pair stays in force.
    Bad(TlsError),
}

impl Tls {
    /// Reads the files. Where they name a CA, clients may show a certificate, which must then be signed by it.
    ///
    /// # Errors
    /// When they can't be used.
    pub fn open(files: &Files<'_>) -> Result<Self, TlsError> {
        let contents = files.read()?;
        let current = InForce::new(files, contents)?;
        Ok(Self {
            current: ArcSwap::from_pointee(current),
        })
    }

    /// Looks whether the files hold another pair, and takes it from the next connection on.
    pub fn look(&self, files: &Files<'_>) -> Look {
        let new = files.read().and_then(|contents| {
            if contents == self.current.load().contents {
                return Ok(None);
            }
            InForce::new(files, contents).map(Some)
        });
        match new {
            Ok(None) => Look::Same,
            Ok(Some(new)) => {
                self.current.store(Arc::new(new));
                Look::New
            }
            Err(error) => Look::Bad(error),
        }
    }

    /// When the certificate in force expires, in seconds since 1970.
    pub fn expires(&self) -> i64 {
        self.current.load().expires
    }

    pub(super) fn config(&self) -> Arc<ServerConfig> {
        self.current.load().config.clone()
    }
}

impl InForce {
    fn new(files: &Files<'_>, contents: Contents) -> Result<Self, TlsError> {
        let Pair {
            certified,
            roots,
            expires,
        } = files.parse(&contents)?;
        let unusable = |reason: String| TlsError::Unusable {
            path: files.ca.unwrap_or(files.certificate).to_owned(),
            reason,
        };
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|error| unusable(error.to_string()))?;
        let builder = match roots {
            Some(roots) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
                    // Who must show one is decided for each environment: others have a key.
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| unusable(error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            config: Arc::new(config),
            contents,
            expires,
        })
    }
}

/// The names of the client at the other end.
pub(super) fn client_names(connection: &rustls::ServerConnection) -> ClientNames {
    let certificate = connection.peer_certificates().and_then(|chain| chain.first());
    ClientNames(certificate.map(|first| names(first)).unwrap_or_default().into())
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, time::Duration};

    use axum::{Router, extract::Extension, routing::get};
    use rustls::{
        ClientConfig, RootCertStore, SupportedProtocolVersion,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    };
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };
    use tokio_rustls::{TlsConnector, client::TlsStream};
    use tokio_util::sync::CancellationToken;

    use super::{
        super::{Bounds, Listening, Stop, listen},
        *,
    };
    use crate::{
        sim::certificates::{Authority, Signed},
        telemetry::{ListenerMetrics, ListenersMetrics},
    };

    const SOON: Duration = Duration::from_secs(20);
    /// Kinds of records (RFC 8446, section 5.1).
    const ALERT: u8 = 21;
    const HANDSHAKE: u8 = 22;

    struct Server {
        address: std::net::SocketAddr,
        metrics: ListenerMetrics,
        tls: Arc<Tls>,
        folder: tempfile::TempDir,
        authority: Authority,
    }

    impl Server {
        async fn start() -> Self {
            let (folder, authority) = (
                tempfile::tempdir().unwrap(),
                Authority::new("the server's").unwrap(),
            );
            authority
                .sign(&["bridge.test"], 2040)
                .unwrap()
                .write(folder.path())
                .unwrap();
            std::fs::write(folder.path().join("ca.crt"), authority.pem()).unwrap();
            let paths = paths(&folder);
            let tls = Arc::new(Tls::open(&files(&paths)).unwrap());
            let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
            let (address, metrics) = (
                listener.local_addr().unwrap(),
                ListenersMetrics::default().of("test"),
            );
            let listening = Listening {
                listener,
                app: Router::new().route(
                    "/names",
                    get(async |Extension(names): Extension<ClientNames>| names.0.join(" ")),
                ),
                bounds: Bounds {
                    header_timeout: Duration::from_millis(300),
                    ..Bounds::default()
                },
                trusted: None,
                tls: Some(tls.clone()),
                metrics: metrics.clone(),
            };
            tokio::spawn(listening.serve(Stop::at_once(CancellationToken::new(), SOON)));
            Self {
                address,
                metrics,
                tls,
                folder,
                authority,
            }
        }

        async fn client(
            &self,
            versions: &[&'static SupportedProtocolVersion],
            identity: Option<&Signed>,
        ) -> std::io::Result<TlsStream<TcpStream>> {
            let mut roots = RootCertStore::empty();
            let ca = self.authority.pem();
            roots
                .add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap())
                .unwrap();
            let config = ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(versions)
                .unwrap()
                .with_root_certificates(roots);
            let config = match identity {
                None => config.with_no_client_auth(),
                Some(signed) => {
                    let chain = vec![CertificateDer::from_pem_slice(signed.certificate.as_bytes()).unwrap()];
                    let key = PrivateKeyDer::from_pem_slice(signed.key.as_bytes()).unwrap();
                    config.with_client_auth_cert(chain, key).unwrap()
                }
            };
            let stream = TcpStream::connect(self.address).await?;
            let name = ServerName::try_from("bridge.test").unwrap();
            TlsConnector::from(Arc::new(config)).connect(name, stream).await
        }

        /// The names that the server sees in a client's certificate.
        async fn names(&self, identity: Option<&Signed>) -> std::io::Result<String> {
            let mut client = self.client(&[&TLS13], identity).await?;
            client
                .write_all(b"GET /names HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                .await?;
            let mut answer = String::new();
            client.read_to_string(&mut answer).await?;
            let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            Ok(body.to_owned())
        }
    }

    fn paths(folder: &tempfile::TempDir) -> [PathBuf; 3] {
        ["tls.crt", "tls.key", "ca.crt"].map(|name| folder.path().join(name))
    }

    fn files(paths: &[PathBuf; 3]) -> Files<'_> {
        Files {
            certificate: &paths[0],
            key: &paths[1],
            ca: Some(&paths[2]),
        }
    }

    async fn soon<T>(future: impl Future<Output = T>) -> T {
        tokio::time::timeout(SOON, future)
            .await
            .expect("it does not take long")
    }

    #[tokio::test]
    async fn tls_1_2_and_1_3_are_spoken_and_nothing_older() {
        let server = Server::start().await;
        for version in [&TLS12, &TLS13] {
            let client = soon(server.client(&[version], None)).await.unwrap();
            assert_eq!(client.get_ref().1.alpn_protocol(), None);
            assert_eq!(client.get_ref().1.protocol_version(), Some(version.version));
        }
        // A ClientHello without supported_versions: a random, no session, one suite, no compression; one group, one
        // signature scheme. All that differs is the version.
        for (minor, kind) in [(1, ALERT), (2, ALERT), (3, HANDSHAKE)] {
            let extensions = [0, 10, 0, 4, 0, 2, 0, 29, 0, 13, 0, 4, 0, 2, 4, 3];
            let length = u8::try_from(extensions.len()).unwrap();
            let body = [
                &[3, minor][..],
                &[7; 32],
                &[0, 0, 2, 0xc0, 0x2b, 1, 0, 0, length],
                &extensions,
            ]
            .concat();
            let length = u8::try_from(body.len()).unwrap();
            let hello = [&[HANDSHAKE, 3, 1, 0, length + 4, 1, 0, 0, length][..], &body].concat();
            let mut client = TcpStream::connect(server.address).await.unwrap();
            client.write_all(&hello).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            soon(client.read_to_end(&mut answer)).await.unwrap();
            assert_eq!(answer[0], kind, "3.{minor}: {answer:?}");
        }
    }

    #[tokio::test]
    async fn who_goes_talks_nonsense_or_dawdles_in_the_handshake_harms_nobody() {
        let server = Server::start().await;
        drop(TcpStream::connect(server.address).await.unwrap());
        for bytes in [
            &b"GET /names HTTP/1.1\r\nhost: x\r\n\r\n"[..],
            b"\x16\x03\x01",
            b"",
        ] {
            let mut client = TcpStream::connect(server.address).await.unwrap();
            client.write_all(bytes).await.unwrap();
            let mut rest = Vec::new();
            let _ = soon(client.read_to_end(&mut rest)).await;
            assert!(!rest.starts_with(b"HTTP"), "plain HTTP is not spoken");
        }
        soon(async {
            while server.metrics.closed_so_far("handshake") < 4 || server.metrics.opened_now() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(soon(server.names(None)).await.unwrap(), "");
    }

    #[tokio::test]
    async fn another_pair_is_used_from_the_next_connection_on_and_a_bad_one_never() {
        let server = Server::start().await;
        let paths = paths(&server.folder);
        let shown = async || {
            let client = soon(server.client(&[&TLS13], None)).await.unwrap();
            client.get_ref().1.peer_certificates().unwrap()[0].clone()
        };
        let (first, expires) = (shown().await, server.tls.expires());
        assert!(matches!(server.tls.look(&files(&paths)), Look::Same));

        let second = server.authority.sign(&["bridge.test"], 2041).unwrap();
        // Half of the new pair only: the key is not the certificate's.
        std::fs::write(&paths[0], &second.certificate).unwrap();
        let Look::Bad(TlsError::Mismatch { .. }) = server.tls.look(&files(&paths)) else {
            panic!("the key is another's")
        };
        for (path, text) in [
            (&paths[0], ""),
            (
                &paths[0],
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            ),
            (&paths[1], "no key"),
        ] {
            let before = std::fs::read(path).unwrap();
            std::fs::write(path, text).unwrap();
            assert!(matches!(server.tls.look(&files(&paths)), Look::Bad(_)), "{text}");
            std::fs::write(path, before).unwrap();
        }
        assert_eq!((shown().await, server.tls.expires()), (first.clone(), expires));

        second.write(server.folder.path()).unwrap();
        assert!(matches!(server.tls.look(&files(&paths)), Look::New));
        assert_ne!(shown().await, first);
        assert_eq!(
            server.tls.expires() - expires,
            366 * 24 * 3600,
            "2040 is a leap year"
        );
    }

    #[tokio::test]
    async fn a_client_is_who_its_verified_certificate_says_and_nobody_without_one() {
        let server = Server::start().await;
        let names = async |signed: &Signed| soon(server.names(Some(signed))).await;
        let authority = &server.authority;
        let both = authority
            .sign(&["aura.test", "spiffe://cluster/ns/aura", "127.0.0.1"], 2040)
            .unwrap();
        assert_eq!(names(&both).await.unwrap(), "aura.test spiffe://cluster/ns/aura");
        assert_eq!(
            names(&authority.sign_common_name("aura").unwrap()).await.unwrap(),
            "aura"
        );
        assert_eq!(soon(server.names(None)).await.unwrap(), "");
        let foreign = Authority::new("another")
            .unwrap()
            .sign(&["aura.test"], 2040)
            .unwrap();
        assert!(names(&foreign).await.is_err());
        assert!(
            names(&authority.sign(&["aura.test"], 2020).unwrap())
                .await
                .is_err(),
            "expired"
        );
    }
}
