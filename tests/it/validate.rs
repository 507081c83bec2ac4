//! `validate` against the one that decides: the real API server, which is sent the same bytes.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use aura_whatsapp_operator::validate::{Code, Options, Report, Severity, Source, Validator};
use axum::http::Request;
use kube::Client;
use serde_json::{Value, json};

use crate::{
    crd,
    support::{PROGRAM, cluster},
};

/// What the API server says of a manifest, without keeping it.
pub struct Verdict {
    pub refused: Option<String>,
    /// Field and message of each cause that it names.
    pub causes: BTreeSet<(String, String)>,
}

/// Sends a text as it stands: dry run, strict about fields.
pub async fn ask(client: &Client, namespace: &str, resource: &str, text: &str) -> Verdict {
    let uri = format!("/{resource}?dryRun=All&fieldValidation=Strict&fieldManager=test")
        .replace("NAMESPACE", namespace);
    let request = Request::post(uri)
        .header("content-type", "application/yaml")
        .body(text.as_bytes().to_vec())
        .unwrap();
    match client.request_text(request).await {
        Ok(_) => Verdict {
            refused: None,
            causes: BTreeSet::new(),
        },
        Err(kube::Error::Api(status)) => {
            let status = serde_json::to_value(status).unwrap();
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let causes = status
                .pointer("/details/causes")
                .and_then(Value::as_array)
                .cloned();
            Verdict {
                refused: Some(text(&status["message"])),
                causes: causes
                    .unwrap_or_default()
                    .iter()
                    .map(|cause| (text(&cause["field"]), text(&cause["message"])))
                    .collect(),
            }
        }
        Err(error) => panic!("{error}"),
    }
}

pub const CHANNELS: &str = "apis/channels.auracognitive.com/v1alpha1/namespaces/NAMESPACE/whatsappchannels";

fn judged(text: &str, namespace: &str) -> Report {
    let source = Source {
        name: "manifest".to_owned(),
        text: text.to_owned(),
    };
    let options = Options {
        namespace,
        ..Options::default()
    };
    Validator::new().unwrap().judge(&[source], options)
}

fn errors(report: &Report) -> Vec<String> {
    let errors = report.problems.iter().filter(|it| it.severity == Severity::Error);
    errors
        .map(|it| format!("{:?} {:?}: {}", it.code, it.field, it.message))
        .collect()
}

/// A manifest with this spec.
fn spec(lines: &str) -> String {
    manifest(&format!(
        "  channelId: 6f1c2a9e-5f0e-4a57-9d2c-0b7a3c1d8e42\n  environment: es-dev\n  kernel: {{credentialsSecretRef: \
         {{name: shop}}}}\n  {lines}\n"
    ))
}

fn manifest(spec: &str) -> String {
    format!(
        "apiVersion: channels.auracognitive.com/v1alpha1\nkind: WhatsAppChannel\nmetadata:\n  name: shop\nspec:\n{spec}"
    )
}

/// Manifests that are more than one value laid over another.
fn manifests() -> Vec<String> {
    let mut manifests: Vec<String> = [
        // What a plain scalar means.
        "suspend: on",
        "suspend: no",
        "suspend: y",
        "suspend: \"true\"",
        "suspend: 1",
        "suspend: ~",
        "phoneNumber: 34600001002",
        "phoneNumber: +34600001002",
        "phoneNumber: '+34600001002'",
        "phoneNumber: !!str 34600001002",
        "phoneNumber: 1_002",
        "phoneNumber: 2026-12-01",
        "phoneNumber: ~",
        "phoneNumber:",
        "conversion: {undeliveredText: no}",
        "conversion: {undeliveredText: 12:30}",
        "conversion: {undeliveredText: 2026-12-01}",
        "conversion: {undeliveredText: 1e3}",
        "conversion: {undeliveredText: 0x1F}",
        "conversion: {undeliveredText: .5}",
        "conversion: {undeliveredText: <<}",
        "webhook: {keyGeneration: 0x10}",
        "webhook: {keyGeneration: 010}",
        "webhook: {keyGeneration: 1_000}",
        "webhook: {keyGeneration: 1.0}",
        "webhook: {keyGeneration: 1e3}",
        "webhook: {keyGeneration: 1.5}",
        "webhook: {keyGeneration: '1'}",
        "webhook: {keyGeneration: 99999999999999999999}",
        "webhook: {keyGeneration: -1}",
        // Shapes.
        "webhook: []",
        "webhook: x",
        "webhook: ~",
        "webhook: {}",
        "webhook: {mode: ~}",
        "webhook: {apiKeySecretRef: {}}",
        "webhook: {apiKeySecretRef: {name: a, key: b, optional: true}}",
        "delivery: {maxAge: {toAura: 1h, toUsers: 1h}}",
        "delivery: {maxAge: 1h}",
        "delivery: {maxAge: {toAura: ''}}",
        "delivery: {maxAge: {toAura: 99999999999h}}",
        "delivery: {unansweredAfter: 300000ms}",
        "delivery: {messagesPerSecond: 1001, mode: hold}",
        "replicas: 2",
        "Suspend: true",
        "suspend: true\n  suspend: false",
        "webhook: {mode: Manage, mode: Observe}",
        "webhook: &w {mode: Observe}\n  conversion: {undeliveredText: x}",
        "phoneNumber: '12'\n  resyncPeriod: 30s\n  delivery: {maxAge: {toAura: 1s, toUser: soon}}",
        "resyncPeriod: 1h30m15s500ms",
        "resyncPeriod: 60000ms",
        "resyncPeriod: 0.5h",
        "resyncPeriod: -5m",
        "phoneNumber: \"\\u0663\\u0663\\u0663\"",
        "phoneNumber: |\n    1002",
        "phoneNumber: >-\n    1002",
    ]
    .map(spec)
    .into();
    let purposes = |items: &str| {
        manifest(&format!(
            "  channelId: 6f1c2a9e-5f0e-4a57-9d2c-0b7a3c1d8e42\n  environment: es-dev\n  kernel: \
             {{credentialsSecretRef: {{name: shop}}, purposes: {items}}}\n"
        ))
    };
    manifests.extend(
        [
            "[a, 'b c', d]",
            "['']",
            "[~]",
            "[1]",
            "a b",
            "['é']",
            "[\"a\\nb\"]",
        ]
        .map(purposes),
    );
    let good = spec("suspend: false");
    manifests.extend([
        manifest("  {}\n"),
        manifest("  channelId: ~\n"),
        good.replace("spec:", "status: {}\nspec:"),
        good.replace("spec:", "status: {conditions: [{type: x}]}\nspec:"),
        good.replace("spec:", "status: {ready: true}\nspec:"),
        good.replace("spec:", "data: {}\nspec:"),
        good.replace("  name: shop\n", "  name: Shop\n"),
        good.replace("  name: shop\n", "  name: shop.es-1\n"),
        good.replace("  name: shop\n", "  name: 1002\n"),
        good.replace("  name: shop\n", "  name: '1002'\n"),
        good.replace("  name: shop\n", "  name: -shop\n"),
        good.replace("  name: shop\n", "  name: shop\n  labels: {a: b, app.example/x_Y.z: '1'}\n"),
        good.replace("  name: shop\n", "  name: shop\n  labels: {a: 1}\n"),
        good.replace("  name: shop\n", "  name: shop\n  labels: {a: true}\n"),
        good.replace("  name: shop\n", "  name: shop\n  labels: {a: 'b c'}\n"),
        good.replace("  name: shop\n", "  name: shop\n  labels: {'a b': c}\n"),
        good.replace("  name: shop\n", "  name: shop\n  labels: {'/a': c}\n"),
        good.replace("  name: shop\n", "  name: shop\n  labels: {'x/y/a': c}\n"),
        good.replace("  name: shop\n", "  name: shop\n  labels: []\n"),
        good.replace("  name: shop\n", "  name: shop\n  annotations: {note: 'any text: at all'}\n"),
        good.replace("  name: shop\n", "  name: shop\n  annotations: {'no te': x}\n"),
        good.replace("  name: shop\n", "  name: shop\n  anotations: {note: x}\n"),
        good.replace("  name: shop\n", "  name: shop\n  name: shop\n"),
        good.replace("  name: shop\n", &format!("  name: {}\n", "a".repeat(254))),
        good.replace("metadata:\n  name: shop\n", ""),
        good.replace("metadata:\n  name: shop\n", "metadata: shop\n"),
        good.replace("v1alpha1", "v1beta1"),
        good.replace("WhatsAppChannel", "WhatsAppChanel"),
        "{\"apiVersion\": \"channels.auracognitive.com/v1alpha1\", \"kind\": \"WhatsAppChannel\",\n\t\"metadata\": \
         {\"name\": \"shop\"}, \"spec\": {\"channelId\": \"6f1c2a9e-5f0e-4a57-9d2c-0b7a3c1d8e42\",\n\t\"environment\": \
         \"es-dev\", \"kernel\": {\"credentialsSecretRef\": {\"name\": \"sh\\u006fp\"}}}}"
            .to_owned(),
        good.replace("environment: es-dev", "environment: 'es-dev"),
        good.replace("environment: es-dev", "\tenvironment: es-dev"),
    ]);
    manifests
}

#[tokio::test]
async fn the_api_server_takes_what_validate_takes_and_refuses_what_it_refuses() {
    let cluster = cluster().await;
    let (client, namespace) = (cluster.admin(), cluster.namespace("validate").await);
    let mut texts = manifests();
    for (path, good, bad, _) in crd::rules() {
        for value in [good, bad]
            .iter()
            .filter(|value| !value.is_null() || path == "channelId")
        {
            texts.push(crd::channel(&namespace, path, value).to_string());
        }
    }
    let (mut differences, mut refused, mut compared) = (Vec::new(), 0, 0);
    for text in texts {
        let (report, verdict) = (
            judged(&text, &namespace),
            ask(&client, &namespace, CHANNELS, &text).await,
        );
        let ours = errors(&report);
        if ours.is_empty() != verdict.refused.is_none() {
            differences.push(format!(
                "{text}\n  ours: {ours:?}\n  API server: {:?}",
                verdict.refused
            ));
            continue;
        }
        refused += usize::from(!ours.is_empty());
        let rules: BTreeSet<_> = report
            .problems
            .iter()
            .filter(|it| it.code == Code::Rule)
            .map(|it| (it.field.clone().unwrap(), it.message.clone()))
            .collect();
        if rules.is_empty() || rules.len() != ours.len() {
            continue;
        }
        // Behind `Invalid value: …: ` the API server says the same words.
        let theirs: BTreeSet<_> = verdict
            .causes
            .iter()
            .map(|(field, message)| {
                let ours = rules
                    .iter()
                    .find(|(_, words)| message.ends_with(&format!(": {words}")));
                (field.clone(), ours.map_or(message, |(_, words)| words).clone())
            })
            .collect();
        compared += 1;
        if rules != theirs {
            differences.push(format!("{text}\n  ours: {rules:?}\n  API server: {theirs:?}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
    assert!(refused > 80 && compared > 25, "{refused} {compared}");
}

/// Runs the program; its exit status, stdout and stderr.
pub fn run(arguments: &[&str], stdin: &str) -> (i32, String, String) {
    use std::{io::Write, process::Stdio};
    let mut child = Command::new(PROGRAM)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

fn write(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn the_exit_status_tells_good_from_bad_from_not_judged() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    let good = spec("suspend: false");
    write(dir.path(), "a.yaml", &good);
    write(
        dir.path(),
        "deep/er/b.yml",
        &good
            .replace("  name: shop\n", "  name: two\n")
            .replace("6f1c2a9e", "7f1c2a9e"),
    );
    write(dir.path(), ".hidden/c.yaml", "not: [yaml");
    write(dir.path(), "deep/.d.yaml", "not: [yaml");
    write(dir.path(), "notes.txt", "not: [yaml");
    write(dir.path(), "values.json", "{\"replicas\": 2}");
    let (code, out, _) = run(&["validate", folder, &format!("{folder}/a.yaml")], "");
    let last = "3 files, 2 channels, 1 problem (0 errors, 1 warning); 1 other document skipped";
    assert_eq!((code, out.lines().last()), (0, Some(last)), "{out}");
    let (code, ..) = run(&["validate", "--strict", folder], "");
    assert_eq!(code, 1, "the two channels name one Secret");
    let (code, out, _) = run(
        &["validate", "-"],
        &good.replace("suspend: false", "suspend: never"),
    );
    assert_eq!(code, 1);
    assert!(
        out.starts_with("<stdin>:9:3: error: default/shop: spec.suspend: must be true or false"),
        "{out}"
    );
    let (code, out, _) = run(&["validate", folder, "/nowhere"], "");
    assert!(
        code == 2 && out.contains("/nowhere: error: can't be read: No such file"),
        "{out}"
    );
    let (code, _, err) = run(&["validate"], "");
    assert!(code == 2 && err.contains("FILE|DIR|-"), "{err}");
    write(dir.path(), "latin1.yaml", "");
    fs::write(dir.path().join("latin1.yaml"), b"secret: fake-sentinel-\xe9\n").unwrap();
    let (code, out, _) = run(&["validate", folder], "");
    assert!(
        code == 2 && out.contains("not UTF-8") && !out.contains("sentinel"),
        "{out}"
    );
}

const CONFIG: &str = "
environments:
  es-dev:
    namespaces: [aura-es]
    publicUrl: https://svc-es-dev.example
    kernel: {apiUrl: https://api.example, authUrl: https://auth.example}
    aura:
      messagesUrl: https://aura.example/messages
      replyUrl: http://bridge.aura:8081
      outboundAuth: {apiKeyFile: /etc/aura/out}
      inboundAuth: {bearerFile: /etc/aura/in}
    channelDefaults: {webhook: {mode: Observe}}
";

#[test]
fn the_configuration_is_checked_and_tells_what_holds() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yaml");
    let config = config.to_str().unwrap();
    let good = spec("suspend: false");
    write(dir.path(), "config.yaml", CONFIG);
    let arguments = ["validate", "--config", config, "--namespace", "aura-es", "-"];
    assert_eq!(run(&arguments, &good).0, 0);
    let (code, out, err) = run(&[&arguments[..], &["--show-effective"]].concat(), &good);
    assert_eq!(code, 0);
    assert!(
        out.contains("mode: Observe  # environment") && out.contains("suspend: false  # spec"),
        "{out}"
    );
    assert_eq!(err, "1 file, 1 channel, 0 problems\n");
    let json = ["--show-effective", "--output", "json"];
    let (_, out, _) = run(&[&arguments[..], &json].concat(), &good);
    let out: Value = serde_json::from_str(&out).unwrap();
    let settings = out
        .pointer("/channels/0/effective")
        .and_then(Value::as_array)
        .unwrap();
    let mode = json!({"path": "webhook.mode", "value": "Observe", "source": "environment"});
    assert!(settings.contains(&mode), "{settings:?}");
    let (code, out, _) = run(&["validate", "--config", config, "-"], &good);
    assert!(
        code == 1 && out.contains("environment es-dev is not for namespace default"),
        "{out}"
    );
    for (from, to, words) in [
        (
            "publicUrl: https",
            "publicUrl: http",
            "config.yaml:5:5: error: environments.es-dev.publicUrl: must be an https URL",
        ),
        ("namespaces:", "namespace:", "namespace"),
    ] {
        write(dir.path(), "config.yaml", &CONFIG.replace(from, to));
        let (code, out, _) = run(&arguments, &good);
        assert!(code == 1 && out.contains(words), "{out}");
    }
    let (code, ..) = run(&["validate", "--config", "/nowhere/config.yaml", "-"], &good);
    assert_eq!(code, 2);
}

#[test]
fn the_examples_are_good() {
    let examples = crate::support::project().join("examples");
    let (code, out, _) = run(
        &[
            "validate",
            "--strict",
            "--require-secrets",
            examples.to_str().unwrap(),
        ],
        "",
    );
    assert_eq!(
        (code, out.as_str()),
        (0, "3 files, 2 channels, 0 problems; 3 other documents skipped\n")
    );
}
