//! `import`: what it writes passes `validate` and is taken by the API server, and no credential goes astray.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::{
    support::{PROGRAM, cluster},
    validate::{CHANNELS, ask, run},
};

const ID: &str = "6f1c2a9e-5f0e-4a57-9d2c-0b7a3c1d8e42";

fn document(name: &str, id: &str, secret: &str) -> Value {
    json!({
        "channel_id": id, "name": name, "type": "whatsapp", "brand": "fake",
        "whatsapp": {"phoneNumber": "+34600001002", "client": {
            "id": format!("fake-client-{name}"), "secret": secret, "purposes": "a b",
            "scopes": "whatsapp:app-admin whatsapp:app-messaging",
        }},
    })
}

/// Names and credentials that a careless writer of YAML would change.
fn documents() -> Vec<Value> {
    let names = [
        "shop-es",
        "Shop España",
        "on",
        "1002",
        "1e3",
        "0x1f",
        "a.b",
        "日本",
        "null",
        &"long ".repeat(40),
    ];
    let secrets = [
        "fake-sentinel",
        "yes",
        "12345",
        "1e5",
        "a: b #c",
        "'\"\\",
        "  x",
        "{{x}}",
        "~",
        "*a&b!c",
    ];
    let ids = (0..).map(|n| format!("{n}e{n}00000-0000-4000-8000-000000000000"));
    let numbered = names.iter().zip(secrets).zip(ids);
    numbered
        .map(|((name, secret), id)| document(name, &id, secret))
        .collect()
}

#[tokio::test]
async fn every_manifest_is_taken_by_the_api_server_and_passes_validate() {
    let cluster = cluster().await;
    let (client, namespace) = (cluster.admin(), cluster.namespace("import").await);
    let documents: Vec<String> = documents().iter().map(Value::to_string).collect();
    for (lines, mode) in [
        (documents.join("\n"), "Observe"),
        (format!("[{}]", documents.join(",")), "legacy"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("channels");
        let out = out.to_str().unwrap();
        let arguments = [
            "import",
            "-",
            "--environment",
            "es-dev",
            "--namespace",
            &namespace,
            "--out",
            out,
            "--mode",
            mode,
        ];
        let (code, said, err) = run(&arguments, &lines);
        assert_eq!((code, said.as_str()), (0, ""), "{err}");
        assert!(
            err.contains("not taken over, by the number of documents: brand (10)"),
            "{err}"
        );
        assert!(err.ends_with("10 channels, 0 errors, 0 warnings\n"), "{err}");
        let (code, said, _) = run(&["validate", "--strict", "--require-secrets", out], "");
        assert_eq!(
            (code, said.as_str()),
            (
                0,
                "20 files, 10 channels, 0 problems; 10 other documents skipped\n"
            )
        );
        let mut files: Vec<_> = fs::read_dir(out)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            let secret = file.to_str().unwrap().ends_with("-secret.yaml");
            let resource = if secret {
                "api/v1/namespaces/NAMESPACE/secrets"
            } else {
                CHANNELS
            };
            let verdict = ask(&client, &namespace, resource, &text).await;
            assert_eq!(verdict.refused, None, "{text}");
            let rights = fs::metadata(&file).unwrap().permissions().mode() & 0o777;
            assert_eq!(rights == 0o600, secret, "{rights:o} {}", file.display());
            assert_eq!(
                text.contains("fake-client") || text.contains("sentinel"),
                secret,
                "{text}"
            );
        }
    }
}

#[test]
fn nothing_is_overwritten_unless_forced_and_a_link_is_never_followed() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    let (target, secret) = (dir.path().join("target"), dir.path().join("shop-es-secret.yaml"));
    fs::write(&target, "untouched").unwrap();
    std::os::unix::fs::symlink(&target, &secret).unwrap();
    let text = document("shop-es", ID, "fake-sentinel").to_string();
    let arguments = ["import", "-", "--environment", "es-dev", "--out", out];
    let (code, _, err) = run(&arguments, &text);
    assert!(
        code == 1 && err.contains("is there already; overwrite it with --force"),
        "{err}"
    );
    assert!(!dir.path().join("shop-es.yaml").exists());
    let (code, ..) = run(&[&arguments[..], &["--force"]].concat(), &text);
    assert_eq!(
        (code, fs::read_to_string(&target).unwrap().as_str()),
        (0, "untouched")
    );
    assert!(secret.symlink_metadata().unwrap().is_file());
    assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn each_channel_and_each_secret_has_a_file_of_its_own() {
    for (first, second) in [("shop", "shop-secret"), ("shop-secret", "shop")] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("channels");
        let out = out.to_str().unwrap();
        let id = "00000002-0000-4000-8000-000000000000";
        let lines = format!(
            "{}\n{}\n",
            document(first, ID, "fake-1"),
            document(second, id, "fake-2")
        );
        let arguments = ["import", "-", "--environment", "es-dev", "--out", out, "--force"];
        let (code, _, err) = run(&arguments, &lines);
        assert_eq!(code, 0, "{err}");
        let becomes = format!("{second}-00000002");
        assert!(err.contains(&format!("it becomes {becomes}")), "{err}");
        let (code, said, _) = run(&["validate", "--strict", "--require-secrets", out], "");
        assert_eq!(
            (code, said.as_str()),
            (0, "4 files, 2 channels, 0 problems; 2 other documents skipped\n")
        );
        for (name, secret) in [(first, "fake-1"), (&becomes, "fake-2")] {
            let file = format!("{out}/{name}-secret.yaml");
            assert!(fs::read_to_string(&file).unwrap().contains(secret), "{file}");
        }
    }
}

#[test]
fn a_credential_is_printed_only_when_asked_for_and_never_on_stderr() {
    let text = document("shop-es", ID, "fake-sentinel").to_string();
    let base = ["import", "-", "--environment", "es-dev"];
    let with = |more: &[&'static str], text: &str| run(&[&base[..], more].concat(), text);
    let (code, out, err) = with(&[], &text);
    assert_eq!(code, 0, "{err}");
    assert!(
        out.contains("mode: Observe") && !out.contains("kind: Secret") && !out.contains("sentinel"),
        "{out}"
    );
    let (code, out, err) = with(&["--secrets", "plain"], &text);
    assert!(
        code == 2 && out.is_empty() && err.contains("--print-secrets"),
        "{err}"
    );
    let (code, out, _) = with(&["--secrets", "plain", "--print-secrets"], &text);
    assert!(code == 0 && out.contains("fake-sentinel"), "{out}");
    let stub = ["--secrets", "external-secret", "--secret-store", "vault"];
    let (code, out, _) = with(&stub, &text);
    assert!(
        code == 0 && out.contains("kind: ExternalSecret") && !out.contains("sentinel"),
        "{out}"
    );
    let (code, validated, _) = run(&["validate", "--require-secrets", "-"], &out);
    assert_eq!(code, 0, "{validated}");
    assert_eq!(with(&stub[..2], &text).0, 2, "a store is asked for");
    for broken in [
        "{\"whatsapp\": {\"client\": {\"secret\": \"fake-sentinel",
        "{\"whatsapp\": {\"client\": {\"secret\": fake-sentinel}}}",
        "\"fake-sentinel\"",
        "{\"channel_id\": \"x\", \"whatsapp\": {\"client\": {\"id\": \"fake-sentinel\", \"secret\": \"fake-sentinel\"}}}",
        "{\"channel_id\": \"x\", \"whatsapp\": {\"client\": \"fake-sentinel\"}}",
    ] {
        let (code, out, err) = with(&["--secrets", "plain", "--print-secrets"], broken);
        assert!(
            code == 1 && !format!("{out}{err}").contains("sentinel"),
            "{out}{err}"
        );
    }
}

#[test]
fn on_a_terminal_a_credential_is_shown_only_when_asked_for_twice() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("shop.json");
    fs::write(&file, document("shop-es", ID, "fake-sentinel").to_string()).unwrap();
    // A terminal is what util-linux's `script` gives the command.
    let on_a_terminal = |more: &str| {
        let command = format!(
            "{PROGRAM} import {} --environment es-dev --secrets plain {more}",
            file.display()
        );
        let output = Command::new("script")
            .args(["-qec", &command, "/dev/null"])
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let shown = String::from_utf8(output.stdout).unwrap();
        (output.status.code(), shown)
    };
    let (code, shown) = on_a_terminal("--print-secrets");
    assert_eq!(code, Some(2), "{shown}");
    assert!(shown.contains("on a terminal"), "{shown}");
    assert!(!shown.contains("sentinel"), "{shown}");
    let (code, shown) = on_a_terminal("--print-secrets --print-secrets");
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("fake-sentinel"), "{shown}");
}

#[test]
fn strict_writes_nothing_where_one_document_is_bad() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("channels");
    let lines = format!("{}\n{{}}\n", document("shop-es", ID, "fake"));
    let arguments = [
        "import",
        "-",
        "--environment",
        "es-dev",
        "--out",
        out.to_str().unwrap(),
    ];
    let (code, _, err) = run(&[&arguments[..], &["--strict"]].concat(), &lines);
    assert!(code == 1 && !out.exists(), "{err}");
    let (code, _, err) = run(&arguments, &lines);
    assert_eq!(code, 1);
    assert!(
        err.contains("error: <stdin> document 2: channel_id is missing"),
        "{err}"
    );
    assert!(out.join("shop-es.yaml").exists());
    let (code, ..) = run(&["import", "/nowhere.json", "--environment", "es-dev"], "");
    assert_eq!(code, 2);
}
