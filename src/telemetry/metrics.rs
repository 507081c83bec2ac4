//! What is measured. Labels are bounded: channels that exist, words from a fixed list, never an error's text.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::Registry as Inner,
};

use crate::{cluster::Watches, delivery::Stats, journal::Backlog, kernel::KernelError};

/// The metrics of one process, as a page.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

/// An HTTP status.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByCode {
    code: u16,
}

/// One channel.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByChannel {
    channel: String,
}

/// One channel, one way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByOutcome {
    channel: String,
    direction: &'static str,
    outcome: &'static str,
}

/// The words of both directions.
pub const DIRECTIONS: [&str; 2] = ["to_aura", "to_user"];
/// The words for how attempts, and messages, end.
pub const OUTCOMES: [&str; 7] = [
    "delivered",
    "retry",
    "unknown",
    "fatal",
    "blocked",
    "dropped",
    "dead_letter",
];

/// Why the journal did not take something.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByReason {
    reason: &'static str,
}

/// A listener, and how a wrong credential was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByFailure {
    listener: &'static str,
    answer: &'static str,
}

/// One way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByDirection {
    direction: &'static str,
}

/// A status of WhatsApp's by its class, and what was done with it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByStatus {
    status: &'static str,
    result: &'static str,
}

/// Of channels, or of environments.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfKind {
    kind: &'static str,
}

/// The bridge's metrics.
#[derive(Clone)]
pub struct BridgeMetrics {
    webhook_requests: Family<ByCode, Counter>,
    accepted: Family<ByChannel, Counter>,
    replies: Family<ByChannel, Counter>,
    deduplicated: Family<ByChannel, Counter>,
    statuses: Family<ByStatus, Counter>,
    attempts: Family<ByOutcome, Counter>,
    settled: Family<ByOutcome, Counter>,
    ack_seconds: Histogram,
    reply_ack_seconds: Histogram,
    attempt_seconds: Family<ByDirection, Histogram>,
    end_to_end_seconds: Family<ByDirection, Histogram>,
    not_kept: Family<ByReason, Counter>,
    auth_failures: Family<ByFailure, Counter>,
    certificate_expiry: Family<ByListener, Gauge>,
    certificate_stale: Family<ByListener, Gauge>,
    overtakes: Family<ByChannel, Counter>,
    held_conversations: Gauge,
    withheld: Gauge,
    journal_judged: Gauge,
    journal_rewound: Gauge,
    circuits_open: Family<OfKind, Gauge>,
    under_way: Gauge,
    /// Routable channels.
    pub routes: Gauge,
    /// How old the routes are, in seconds.
    pub routes_age: Gauge,
    /// Messages accepted and not yet delivered or given up.
    pub pending: Gauge,
    /// Bytes of the journal on disk.
    pub journal_bytes: Gauge,
    /// Bytes that it may take.
    pub journal_max_bytes: Gauge,
    /// Bytes of it that somebody needs.
    pub journal_live_bytes: Gauge,
    /// Ids that the journal remembers.
    pub journal_ids: Gauge,
    /// Dead letters that are kept.
    pub dead_letters: Gauge,
    /// Dead letters whose time was over.
    expired: Counter,
    /// How long the journal's commits take on disk.
    pub journal_sync_seconds: Histogram,
    /// How many records share a sync.
    pub journal_batch_records: Histogram,
    backlog: Family<ByChannel, Gauge>,
    oldest_age: Family<ByChannel, Gauge>,
    channel_dead_letters: Family<ByChannel, Gauge>,
    /// Whether the watches stand.
    pub watches: WatchMetrics,
    /// How the configuration's file is followed.
    pub config: ConfigMetrics,
    /// The listeners' connections.
    pub listeners: ListenersMetrics,
}

/// The controller's metrics.
#[derive(Clone)]
pub struct ControllerMetrics {
    reconciles: Family<ByResult, Counter>,
    kernel_calls: Family<ByOperation, Counter>,
    kernel_call_seconds: Family<OfOperation, Histogram>,
    /// Status writes.
    pub status_writes: Counter,
    /// Writes of a condition Delivering.
    pub delivering_writes: Counter,
    /// Writes of the record of the journal.
    pub journal_record_writes: Counter,
    /// Whether the bridge answers.
    pub bridge_up: Gauge,
    /// Deletions that left Kernel's webhook behind.
    pub cleanups_skipped: Counter,
    /// Events that were not published because too many waited.
    pub events_dropped: Counter,
    /// The time of each reconciliation, however it ended.
    pub reconcile_seconds: Histogram,
    environment_up: Family<BySide, Gauge>,
    waiting: Family<ByEnvironment, Gauge>,
    /// Channels that are due and wait for a place.
    pub queue_depth: Gauge,
    config: ConfigMetrics,
    /// Whether this process leads.
    pub leader: Gauge,
    last_event: Family<ByWatch, Gauge>,
    /// Whether the watches stand.
    pub watches: WatchMetrics,
    /// The listeners' connections.
    pub listeners: ListenersMetrics,
}

/// Whether the watches of the API server stand; both roles have these.
#[derive(Clone, Default)]
pub struct WatchMetrics {
    connected: Family<ByWatch, Gauge>,
}

impl WatchMetrics {
    fn register(&self, inner: &mut Inner) {
        inner.register(
            "watch_connected",
            "1: the API server tells of these objects; 0: what was known last is gone by",
            self.connected.clone(),
        );
    }

    /// Shows how the watches are now.
    pub fn show(&self, watches: &Watches) {
        for (watched, stands) in watches.each() {
            let labels = ByWatch {
                kind: kind(&watched.plural),
                namespace: watched.namespace,
            };
            self.connected.get_or_create(&labels).set(i64::from(stands));
        }
    }
}

/// The kind of what a path names.
fn kind(plural: &str) -> &'static str {
    match plural {
        "whatsappchannels" => "WhatsAppChannel",
        "secrets" => "Secret",
        _ => "other",
    }
}

/// The listeners' connections; both roles have these.
#[derive(Clone, Default)]
pub struct ListenersMetrics {
    open: Family<ByListener, Gauge>,
    closed: Family<ByEnd, Counter>,
}

/// The connections of one listener.
#[derive(Clone)]
pub struct ListenerMetrics {
    listener: &'static str,
    open: Gauge,
    closed: Family<ByEnd, Counter>,
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByListener {
    listener: &'static str,
}

/// A listener, and why it closed a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByEnd {
    listener: &'static str,
    reason: &'static str,
}

impl ListenersMetrics {
    fn register(&self, inner: &mut Inner) {
        inner.register("connections", "Open connections of a listener", self.open.clone());
        inner.register(
            "connections_closed",
            "Connections that a listener ended, and why",
            self.closed.clone(),
        );
    }

    /// Those of one listener.
    pub fn of(&self, listener: &'static str) -> ListenerMetrics {
        ListenerMetrics {
            listener,
            open: self.open.get_or_create(&ByListener { listener }).clone(),
            closed: self.closed.clone(),
        }
    }
}

impl ListenerMetrics {
    /// So many more are open.
    pub fn opened(&self, by: i64) {
        self.open.inc_by(by);
    }

    /// So many were ended for this reason.
    pub fn closed_by(&self, reason: &'static str, connections: usize) {
        let labels = ByEnd {
            listener: self.listener,
            reason,
        };
        self.closed.get_or_create(&labels).inc_by(connections as u64);
    }

    /// How many are open.
    #[cfg(test)]
    pub fn opened_now(&self) -> i64 {
        self.open.get()
    }

    /// How many were ended for this reason.
    #[cfg(test)]
    pub fn closed_so_far(&self, reason: &'static str) -> u64 {
        let listener = self.listener;
        self.closed.get_or_create(&ByEnd { listener, reason }).get()
    }
}

/// How the configuration's file is followed; both roles have these.
#[derive(Clone, Default)]
pub struct ConfigMetrics {
    reloads: Family<Outcome, Counter>,
    stale: Gauge,
}

/// An outcome.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    result: &'static str,
}

/// An operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfOperation {
    operation: &'static str,
}

/// A kind of object that is watched in a namespace; none named for the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByWatch {
    kind: &'static str,
    namespace: String,
}

/// An environment of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByEnvironment {
    environment: String,
}

/// One kind of call to an environment's Kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BySide {
    environment: String,
    operation: &'static str,
}

impl ConfigMetrics {
    fn register(&self, inner: &mut Inner) {
        inner.register(
            "config_reloads",
            "Changes of the configuration's file, by whether they were taken",
            self.reloads.clone(),
        );
        inner.register(
            "config_stale",
            "1: the configuration's file can't be used, and the last good one is in force",
            self.stale.clone(),
        );
    }

    /// A change of the file was taken, or was not.
    pub fn reloaded(&self, taken: bool) {
        let result = if taken { "taken" } else { "refused" };
        self.reloads.get_or_create(&Outcome { result }).inc();
        self.stale.set(i64::from(!taken));
    }
}

/// How a reconciliation ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByResult {
    reason: &'static str,
}

/// An outbound call.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByOperation {
    operation: &'static str,
    result: &'static str,
}

/// Bounds of answers to callers, in seconds. WhatsApp asks for a median of 250 ms and for less than a hundredth over 1 s.
const ACKS: [f64; 13] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
];
/// Bounds of attempts, in seconds: up to the longest timeout that is usual.
const ATTEMPTS: [f64; 13] = [
    0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 30.0,
];
/// Bounds from acceptance to arrival, in seconds: up to the age at which a message is given up by default.
const END_TO_END: [f64; 16] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0,
];

fn registry() -> Inner {
    let mut inner = Inner::with_prefix("aura_whatsapp");
    inner.register(
        "build",
        "The program",
        Info::new([("version", env!("CARGO_PKG_VERSION"))]),
    );
    inner
}

impl Registry {
    /// The page that Prometheus reads.
    pub fn page(&self) -> String {
        let mut page = String::new();
        // Writing into a string does not fail.
        let _ = encode(&mut page, &self.0);
        page
    }
}

impl BridgeMetrics {
    /// The metrics and the registry that shows them.
    pub fn new() -> (Self, Registry) {
        let metrics = Self {
            webhook_requests: Family::default(),
            accepted: Family::default(),
            replies: Family::default(),
            deduplicated: Family::default(),
            statuses: Family::default(),
            attempts: Family::default(),
            settled: Family::default(),
            ack_seconds: Histogram::new(ACKS),
            reply_ack_seconds: Histogram::new(ACKS),
            attempt_seconds: Family::new_with_constructor(|| Histogram::new(ATTEMPTS)),
            end_to_end_seconds: Family::new_with_constructor(|| Histogram::new(END_TO_END)),
            not_kept: Family::default(),
            auth_failures: Family::default(),
            certificate_expiry: Family::default(),
            certificate_stale: Family::default(),
            overtakes: Family::default(),
            held_conversations: Gauge::default(),
            withheld: Gauge::default(),
            journal_judged: Gauge::default(),
            journal_rewound: Gauge::default(),
            circuits_open: Family::default(),
            under_way: Gauge::default(),
            routes: Gauge::default(),
            routes_age: Gauge::default(),
            pending: Gauge::default(),
            journal_bytes: Gauge::default(),
            journal_max_bytes: Gauge::default(),
            journal_live_bytes: Gauge::default(),
            journal_ids: Gauge::default(),
            dead_letters: Gauge::default(),
            expired: Counter::default(),
            journal_sync_seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 16)),
            journal_batch_records: Histogram::new(exponential_buckets(1.0, 2.0, 12)),
            backlog: Family::default(),
            oldest_age: Family::default(),
            channel_dead_letters: Family::default(),
            watches: WatchMetrics::default(),
            listeners: ListenersMetrics::default(),
            config: ConfigMetrics::default(),
        };
        let mut inner = registry();
        let m = metrics.clone();
        inner.register("webhook_requests", "Webhook calls by answer", m.webhook_requests);
        inner.register(
            "messages_accepted",
            "Messages from users, made durable",
            m.accepted,
        );
        inner.register("replies_accepted", "Replies from Aura, made durable", m.replies);
        inner.register(
            "messages_deduplicated",
            "Messages and replies that came again",
            m.deduplicated,
        );
        inner.register(
            "statuses",
            "WhatsApp's statuses of sent messages, and what was done with them",
            m.statuses,
        );
        inner.register("delivery_attempts", "Attempts to deliver, by outcome", m.attempts);
        inner.register("deliveries", "Messages delivered or given up", m.settled);
        inner.register(
            "ack_duration_seconds",
            "From a webhook call's arrival to its answer",
            m.ack_seconds,
        );
        inner.register(
            "reply_ack_duration_seconds",
            "From the arrival of a reply of Aura's to its answer",
            m.reply_ack_seconds,
        );
        inner.register(
            "delivery_attempt_duration_seconds",
            "Time of one attempt to deliver that counted",
            m.attempt_seconds,
        );
        inner.register(
            "end_to_end_duration_seconds",
            "From a message's acceptance to when the other side took it",
            m.end_to_end_seconds,
        );
        inner.register(
            "journal_refusals",
            "Calls that were answered 503 because their messages were not made durable",
            m.not_kept,
        );
        inner.register(
            "auth_failures",
            "Calls with a wrong credential, and whether their address had made too many",
            m.auth_failures,
        );
        inner.register(
            "tls_certificate_expiry_timestamp_seconds",
            "When the certificate in force expires, in seconds since 1970",
            m.certificate_expiry,
        );
        inner.register(
            "tls_certificate_stale",
            "1: the certificate's files can't be used, and the last good pair is in force",
            m.certificate_stale,
        );
        inner.register(
            "reply_overtakes",
            "Replies that left before an earlier message was answered, because unansweredAfter had passed",
            m.overtakes,
        );
        inner.register(
            "held_conversations",
            "Directions of conversations that are held for a person",
            m.held_conversations,
        );
        inner.register(
            "withheld_messages",
            "Messages of before this start that are not delivered until the journal is judged, or a person decides",
            m.withheld,
        );
        inner.register(
            "journal_judged",
            "1: the journal was compared with the cluster's record of it; 0: the record can't be read",
            m.journal_judged,
        );
        inner.register(
            "journal_rewound",
            "1: at this start the journal was found to be restored or copied",
            m.journal_rewound,
        );
        inner.register(
            "delivery_circuits_open",
            "Directions of channels, and of environments, of which one message at a time is tried",
            m.circuits_open,
        );
        inner.register("deliveries_under_way", "Deliveries under way", m.under_way);
        inner.register("routes", "Channels that are routed", m.routes);
        inner.register(
            "routes_age_seconds",
            "How long ago the routes were last known to be what the API server says; 0: they are",
            m.routes_age,
        );
        inner.register(
            "pending_messages",
            "Accepted and not yet delivered or given up",
            m.pending,
        );
        inner.register("journal_bytes", "Size of the journal on disk", m.journal_bytes);
        inner.register(
            "journal_max_bytes",
            "What the journal may take on disk before new messages are refused",
            m.journal_max_bytes,
        );
        inner.register(
            "journal_live_bytes",
            "What of the journal somebody needs",
            m.journal_live_bytes,
        );
        inner.register("journal_remembered_ids", "Ids that are remembered", m.journal_ids);
        inner.register("dead_letters", "Dead letters that are kept", m.dead_letters);
        inner.register(
            "dead_letters_expired",
            "Dead letters that were dropped because nobody had looked at them in their time",
            m.expired,
        );
        inner.register(
            "journal_sync_seconds",
            "How long the journal's commits take on disk: write and sync",
            m.journal_sync_seconds,
        );
        inner.register(
            "journal_batch_records",
            "How many records share a sync",
            m.journal_batch_records,
        );
        inner.register(
            "channel_pending_messages",
            "Messages that are not settled, of each channel that has some",
            m.backlog,
        );
        inner.register(
            "channel_oldest_pending_age_seconds",
            "How long ago the oldest message that is not settled was accepted, of each channel that has some",
            m.oldest_age,
        );
        inner.register(
            "channel_dead_letters",
            "Dead letters, of each channel that has some",
            m.channel_dead_letters,
        );
        m.watches.register(&mut inner);
        m.listeners.register(&mut inner);
        m.config.register(&mut inner);
        (metrics, Registry(Arc::new(inner)))
    }

    /// A webhook call was answered.
    pub fn webhook_answered(&self, code: u16, seconds: f64) {
        self.webhook_requests.get_or_create(&ByCode { code }).inc();
        self.ack_seconds.observe(seconds);
    }

    /// A reply of Aura's was answered.
    pub fn reply_answered(&self, seconds: f64) {
        self.reply_ack_seconds.observe(seconds);
    }

    /// The certificate in force of a listener, and whether its files can be used.
    pub fn certificate(&self, listener: &'static str, expires: i64, stale: bool) {
        let labels = ByListener { listener };
        self.certificate_expiry.get_or_create(&labels).set(expires);
        self.certificate_stale
            .get_or_create(&labels)
            .set(i64::from(stale));
    }

    /// What a call sent did not become durable.
    pub fn not_kept(&self, reason: &'static str) {
        self.not_kept.get_or_create(&ByReason { reason }).inc();
    }

    /// A call came with a wrong credential; `limited` when its address had made too many.
    pub fn auth_failed(&self, listener: &'static str, limited: bool) {
        let answer = if limited { "limited" } else { "refused" };
        self.auth_failures
            .get_or_create(&ByFailure { listener, answer })
            .inc();
    }

    /// Messages of a routed channel were taken: `new` of them for the first time.
    pub fn accepted(&self, channel: &str, new: u64, again: u64) {
        Self::add(&self.accepted, channel, new);
        Self::add(&self.deduplicated, channel, again);
    }

    /// Something was done with a status of this class.
    pub fn status(&self, status: &'static str, result: &'static str) {
        self.statuses.get_or_create(&ByStatus { status, result }).inc();
    }

    /// A reply for a routed channel was taken.
    pub fn replied(&self, channel: &str, new: u64, again: u64) {
        Self::add(&self.replies, channel, new);
        Self::add(&self.deduplicated, channel, again);
    }

    fn add(family: &Family<ByChannel, Counter>, channel: &str, by: u64) {
        if by > 0 {
            family
                .get_or_create(&ByChannel {
                    channel: channel.to_owned(),
                })
                .inc_by(by);
        }
    }

    /// A channel is gone: so are its series, or there would be more with each that ever was.
    pub fn forget(&self, channel: &str) {
        let label = ByChannel {
            channel: channel.to_owned(),
        };
        for family in [&self.accepted, &self.replies, &self.deduplicated, &self.overtakes] {
            family.remove(&label);
        }
        for direction in DIRECTIONS {
            for outcome in OUTCOMES {
                let label = ByOutcome {
                    channel: channel.to_owned(),
                    direction,
                    outcome,
                };
                self.attempts.remove(&label);
                self.settled.remove(&label);
            }
        }
    }

    /// What each channel has in the journal. A channel that has nothing has no series. `now_s` is the time, in seconds
    /// since 1970.
    pub fn backlogs(&self, backlogs: &[Backlog], now_s: u64) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.backlog.clear();
        self.oldest_age.clear();
        self.channel_dead_letters.clear();
        // A channel that was moved to another environment may have something in both.
        for one in backlogs {
            let channel = uuid::Uuid::from_bytes(one.channel).to_string();
            let label = ByChannel { channel };
            self.backlog.get_or_create(&label).inc_by(gauge(one.pending));
            if let Some(oldest) = one.oldest_accepted_s {
                let age = gauge(now_s.saturating_sub(oldest));
                let shown = self.oldest_age.get_or_create(&label);
                shown.set(shown.get().max(age));
            }
            if one.dead_letters > 0 {
                let kept = self.channel_dead_letters.get_or_create(&label);
                kept.inc_by(gauge(one.dead_letters));
            }
        }
    }

    /// So many dead letters have been dropped at the end of their time so far.
    pub fn expired(&self, so_far: u64) {
        self.expired.inc_by(so_far.saturating_sub(self.expired.get()));
    }

    /// A reply of a channel left before an earlier message was answered.
    pub fn overtook(&self, channel: String) {
        self.overtakes.get_or_create(&ByChannel { channel }).inc();
    }

    /// How the lanes are.
    pub fn lanes_show(&self, stats: Stats) {
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.held_conversations.set(gauge(stats.parked));
        self.under_way.set(gauge(stats.under_way));
        self.withheld.set(gauge(stats.withheld));
        for (kind, open) in [
            ("channel", stats.open_channels),
            ("environment", stats.open_environments),
        ] {
            self.circuits_open
                .get_or_create(&OfKind { kind })
                .set(gauge(open));
        }
    }

    /// The journal was compared with the cluster's record of it.
    pub fn journal_is_judged(&self, is_rewound: bool) {
        self.journal_judged.set(1);
        self.journal_rewound.set(i64::from(is_rewound));
    }

    /// An attempt of a routed channel ended.
    pub fn attempted(&self, channel: String, direction: &'static str, outcome: &'static str) {
        self.attempts
            .get_or_create(&ByOutcome {
                channel,
                direction,
                outcome,
            })
            .inc();
    }

    /// An attempt that counted took so long.
    pub fn attempt_took(&self, direction: &'static str, took: Duration) {
        let labels = ByDirection { direction };
        self.attempt_seconds
            .get_or_create(&labels)
            .observe(took.as_secs_f64());
    }

    /// The other side took a message so long after it was accepted.
    pub fn arrived_after(&self, direction: &'static str, since: Duration) {
        let labels = ByDirection { direction };
        self.end_to_end_seconds
            .get_or_create(&labels)
            .observe(since.as_secs_f64());
    }

    /// A message was delivered or given up.
    pub fn settled(&self, channel: String, direction: &'static str, outcome: &'static str) {
        self.settled
            .get_or_create(&ByOutcome {
                channel,
                direction,
                outcome,
            })
            .inc();
    }
}

impl ControllerMetrics {
    /// The metrics and the registry that shows them; `channels` adds what is told of each channel.
    pub fn new(channels: Box<dyn prometheus_client::collector::Collector>) -> (Self, Registry) {
        let metrics = Self {
            reconciles: Family::default(),
            kernel_calls: Family::default(),
            kernel_call_seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.005, 2.0, 13))
            }),
            status_writes: Counter::default(),
            delivering_writes: Counter::default(),
            journal_record_writes: Counter::default(),
            bridge_up: Gauge::default(),
            cleanups_skipped: Counter::default(),
            events_dropped: Counter::default(),
            reconcile_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            environment_up: Family::default(),
            waiting: Family::default(),
            queue_depth: Gauge::default(),
            config: ConfigMetrics::default(),
            leader: Gauge::default(),
            last_event: Family::default(),
            watches: WatchMetrics::default(),
            listeners: ListenersMetrics::default(),
        };
        let mut inner = registry();
        let m = metrics.clone();
        inner.register(
            "reconciles",
            "Reconciliations by the reason they ended with",
            m.reconciles,
        );
        inner.register(
            "kernel_calls",
            "Calls to Kernel by operation and result",
            m.kernel_calls,
        );
        inner.register(
            "kernel_call_duration_seconds",
            "Time of one call to Kernel",
            m.kernel_call_seconds,
        );
        inner.register("status_writes", "Writes of a channel's status", m.status_writes);
        inner.register(
            "delivering_writes",
            "Writes of a channel's condition Delivering",
            m.delivering_writes,
        );
        inner.register(
            "journal_record_writes",
            "Writes of the record of the bridge's journal",
            m.journal_record_writes,
        );
        inner.register(
            "bridge_up",
            "1: the bridge answers this leader; 0: it does not, or nobody asks",
            m.bridge_up,
        );
        inner.register(
            "cleanups_skipped",
            "Deletions that left Kernel's webhook behind",
            m.cleanups_skipped,
        );
        inner.register(
            "events_dropped",
            "Events that were not published because too many waited",
            m.events_dropped.clone(),
        );
        inner.register(
            "reconcile_duration_seconds",
            "Time of one reconciliation",
            m.reconcile_seconds.clone(),
        );
        inner.register(
            "environment_up",
            "1: such calls to the environment's Kernel get through; 0: one channel at a time tries",
            m.environment_up,
        );
        inner.register(
            "waiting_channels",
            "Channels that wait for their turn to call Kernel",
            m.waiting,
        );
        inner.register(
            "work_queue_depth",
            "Channels whose reconciliation is due and has not begun",
            m.queue_depth.clone(),
        );
        m.config.register(&mut inner);
        inner.register("leader", "1: this process leads; 0: it stands by", m.leader);
        inner.register(
            "watch_last_event_timestamp_seconds",
            "When the API server last told of an object of this kind, in seconds since 1970",
            m.last_event,
        );
        m.watches.register(&mut inner);
        m.listeners.register(&mut inner);
        inner.register_collector(channels);
        (metrics, Registry(Arc::new(inner)))
    }

    /// How the configuration's file is followed.
    pub fn config(&self) -> &ConfigMetrics {
        &self.config
    }

    /// Whether a kind of call to an environment's Kernel gets through.
    pub fn environment_is_up(&self, environment: &str, operation: &'static str, up: bool) {
        let labels = BySide {
            environment: environment.to_owned(),
            operation,
        };
        self.environment_up.get_or_create(&labels).set(i64::from(up));
    }

    /// How many channels of an environment wait for their turn.
    pub fn waiting(&self, environment: &str, channels: usize) {
        let labels = ByEnvironment {
            environment: environment.to_owned(),
        };
        self.waiting
            .get_or_create(&labels)
            .set(i64::try_from(channels).unwrap_or(i64::MAX));
    }

    /// Forgets what was said of environments: those that are left are told of anew.
    pub fn clear_environments(&self) {
        self.environment_up.clear();
        self.waiting.clear();
    }

    /// The API server told of an object of this kind; `None` where the whole cluster is watched.
    pub fn heard_of(&self, kind: &'static str, namespace: Option<&str>) {
        let labels = ByWatch {
            kind,
            namespace: namespace.unwrap_or_default().to_owned(),
        };
        let now = jiff::Timestamp::now().as_second();
        self.last_event.get_or_create(&labels).set(now);
    }

    /// A reconciliation ended.
    pub fn reconciled(&self, reason: &'static str) {
        self.reconciles.get_or_create(&ByResult { reason }).inc();
    }

    /// A call to Kernel ended.
    pub fn called(&self, operation: &'static str, ended: Result<u16, &KernelError>, took: Duration) {
        let result = match ended {
            Ok(200..=299) => "ok",
            Ok(401) => "unauthorized",
            Ok(403) => "permission_denied",
            Ok(429) => "rate_limited",
            Ok(_) => "refused",
            Err(error) => error.class(),
        };
        self.kernel_calls
            .get_or_create(&ByOperation { operation, result })
            .inc();
        self.kernel_call_seconds
            .get_or_create(&OfOperation { operation })
            .observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_channel_that_is_gone_no_series_is_left() {
        let (metrics, registry) = BridgeMetrics::new();
        for channel in ["gone", "stays"] {
            metrics.accepted(channel, 1, 1);
            metrics.replied(channel, 1, 1);
            metrics.overtook(channel.to_owned());
            for direction in DIRECTIONS {
                for outcome in OUTCOMES {
                    metrics.attempted(channel.to_owned(), direction, outcome);
                    metrics.settled(channel.to_owned(), direction, outcome);
                }
            }
        }
        let of = |channel: &str| registry.page().matches(&format!("channel=\"{channel}\"")).count();
        assert_eq!(of("gone"), of("stays"));
        metrics.forget("gone");
        assert_eq!((of("gone"), of("stays")), (0, 32));
    }
}
