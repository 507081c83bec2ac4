//! The installation's configuration: one YAML file, the same for both roles.
//!
//! It says which environments there are (which Kernel, which Aura), who may use them and within what limits. A
//! channel names an environment and nothing else: a resource that could choose where its credentials are sent
//! could steal them. Parsed strictly: an unknown key is an error with its line, and what parses is checked as a
//! whole before anything uses it.

mod check;
mod credential;
pub mod follow;
mod strict;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use serde::Deserialize;
use url::Url;

pub use self::credential::{Credential, CredentialError, CredentialSource, Identity, Mtls};
use crate::{
    api::{ApiVersion, ChannelDefaults, KeyRef, Period, WebhookMode, WhatsAppChannelSpec},
    kernel::contract,
    server::{Bounds, ClientHeader},
    tls::Files,
    yaml::{self, Position},
};

/// The whole file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Installation {
    /// The namespaces whose channels are served; none named: the release namespace alone. `["*"]` serves the whole
    /// cluster and needs cluster-wide rights.
    #[serde(default)]
    pub watch_namespaces: Vec<String>,
    /// The environments by name.
    pub environments: BTreeMap<String, Environment>,
    /// The bridge's limits.
    #[serde(default)]
    pub bridge: BridgeLimits,
}

/// One environment: a Kernel, an Aura, and who may use them.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Environment {
    /// The namespaces whose channels may name this environment.
    pub namespaces: Vec<String>,
    /// Where Kernel reaches the bridge, without a path: `https://svc-es-pro.auracognitive.com`.
    pub public_url: Url,
    /// Where it reached the bridge before: a webhook there still counts as ours.
    #[serde(default)]
    pub former_public_urls: Vec<Url>,
    /// Allows plain `http` and an Aura without credentials: for development only.
    #[serde(default)]
    pub insecure: bool,
    /// Kernel.
    pub kernel: KernelSettings,
    /// Aura.
    pub aura: AuraSettings,
    /// Limits of webhook registration, shared by all channels of the environment.
    #[serde(default)]
    pub registration: Registration,
    /// Defaults for all channels of the environment.
    #[serde(default, deserialize_with = "strict::deserialize")]
    pub channel_defaults: ChannelDefaults,
    /// What mode Legacy registers.
    #[serde(default)]
    pub legacy_callback: Option<LegacyCallback>,
    /// Maintenance; ends by itself.
    #[serde(default)]
    pub hold: Option<Hold>,
}

/// How to reach Kernel. Every default is a guess about Kernel and stands in [`contract`].
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KernelSettings {
    /// The base of the API, such as `https://api.es-pro.baikalplatform.com`.
    pub api_url: Url,
    /// The base of the auth server, such as `https://auth.es-pro.baikalplatform.com`.
    pub auth_url: Url,
    /// The path of the token endpoint.
    #[serde(default = "contract::token_path")]
    pub token_path: String,
    /// The path of the webhook setting; `{version}` stands for the channel's API version.
    #[serde(default = "contract::webhook_path")]
    pub webhook_path: String,
    /// The path that messages are sent to; `{version}` as above.
    #[serde(default = "contract::messages_path")]
    pub messages_path: String,
    /// How long one call may take in all. Default 15s.
    #[serde(default = "contract::timeout")]
    pub timeout: Period,
}

/// How to reach Aura, and how Aura reaches the bridge.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuraSettings {
    /// Where messages are posted.
    pub messages_url: Url,
    /// Where Aura posts its replies: the bridge's internal listener, without a path. Sent as `serviceUrl`.
    pub reply_url: Url,
    /// How the bridge authenticates at Aura.
    pub outbound_auth: CredentialSource,
    /// How Aura authenticates at the bridge.
    pub inbound_auth: CredentialSource,
    /// How long one call may take in all. Default 15s.
    #[serde(default = "aura_timeout")]
    pub timeout: Period,
}

fn aura_timeout() -> Period {
    Period::seconds(15)
}

/// Limits of webhook registration in one environment.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Registration {
    /// Calls a second. Default 5.
    pub per_second: u32,
    /// Calls at once. Default 4.
    pub concurrent: u32,
    /// Whether Kernel holds one webhook per OAuth client, so that two channels must not share one. Default true.
    pub one_webhook_per_client: bool,
}

impl Default for Registration {
    fn default() -> Self {
        Self {
            per_second: 5,
            concurrent: 4,
            one_webhook_per_client: contract::ONE_WEBHOOK_PER_CLIENT,
        }
    }
}

/// The callback of the system before, for mode Legacy.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LegacyCallback {
    /// The URL; `{apikey}` and `{channelId}` are filled in.
    pub url: String,
    /// The Secret with the API key, in the channel's namespace.
    #[serde(default)]
    pub api_key_secret_ref: Option<KeyRef>,
}

/// Maintenance of an environment.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hold {
    /// When it ends by itself.
    pub until: String,
    /// What is held.
    pub what: Vec<Held>,
    /// Why, for whoever reads the status.
    #[serde(default)]
    pub reason: String,
}

/// What a hold holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Held {
    /// Webhooks are not changed.
    Registration,
    /// Messages are accepted and kept, not delivered.
    Delivery,
}

/// The listeners' certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BridgeTls {
    /// That of the public listener.
    pub public: Option<TlsFiles>,
    /// That of the internal listener.
    pub internal: Option<TlsFiles>,
}

/// The files of a certificate, such as a mounted Secret of type `kubernetes.io/tls` has. Read again when they change.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsFiles {
    /// The certificate in PEM, those that signed it after it.
    pub cert_file: PathBuf,
    /// Its key in PEM.
    pub key_file: PathBuf,
    /// The certificates of those who sign clients' certificates; on the internal listener.
    #[serde(default)]
    pub client_ca_file: Option<PathBuf>,
}

impl TlsFiles {
    /// For reading them.
    pub fn files(&self) -> Files<'_> {
        Files {
            certificate: &self.cert_file,
            key: &self.key_file,
            ca: self.client_ca_file.as_deref(),
        }
    }
}

/// The bridge's limits. Each has a default that suits a pod of 1 GiB.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BridgeLimits {
    /// Largest body of a webhook call, in bytes. Default 4 MiB.
    pub max_body_bytes: usize,
    /// Connections at once on one listener. Default 4096.
    pub max_connections: usize,
    /// Connections at once of one address on the public listener, where `trusted_proxies` is set. Default 256.
    pub connections_per_address: usize,
    /// Requests on one connection before it is closed. Default 10,000.
    pub requests_per_connection: u32,
    /// How long a client may take to send its request's headers. Default 10s.
    pub header_timeout: Period,
    /// How long a connection is kept that nothing is asked of. Default 75s: longer than proxies usually keep theirs.
    pub idle_timeout: Period,
    /// How long a client may take nothing of its answer. Default 20s.
    pub write_timeout: Period,
    /// How long a client may take to send its request's body. Default 20s.
    pub body_timeout: Period,
    /// How long a message may take to become durable before its sender is asked to come back. Default 2s.
    pub commit_timeout: Period,
    /// The networks of the proxies in front of the listeners, such as `10.0.0.0/8`. Not set: it is not known who is in
    /// front, and nothing is limited by address. Empty: nobody is, clients connect themselves.
    pub trusted_proxies: Option<Vec<String>>,
    /// The header in which these proxies tell for whom they ask. Default X-Forwarded-For.
    pub client_address_header: ClientHeader,
    /// Calls with a wrong credential that one address may make in a minute, where `trusted_proxies` is set. Default 60.
    pub auth_failures_per_minute: u32,
    /// The listeners' certificates. None: TLS ends in front of the bridge.
    pub tls: BridgeTls,
    /// Bytes the journal may take on disk. Default 4 GiB. Beyond it new messages are answered 503.
    pub journal_max_bytes: u64,
    /// What one channel's waiting messages and dead letters may take of it, in percent. Default 10. Beyond it that
    /// channel's new messages are answered 503.
    pub journal_channel_share: u8,
    /// What one environment's may take of it, in percent. Default 50.
    pub journal_environment_share: u8,
    /// How long a dead letter is kept. Default 168h.
    pub dead_letter_retention: Period,
    /// Deliveries under way at once for one channel and direction. Default 16.
    pub channel_concurrency: usize,
    /// Deliveries under way at once in all. Default 1024.
    pub delivery_concurrency: usize,
    /// Attempts of one delivery before it becomes a dead letter. Default 80: about four hours, the longest
    /// default of `delivery.maxAge`.
    pub delivery_attempts: u32,
    /// The longest first wait before a delivery is tried again; the waits double. Default 500ms.
    pub retry_first: Period,
    /// The longest of these waits. Default 5m.
    pub retry_longest: Period,
    /// Whether the messages listener, which is for loopback alone, shows texts and phone numbers. Default false.
    pub show_bodies: bool,
}

impl Default for BridgeLimits {
    fn default() -> Self {
        Self {
            max_body_bytes: 4 << 20,
            max_connections: 4096,
            connections_per_address: 256,
            requests_per_connection: 10_000,
            header_timeout: Period::seconds(10),
            idle_timeout: Period::seconds(75),
            write_timeout: Period::seconds(20),
            body_timeout: Period::seconds(20),
            commit_timeout: Period::seconds(2),
            trusted_proxies: None,
            client_address_header: ClientHeader::XForwardedFor,
            auth_failures_per_minute: 60,
            tls: BridgeTls::default(),
            journal_max_bytes: 4 << 30,
            journal_channel_share: 10,
            journal_environment_share: 50,
            dead_letter_retention: Period("168h".to_owned()),
            channel_concurrency: 16,
            delivery_concurrency: 1024,
            delivery_attempts: 80,
            retry_first: Period("500ms".to_owned()),
            retry_longest: Period("5m".to_owned()),
            show_bodies: false,
        }
    }
}

/// The configuration can't be used. Nothing of it is taken in that case.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be; the text names the line.
    #[error("{path}: {reason}")]
    Parse {
        /// The file.
        path: String,
        /// Where and why.
        reason: String,
    },
    /// It parses, but it can't be meant.
    #[error("{path}: {}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid {
        /// The file.
        path: String,
        /// Each problem.
        problems: Vec<Problem>,
    },
}

/// What can't be meant in a configuration that parses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {}: {field}: {message}", at.line)]
pub struct Problem {
    /// Where the field stands, or what it would stand in.
    pub at: Position,
    /// The field, its keys joined by dots.
    pub field: String,
    /// What to write.
    pub message: String,
}

impl Installation {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it can't be read, has an unknown or missing key (with its line), or says what can't be.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: name.clone(),
            source,
        })?;
        Self::parse(&text, &name)
    }

    /// Parses and checks a text; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`Installation::load`].
    pub fn parse(text: &str, name: &str) -> Result<Self, ConfigError> {
        let installation: Self = serde_saphyr::from_str(text).map_err(|error| ConfigError::Parse {
            path: name.to_owned(),
            reason: error.to_string(),
        })?;
        let problems = check::problems(&installation);
        if problems.is_empty() {
            Ok(installation)
        } else {
            let (documents, _) = yaml::parse(text);
            let root = documents.first().map(|document| &document.root);
            let problems = problems.iter().map(|problem| {
                let (field, message) = problem.split_once(": ").unwrap_or(("", problem));
                Problem {
                    at: root.map(|root| root.place(field)).unwrap_or_default(),
                    field: field.to_owned(),
                    message: message.to_owned(),
                }
            });
            Err(ConfigError::Invalid {
                path: name.to_owned(),
                problems: problems.collect(),
            })
        }
    }

    /// The namespaces to watch: `None` is the whole cluster.
    pub fn scope(&self, release_namespace: &str) -> Option<Vec<String>> {
        if self.watch_namespaces.iter().any(|namespace| namespace == "*") {
            return None;
        }
        if self.watch_namespaces.is_empty() {
            return Some(vec![release_namespace.to_owned()]);
        }
        Some(self.watch_namespaces.clone())
    }
}

/// The reference to a key issued elsewhere that holds for a channel: that of its spec, or in mode Legacy that of its
/// environment's callback of the system before.
pub fn key_ref<'a>(
    environment: Option<&'a Environment>,
    spec: &'a WhatsAppChannelSpec,
    mode: WebhookMode,
) -> Option<&'a KeyRef> {
    if mode == WebhookMode::Legacy {
        let legacy = environment?.legacy_callback.as_ref()?;
        return legacy.api_key_secret_ref.as_ref();
    }
    spec.webhook.as_ref()?.api_key_secret_ref.as_ref()
}

impl Environment {
    /// When the hold of this part ends, if it was ever held.
    pub fn hold_until(&self, what: Held) -> Option<jiff::Timestamp> {
        let hold = self.hold.as_ref().filter(|hold| hold.what.contains(&what))?;
        hold.until.parse().ok()
    }

    /// The hold that is in force for this part, if there is one.
    pub fn held(&self, what: Held, now: jiff::Timestamp) -> Option<&Hold> {
        self.hold
            .as_ref()
            .filter(|_| self.hold_until(what).is_some_and(|until| now < until))
    }

    /// Whether channels of this namespace may name the environment.
    pub fn allows(&self, namespace: &str) -> bool {
        self.namespaces
            .iter()
            .any(|allowed| allowed == namespace || allowed == "*")
    }
}

impl KernelSettings {
    /// The URL of the token endpoint.
    pub fn token_url(&self) -> String {
        join(&self.auth_url, &self.token_path)
    }

    /// The URL of the webhook setting.
    pub fn webhook_url(&self, version: ApiVersion) -> String {
        join(&self.api_url, &versioned(&self.webhook_path, version))
    }

    /// The URL that messages are sent to.
    pub fn messages_url(&self, version: ApiVersion) -> String {
        join(&self.api_url, &versioned(&self.messages_path, version))
    }

    /// How long one call may take in all.
    pub fn timeout(&self) -> Duration {
        self.timeout.parse().unwrap_or(Duration::from_secs(15))
    }
}

impl BridgeLimits {
    /// The bounds of a listener.
    pub fn bounds(&self) -> Bounds {
        let or = |period: &Period, default| period.parse().unwrap_or(Duration::from_secs(default));
        Bounds {
            connections: self.max_connections,
            connections_per_address: self.connections_per_address,
            header_timeout: or(&self.header_timeout, 10),
            idle_timeout: or(&self.idle_timeout, 75),
            write_timeout: or(&self.write_timeout, 20),
            requests: self.requests_per_connection,
        }
    }

    /// How long a message may take to become durable.
    pub fn commit_timeout(&self) -> Duration {
        self.commit_timeout.parse().unwrap_or(Duration::from_secs(2))
    }

    /// How long a dead letter is kept.
    pub fn dead_letter_retention(&self) -> Duration {
        let default = Duration::from_secs(7 * 24 * 60 * 60);
        self.dead_letter_retention.parse().unwrap_or(default)
    }

    /// The networks of the proxies in front; `None` where nothing is known of them.
    pub fn trusted_proxies(&self) -> Option<Vec<IpNet>> {
        let proxies = self.trusted_proxies.as_ref()?.iter();
        Some(proxies.filter_map(|network| network.parse().ok()).collect())
    }

    /// How long a client may take to send its request's body.
    pub fn body_timeout(&self) -> Duration {
        self.body_timeout.parse().unwrap_or(Duration::from_secs(20))
    }
}

impl BridgeLimits {
    /// The longest first wait before a delivery is tried again.
    pub fn retry_first(&self) -> Duration {
        self.retry_first.parse().unwrap_or(Duration::from_millis(500))
    }

    /// The longest wait before a delivery is tried again.
    pub fn retry_longest(&self) -> Duration {
        self.retry_longest.parse().unwrap_or(Duration::from_secs(300))
    }
}

impl AuraSettings {
    /// How long one call may take in all.
    pub fn timeout(&self) -> Duration {
        self.timeout.parse().unwrap_or(Duration::from_secs(15))
    }
}

fn versioned(path: &str, version: ApiVersion) -> String {
    path.replace("{version}", if version == ApiVersion::V1 { "v1" } else { "v2" })
}

/// Puts a path behind a base, whether or not the base ends in a slash or has a path of its own.
fn join(base: &Url, path: &str) -> String {
    format!(
        "{}/{}",
        base.as_str().trim_end_matches('/'),
        path.trim_start_matches('/')
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const GOOD: &str = r"
environments:
  es-pro:
    namespaces: [aura-es]
    publicUrl: https://svc-es-pro.auracognitive.com
    kernel: {apiUrl: https://api.es-pro.baikalplatform.com, authUrl: https://auth.es-pro.baikalplatform.com}
    aura:
      messagesUrl: https://aura.example/messages
      replyUrl: http://bridge.aura:8081
      outboundAuth: {apiKeyFile: /etc/aura/out}
      inboundAuth: {bearerFile: /etc/aura/in}
";

    #[test]
    fn a_small_file_gets_the_documented_defaults() {
        let installation = Installation::parse(GOOD, "test").unwrap();
        let environment = &installation.environments["es-pro"];
        assert_eq!(
            environment.kernel.webhook_url(ApiVersion::V1),
            "https://api.es-pro.baikalplatform.com/whatsapp/v1/settings/webhook"
        );
        assert_eq!(
            environment.kernel.token_url(),
            "https://auth.es-pro.baikalplatform.com/token"
        );
        assert_eq!(
            environment.registration,
            Registration {
                per_second: 5,
                concurrent: 4,
                one_webhook_per_client: true
            }
        );
        assert!(environment.allows("aura-es") && !environment.allows("aura-br"));
        assert_eq!(installation.scope("release"), Some(vec!["release".to_owned()]));
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let text = GOOD.replace("namespaces:", "namespace:");
        let error = Installation::parse(&text, "config.yaml").unwrap_err().to_string();
        assert!(error.contains("namespace") && error.contains("line 4"), "{error}");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_the_path_of_its_field() {
        let cases = [
            (
                "https://svc-es-pro",
                "http://svc-es-pro",
                "environments.es-pro.publicUrl",
            ),
            (
                "https://api.es-pro",
                "http://api.es-pro",
                "environments.es-pro.kernel.apiUrl",
            ),
            (
                "auracognitive.com\n",
                "auracognitive.com/?x=1\n",
                "environments.es-pro.publicUrl",
            ),
            (
                "{apiKeyFile: /etc/aura/out}",
                "{none: true}",
                "environments.es-pro.aura.outboundAuth",
            ),
            (
                "{apiKeyFile: /etc/aura/out}",
                "{}",
                "environments.es-pro.aura.outboundAuth",
            ),
            ("[aura-es]", "[]", "environments.es-pro.namespaces"),
            ("  es-pro:", "  ES_PRO:", "environments.ES_PRO"),
            (
                "    publicUrl",
                "    channelDefaults: {webhook: {mod: Manage}}\n    publicUrl",
                "webhook.mod",
            ),
            (
                "    publicUrl",
                "    channelDefaults: {resyncPeriod: 1ms}\n    publicUrl",
                "channelDefaults.resyncPeriod",
            ),
            (
                "    publicUrl",
                "    channelDefaults: {webhook: {keyGeneration: 0}}\n    publicUrl",
                "channelDefaults.webhook.keyGeneration",
            ),
            (
                "    publicUrl",
                "    channelDefaults: {delivery: {maxAge: {toUser: 1s}}}\n    publicUrl",
                "channelDefaults.delivery.maxAge.toUser",
            ),
            (
                "    publicUrl",
                "    legacyCallback: {url: nonsense}\n    publicUrl",
                "legacyCallback.url",
            ),
            (
                "    publicUrl",
                "    channelDefaults: {webhook: {apiKeySecretRef: {name: a, key: b}}}\n    publicUrl",
                "environments.es-pro.channelDefaults.webhook.apiKeySecretRef",
            ),
        ];
        for (from, to, field) in cases {
            let error = Installation::parse(&GOOD.replace(from, to), "c")
                .unwrap_err()
                .to_string();
            assert!(error.contains(field), "{from} -> {to}: {error}");
            assert!(error.contains("line "), "{from} -> {to}: {error}");
        }
    }

    #[test]
    fn certificates_and_proxies_are_checked_and_each_message_says_what_to_write() {
        let with = |inbound: &str, reply: &str, bridge: &str| {
            let text = GOOD
                .replace("{bearerFile: /etc/aura/in}", inbound)
                .replace("http://bridge.aura:8081", reply);
            match Installation::parse(&format!("{text}bridge: {{{bridge}}}\n"), "c") {
                Ok(_) => String::new(),
                Err(error) => error.to_string(),
            }
        };
        let (key, plain, tls) = ("{bearerFile: /etc/aura/in}", "http://b:1", "https://b:1");
        let internal = "tls: {internal: {certFile: /c, keyFile: /k, clientCaFile: /ca}}";
        assert_eq!(with(key, tls, internal), "");
        assert_eq!(with("{mtls: {name: aura.example}}", tls, internal), "");
        assert_eq!(with(key, plain, "tls: {public: {certFile: /c, keyFile: /k}}"), "");
        assert_eq!(with(key, plain, "trustedProxies: []"), "");
        assert_eq!(
            with(
                key,
                plain,
                "trustedProxies: [10.0.0.0/8, \"fd00::/8\", 192.0.2.1/32]"
            ),
            ""
        );
        for (inbound, reply, bridge, told) in [
            (
                "{mtls: {}}",
                tls,
                internal,
                "aura.inboundAuth.mtls.name: name the DNS name",
            ),
            (
                "{mtls: {name: a, certFile: /x}}",
                tls,
                internal,
                "clientCaFile; only a name belongs here",
            ),
            (
                "{mtls: {name: a}}",
                plain,
                "",
                "inboundAuth.mtls: set bridge.tls.internal with a clientCaFile",
            ),
            (
                "{mtls: {name: a}, bearerFile: /x}",
                tls,
                internal,
                "exactly one of apiKeyFile, bearerFile and mtls",
            ),
            (key, plain, internal, "aura.replyUrl: must be an https URL"),
            (key, plain, "tls: {public: {certFile: /c}}", "keyFile"),
            (
                key,
                plain,
                "tls: {public: {certFile: /c, keyFile: /k, clientCaFile: /ca}}",
                "bridge.tls.public.clientCaFile: Kernel shows no certificate",
            ),
            (
                key,
                plain,
                "trustedProxies: [10.0.0.1]",
                "\"10.0.0.1\" is no network: write 10.0.0.0/8",
            ),
            (key, plain, "trustedProxies: [10.0.0.1/8]", "is no network"),
            (key, plain, "trustedProxies: [ingress]", "is no network"),
            (key, plain, "clientAddressHeader: X-Real-IP", "X-Forwarded-For"),
            (
                key,
                plain,
                "commitTimeout: 0s",
                "bridge.commitTimeout: must be more than nothing",
            ),
            (
                key,
                plain,
                "requestsPerConnection: 0",
                "bridge.requestsPerConnection: must be at least 1",
            ),
        ] {
            let error = with(inbound, reply, bridge);
            assert!(error.contains(told), "{inbound} {bridge}: {error}");
        }
        let outbound = |auth: &str, url: &str| {
            let text = GOOD
                .replace("{apiKeyFile: /etc/aura/out}", auth)
                .replace("https://aura.example/messages", url)
                .replace("    namespaces:", "    insecure: true\n    namespaces:");
            Installation::parse(&text, "c").map_or_else(|error| error.to_string(), |_| String::new())
        };
        let whole = "{mtls: {certFile: /c, keyFile: /k, caFile: /ca}}";
        assert_eq!(outbound(whole, "https://aura.example/messages"), "");
        for (auth, url, told) in [
            (
                whole,
                "http://aura.example/messages",
                "messagesUrl must be an https URL",
            ),
            (
                "{mtls: {certFile: /c}}",
                "https://a/m",
                "name certFile and keyFile",
            ),
            (
                "{mtls: {certFile: /c, keyFile: /k, name: a}}",
                "https://a/m",
                "held against the host of messagesUrl",
            ),
        ] {
            let error = outbound(auth, url);
            assert!(error.contains(told), "{auth}: {error}");
        }
    }

    #[test]
    fn each_problem_is_told_with_the_line_of_its_field_or_of_what_it_is_missing_in() {
        let text = GOOD.replace("https://svc-es-pro", "http://svc-es-pro").replace(
            "    publicUrl",
            "    legacyCallback:\n      url: https://old/?apikey={apikey}\n    publicUrl",
        );
        let Err(ConfigError::Invalid { problems, .. }) = Installation::parse(&text, "c") else {
            panic!("two problems expected");
        };
        let told: Vec<_> = problems
            .iter()
            .map(|problem| (problem.at.line, problem.field.as_str()))
            .collect();
        assert_eq!(
            told,
            [
                (7, "environments.es-pro.publicUrl"),
                (5, "environments.es-pro.legacyCallback.apiKeySecretRef")
            ]
        );
    }
}
