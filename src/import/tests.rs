//! Documents in, manifests out.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn options() -> Options {
    Options {
        environment: Some("es-pro".to_owned()),
        namespace: Some("aura-es".to_owned()),
        name: None,
        mode: WebhookMode::Observe,
        secrets: SecretForm::Plain,
        store: None,
    }
}

fn imported(documents: &Value, options: &Options) -> Outcome {
    let source = Source {
        name: "channels.json".to_owned(),
        text: documents.to_string(),
    };
    import(&[source], options).unwrap()
}

fn document() -> Value {
    json!({
        "channel_id": "6F1C2A9E-5F0E-4A57-9D2C-0B7A3C1D8E42", "name": "shop-es", "prefix": "she", "type": "whatsapp",
        "brand": "b", "output_message_format": "simple",
        "whatsapp": {"phoneNumber": "+34 600 001 002", "client": {
            "id": "fake-client", "secret": "fake-sentinel", "purposes": "p1 p2", "version": "v2",
            "scopes": "whatsapp:app-admin whatsapp:app-messaging whatsapp:manage-templates",
        }},
    })
}

#[test]
fn a_document_becomes_a_channel_that_only_observes_and_a_labelled_secret() {
    let outcome = imported(&document(), &options());
    assert_eq!(outcome.errors, Vec::<String>::new());
    let channel = &outcome.channels[0];
    insta::assert_snapshot!("channel", channel.channel);
    insta::assert_snapshot!("secret", channel.secret.as_ref().unwrap().expose_secret());
    assert_eq!(
        outcome.warnings,
        ["channels.json (shop-es): scopes that nothing asks for are left out: whatsapp:manage-templates"]
    );
    let left: Vec<_> = outcome
        .left_out
        .iter()
        .map(|(field, count)| (field.as_str(), *count))
        .collect();
    assert_eq!(left, [("brand", 1), ("output_message_format", 1)]);
}

#[test]
fn a_stub_holds_no_value() {
    let store = Store {
        name: "vault".to_owned(),
        kind: "ClusterSecretStore".to_owned(),
        key: "aura/{channelId}".to_owned(),
    };
    for (name, secrets) in [
        ("external", SecretForm::ExternalSecret),
        ("sealed", SecretForm::SealedSecret),
    ] {
        let outcome = imported(
            &document(),
            &Options {
                secrets,
                store: Some(store.clone()),
                ..options()
            },
        );
        let text = outcome.channels[0].secret.as_ref().unwrap().expose_secret();
        assert!(!text.contains("sentinel") && !text.contains("fake-client"));
        insta::assert_snapshot!(name, text);
    }
    let outcome = imported(
        &document(),
        &Options {
            secrets: SecretForm::None,
            ..options()
        },
    );
    assert!(outcome.channels[0].secret.is_none());
}

#[test]
fn each_document_has_its_own_problem_and_the_others_are_taken_over() {
    let with = |changes: Value| {
        let mut document = document();
        for (path, value) in changes.as_object().unwrap() {
            match document.pointer_mut(path) {
                Some(at) => *at = value.clone(),
                None => document[path.trim_start_matches('/')] = value.clone(),
            }
        }
        document
    };
    let id = |n: u32| json!(format!("0000000{n}-0000-4000-8000-000000000000"));
    let documents = json!([
        document(),
        with(json!({"/channel_id": id(1), "/whatsapp/client/secret": ""})),
        with(json!({"/channel_id": "1002"})),
        document(),
        with(json!({"/channel_id": id(2), "/type": "directline"})),
        with(json!({"/channel_id": id(3), "/whatsapp/phoneNumber": "call me"})),
        with(json!({"/channel_id": id(4)})),
        7,
    ]);
    let outcome = imported(&documents, &options());
    assert_eq!(
        outcome.errors,
        [
            "channels.json document 2 (shop-es): whatsapp.client.id or whatsapp.client.secret is missing or empty",
            "channels.json document 3 (shop-es): spec.channelId: channelId must be a UUID in lower case, such as 6f1c2a9e-5f0e-4a57-9d2c-0b7a3c1d8e42",
            "channels.json document 4 (shop-es): has the channel_id of channels.json document 1 (shop-es)",
            "channels.json document 6 (shop-es): spec.phoneNumber: phoneNumber must be 3 to 15 digits, with or without a leading +, such as \"+34600001002\"",
            "channels.json document 8: not a JSON object",
        ]
    );
    assert_eq!(outcome.other_types, 1);
    let names: Vec<&str> = outcome.channels.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["shop-es", "shop-es-00000004"]);
    let warned = outcome.warnings.join("\n");
    assert!(
        warned.contains("document 7 (shop-es): the name shop-es is taken: it becomes shop-es-00000004"),
        "{warned}"
    );
    assert!(
        warned.contains("document 7 (shop-es): has the Kernel client of channels.json document 1"),
        "{warned}"
    );
    let outcome = imported(
        &document(),
        &Options {
            environment: None,
            ..options()
        },
    );
    assert!(
        outcome.errors[0].contains("--environment"),
        "{:?}",
        outcome.errors
    );
    let outcome = imported(
        &with(json!({"/environment": "br-pro"})),
        &Options {
            environment: None,
            ..options()
        },
    );
    assert!(outcome.channels[0].channel.contains("environment: br-pro"));
}

#[test]
fn no_channel_gets_a_name_whose_file_is_that_of_anothers_secret() {
    let named = |n: u32, name: &str| {
        let mut document = document();
        document["channel_id"] = json!(format!("0000000{n}-0000-4000-8000-000000000000"));
        document["name"] = json!(name);
        document["whatsapp"]["client"]["id"] = json!(format!("fake-client-{n}"));
        document
    };
    for (first, second, becomes) in [
        ("shop", "shop-secret", "shop-secret-00000002"),
        ("shop-secret", "shop", "shop-00000002"),
    ] {
        let outcome = imported(&json!([named(1, first), named(2, second)]), &options());
        let names: Vec<&str> = outcome.channels.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, [first, becomes]);
        let warned = outcome.warnings.join("\n");
        assert!(warned.contains(&format!("it becomes {becomes}")), "{warned}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever a credential is, the Secret holds it as it was, and nothing else tells of it.
    #[test]
    fn a_credential_arrives_as_it_was(
        secret in "(yes|on|0x1f|1e5|2001-01-01|~|null|=|<<|[!-~]{1,40}|[ -~\\n\\t\"'éñ]{1,40})", name in ".{0,60}",
    ) {
        let secret = format!("{}x", secret.trim_start());
        let mut document = document();
        document["name"] = json!(name);
        document["whatsapp"]["client"]["secret"] = json!(secret);
        let outcome = imported(&document, &options());
        prop_assert_eq!(&outcome.errors, &Vec::<String>::new());
        let text = outcome.channels[0].secret.as_ref().unwrap().expose_secret();
        let read: Value = serde_saphyr::from_str(text).unwrap();
        prop_assert_eq!(&read["stringData"]["secret"], &json!(secret));
    }
}
