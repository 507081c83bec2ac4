//! `cargo dev send`: plays a WhatsApp user against a running `cargo dev`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::say;

/// Where a running `cargo dev` says what runs where.
#[derive(Serialize, Deserialize)]
pub(super) struct Running {
    pub kernel_url: String,
}

impl Running {
    fn path() -> PathBuf {
        super::up::folder().join("running.json")
    }

    pub fn save(&self) -> anyhow::Result<()> {
        std::fs::write(Self::path(), serde_json::to_vec(self)?).context("can't say what is running")
    }

    pub fn remove() {
        let _ = std::fs::remove_file(Self::path());
    }

    pub fn load() -> anyhow::Result<Self> {
        let text = std::fs::read(Self::path())
            .context("nothing is running: start `cargo dev` in another terminal")?;
        serde_json::from_slice(&text).context("what is running can't be read: start `cargo dev` anew")
    }
}

#[derive(Debug, Args)]
pub(super) struct Send {
    /// The business number: its last digits are enough
    #[arg(long, value_name = "NUMBER")]
    to: String,
    /// The user's own number
    #[arg(long, value_name = "NUMBER", default_value = "34600000001")]
    from: String,
    /// How many seconds to wait for the first reply
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    wait: u64,
    /// The text
    text: String,
}

#[derive(Deserialize)]
struct Received {
    text: Option<String>,
    from_number: String,
}

/// How long to wait for a further reply after one has come.
const FURTHER: Duration = Duration::from_millis(700);

impl Send {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let running = Running::load()?;
        let http = reqwest::Client::builder().no_proxy().build()?;
        let lost = || "the simulated Kernel does not answer: is `cargo dev` still running?";
        let messages = |after: usize, wait: Duration| {
            let url = format!(
                "{}/sim/users/{}/messages?after={after}&wait_ms={}",
                running.kernel_url,
                self.from,
                wait.as_millis()
            );
            let call = http.get(url).send();
            async move { call.await?.error_for_status()?.json::<Vec<Received>>().await }
        };
        let mut seen = messages(0, Duration::ZERO).await.with_context(lost)?.len();
        let sent = http
            .post(format!("{}/sim/users/send", running.kernel_url))
            .json(&json!({"number": self.to, "from": self.from, "text": self.text}))
            .send()
            .await
            .with_context(lost)?;
        if !sent.status().is_success() {
            bail!(
                "the message was not sent: {}",
                sent.text().await.unwrap_or_default()
            );
        }
        say(&format!("{} → {}: {}", self.from, self.to, self.text));
        let mut wait = Duration::from_secs(self.wait);
        let first = seen;
        loop {
            let replies = messages(seen, wait).await.with_context(lost)?;
            if replies.is_empty() {
                break;
            }
            seen += replies.len();
            for reply in replies {
                say(&format!(
                    "{} → {}: {}",
                    reply.from_number,
                    self.from,
                    reply.text.unwrap_or_else(|| "(no text)".into())
                ));
            }
            wait = FURTHER;
        }
        if seen == first {
            bail!(
                "no reply within {} s; look at target/dev/site/bridge.log",
                self.wait
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}
