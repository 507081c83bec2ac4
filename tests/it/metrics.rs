//! What both roles tell Prometheus: the labels that the documentation names and no others, and nothing of a channel that
//! is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use aura_whatsapp_operator::{
    api::conditions::Reason,
    sim::{
        dev::site,
        fault::{Endpoint, Fault},
    },
};
use jiff::Timestamp;
use kube::api::DeleteParams;

use crate::support::{Number, World, project, ready};

/// One line of a page.
#[derive(Clone, Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Sample {
    fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// A page, line by line. No label's value here holds a comma or a quote.
async fn page(admin: SocketAddr) -> Vec<Sample> {
    let (status, page) = site::get(admin, "/metrics").await.unwrap();
    assert_eq!(status, 200);
    let samples = page.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series
            .trim_end_matches('}')
            .split_once('{')
            .unwrap_or((series, ""));
        let labels = labels.split(',').filter(|label| !label.is_empty()).map(|label| {
            let (name, value) = label.split_once('=').unwrap();
            (name.to_owned(), value.trim_matches('"').to_owned())
        });
        Sample {
            name: name.to_owned(),
            labels: labels.collect(),
            value: value.parse().unwrap(),
        }
    });
    samples.collect()
}

fn of<'a>(page: &'a [Sample], name: &str) -> Vec<&'a Sample> {
    page.iter().filter(|sample| sample.name == name).collect()
}

/// The metrics that the documentation lists, each with its labels.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let text = std::fs::read_to_string(project().join("docs/operations.md")).unwrap();
    let table = text
        .split("## Metrics")
        .nth(1)
        .unwrap()
        .split("\n## ")
        .next()
        .unwrap();
    let cells = table
        .lines()
        .filter(|line| line.starts_with("| `aura_whatsapp_"))
        .filter_map(|line| line.split('|').nth(1));
    let metrics = cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .map(|metric| {
            let (name, labels) = metric
                .trim_end_matches('}')
                .split_once('{')
                .unwrap_or((metric, ""));
            let labels = labels.split(',').filter(|label| !label.is_empty());
            (name.to_owned(), labels.map(ToOwned::to_owned).collect())
        });
    metrics.collect()
}

/// The conditions that a page tells of a channel.
fn conditions(page: &[Sample], number: &Number) -> BTreeSet<(String, String)> {
    of(page, "aura_whatsapp_channel_condition")
        .into_iter()
        .filter(|sample| sample.label("name") == number.name)
        .inspect(|sample| assert!((sample.value - 1.0).abs() < f64::EPSILON, "{sample:?}"))
        .map(|sample| (sample.label("type").to_owned(), sample.label("status").to_owned()))
        .collect()
}

fn pairs(pairs: &[(&str, &str)]) -> BTreeSet<(String, String)> {
    let owned = pairs
        .iter()
        .map(|(kind, value)| ((*kind).into(), (*value).into()));
    owned.collect()
}

const WELL: &[(&str, &str)] = &[
    ("Ready", "True"),
    ("Accepted", "True"),
    ("CredentialsValid", "True"),
    ("WebhookRegistered", "True"),
    ("WebhookVerified", "True"),
];

#[tokio::test]
async fn what_is_told_of_a_channel_follows_its_status_and_goes_with_it() {
    let world = World::start("channel-metrics").await;
    let admin = world.site.controller_admin;
    let began = Timestamp::now().as_second();
    let (kept, number) = (world.ready_number("1002").await, Number::new("1004"));
    world.kernel.inject(
        Fault::status(503)
            .on(Endpoint::WebhookGet)
            .only_for(&number.client_id),
    );
    let number = world.add("1004", |_| {}).await;
    world.wait_reason(&number, Reason::UpstreamUnavailable).await;
    let ill = pairs(&[
        ("Ready", "False"),
        ("Accepted", "True"),
        ("CredentialsValid", "True"),
        ("WebhookRegistered", "False"),
        ("WebhookVerified", "Unknown"),
        ("Reconciling", "True"),
    ]);
    // The watch tells of a status a moment after it was written.
    let tells = async |number: &Number, wanted: &BTreeSet<(String, String)>| {
        world
            .until("the metrics tell of it", async || {
                conditions(&page(admin).await, number) == *wanted
            })
            .await;
    };
    tells(&number, &ill).await;
    let looks = |page: &[Sample], number: &Number| {
        let looks = of(page, "aura_whatsapp_channel_last_look_timestamp_seconds");
        let own = looks.into_iter().filter(|look| look.label("name") == number.name);
        own.cloned().collect::<Vec<_>>()
    };
    assert!(
        looks(&page(admin).await, &number).is_empty(),
        "Kernel has not said what it holds"
    );

    world.kernel.clear_faults();
    world.wait_ready(&number).await;
    tells(&number, &pairs(WELL)).await;
    tells(&kept, &pairs(WELL)).await;
    let now = page(admin).await;
    for number in [&kept, &number] {
        let looks = looks(&now, number);
        assert_eq!(looks.len(), 1, "{looks:?}");
        assert_eq!(looks[0].label("namespace"), world.namespace);
        #[allow(clippy::cast_precision_loss, reason = "seconds since 1970")]
        let (began, ended) = (began as f64, Timestamp::now().as_second() as f64);
        assert!((began..=ended).contains(&looks[0].value), "{looks:?}");
    }

    let delete = DeleteParams::default();
    world.channels().delete(&number.name, &delete).await.unwrap();
    let mentions = |page: &[Sample]| {
        let mentions = |sample: &&Sample| sample.labels.values().any(|value| *value == number.name);
        page.iter().filter(mentions).count()
    };
    world
        .until("nothing is told of it any more", async || {
            mentions(&page(admin).await) == 0
        })
        .await;
    assert_eq!(
        conditions(&page(admin).await, &kept),
        pairs(WELL),
        "the other one is still told of"
    );
}

#[tokio::test]
async fn every_metric_has_the_labels_that_are_documented_and_no_others() {
    let world = World::start("labels").await;
    let number = world.ready_number("1002").await;
    world.converse(&number, "34600000001", "hola", 1).await;
    let documented = documented();
    assert!(documented.len() > 20, "{documented:?}");
    let mut seen = BTreeSet::new();
    for admin in [world.site.controller_admin, world.site.bridge_admin] {
        for sample in page(admin).await {
            let mut labels: BTreeSet<String> = sample.labels.keys().cloned().collect();
            // A histogram is three series by the format's own rules; the information on the program is no figure.
            let of_histogram = ["_bucket", "_count", "_sum"]
                .into_iter()
                .find_map(|ending| sample.name.strip_suffix(ending))
                .filter(|name| documented.contains_key(*name));
            if of_histogram.is_some() {
                labels.remove("le");
            }
            let name = of_histogram.unwrap_or(&sample.name);
            if name == "aura_whatsapp_build_info" {
                continue;
            }
            let expected = documented.get(name);
            assert_eq!(expected, Some(&labels), "{sample:?}");
            seen.insert(name.to_owned());
        }
    }
    // Those that tell of what has not happened here.
    let quiet = [
        "aura_whatsapp_messages_deduplicated_total",
        "aura_whatsapp_config_reloads_total",
        "aura_whatsapp_auth_failures_total",
        "aura_whatsapp_channel_dead_letters",
        "aura_whatsapp_channel_oldest_pending_age_seconds",
        "aura_whatsapp_channel_pending_messages",
        "aura_whatsapp_connections_closed_total",
        "aura_whatsapp_journal_refusals_total",
        "aura_whatsapp_reply_overtakes_total",
        "aura_whatsapp_statuses_total",
        "aura_whatsapp_tls_certificate_expiry_timestamp_seconds",
        "aura_whatsapp_tls_certificate_stale",
    ];
    let missing: Vec<_> = documented
        .keys()
        .filter(|name| !seen.contains(*name) && !quiet.contains(&name.as_str()))
        .collect();
    assert!(missing.is_empty(), "documented, and not told: {missing:?}");
}

#[tokio::test]
async fn what_is_told_of_an_environment_and_of_calls_to_it_has_its_names() {
    let registration = "    registration: {perSecond: 6, concurrent: 1}";
    let world = World::builder("environment-metrics")
        .environment_extra(registration)
        .without_bridge()
        .start()
        .await;
    let admin = world.site.controller_admin;
    let numbers: Vec<Number> = (0..8).map(|n| Number::new(&format!("{}", 1002 + n))).collect();
    world.add_all(&numbers).await;
    let waiting = async || {
        let page = page(admin).await;
        let waiting = of(&page, "aura_whatsapp_waiting_channels");
        assert_eq!(waiting.len(), 1, "{waiting:?}");
        assert_eq!(waiting[0].label("environment"), site::ENVIRONMENT);
        waiting[0].value
    };
    world
        .until("some wait for their turn", async || waiting().await > 0.0)
        .await;
    world
        .wait_all(numbers.len(), "Ready", |channel| ready(channel).0 == "True")
        .await;
    assert!(waiting().await < 1.0, "nobody waits any more");

    let operations = ["token", "webhook_get", "webhook_set"];
    let up = async || {
        let page = page(admin).await;
        let up = of(&page, "aura_whatsapp_environment_up");
        let of = up.iter().map(|sample| {
            assert_eq!(sample.label("environment"), site::ENVIRONMENT);
            (sample.label("operation").to_owned(), sample.value > 0.5)
        });
        of.collect::<BTreeMap<_, _>>()
    };
    let all_but = |down: &str| -> BTreeMap<String, bool> {
        let all = operations.iter().map(|one| ((*one).to_owned(), *one != down));
        all.collect()
    };
    assert_eq!(up().await, all_but("nothing"));
    world.kernel.inject(Fault::status(503).on(Endpoint::WebhookGet));
    for number in &numbers[..3] {
        world.look_now(number, "while-it-is-away").await;
    }
    world
        .until("only reading back is down", async || {
            up().await == all_but("webhook_get")
        })
        .await;
    world.kernel.clear_faults();
    world
        .until("all is up", async || up().await == all_but("nothing"))
        .await;

    let now = page(admin).await;
    let counted = |name: &str| -> BTreeMap<String, f64> {
        let counts = of(&now, name).into_iter();
        counts
            .map(|sample| (sample.label("operation").to_owned(), sample.value))
            .collect()
    };
    let calls = counted("aura_whatsapp_kernel_call_duration_seconds_count");
    assert_eq!(calls.keys().collect::<Vec<_>>(), operations);
    let expected = 8.0;
    assert!((calls["token"] - expected).abs() < 0.5, "{calls:?}");
    assert!((calls["webhook_set"] - expected).abs() < 0.5, "{calls:?}");
    assert!(calls["webhook_get"] > expected, "{calls:?}");
    let by_result = of(&now, "aura_whatsapp_kernel_calls_total");
    for (operation, count) in &calls {
        let results = by_result
            .iter()
            .filter(|sample| sample.label("operation") == operation);
        let sum: f64 = results.map(|sample| sample.value).sum();
        assert!(
            (sum - count).abs() < 0.5,
            "{operation}: {sum} results, {count} times"
        );
    }
    let passes = counted("aura_whatsapp_reconcile_duration_seconds_count");
    assert!(passes[""] >= expected, "{passes:?}");
}

#[tokio::test]
async fn times_and_ages_are_told_by_direction_and_channel_and_never_of_a_channel_that_there_is_not() {
    let world = World::start("times").await;
    let admin = world.site.bridge_admin;
    let number = world.ready_number("1002").await;
    let user = "34600000001";
    world.converse(&number, user, "uno", 1).await;
    world.wait_settled().await;
    let now = page(admin).await;
    let counts = |page: &[Sample], name: &str| -> BTreeMap<String, f64> {
        let counts = of(page, name).into_iter();
        counts
            .map(|sample| (sample.label("direction").to_owned(), sample.value))
            .collect()
    };
    let once = |direction: &str| (direction.to_owned(), 1.0);
    for name in ["delivery_attempt_duration_seconds", "end_to_end_duration_seconds"] {
        let counted = counts(&now, &format!("aura_whatsapp_{name}_count"));
        assert_eq!(counted, [once("to_aura"), once("to_user")].into(), "{name}");
        let sums = counts(&now, &format!("aura_whatsapp_{name}_sum"));
        assert!(
            sums.values().all(|sum| (0.0..60.0).contains(sum)),
            "{name}: {sums:?}"
        );
    }
    let value = |page: &[Sample], name: &str| of(page, name).iter().map(|sample| sample.value).sum::<f64>();
    assert!(value(&now, "aura_whatsapp_ack_duration_seconds_count") > 0.5);
    let replies = value(&now, "aura_whatsapp_reply_ack_duration_seconds_count");
    assert!((replies - 1.0).abs() < 0.1, "{replies}");
    assert!(value(&now, "aura_whatsapp_routes_age_seconds") < 0.5);

    // A message that waits grows old, and so does no channel that has none.
    let oldest = "aura_whatsapp_channel_oldest_pending_age_seconds";
    let other = world.ready_number("1004").await;
    world.aura.stop().await;
    world.kernel.user_sends(&number.digits, user, "dos").unwrap();
    world
        .until("it is told how old it is", async || {
            let page = page(admin).await;
            let ages = of(&page, oldest);
            assert!(ages.iter().all(|age| age.label("channel") == number.channel_id));
            ages.len() == 1 && ages[0].value >= 1.0
        })
        .await;
    world.aura.restart().await.unwrap();
    world.wait_received(user, 2).await;
    world.wait_settled().await;
    assert!(of(&page(admin).await, oldest).is_empty(), "nothing waits");

    // What is a dead letter from the start counts as one, once.
    let url = world.kernel.webhook_of(&other.client_id).unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let old = serde_json::json!({"messages": [{"from": user, "id": "wamid.old", "timestamp": "1700000000",
        "type": "text", "text": {"body": "old"}}]});
    let unknown = uuid::Uuid::new_v4().to_string();
    for _ in 0..2 {
        assert_eq!(http.post(&url).json(&old).send().await.unwrap().status(), 200);
        let wrong = url.replace(&other.channel_id, &unknown);
        assert_eq!(http.post(wrong).json(&old).send().await.unwrap().status(), 401);
    }
    let now = page(admin).await;
    let given_up: Vec<_> = of(&now, "aura_whatsapp_deliveries_total")
        .into_iter()
        .filter(|sample| sample.label("outcome") == "dead_letter")
        .map(|sample| {
            (
                sample.label("channel"),
                sample.label("direction"),
                sample.value.to_string(),
            )
        })
        .collect();
    assert_eq!(given_up, [(other.channel_id.as_str(), "to_aura", "1".to_owned())]);
    let known = [&number, &other].map(|number| number.channel_id.as_str());
    let named: BTreeSet<&str> = now
        .iter()
        .filter_map(|sample| sample.labels.get("channel"))
        .map(String::as_str)
        .collect();
    assert_eq!(named, known.into(), "no channel but those that there are");
}

#[tokio::test]
async fn each_commit_and_each_attempt_counts_also_one_that_has_to_be_made_again() {
    let world = World::start("attempts").await;
    let admin = world.site.bridge_admin;
    let number = world.ready_number("1002").await;
    let before = page(admin).await;
    world
        .kernel
        .inject(Fault::status(503).on(Endpoint::Send).times(1));
    world.converse(&number, "34600000001", "uno", 1).await;
    world.wait_settled().await;
    let after = page(admin).await;
    let total = |page: &[Sample], name: &str| -> f64 {
        let samples = of(page, &format!("aura_whatsapp_journal_{name}"));
        assert_eq!(samples.len(), 1, "{name}");
        samples[0].value
    };
    let more = |name: &str| total(&after, name) - total(&before, name);
    // The message is on disk before Aura has it, and so before there is a reply.
    let commits = more("sync_seconds_count");
    assert!(commits > 1.5, "{commits}");
    assert!((more("batch_records_count") - commits).abs() < 0.1);
    // Both, and how both ended.
    let records = more("batch_records_sum");
    assert!(records > 3.5 && records > commits - 0.1, "{records} in {commits}");

    let attempts: BTreeSet<_> = of(&after, "aura_whatsapp_delivery_attempts_total")
        .into_iter()
        .map(|sample| {
            assert_eq!(sample.label("channel"), number.channel_id);
            (
                sample.label("direction"),
                sample.label("outcome"),
                sample.value.to_string(),
            )
        })
        .collect();
    let once = |direction, outcome| (direction, outcome, "1".to_owned());
    let expected = [
        once("to_aura", "delivered"),
        once("to_user", "delivered"),
        once("to_user", "retry"),
    ];
    assert_eq!(attempts, expected.into());
}
