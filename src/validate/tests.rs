//! Whole reports: texts in, what people and programs read out.

use proptest::prelude::*;

use super::*;
use crate::yaml;

const GOOD: &str = "\
apiVersion: channels.auracognitive.com/v1alpha1
kind: WhatsAppChannel
metadata: {name: shop-es, namespace: aura-es}
spec:
  channelId: 6f1c2a9e-5f0e-4a57-9d2c-0b7a3c1d8e42
  phoneNumber: \"+34600001002\"
  environment: es-pro
  kernel: {credentialsSecretRef: {name: shop-es-kernel}}
";

const CONFIG: &str = "
watchNamespaces: [aura-es, aura-br]
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
    channelDefaults: {webhook: {mode: Legacy}, delivery: {maxAge: {toUser: 30m}}}
";

fn source(name: &str, text: &str) -> Source {
    Source {
        name: name.to_owned(),
        text: text.to_owned(),
    }
}

fn judged(texts: &[(&str, &str)], options: Options<'_>) -> Report {
    let sources: Vec<Source> = texts.iter().map(|(name, text)| source(name, text)).collect();
    Validator::new().unwrap().judge(&sources, options)
}

fn told(texts: &[(&str, &str)]) -> String {
    let options = Options {
        namespace: "default",
        ..Options::default()
    };
    judged(texts, options).render(Format::Human, false, None)
}

fn named(name: &str, id: &str) -> String {
    GOOD.replace("shop-es, ", &format!("{name}, "))
        .replace("6f1c2a9e", id)
        .replace("shop-es-kernel", &format!("{name}-kernel"))
}

#[test]
fn a_good_channel_has_no_problem_and_every_slip_in_it_is_told_of_with_its_place_and_its_word() {
    assert_eq!(told(&[("a.yaml", GOOD)]), "1 file, 1 channel, 0 problems\n");
    for (from, to, line) in [
        (
            "channelId:",
            "channelID:",
            "a.yaml:5:3: error: aura-es/shop-es: spec.channelID: no such field; did you mean \"channelId\"?",
        ),
        (
            "environment: es-pro",
            "mode: Observe",
            "spec.mode: no such field; did you mean spec.delivery.mode or spec.webhook.mode?",
        ),
        (
            "\"+34600001002\"",
            "+34600001002",
            "a.yaml:6:3: error: aura-es/shop-es: spec.phoneNumber: must be a string, not a number (put a text in quotes)",
        ),
        (
            "\"+34600001002\"",
            "34 600",
            "spec.phoneNumber: phoneNumber must be 3 to 15 digits, with or without a leading +, such as \"+34600001002\"",
        ),
        (
            "environment: es-pro",
            "webhook: {mode: observe}",
            "a.yaml:7:13: error: aura-es/shop-es: spec.webhook.mode: must be one of \"Manage\", \"Observe\" or \"Legacy\"; did you mean \"Observe\"?",
        ),
        (
            "  environment: es-pro\n",
            "",
            "a.yaml:4:1: error: aura-es/shop-es: spec.environment: is required",
        ),
        (
            "es-pro",
            "es-pro\n  webhook: {keyGeneration: 0}",
            "spec.webhook.keyGeneration: must be at least 1",
        ),
        (
            "es-pro",
            "es-pro\n  resyncPeriod: 30s",
            "a.yaml:8:3: error: aura-es/shop-es: spec.resyncPeriod: resyncPeriod must be between 1m and 168h",
        ),
        (
            "v1alpha1",
            "v1",
            "a.yaml:1:1: error: apiVersion: a WhatsAppChannel has apiVersion channels.auracognitive.com/v1alpha1",
        ),
        (
            "WhatsAppChannel",
            "WhatsappChannel",
            "a.yaml:2:1: error: kind: no such kind; did you mean \"WhatsAppChannel\"?",
        ),
        (
            "name: shop-es,",
            "name: Shop,",
            "metadata.name: must be lower case letters",
        ),
        ("{name: shop-es, ", "{", "metadata.name: is required"),
        (
            "namespace: aura-es}",
            "lables: {}}",
            "metadata.lables: no such field; did you mean \"labels\"?",
        ),
        (
            "namespace: aura-es}",
            "labels: {a: 1}}",
            "metadata.labels.a: must be a string; put it in quotes",
        ),
        (
            "spec:\n",
            "status: {}\nspec:\n",
            "a.yaml:4:1: warning: aura-es/shop-es: status: is written by the controller",
        ),
        (
            "spec:\n",
            "spec:\n  environment: x\n",
            "\"environment\" stands twice in one mapping",
        ),
        ("spec:", "  spec: {{ .Values.x }}", "a.yaml:4:3: error: not YAML:"),
    ] {
        let text = GOOD.replacen(from, to, 1);
        let report = told(&[("a.yaml", &text)]);
        assert!(report.contains(line), "{line}\n---\n{report}");
    }
    assert!(told(&[("a.yaml", "a: {{ .Values.x }}: {{\n")]).contains("looks like a template"));
}

#[test]
fn a_list_and_json_are_read_and_other_documents_are_counted() {
    let channel = yaml::parse(GOOD).0.remove(0).root.json();
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": [channel, {"apiVersion": "v1", "kind": "ConfigMap"}]});
    let list = serde_json::to_string_pretty(&list).unwrap();
    assert_eq!(
        told(&[("a.json", &list)]),
        "1 file, 1 channel, 0 problems; 1 other document skipped\n"
    );
    assert_eq!(
        told(&[("a.yaml", "# nothing\n---\nreplicas: 2\n")]),
        "warning: no WhatsAppChannel in any of the files\n1 file, 0 channels, 1 problem (0 errors, 1 warning); 1 other document skipped\n"
    );
}

#[test]
fn what_several_files_show_together_is_told_with_both_places() {
    let again = GOOD.replace("aura-es}", "aura-br}");
    let report = told(&[("a.yaml", GOOD), ("b/b.yaml", &again)]);
    assert!(
        report.contains("b/b.yaml:5:3: error: aura-br/shop-es: spec.channelId: aura-es/shop-es (a.yaml:1) names the same channelId"),
        "{report}"
    );
    let report = told(&[("a.yaml", GOOD), ("b.yaml", GOOD)]);
    assert!(
        report.contains(
            "b.yaml:3:12: error: aura-es/shop-es: metadata.name: the resource also stands in a.yaml:1"
        ),
        "{report}"
    );
    assert!(report.contains("2 files, 2 channels, 1 problem\n"), "{report}");
    let sharing = named("other", "7f1c2a9e").replace("other-kernel", "shop-es-kernel");
    let report = told(&[("a.yaml", GOOD), ("b.yaml", &sharing)]);
    assert!(report.contains("b.yaml:8:35: warning: aura-es/other: spec.kernel.credentialsSecretRef.name: aura-es/shop-es (a.yaml:1) uses the same Secret in es-pro"), "{report}");
}

const SECRET: &str = "
apiVersion: v1
kind: Secret
metadata: {name: shop-es-kernel, namespace: aura-es, labels: {channels.auracognitive.com/channel-secret: \"true\"}}
stringData: {id: fake-id, secret: fake-sentinel}
";
const EXTERNAL: &str = "
apiVersion: external-secrets.io/v1
kind: ExternalSecret
metadata: {name: es, namespace: aura-es}
spec:
  target: {name: shop-es-kernel, template: {metadata: {labels: {channels.auracognitive.com/channel-secret: \"true\"}}}}
  data: [{secretKey: id}, {secretKey: secret}]
";
const SEALED: &str = "
apiVersion: bitnami.com/v1alpha1
kind: SealedSecret
metadata: {name: shop-es-kernel, namespace: aura-es}
spec:
  template: {metadata: {labels: {channels.auracognitive.com/channel-secret: \"true\"}}}
  encryptedData: {id: AgB, secret: AgB}
";

#[test]
fn a_secret_among_the_files_must_be_labelled_and_hold_the_keys() {
    for (secret, place, key) in [
        (SECRET, "metadata.labels", "secret: fake-sentinel"),
        (
            EXTERNAL,
            "spec.target.template.metadata.labels",
            "{secretKey: secret}",
        ),
        (SEALED, "spec.template.metadata.labels", "secret: AgB"),
    ] {
        let good = told(&[("a.yaml", GOOD), ("s.yaml", secret)]);
        assert_eq!(
            good, "2 files, 1 channel, 0 problems; 1 other document skipped\n",
            "{secret}"
        );
        let report = told(&[
            ("a.yaml", GOOD),
            ("s.yaml", &secret.replace("\"true\"", "\"yes\"")),
        ]);
        assert!(report.starts_with("s.yaml:2:1: error: aura-es/"), "{report}");
        assert!(
            report.contains("add channels.auracognitive.com/channel-secret: \"true\" to its")
                && report.contains(place),
            "{report}"
        );
        let report = told(&[("a.yaml", GOOD), ("s.yaml", &secret.replace(key, ""))]);
        assert!(report.contains("a.yaml:8:12: error: aura-es/shop-es: spec.kernel.credentialsSecretRef.secretKey: Secret \"shop-es-kernel\" (s.yaml:2) has no value under the key \"secret\""), "{report}");
    }
    let all = EXTERNAL.replace(
        "  data: [{secretKey: id}, {secretKey: secret}]",
        "  dataFrom: [{extract: {key: x}}]",
    );
    assert!(told(&[("a.yaml", GOOD), ("s.yaml", &all)]).contains(" 0 problems"));
    let inherited = EXTERNAL
        .replace(
            ", template: {metadata: {labels: {channels.auracognitive.com/channel-secret: \"true\"}}}",
            "",
        )
        .replace(
            "{name: es,",
            "{labels: {channels.auracognitive.com/channel-secret: \"true\"}, name: es,",
        );
    assert!(told(&[("a.yaml", GOOD), ("s.yaml", &inherited)]).contains(" 0 problems"));
    let options = Options {
        namespace: "aura-es",
        require_secrets: true,
        ..Options::default()
    };
    let elsewhere = SECRET
        .replace("shop-es-kernel", "shop-es-kernle")
        .replace("namespace: aura-es, ", "");
    let report =
        judged(&[("a.yaml", GOOD), ("s.yaml", &elsewhere)], options).render(Format::Human, false, None);
    assert!(report.contains("no Secret \"shop-es-kernel\" for namespace aura-es in the files; did you mean \"shop-es-kernle\"?"), "{report}");
}

#[test]
fn no_value_of_a_secret_is_ever_told() {
    let options = Options {
        namespace: "default",
        require_secrets: true,
        ..Options::default()
    };
    for secret in [
        SECRET.to_owned(),
        SECRET.replace("stringData", "data"),
        SECRET.replace("secret: fake-sentinel", "secret: [fake-sentinel"),
        SECRET.replace("secret: fake-sentinel", "fake-sentinel: x, fake-sentinel: x"),
        SECRET.replace("secret: fake-sentinel", "secret: \"fake-sentinel"),
        SECRET.replace("secret: fake-sentinel", "secret: *fake-sentinel"),
        SECRET.replace("secret: fake-sentinel", "secret: !fake-sentinel x: y: z"),
        SECRET.replace("secret: fake-sentinel", "secret: {fake-sentinel: 1}"),
        SECRET.replace("secret: fake-sentinel}", "secret: fake}\nfake-sentinel"),
        SECRET.replace(
            "stringData: {id: fake-id, secret: fake-sentinel}",
            "stringData:\n  id: |\n fake-sentinel\n\tx: fake-sentinel: [",
        ),
    ] {
        let report = judged(&[("a.yaml", GOOD), ("s.yaml", &secret)], options);
        for format in [Format::Human, Format::Json, Format::Github] {
            let text = report.render(format, true, None);
            assert!(!text.contains("sentinel"), "{secret}\n{text}");
        }
    }
    // Nor a value that was written into a channel by mistake.
    for slip in [
        "secret: fake-sentinel",
        "idKey: {a: fake-sentinel}",
        "idKey: 'fake sentinel'",
    ] {
        let text = GOOD.replace("name: shop-es-kernel", &format!("name: shop-es-kernel, {slip}"));
        let report = told(&[("a.yaml", &text)]);
        assert!(
            report.contains("1 problem") && !report.contains("sentinel"),
            "{report}"
        );
    }
}

#[test]
fn the_configuration_is_held_against_each_channel() {
    let installation = Installation::parse(CONFIG, "config.yaml").unwrap();
    let options = Options {
        namespace: "default",
        installation: Some(&installation),
        ..Options::default()
    };
    let told = |text: &str| judged(&[("a.yaml", text)], options).render(Format::Human, false, None);
    let manage = GOOD.replace("spec:", "spec:\n  webhook: {mode: Manage}");
    assert_eq!(told(&manage), "1 file, 1 channel, 0 problems\n");
    for (from, to, line) in [
        (
            "mode: Manage",
            "existing: Refuse",
            "spec.webhook.mode: mode Legacy needs a legacyCallback, and environment es-pro has none",
        ),
        (
            "es-pro",
            "es-prod",
            "a.yaml:8:3: error: aura-es/shop-es: spec.environment: no such environment in the configuration: there is \"es-pro\"",
        ),
        (
            "namespace: aura-es",
            "namespace: aura-br",
            "spec.environment: environment es-pro is not for namespace aura-br: it is for \"aura-es\"",
        ),
        (
            "namespace: aura-es",
            "namespace: elsewhere",
            "warning: elsewhere/shop-es: metadata.namespace: namespace elsewhere is not among",
        ),
    ] {
        let report = told(&manage.replace(from, to));
        assert!(report.contains(line), "{line}\n---\n{report}");
    }
}

#[test]
fn every_field_of_the_spec_is_among_the_settings_with_its_source() {
    let mut leaves = Validator::new().unwrap().definition.leaves();
    let full = "{channelId: a, environment: e, phoneNumber: '1', kernel: {credentialsSecretRef: {name: s}}, \
                webhook: {apiKeySecretRef: {name: k, key: v}}}";
    let full = serde_json::from_value(yaml::parse(full).0[0].root.json()).unwrap();
    let defaults = crate::api::ChannelDefaults::default();
    let mut shown: Vec<String> = crate::api::settings(&full, &defaults)
        .iter()
        .map(|it| it.path.to_owned())
        .collect();
    leaves.sort();
    shown.sort();
    assert_eq!(leaves, shown);
}

#[test]
fn what_is_shown_as_holding_holds() {
    let installation = Installation::parse(CONFIG, "config.yaml").unwrap();
    let defaults = &installation.environments["es-pro"].channel_defaults;
    let text = GOOD.replace(
        "spec:",
        "spec:\n  delivery: {maxAge: {toAura: 90m}, unansweredAfter: 1500ms}\n  conversion: {undeliveredText: 'no'}",
    );
    let report = judged(
        &[("a.yaml", &text)],
        Options {
            namespace: "default",
            ..Options::default()
        },
    );
    let shown = report.channels[0].effective_yaml(Some(defaults));
    insta::assert_snapshot!(shown);
    // Applied as it stands, the shown document means the same without any default.
    let again = yaml::parse(&shown).0[0].root.json();
    let again = serde_json::from_value(again["spec"].clone()).unwrap();
    let none = crate::api::ChannelDefaults::default();
    let mut held = crate::api::Effective::new(report.channels[0].spec.as_ref().unwrap(), defaults);
    held.resync_period = Some(crate::api::Effective::RESYNC);
    assert_eq!(crate::api::Effective::new(&again, &none), held);
}

#[test]
fn the_three_formats() {
    let bad = GOOD
        .replace("phoneNumber: \"+34600001002\"", "phoneNumbers: \"1\"")
        .replace("es-pro", "ES");
    let report = judged(
        &[
            ("a,b:100%.yaml", &bad),
            ("c.yaml", "status: {\n"),
            ("d\u{1b}.yaml", &named("two", "7f1c2a9e")),
        ],
        Options {
            namespace: "default",
            require_secrets: true,
            ..Options::default()
        },
    );
    for (name, format) in [
        ("human", Format::Human),
        ("json", Format::Json),
        ("github", Format::Github),
    ] {
        insta::assert_snapshot!(name, report.render(format, false, None));
    }
}

#[test]
fn the_codes_are_the_documented_ones() {
    let page = include_str!("../../docs/cli.md");
    for code in Code::ALL {
        assert!(
            page.contains(&format!("`{}`", code.as_str())),
            "{}",
            code.as_str()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    /// A text that is shown among the settings is read back as itself, also by who goes by YAML 1.1.
    #[test]
    fn a_text_that_is_shown_is_read_back_as_itself(text in "[ -~é\n]{0,12}|[0-9a-fx.e+:-]{1,8}|(?i)y|no|on|null|~|[0-9]{1,3}[hms]") {
        let shown = crate::api::yaml_scalar(&serde_json::json!(text));
        let (documents, error) = yaml::parse(&format!("a: {shown}  # spec\n"));
        prop_assert!(error.is_none(), "{}", shown);
        prop_assert_eq!(&documents[0].root.json()["a"], &serde_json::json!(text));
    }

    /// Whatever a file holds and is called, a report has a line for each problem and one more: nothing in a file can
    /// write a line, or a workflow command, of its own.
    #[test]
    fn no_file_can_write_a_line_of_its_own(
        name in ".{0,20}",
        text in "[ -~\n\t\r\u{1b}é]{0,120}",
        key in ".{0,20}",
    ) {
        let key = serde_json::to_string(&key).unwrap();
        let ours = GOOD.replace("spec:", &format!("{key}: 1\nspec:\n  {key}: x"));
        let options = Options { namespace: "default", ..Options::default() };
        let report = judged(&[(&name, &text), ("b", &ours), ("c", &format!("{GOOD}{text}"))], options);
        for format in [Format::Human, Format::Github] {
            let lines = report.render(format, false, None);
            prop_assert_eq!(lines.matches('\n').count(), report.problems.len() + 1);
            let clean = !lines.contains(['\r', '\u{1b}']);
            prop_assert!(clean);
        }
    }
}
