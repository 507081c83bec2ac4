//! What is forecast for each webhook that Kernel may hold, with and without the installation key.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use secrecy::SecretString;

use super::*;
use crate::{
    api::{
        ChannelDefaults, Condition, Existing, LeftAlone, WebhookKeyStatus, WhatsAppChannelSpec,
        conditions::types,
    },
    config::Installation,
    keys::{CONVERSATIONS, CURRENT, KeyMaterial, Tag},
};

const NOW: i64 = 1_800_000_000;

fn environment(more: &str) -> Environment {
    let text = format!(
        r"
environments:
  es-pro:
    namespaces: [n]
    publicUrl: https://svc.example.com
    formerPublicUrls: [https://old.example.com]
    kernel: {{apiUrl: https://k.example.com, authUrl: https://k.example.com}}
    aura: {{messagesUrl: https://a.example.com, replyUrl: http://b, outboundAuth: {{apiKeyFile: /x}}, inboundAuth: {{apiKeyFile: /x}}}}
    legacyCallback: {{url: 'https://legacy.example.com/cb?apikey={{apikey}}&channelId={{channelId}}', apiKeySecretRef: {{name: legacy, key: key}}}}
    {more}
"
    );
    let mut installation = Installation::parse(&text, "t").unwrap();
    installation.environments.remove("es-pro").unwrap()
}

fn keys() -> Keys {
    let entry = |name: &str| [CURRENT, CONVERSATIONS].contains(&name).then(|| vec![b'k'; 64]);
    Keys::derive(&KeyMaterial::new(entry).unwrap())
}

fn channel() -> WhatsAppChannel {
    let mut channel = WhatsAppChannel::new("shop", WhatsAppChannelSpec::example());
    channel.metadata.namespace = Some("n".into());
    channel.metadata.generation = Some(1);
    channel
}

fn id() -> ChannelId {
    WhatsAppChannelSpec::example().channel_id.parse().unwrap()
}

fn url(host: &str, key: &str) -> String {
    format!(
        "https://{host}/aura-services/v1/whatsapp/messages?apikey={key}&channelId={}",
        id()
    )
}

fn ours() -> String {
    let key = keys().api_key(Tag::new("es-pro", "n"), 1, id());
    url("svc.example.com", key.expose())
}

/// A channel whose status says that it is registered.
fn registered() -> WhatsAppChannel {
    let mut channel = channel();
    let ready = Condition {
        type_: types::READY.into(),
        status: "True".into(),
        reason: Reason::Succeeded.as_str().into(),
        message: String::new(),
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
        observed_generation: None,
    };
    channel.status = Some(WhatsAppChannelStatus {
        observed_generation: Some(1),
        conditions: vec![ready],
        webhook_url: Some(url("svc.example.com", "****")),
        registered_at: Some(Time(Timestamp::UNIX_EPOCH)),
        webhook_key: Some(WebhookKeyStatus {
            generation: Some(1),
            installation_key_id: Some(keys().id().to_owned()),
            ..WebhookKeyStatus::default()
        }),
        observed_secret_version: Some("7".into()),
        ..WhatsAppChannelStatus::default()
    });
    channel
}

/// What is seen of a channel, all of it.
struct Case {
    channel: WhatsAppChannel,
    environment: Environment,
    keys: Option<Keys>,
    held: Result<ReadBack, KernelError>,
}

impl Case {
    fn new(channel: WhatsAppChannel, held: &str) -> Self {
        let held = match held {
            "" => ReadBack::Empty,
            url => ReadBack::Url(SecretString::from(url)),
        };
        Self {
            channel,
            environment: environment(""),
            keys: Some(keys()),
            held: Ok(held),
        }
    }

    fn with<T>(&self, look: impl FnOnce(Look<'_>) -> T) -> T {
        let effective = Effective::new(&self.channel.spec, &ChannelDefaults::default());
        look(Look {
            channel: &self.channel,
            id: id(),
            environment: Some(&self.environment),
            effective: &effective,
            now: Timestamp::from_second(NOW).unwrap(),
            keys: self.keys.as_ref(),
            holder: None,
            client_holder: None,
            secrets: Some(Ok(SecretsSeen {
                version: Some("7".into()),
                ..SecretsSeen::default()
            })),
            other_client: false,
            token: Some(Ok(())),
            held: Some(self.held.clone()),
        })
    }

    #[track_caller]
    fn comes_to(&self, forecast: &Forecast) {
        assert_eq!(&self.preview().forecast, forecast);
    }

    fn preview(&self) -> Preview {
        match self.with(|look| look.next()) {
            Next::Ends(preview) => preview,
            next => panic!("{next:?}"),
        }
    }
}

#[test]
fn each_webhook_at_kernel_has_its_forecast() {
    let new = |held: &str| Case::new(channel(), held);
    let known = |held: &str| Case::new(registered(), held);
    let fine = Forecast::Nothing(String::new());
    new("").comes_to(&Forecast::Register);
    new(&ours()).comes_to(&fine);
    new(&url("svc.example.com", "other")).comes_to(&Forecast::Renew("Kernel holds another key"));
    new(&url("svc.example.com", "****"))
        .comes_to(&Forecast::Renew("Kernel does not show which key it holds"));
    new(&url("old.example.com", "other")).comes_to(&Forecast::Renew(
        "Kernel calls an address that is no longer in force",
    ));
    known(&ours()).comes_to(&fine);
    known(&url("svc.example.com", "****")).comes_to(&fine);
    known("").comes_to(&Forecast::PutBack);
    known(&url("svc.example.com", "other")).comes_to(&Forecast::PutBack);

    let mut blind = known("");
    blind.held = Ok(ReadBack::Unsupported);
    assert!(matches!(blind.preview().forecast, Forecast::Nothing(why) if why.contains("can't be read")));
    blind.channel = channel();
    blind.comes_to(&Forecast::Register);
}

#[test]
fn another_partys_webhook_is_refused_or_taken_over_as_the_spec_says() {
    let foreign = url("elsewhere.example.com", "x");
    let legacy = format!("https://legacy.example.com/cb?apikey=x&channelId={}", id());
    for (held, host) in [(foreign, "elsewhere.example.com"), (legacy, "legacy.example.com")] {
        let mut case = Case::new(channel(), &held);
        let forecast = case.preview().forecast;
        assert!(
            matches!(&forecast, Forecast::Refused { reason: Reason::WebhookForeign, message } if message.contains(host)),
            "{forecast:?}"
        );
        case.channel.spec.webhook = Some(crate::api::Webhook {
            existing: Some(Existing::TakeOver),
            ..crate::api::Webhook::default()
        });
        let host = host.to_owned();
        case.comes_to(&if host.starts_with("legacy") {
            Forecast::ReplaceLegacy { host }
        } else {
            Forecast::TakeOver { host }
        });
        case.channel.spec.webhook = Some(crate::api::Webhook {
            mode: Some(WebhookMode::Observe),
            ..crate::api::Webhook::default()
        });
        let forecast = case.preview().forecast;
        assert!(
            matches!(&forecast, Forecast::Nothing(why) if why.contains("would be replaced")),
            "{forecast:?}"
        );
    }
}

#[test]
fn without_the_installation_key_a_derived_key_is_believed_and_that_is_said() {
    let without = |channel, held: &str| {
        let mut case = Case::new(channel, held);
        case.keys = None;
        case
    };
    for channel in [channel(), registered()] {
        let preview = without(channel, &ours()).preview();
        assert_eq!(preview.forecast, Forecast::Nothing(String::new()));
        assert!(preview.key_not_compared);
    }
    assert!(!Case::new(channel(), &ours()).preview().key_not_compared);
    let other = keys().api_key(Tag::new("es-pro", "n"), 2, id());
    let preview = without(channel(), &url("svc.example.com", other.expose())).preview();
    assert_eq!(preview.forecast, Forecast::Renew("Kernel holds another key"));
    assert!(!preview.key_not_compared, "its generation is told");
    without(channel(), "").comes_to(&Forecast::Register);
    let masked = without(channel(), &url("svc.example.com", "****"));
    masked.comes_to(&Forecast::Renew("Kernel does not show which key it holds"));
}

#[test]
fn kernels_silence_is_no_forecast_and_its_refusal_is_one() {
    for channel in [channel(), registered()] {
        let mut case = Case::new(channel, "");
        case.held = Err(KernelError::Unreachable);
        case.comes_to(&Forecast::Unclear("Kernel can't be reached".into()));
        case.held = Err(KernelError::PermissionDenied);
        let forecast = case.preview().forecast;
        assert!(
            matches!(
                &forecast,
                Forecast::Refused {
                    reason: Reason::PermissionDenied,
                    ..
                }
            ),
            "{forecast:?}"
        );
    }
}

#[test]
fn what_keeps_a_channel_from_being_looked_at_is_said_before_anything_is_asked() {
    let mut case = Case::new(channel(), "");
    let next = |case: &Case, change: fn(&mut Look<'_>)| {
        case.with(|mut look| {
            (look.token, look.held) = (None, None);
            change(&mut look);
            look.next()
        })
    };
    assert_eq!(next(&case, |look| look.secrets = None), Next::Secrets);
    assert_eq!(next(&case, |_| {}), Next::Token);
    assert_eq!(next(&case, |look| look.token = Some(Ok(()))), Next::Webhook);
    let refused = |next: Next| match next {
        Next::Ends(Preview {
            forecast: Forecast::Refused { reason, .. },
            ..
        }) => reason,
        next => panic!("{next:?}"),
    };
    assert_eq!(
        refused(next(&case, |look| look.environment = None)),
        Reason::EnvironmentUnknown
    );
    assert_eq!(
        refused(next(&case, |look| look.holder = Some("n/older".into()))),
        Reason::ChannelConflict
    );
    assert_eq!(
        refused(next(&case, |look| look.client_holder = Some("n/older".into()))),
        Reason::ClientShared
    );
    case.environment =
        environment("hold: {until: '2999-01-01T00:00:00Z', what: [registration], reason: CHG-1}");
    assert_eq!(refused(next(&case, |_| {})), Reason::EnvironmentHeld);
    case.channel = registered();
    case.comes_to(&Forecast::Nothing("its environment is on hold: CHG-1".into()));
    case.channel.spec.suspend = Some(true);
    case.comes_to(&Forecast::Nothing("it is suspended".into()));
}

#[test]
fn a_hold_leaves_a_registered_channel_alone_whose_secret_is_gone_or_can_not_be_read() {
    let mut case = Case::new(registered(), "");
    case.environment =
        environment("hold: {until: '2999-01-01T00:00:00Z', what: [registration], reason: CHG-1}");
    let with = |case: &Case, secrets: Option<SecretProblem>| {
        case.with(|mut look| {
            (look.secrets, look.token, look.held) = (secrets.map(Err), None, None);
            match look.next() {
                Next::Ends(preview) => preview.forecast,
                next => panic!("{next:?}"),
            }
        })
    };
    let gone = |name: &str| Some(SecretProblem::NotFound(name.into()));
    let own = case.channel.spec.kernel.credentials_secret_ref.name.clone();
    for (secrets, words) in [(None, "can't be read"), (gone(&own), "is not in this namespace")] {
        let forecast = with(&case, secrets);
        assert!(
            matches!(&forecast, Forecast::Nothing(why) if why.contains("on hold: CHG-1") && why.contains(words)),
            "{forecast:?}"
        );
    }
    let held = |forecast: &Forecast| {
        matches!(
            forecast,
            Forecast::Refused {
                reason: Reason::EnvironmentHeld,
                ..
            }
        )
    };
    // Another key is another webhook.
    let mut issued = registered();
    issued.spec.webhook = Some(crate::api::Webhook {
        api_key_secret_ref: Some(crate::api::KeyRef {
            name: "issued".into(),
            key: "key".into(),
        }),
        ..crate::api::Webhook::default()
    });
    let status = issued.status.as_mut().unwrap();
    status.observed_api_key_version = Some("8".into());
    status.webhook_key = Some(WebhookKeyStatus {
        secret_version: Some("8".into()),
        ..WebhookKeyStatus::default()
    });
    case.channel = issued;
    assert!(matches!(with(&case, None), Forecast::Nothing(_)));
    assert!(matches!(with(&case, gone(&own)), Forecast::Nothing(_)));
    assert!(held(&with(&case, gone("issued"))));
    case.channel = registered();
    case.channel.metadata.generation = Some(2);
    for secrets in [None, gone(&own)] {
        let forecast = with(&case, secrets);
        assert!(
            held(&forecast),
            "of another spec the status says nothing: {forecast:?}"
        );
    }
}

fn without_kernel(channel: WhatsAppChannel, change: impl FnOnce(&mut Look<'_>)) -> Forecast {
    Case::new(channel, "").with(|mut look| {
        change(&mut look);
        look.without_kernel().forecast
    })
}

/// A channel of which the status says this for its generation.
fn failing(reason: Reason) -> WhatsAppChannel {
    let mut channel = registered();
    let status = channel.status.as_mut().unwrap();
    status.conditions[0].status = "False".into();
    status.conditions[0].reason = reason.as_str().into();
    status.conditions[0].message = "what Kernel said".into();
    if [Reason::WebhookForeign, Reason::WebhookContested].contains(&reason) {
        status.left_alone = Some(LeftAlone {
            generation: 1,
            reason: reason.as_str().into(),
        });
    }
    channel
}

#[test]
fn without_kernel_the_status_is_believed() {
    let forecast = |channel| without_kernel(channel, |_| {});
    assert_eq!(forecast(channel()), Forecast::Register);
    assert!(matches!(forecast(registered()), Forecast::Nothing(_)));
}

#[test]
fn without_kernel_a_change_of_which_kernel_is_told_nothing_changes_nothing_there() {
    let mut changed = registered();
    changed.metadata.generation = Some(2);
    let same = |_: &mut Look<'_>| {};
    let forecast = without_kernel(changed.clone(), same);
    assert!(
        matches!(&forecast, Forecast::Nothing(why) if why.contains("told nothing of what changes")),
        "{forecast:?}"
    );

    let renews = |forecast: Forecast| assert!(matches!(forecast, Forecast::Renew(_)), "{forecast:?}");
    renews(without_kernel(changed.clone(), |look| look.other_client = true));
    renews(without_kernel(changed.clone(), |look| {
        look.secrets = Some(Ok(SecretsSeen::default()));
    }));
    let mut other_key = changed.clone();
    other_key.spec.webhook = Some(crate::api::Webhook {
        key_generation: Some(2),
        ..crate::api::Webhook::default()
    });
    renews(without_kernel(other_key, same));
    // Where nothing can be read back, the controller sets it on every change.
    let mut blind = changed;
    let status = blind.status.as_mut().unwrap();
    status.conditions.push(Condition {
        type_: types::WEBHOOK_VERIFIED.into(),
        reason: Reason::ReadBackUnsupported.as_str().into(),
        ..status.conditions[0].clone()
    });
    renews(without_kernel(blind, same));
}

#[test]
fn without_kernel_what_kernel_said_last_stands_until_something_changes_that_it_depends_on() {
    let refused = |forecast: &Forecast, expected: Reason| {
        matches!(forecast, Forecast::Refused { reason, message }
            if *reason == expected && message.contains("what Kernel said") && message.contains("status"))
    };
    let same = |_: &mut Look<'_>| {};
    for reason in [
        Reason::WebhookForeign,
        Reason::WebhookContested,
        Reason::CredentialsRejected,
        Reason::ScopeNotGranted,
        Reason::PermissionDenied,
    ] {
        let forecast = without_kernel(failing(reason), same);
        assert!(refused(&forecast, reason), "{forecast:?}");
        let mut changed = failing(reason);
        changed.metadata.generation = Some(2);
        let forecast = without_kernel(changed, same);
        let stays = reason == Reason::WebhookForeign;
        assert_eq!(refused(&forecast, reason), stays, "another spec: {forecast:?}");
        let mut asked = failing(reason);
        asked
            .annotations_mut()
            .insert(REQUESTED_AT.into(), "2026-11-22".into());
        let forecast = without_kernel(asked, same);
        assert!(!refused(&forecast, reason), "a look is asked for: {forecast:?}");
        let rotated = without_kernel(failing(reason), |look| {
            look.secrets = Some(Ok(SecretsSeen::default()));
        });
        let of_the_webhook = [Reason::WebhookForeign, Reason::WebhookContested].contains(&reason);
        assert_eq!(refused(&rotated, reason), of_the_webhook, "{rotated:?}");
    }
    let mut transient = failing(Reason::UpstreamTimeout);
    let forecast = without_kernel(transient.clone(), same);
    assert!(!matches!(forecast, Forecast::Refused { .. }), "{forecast:?}");
    transient.status.as_mut().unwrap().left_alone = Some(LeftAlone {
        generation: 1,
        reason: Reason::WebhookContested.as_str().into(),
    });
    let forecast = without_kernel(transient, same);
    assert!(
        matches!(&forecast, Forecast::Refused { reason: Reason::WebhookContested, message } if message.contains("keeps changing")),
        "left to the other side, whatever failed since: {forecast:?}"
    );
    // Taking over may be allowed by the environment since: the spec is the same then.
    let mut allowed = Case::new(failing(Reason::WebhookForeign), "");
    allowed.channel.spec.webhook = Some(crate::api::Webhook {
        existing: Some(Existing::TakeOver),
        ..crate::api::Webhook::default()
    });
    let forecast = allowed.with(|look| look.without_kernel().forecast);
    assert!(!matches!(forecast, Forecast::Refused { .. }), "{forecast:?}");
}
