//! `doctor conformance`: asks a real Kernel whether it is as assumed.

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use secrecy::SecretString;
use serde_json::json;
use url::Url;

use super::{
    output::{Output, print},
    runtime, signals,
};
use crate::{
    api::{ApiVersion, Period},
    doctor::conformance::{self, Options, WriteOptions},
    kernel::{Credentials, contract},
};

const EXAMPLES: &str = "\
Examples:
  # What can be asked without changing anything
  aura-whatsapp-operator doctor conformance \\
    --api-url https://api.es-pre.baikalplatform.com --auth-url https://auth.es-pre.baikalplatform.com \\
    --client-id-file id --client-secret-file secret

  # Also set, read and clear the client's webhook, and put it back
  aura-whatsapp-operator doctor conformance … --write

  # For a Kernel that can't be read back or masks keys: say what the webhook is now
  aura-whatsapp-operator doctor conformance … --write --previous-url-file webhook-now

Use a client for tests: with --write Kernel calls no one for a few seconds. The webhook before is kept in a file
until it is put back, also after Ctrl-C and errors; a second Ctrl-C ends at once and leaves the file.

Exit codes: 0 what could be judged holds, 1 something does not hold or the webhook could not be put back, 2 it could
not be judged.";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Version {
    V1,
    V2,
}

/// Ask a real Kernel whether it is as this program assumes, with a test client
///
/// Every guess about Kernel is tried, and the table says which holds and which setting to change where one does not.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, disable_version_flag = true)]
pub(super) struct Conformance {
    /// The base of Kernel's API
    #[arg(long, value_name = "URL")]
    api_url: Url,
    /// The base of Kernel's auth server
    #[arg(long, value_name = "URL")]
    auth_url: Url,
    /// A file with the test client's id
    #[arg(long, value_name = "FILE")]
    client_id_file: PathBuf,
    /// A file with the test client's secret
    #[arg(long, value_name = "FILE")]
    client_secret_file: PathBuf,
    /// The version of Kernel's WhatsApp API
    #[arg(long = "version", value_enum, default_value = "v1")]
    api_version: Version,
    /// Also change the test client's webhook for a few seconds, and put it back
    #[arg(long)]
    write: bool,
    /// A file with the webhook that Kernel holds now (empty: none), where it can't be read or is masked
    #[arg(long, value_name = "FILE", requires = "write")]
    previous_url_file: Option<PathBuf>,
    /// Where the webhook is kept until it is put back; must not exist. Without it a new file in the temporary folder
    #[arg(long, value_name = "FILE", requires = "write")]
    recovery_file: Option<PathBuf>,
    /// A file with another client's id, to see whether it has a webhook of its own
    #[arg(long, value_name = "FILE", requires = "second_client_secret_file")]
    second_client_id_file: Option<PathBuf>,
    /// A file with that client's secret
    #[arg(long, value_name = "FILE", requires = "second_client_id_file")]
    second_client_secret_file: Option<PathBuf>,
    /// A scope that the controller asks for; may be given several times
    #[arg(long, value_name = "SCOPE", default_value = "whatsapp:app-admin")]
    registration_scope: Vec<String>,
    /// A scope that the bridge asks for; may be given several times
    #[arg(long, value_name = "SCOPE", default_value = "whatsapp:app-messaging")]
    messaging_scope: Vec<String>,
    /// A purpose to ask for; may be given several times
    #[arg(long, value_name = "PURPOSE")]
    purpose: Vec<String>,
    /// kernel.tokenPath of the configuration
    #[arg(long, value_name = "PATH", default_value_t = contract::token_path())]
    token_path: String,
    /// kernel.webhookPath of the configuration
    #[arg(long, value_name = "PATH", default_value_t = contract::webhook_path())]
    webhook_path: String,
    /// kernel.messagesPath of the configuration
    #[arg(long, value_name = "PATH", default_value_t = contract::messages_path())]
    messages_path: String,
    /// How long one call may take
    #[arg(long, value_name = "TIME", default_value_t = contract::timeout())]
    timeout: Period,
    /// What the table looks like
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

impl Conformance {
    pub(super) fn run(self) -> anyhow::Result<u8> {
        let output = self.output;
        let options = self.options()?;
        let report = runtime()?.block_on(async {
            let stop = signals::stop_token().context("can't listen to signals")?;
            let mut say = |line: &str| {
                let _ = writeln!(std::io::stderr(), "{line}");
            };
            anyhow::Ok(conformance::run(&options, &stop, &mut say).await?)
        })?;
        if let Some(alarm) = report.alarm() {
            let _ = writeln!(std::io::stderr(), "{alarm}");
        }
        print(output, &report.human(), &report.json())?;
        Ok(report.exit_code())
    }

    fn options(self) -> anyhow::Result<Options> {
        for (name, url) in [("--api-url", &self.api_url), ("--auth-url", &self.auth_url)] {
            safe(url).with_context(|| format!("{name} can't be used"))?;
        }
        self.timeout.parse()?;
        let second = match (&self.second_client_id_file, &self.second_client_secret_file) {
            (Some(id), Some(secret)) => Some(credentials(id, secret)?),
            _ => None,
        };
        let write = if self.write {
            let previous = self.previous_url_file.as_deref().map(url_of).transpose()?;
            Some(WriteOptions {
                previous,
                recovery_file: self.recovery_file.unwrap_or_else(recovery_file),
                retry_step: Duration::from_secs(1),
            })
        } else {
            None
        };
        // As the configuration reads it, so that each default is the configuration's own.
        let kernel = serde_json::from_value(json!({
            "apiUrl": self.api_url,
            "authUrl": self.auth_url,
            "tokenPath": self.token_path,
            "webhookPath": self.webhook_path,
            "messagesPath": self.messages_path,
            "timeout": self.timeout,
        }))?;
        Ok(Options {
            kernel,
            version: match self.api_version {
                Version::V1 => ApiVersion::V1,
                Version::V2 => ApiVersion::V2,
            },
            client: credentials(&self.client_id_file, &self.client_secret_file)?,
            second,
            registration_scopes: self.registration_scope,
            messaging_scopes: self.messaging_scope,
            purposes: self.purpose,
            write,
        })
    }
}

/// A client's secret goes over https, or to this machine.
fn safe(url: &Url) -> anyhow::Result<()> {
    let local = match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => bail!("it has no host"),
    };
    ensure!(
        url.scheme() == "https" || (url.scheme() == "http" && local),
        "it must be an https URL (http only to this machine)"
    );
    ensure!(
        url.username().is_empty() && url.password().is_none(),
        "it must not hold a user name or password"
    );
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
    Ok(text.trim().to_owned())
}

fn credentials(id: &Path, secret: &Path) -> anyhow::Result<Credentials> {
    let value = |path: &Path| {
        let text = read(path)?;
        ensure!(
            !text.is_empty() && !text.chars().any(char::is_control),
            "{} must hold one line of text",
            path.display()
        );
        Ok(SecretString::from(text))
    };
    Ok(Credentials {
        id: value(id)?,
        secret: value(secret)?,
    })
}

fn url_of(path: &Path) -> anyhow::Result<SecretString> {
    let text = read(path)?;
    // The text is not shown: it may hold a key.
    ensure!(
        text.is_empty() || Url::parse(&text).is_ok(),
        "{} must hold a URL, or nothing",
        path.display()
    );
    Ok(SecretString::from(text))
}

fn recovery_file() -> PathBuf {
    let unique = uuid::Uuid::new_v4().simple().to_string();
    std::env::temp_dir().join(format!("kernel-webhook-before-{unique}"))
}
