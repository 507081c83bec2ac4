//! What a configuration that parses must keep beyond its shape. Pure.

use std::time::Duration;

use ipnet::IpNet;
use url::Url;

use super::{CredentialSource, Environment, Installation, Mtls};
use crate::api::{ChannelDefaults, Period};

/// How many calls at once there may be for each call a second.
const CONCURRENT: u32 = 20;
/// The longest time that a call to Kernel may be given.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Every problem, each with the path of its field and what to write.
pub(super) fn problems(installation: &Installation) -> Vec<String> {
    let mut problems = Vec::new();
    if installation.environments.is_empty() {
        problems.push("environments: name at least one".to_owned());
    }
    for (name, environment) in &installation.environments {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let whole = !name.starts_with('-') && !name.ends_with('-') && !name.is_empty() && name.len() <= 63;
        if !whole || !name.chars().all(plain) {
            problems.push(format!(
                "environments.{name}: a name is lower case letters, digits and '-', up to 63"
            ));
        }
        environment_problems(&format!("environments.{name}"), environment, &mut problems);
    }
    let bridge = &installation.bridge;
    for (field, value) in [
        ("headerTimeout", &bridge.header_timeout),
        ("idleTimeout", &bridge.idle_timeout),
        ("writeTimeout", &bridge.write_timeout),
        ("bodyTimeout", &bridge.body_timeout),
        ("commitTimeout", &bridge.commit_timeout),
        ("deadLetterRetention", &bridge.dead_letter_retention),
        ("retryFirst", &bridge.retry_first),
        ("retryLongest", &bridge.retry_longest),
    ] {
        positive(&format!("bridge.{field}"), value, &mut problems);
    }
    for (field, value) in [
        ("maxBodyBytes", bridge.max_body_bytes),
        ("maxConnections", bridge.max_connections),
        ("connectionsPerAddress", bridge.connections_per_address),
        ("requestsPerConnection", bridge.requests_per_connection as usize),
        ("authFailuresPerMinute", bridge.auth_failures_per_minute as usize),
        ("channelConcurrency", bridge.channel_concurrency),
        ("deliveryConcurrency", bridge.delivery_concurrency),
        ("deliveryAttempts", bridge.delivery_attempts as usize),
    ] {
        if value == 0 {
            problems.push(format!("bridge.{field}: must be at least 1"));
        }
    }
    for network in bridge.trusted_proxies.iter().flatten() {
        // With bits beyond the prefix it is an address that somebody took for a network.
        let is_one = network
            .parse::<IpNet>()
            .is_ok_and(|network| network.trunc() == network);
        if !is_one {
            problems.push(format!(
                "bridge.trustedProxies: {network:?} is no network: write 10.0.0.0/8, or 10.0.0.1/32 for one address"
            ));
        }
    }
    tls_problems(installation, &mut problems);
    if bridge.max_body_bytes > MAX_BODY {
        problems.push(format!("bridge.maxBodyBytes: must be at most {MAX_BODY}"));
    }
    if bridge.journal_max_bytes < MIN_JOURNAL {
        problems.push(format!("bridge.journalMaxBytes: must be at least {MIN_JOURNAL}"));
    }
    for (field, share) in [
        ("journalChannelShare", bridge.journal_channel_share),
        ("journalEnvironmentShare", bridge.journal_environment_share),
    ] {
        if !(1..=100).contains(&share) {
            problems.push(format!(
                "bridge.{field}: is a part of journalMaxBytes in percent: 1 to 100"
            ));
        }
    }
    problems
}

/// The journal takes no larger body, in bytes.
const MAX_BODY: usize = 5 << 20;
/// Less would not hold the largest call and what is made of it, in bytes.
const MIN_JOURNAL: u64 = 64 << 20;

fn environment_problems(path: &str, environment: &Environment, problems: &mut Vec<String>) {
    if environment.namespaces.is_empty() {
        problems.push(format!(
            "{path}.namespaces: name the namespaces that may use this environment"
        ));
    }
    let urls = [
        ("kernel.apiUrl", &environment.kernel.api_url),
        ("kernel.authUrl", &environment.kernel.auth_url),
        ("aura.messagesUrl", &environment.aura.messages_url),
    ];
    let public = std::iter::once(&environment.public_url).chain(&environment.former_public_urls);
    for (field, url) in public.map(|url| ("publicUrl", url)) {
        scheme(&format!("{path}.{field}"), url, environment.insecure, problems);
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            problems.push(format!(
                "{path}.{field}: write scheme and host only; the path is added"
            ));
        }
    }
    for (field, url) in urls {
        scheme(&format!("{path}.{field}"), url, environment.insecure, problems);
    }
    if !matches!(environment.aura.reply_url.scheme(), "http" | "https") {
        problems.push(format!("{path}.aura.replyUrl: must be an http or https URL"));
    }
    for (field, auth) in [
        ("outboundAuth", &environment.aura.outbound_auth),
        ("inboundAuth", &environment.aura.inbound_auth),
    ] {
        let path = format!("{path}.aura.{field}");
        credential(&path, auth, environment.insecure, problems);
        if let Some(mtls) = &auth.mtls {
            certificate(&format!("{path}.mtls"), field == "inboundAuth", mtls, problems);
        }
    }
    if environment.aura.outbound_auth.mtls.is_some() && environment.aura.messages_url.scheme() != "https" {
        problems.push(format!(
            "{path}.aura.outboundAuth.mtls: messagesUrl must be an https URL, or no certificate is shown to anybody"
        ));
    }
    positive(
        &format!("{path}.kernel.timeout"),
        &environment.kernel.timeout,
        problems,
    );
    positive(
        &format!("{path}.aura.timeout"),
        &environment.aura.timeout,
        problems,
    );
    if environment.registration.per_second == 0 || environment.registration.concurrent == 0 {
        problems.push(format!(
            "{path}.registration: perSecond and concurrent must be at least 1"
        ));
    } else if environment.registration.concurrent
        > environment.registration.per_second.saturating_mul(CONCURRENT)
    {
        // Whoever has begun would wait for its next turn for minutes, and hold its place.
        problems.push(format!(
            "{path}.registration: concurrent is at most {CONCURRENT} times perSecond"
        ));
    }
    if environment.kernel.timeout() > LONGEST_TIMEOUT {
        problems.push(format!("{path}.kernel.timeout: is at most 1m"));
    }
    if let Some(hold) = &environment.hold
        && hold.until.parse::<jiff::Timestamp>().is_err()
    {
        problems.push(format!(
            "{path}.hold.until: must be a time such as 2026-12-01T06:00:00Z"
        ));
    }
    defaults_problems(
        &format!("{path}.channelDefaults"),
        &environment.channel_defaults,
        problems,
    );
    if let Some(legacy) = &environment.legacy_callback {
        match (legacy.url.contains("{apikey}"), &legacy.api_key_secret_ref) {
            (true, None) => problems.push(format!(
                "{path}.legacyCallback.apiKeySecretRef: the url has an {{apikey}}: name the Secret that holds it, or the \
                 system before would be called without one"
            )),
            (false, Some(_)) => problems.push(format!(
                "{path}.legacyCallback.apiKeySecretRef: the url has no {{apikey}} that it could fill in"
            )),
            _ => {}
        }
        let filled = legacy.url.replace("{apikey}", "x").replace("{channelId}", "x");
        match Url::parse(&filled) {
            Ok(url) => scheme(
                &format!("{path}.legacyCallback.url"),
                &url,
                environment.insecure,
                problems,
            ),
            Err(_) => problems.push(format!("{path}.legacyCallback.url: must be a URL")),
        }
    }
    if environment.channel_defaults.webhook.api_key_secret_ref.is_some() {
        problems.push(format!(
            "{path}.channelDefaults.webhook.apiKeySecretRef: a key belongs to one channel; set it there"
        ));
    }
}

/// The bounds that the API server holds a channel to hold for its defaults too.
fn defaults_problems(path: &str, defaults: &ChannelDefaults, problems: &mut Vec<String>) {
    let delivery = &defaults.delivery;
    let age = delivery.max_age.as_ref();
    let (minute, week) = (Duration::from_secs(60), Duration::from_secs(168 * 3600));
    for (field, period, bounds) in [
        ("resyncPeriod", defaults.resync_period.as_ref(), (minute, week)),
        (
            "delivery.maxAge.toAura",
            age.and_then(|age| age.to_aura.as_ref()),
            (minute, week),
        ),
        (
            "delivery.maxAge.toUser",
            age.and_then(|age| age.to_user.as_ref()),
            (minute, week),
        ),
        (
            "delivery.unansweredAfter",
            delivery.unanswered_after.as_ref(),
            (minute / 60, 5 * minute),
        ),
    ] {
        let Some(period) = period else { continue };
        if !period.parse().is_ok_and(|is| (bounds.0..=bounds.1).contains(&is)) {
            problems.push(format!(
                "{path}.{field}: must be a duration from {:?} to {:?}",
                bounds.0, bounds.1
            ));
        }
    }
    for (field, number, most) in [
        (
            "webhook.keyGeneration",
            defaults.webhook.key_generation,
            1_000_000,
        ),
        ("delivery.messagesPerSecond", delivery.messages_per_second, 1000),
    ] {
        if number.is_some_and(|number| !(1..=most).contains(&number)) {
            problems.push(format!("{path}.{field}: must be from 1 to {most}"));
        }
    }
}

fn scheme(path: &str, url: &Url, insecure: bool, problems: &mut Vec<String>) {
    let fine = url.scheme() == "https" || (insecure && url.scheme() == "http");
    if !fine || !url.has_host() {
        problems.push(format!(
            "{path}: must be an https URL (http only with insecure: true, for development)"
        ));
    }
    if !url.username().is_empty() || url.password().is_some() {
        problems.push(format!("{path}: must not hold a user name or password"));
    }
}

fn credential(path: &str, source: &CredentialSource, insecure: bool, problems: &mut Vec<String>) {
    match source.named() {
        1 if source.none && !insecure => {
            problems.push(format!(
                "{path}: none is for development, with insecure: true; name a file"
            ));
        }
        1 => {}
        _ => problems.push(format!(
            "{path}: name exactly one of apiKeyFile, bearerFile and mtls"
        )),
    }
}

/// A certificate as a credential: by name where it is the other side's, by its files where it is ours.
fn certificate(path: &str, inbound: bool, mtls: &Mtls, problems: &mut Vec<String>) {
    let files = [&mtls.cert_file, &mtls.key_file, &mtls.ca_file];
    if inbound {
        if mtls.name.as_ref().is_none_or(|name| name.trim().is_empty()) {
            problems.push(format!(
                "{path}.name: name the DNS name or URI in Aura's certificate: anybody's that the CA signed would do else"
            ));
        }
        if files.iter().any(|file| file.is_some()) {
            problems.push(format!(
                "{path}: the CA of Aura's certificate is bridge.tls.internal.clientCaFile; only a name belongs here"
            ));
        }
    } else {
        if mtls.cert_file.is_none() || mtls.key_file.is_none() {
            problems.push(format!(
                "{path}: name certFile and keyFile, the bridge's own certificate and key"
            ));
        }
        if mtls.name.is_some() {
            problems.push(format!(
                "{path}.name: Aura's certificate is held against the host of messagesUrl; leave it out"
            ));
        }
    }
}

/// The listeners' certificates, and what they are needed for.
fn tls_problems(installation: &Installation, problems: &mut Vec<String>) {
    let tls = &installation.bridge.tls;
    if tls
        .public
        .as_ref()
        .is_some_and(|files| files.client_ca_file.is_some())
    {
        problems.push(
            "bridge.tls.public.clientCaFile: Kernel shows no certificate; it belongs to bridge.tls.internal"
                .to_owned(),
        );
    }
    let asks = tls
        .internal
        .as_ref()
        .is_some_and(|files| files.client_ca_file.is_some());
    for (name, environment) in &installation.environments {
        if environment.aura.inbound_auth.mtls.is_some() && !asks {
            problems.push(format!(
                "environments.{name}.aura.inboundAuth.mtls: set bridge.tls.internal with a clientCaFile: nobody is asked \
                 for a certificate else"
            ));
        }
        let scheme = environment.aura.reply_url.scheme();
        if tls.internal.is_some() && scheme == "http" {
            problems.push(format!(
                "environments.{name}.aura.replyUrl: must be an https URL where bridge.tls.internal is set"
            ));
        }
    }
}

fn positive(path: &str, period: &Period, problems: &mut Vec<String>) {
    match period.parse() {
        Ok(duration) if duration.is_zero() => problems.push(format!("{path}: must be more than nothing")),
        Ok(_) => {}
        Err(error) => problems.push(format!("{path}: {error}")),
    }
}
