//! `doctor conformance` against the simulated Kernel with its options turned: each is recognised, and the webhook is
//! afterwards what it was, whatever happens in the middle.

use std::{
    future::Future,
    path::PathBuf,
    process::{Output, Stdio},
    time::Duration,
};

use aura_whatsapp_operator::{
    api::ApiVersion,
    doctor::conformance::{self, Options, Restored, WriteOptions},
    http,
    kernel::Credentials,
    sim::{
        fault::{Endpoint, Fault},
        kernel::{ClientSpec, KernelOptions, KernelSim},
    },
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::support::{PROGRAM, SOON, project};

const SECRET: &str = "sentinel-conformance-secret";
const KEY: &str = "sentinel-key-of-the-webhook-before";
const CLIENT: &str = "fake-test-client";
const SECOND: &str = "fake-second-client";

fn before() -> String {
    format!("https://before.example.com/hook?apikey={KEY}&channelId=7")
}

/// A Kernel with two test clients, of which the first has a webhook.
struct Bench {
    kernel: KernelSim,
    dir: TempDir,
}

impl Bench {
    async fn new(change: impl FnOnce(&mut KernelOptions)) -> Self {
        http::install_tls_provider();
        let mut options = KernelOptions::default();
        change(&mut options);
        let kernel = KernelSim::start(options).await.unwrap();
        for (id, number) in [(CLIENT, "+34600001002"), (SECOND, "+34600001003")] {
            kernel.add_client(ClientSpec {
                id: id.to_owned(),
                secret: SECRET.to_owned(),
                scopes: vec![
                    "whatsapp:app-admin".to_owned(),
                    "whatsapp:app-messaging".to_owned(),
                ],
                number: number.to_owned(),
            });
        }
        kernel.set_webhook(CLIENT, &before());
        let bench = Self {
            kernel,
            dir: TempDir::new().unwrap(),
        };
        for (name, content) in [
            ("id", CLIENT),
            ("second-id", SECOND),
            ("secret", SECRET),
            ("webhook-now", &before()),
        ] {
            std::fs::write(bench.file(name), format!("{content}\n")).unwrap();
        }
        bench
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn webhook(&self) -> String {
        self.kernel.webhook_of(CLIENT).unwrap_or_default()
    }

    fn command(&self, more: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(PROGRAM);
        command
            .args(["doctor", "conformance", "--output", "json"])
            .args(["--api-url", &self.kernel.url(), "--auth-url", &self.kernel.url()])
            .arg("--client-id-file")
            .arg(self.file("id"))
            .arg("--client-secret-file")
            .arg(self.file("secret"))
            .arg("--timeout=2s")
            .args(more)
            .env_clear()
            .env("TMPDIR", self.dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    async fn run(&self, more: &[&str]) -> Ran {
        Ran::new(self.command(more).output().await.unwrap())
    }

    /// Whether the file that keeps the webhook is gone.
    fn tidy(&self) -> bool {
        let left = std::fs::read_dir(self.dir.path()).unwrap();
        !left
            .filter_map(Result::ok)
            .any(|file| file.file_name().to_string_lossy().starts_with("kernel-webhook"))
    }

    /// Runs with --write, and does something between the first change of the webhook and the next call.
    async fn run_and<F: Future>(&self, more: &[&str], then: impl FnOnce(u32) -> F) -> Ran {
        self.kernel.set_latency(Duration::from_millis(150));
        let child = self.command(&[&["--write"], more].concat()).spawn().unwrap();
        let id = child.id().unwrap();
        self.kernel
            .wait_calls(Endpoint::WebhookSet, 1, SOON)
            .await
            .unwrap();
        then(id).await;
        let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output());
        Ran::new(output.await.unwrap().unwrap())
    }

    /// The options of a run within this process.
    fn options(&self) -> Options {
        let client = |id: &str| Credentials {
            id: id.into(),
            secret: SECRET.into(),
        };
        Options {
            kernel: serde_json::from_value(json!({"apiUrl": self.kernel.url(), "authUrl": self.kernel.url(),
                "timeout": "2s"}))
            .unwrap(),
            version: ApiVersion::V1,
            client: client(CLIENT),
            second: None,
            registration_scopes: vec!["whatsapp:app-admin".into()],
            messaging_scopes: vec!["whatsapp:app-messaging".into()],
            purposes: Vec::new(),
            write: Some(WriteOptions {
                previous: None,
                recovery_file: self.file("kernel-webhook-kept"),
                retry_step: Duration::from_millis(10),
            }),
        }
    }
}

struct Ran {
    code: i32,
    json: Value,
    text: String,
}

impl Ran {
    fn new(output: Output) -> Self {
        let text = String::from_utf8([output.stdout.clone(), output.stderr].concat()).unwrap();
        for word in [SECRET, KEY] {
            assert!(!text.contains(word), "{word} in {text}");
        }
        Self {
            code: output.status.code().unwrap_or(-1),
            json: serde_json::from_slice(&output.stdout).unwrap_or_default(),
            text,
        }
    }

    fn finding(&self, id: &str) -> &Value {
        let findings = self.json["findings"].as_array();
        findings
            .unwrap_or_else(|| panic!("{}", self.text))
            .iter()
            .find(|finding| finding["id"] == id)
            .unwrap_or_else(|| panic!("no finding {id}: {}", self.text))
    }

    #[track_caller]
    fn is(&self, id: &str, verdict: &str, observed: &str) {
        let finding = self.finding(id);
        assert_eq!(finding["verdict"], verdict, "{finding}");
        assert!(
            finding["observed"].as_str().unwrap().contains(observed),
            "{finding}"
        );
        assert_eq!(
            finding["change"].is_string(),
            verdict == "doesNotHold",
            "{finding}"
        );
    }

    fn failing(&self) -> Vec<&str> {
        let findings = self.json["findings"].as_array().unwrap();
        findings
            .iter()
            .filter(|finding| finding["verdict"] == "doesNotHold")
            .filter_map(|finding| finding["id"].as_str())
            .collect()
    }
}

#[tokio::test]
async fn a_kernel_that_is_as_assumed_holds_and_is_left_as_it_was() {
    let bench = Bench::new(|_| {}).await;
    let second = [
        "--second-client-id-file",
        bench.file("second-id").to_str().unwrap(),
        "--second-client-secret-file",
        bench.file("secret").to_str().unwrap(),
    ]
    .map(ToOwned::to_owned);
    let second: Vec<&str> = second.iter().map(String::as_str).collect();

    let ran = bench.run(&[]).await;
    assert_eq!((ran.code, ran.failing()), (0, vec![]), "{}", ran.text);
    ran.is("token-lifetime", "holds", "3599 s");
    ran.is("webhook-set", "notJudged", "needs --write");
    ran.is("messaging-cannot-manage", "holds", "a GET gives 403");
    assert_eq!(
        bench.kernel.webhook_sets(CLIENT),
        0,
        "nothing is changed without --write"
    );

    let ran = bench.run(&[&["--write"], &second[..]].concat()).await;
    assert_eq!((ran.code, ran.failing()), (0, vec![]), "{}", ran.text);
    for (id, observed) in [
        ("token", "200 with a token"),
        ("wrong-secret", "401 invalid_client"),
        ("ungranted-scope", "left out"),
        ("tokens-coexist", "still gives 200"),
        ("bad-token", "401"),
        ("messaging-cannot-manage", "a PATCH gives 403"),
        ("messages-path", "405"),
        ("webhook-set", "201"),
        ("webhook-set-echo", "the same URL"),
        ("webhook-kept", "the same URL"),
        ("webhook-key-shown", "whole"),
        ("webhook-clear", "201"),
        ("webhook-per-client", "did not change"),
    ] {
        ran.is(id, "holds", observed);
    }
    ran.is("retry-after", "notJudged", "none is provoked");
    let page = std::fs::read_to_string(project().join("docs/cli.md")).unwrap();
    for finding in ran.json["findings"].as_array().unwrap() {
        let id = finding["id"].as_str().unwrap();
        assert!(
            page.contains(&format!("`{id}`")),
            "docs/cli.md does not tell of {id}"
        );
    }
    assert_eq!(ran.json["webhook"]["restored"], "putBack");
    assert_eq!(bench.webhook(), before());
    assert!(bench.tidy());
    assert!(bench.kernel.sends().is_empty());

    let ran = bench.run(&["--write", "--version", "v2"]).await;
    assert_eq!(ran.code, 0, "{}", ran.text);
    assert_eq!(bench.webhook(), before());
}

#[tokio::test]
async fn people_read_a_table() {
    let bench = Bench::new(|options| options.refuse_clear = true).await;
    let stop = CancellationToken::new();
    let report = conformance::run(&bench.options(), &stop, &mut |_: &str| {})
        .await
        .unwrap();
    let text: Vec<String> = report
        .human()
        .lines()
        .map(|line| match line.split_once("observed: the ") {
            // What differs from run to run.
            Some((start, rest)) if rest.starts_with("slowest") || rest.starts_with("largest") => {
                format!("{start}observed: …")
            }
            _ => line.to_owned(),
        })
        .collect();
    insta::assert_snapshot!(text.join("\n"));
}

#[tokio::test]
async fn a_kernel_that_masks_keys_is_written_to_only_when_told_what_it_holds() {
    let bench = Bench::new(|options| options.mask_keys = true).await;
    let ran = bench.run(&["--write"]).await;
    assert_eq!(ran.code, 1);
    ran.is("webhook-key-shown", "doesNotHold", "masked");
    ran.is("webhook-set", "notJudged", "--previous-url-file");
    assert_eq!(bench.kernel.webhook_sets(CLIENT), 0);

    let now = bench.file("webhook-now").display().to_string();
    let ran = bench.run(&["--write", "--previous-url-file", &now]).await;
    assert_eq!(ran.failing(), ["webhook-key-shown"], "{}", ran.text);
    ran.is("webhook-kept", "holds", "the key, which is masked");
    assert_eq!(ran.json["webhook"]["restored"], "putBack");
    assert_eq!(bench.webhook(), before(), "with its key");

    std::fs::write(&now, "https://another.example.com/hook").unwrap();
    let sets = bench.kernel.webhook_sets(CLIENT);
    let ran = bench.run(&["--write", "--previous-url-file", &now]).await;
    ran.is("webhook-set", "notJudged", "holds another webhook than");
    assert_eq!(bench.kernel.webhook_sets(CLIENT), sets);
}

#[tokio::test]
async fn a_kernel_that_cannot_be_read_back_is_written_to_only_when_told_what_it_holds() {
    let bench = Bench::new(|options| options.no_read_back = true).await;
    let ran = bench.run(&["--write"]).await;
    assert_eq!((ran.code, ran.failing()), (1, vec!["webhook-read-back"]));
    ran.is("webhook-set", "notJudged", "can't be read back");
    ran.is("messaging-cannot-manage", "notJudged", "needs --write");
    assert_eq!(bench.kernel.webhook_sets(CLIENT), 0);

    let now = bench.file("webhook-now").display().to_string();
    let ran = bench.run(&["--write", "--previous-url-file", &now]).await;
    ran.is("webhook-set", "holds", "201");
    ran.is("webhook-kept", "notJudged", "can't be read");
    ran.is("messaging-cannot-manage", "holds", "a PATCH gives 403");
    assert_eq!(ran.json["webhook"]["restored"], "putBackUnseen");
    assert_eq!(bench.webhook(), before());
    assert!(bench.tidy());
}

#[tokio::test]
async fn a_token_for_sending_that_changes_the_webhook_is_told_of_and_the_webhook_put_back() {
    // A scope that is good for both is what a Kernel looks like that does not hold the two apart.
    let both = ["--messaging-scope", "whatsapp:app-admin"];
    for no_read_back in [false, true] {
        let bench = Bench::new(|options| options.no_read_back = no_read_back).await;
        let now = bench.file("webhook-now").display().to_string();
        let write = [&both[..], &["--write", "--previous-url-file", &now]].concat();
        let ran = bench.run(&write).await;
        ran.is("messaging-cannot-manage", "doesNotHold", "a PATCH gives 201");
        let restored = if no_read_back { "putBackUnseen" } else { "putBack" };
        assert_eq!(ran.json["webhook"]["restored"], restored, "{}", ran.text);
        assert_eq!(bench.webhook(), before());
        assert!(bench.tidy());
        assert_eq!(
            bench.kernel.webhook_sets(CLIENT),
            4,
            "set, cleared, set by the other token, put back"
        );
        let ran = bench.run(&both).await;
        let (verdict, observed) = if no_read_back {
            ("notJudged", "needs --write")
        } else {
            ("doesNotHold", "a GET gives 200")
        };
        ran.is("messaging-cannot-manage", verdict, observed);
    }
}

#[tokio::test]
async fn a_kernel_that_refuses_to_clear_is_never_left_with_what_was_not_there() {
    let bench = Bench::new(|options| options.refuse_clear = true).await;
    let ran = bench.run(&["--write"]).await;
    assert_eq!((ran.code, ran.failing()), (1, vec!["webhook-clear"]));
    assert!(
        ran.finding("webhook-clear")["change"]
            .as_str()
            .unwrap()
            .contains("onDelete")
    );
    assert_eq!(bench.webhook(), before());

    bench.kernel.set_webhook(CLIENT, "");
    let ran = bench.run(&["--write"]).await;
    ran.is("webhook-set", "notJudged", "could not be put back");
    assert_eq!(bench.webhook(), "");
}

#[tokio::test]
async fn a_client_without_a_webhook_has_none_afterwards() {
    let bench = Bench::new(|_| {}).await;
    bench.kernel.set_webhook(CLIENT, "");
    let ran = bench.run(&["--write"]).await;
    assert_eq!((ran.code, ran.failing()), (0, vec![]), "{}", ran.text);
    ran.is("webhook-set", "holds", "201");
    assert_eq!(bench.webhook(), "");
}

#[tokio::test]
async fn other_differences_of_tokens_and_answers_are_recognised() {
    let bench = Bench::new(|options| options.token_lifetime = Duration::from_secs(30)).await;
    bench.run(&[]).await.is("token-lifetime", "doesNotHold", "30 s");

    let bench = Bench::new(|_| {}).await;
    bench.run(&["--messaging-scope", "whatsapp:unheard-of"]).await.is(
        "token-scopes-granted",
        "doesNotHold",
        "whatsapp:unheard-of",
    );

    bench.kernel.inject(
        Fault::status(429)
            .retry_after(3)
            .on(Endpoint::WebhookGet)
            .times(1),
    );
    let ran = bench.run(&[]).await;
    ran.is("retry-after", "holds", "seconds");
    ran.is("webhook-read-back", "notJudged", "429");
    bench.kernel.clear_faults();

    let ran = bench.run(&["--webhook-path", "/elsewhere"]).await;
    ran.is("webhook-read-back", "doesNotHold", "404");
    assert!(
        ran.finding("webhook-read-back")["change"]
            .as_str()
            .unwrap()
            .contains("kernel.webhookPath")
    );
    let ran = bench.run(&["--token-path", "/elsewhere"]).await;
    assert_eq!(ran.code, 1);
    ran.is("token", "doesNotHold", "404");

    std::fs::write(bench.file("secret"), "fake-wrong-secret").unwrap();
    bench
        .run(&[])
        .await
        .is("token", "doesNotHold", "401 invalid_client");

    bench.kernel.stop().await;
    let ran = bench.run(&["--write"]).await;
    assert_eq!(ran.code, 2);
    ran.is("token", "notJudged", "no connection");
}

#[tokio::test]
async fn whatever_goes_wrong_in_the_middle_the_webhook_is_put_back() {
    for fault in [
        Fault::status(503).times(3),
        Fault::status(429).retry_after(1).times(2),
        Fault::reset().times(2),
        Fault::reset().after_effect().on(Endpoint::WebhookSet).times(2),
        Fault::cut().times(1),
        Fault::garbage().times(2),
        Fault::hang().times(1),
    ] {
        let bench = Bench::new(|_| {}).await;
        let name = format!("{fault:?}");
        let ran = bench.run_and(&[], |_| async { bench.kernel.inject(fault) }).await;
        assert_eq!(bench.webhook(), before(), "{name}: {}", ran.text);
        assert_eq!(ran.json["webhook"]["restored"], "putBack", "{name}: {}", ran.text);
        assert!(bench.tidy(), "{name}");
    }
    // A token that ends in the middle is replaced.
    let bench = Bench::new(|_| {}).await;
    let ran = bench
        .run_and(&[], |_| async {
            bench.kernel.revoke_tokens(CLIENT);
        })
        .await;
    assert_eq!(bench.webhook(), before(), "{}", ran.text);
}

#[tokio::test]
async fn an_interrupt_puts_the_webhook_back_first() {
    let bench = Bench::new(|_| {}).await;
    let ran = bench
        .run_and(&[], |pid| async move {
            let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        })
        .await;
    assert_eq!(ran.code, 2, "{}", ran.text);
    assert_eq!(ran.json["interrupted"], true);
    assert_eq!(bench.webhook(), before());
    assert!(bench.tidy());
    assert!(ran.text.contains("put back first"), "{}", ran.text);
    assert_eq!(bench.kernel.webhook_sets(CLIENT), 2, "nothing further was asked");
}

#[tokio::test]
async fn a_webhook_that_cannot_be_put_back_is_told_of_loudly_and_kept() {
    let bench = Bench::new(|_| {}).await;
    let options = bench.options();
    bench.kernel.set_latency(Duration::from_millis(150));
    let stop = CancellationToken::new();
    let mut said = Vec::new();
    let mut say = |line: &str| said.push(line.to_owned());
    let (report, ()) = tokio::join!(conformance::run(&options, &stop, &mut say), async {
        bench
            .kernel
            .wait_calls(Endpoint::WebhookSet, 1, SOON)
            .await
            .unwrap();
        bench.kernel.inject(Fault::status(503).on(Endpoint::WebhookSet));
    });
    let report = report.unwrap();
    let file = bench.file("kernel-webhook-kept");
    assert_eq!(report.restored, Restored::Failed(file.clone()));
    assert_eq!(report.exit_code(), 1);
    let alarm = report.alarm().unwrap();
    assert!(alarm.contains("COULD NOT BE PUT BACK") && alarm.contains(file.to_str().unwrap()));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), before());
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    for text in [report.human(), report.json().to_string(), said.join("\n")] {
        assert!(!text.contains(KEY) && !text.contains(SECRET), "{text}");
    }
    assert!(report.human().contains("COULD NOT BE PUT BACK"));

    // A file of a run before is not overwritten: nothing is written then.
    bench.kernel.clear_faults();
    let sets = bench.kernel.webhook_sets(CLIENT);
    let report = conformance::run(&options, &stop, &mut |_: &str| {})
        .await
        .unwrap();
    assert!(report.refused.unwrap().contains("--recovery-file"));
    assert_eq!(bench.kernel.webhook_sets(CLIENT), sets);
}

#[tokio::test]
async fn credentials_go_over_https_or_to_this_machine() {
    let bench = Bench::new(|_| {}).await;
    let id = bench.file("id").display().to_string();
    for (url, word) in [
        ("http://kernel.example.com", "https"),
        ("https://u:fake@kernel.example.com", "user name"),
    ] {
        let output = tokio::process::Command::new(PROGRAM)
            .args(["doctor", "conformance", "--api-url", url, "--auth-url", url])
            .args(["--client-id-file", &id, "--client-secret-file", &id])
            .env_clear()
            .output()
            .await
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.starts_with("error: ") && text.contains(word), "{text}");
    }
}
