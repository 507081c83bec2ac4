//! What the API server was asked to do, as it counts itself: so that a test can say "nothing was written" of all of its
//! clients, and need not believe their own counters.

use std::collections::BTreeMap;

use hyper::Request;
use kube::Client;

/// The verbs that change something, as `apiserver_request_total` names them.
const WRITES: [&str; 6] = ["POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"];

/// A kind of request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// The resource's plural: `whatsappchannels`.
    pub resource: String,
    /// `status`, …; empty for the resource itself.
    pub subresource: String,
    /// `GET`, `LIST`, `WATCH`, `POST`, `PUT`, `PATCH`, `APPLY`, `DELETE`, …
    pub verb: String,
}

/// How many requests of each kind the API server has answered, whatever it answered. Its own are among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests(BTreeMap<Kind, u64>);

impl Requests {
    /// Asks the API server, as an administrator.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn read(client: &Client) -> kube::Result<Self> {
        Ok(Self::parse(&page(client).await?))
    }

    fn parse(page: &str) -> Self {
        let mut counts = BTreeMap::new();
        for (labels, value) in samples(page, "apiserver_request_total") {
            let of = |name: &str| label(labels, name).unwrap_or_default().to_owned();
            let kind = Kind {
                resource: of("resource"),
                subresource: of("subresource"),
                verb: of("verb"),
            };
            *counts.entry(kind).or_default() += value;
        }
        Self(counts)
    }

    /// What has come since an earlier reading.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let new = |(kind, count): (&Kind, &u64)| {
            let new = count - before.0.get(kind).copied().unwrap_or_default().min(*count);
            (new > 0).then(|| (kind.clone(), new))
        };
        Self(self.0.iter().filter_map(new).collect())
    }

    /// The requests that would change something, by kind.
    pub fn writes(&self) -> impl Iterator<Item = (&Kind, u64)> {
        self.0
            .iter()
            .filter(|(kind, _)| WRITES.contains(&kind.verb.as_str()))
            .map(|(kind, count)| (kind, *count))
    }

    /// How many of them were for a resource's part: `("whatsappchannels", "status")`, `("secrets", "")`.
    pub fn writes_to(&self, resource: &str, subresource: &str) -> u64 {
        self.writes()
            .filter(|(kind, _)| kind.resource == resource && kind.subresource == subresource)
            .map(|(_, count)| count)
            .sum()
    }

    /// How many requests of this verb there were for a resource.
    pub fn of(&self, resource: &str, verb: &str) -> u64 {
        self.0
            .iter()
            .filter(|(kind, _)| kind.resource == resource && kind.verb == verb)
            .map(|(_, count)| count)
            .sum()
    }
}

/// How many events of a resource's watches the API server has sent, to all who watch (itself among them).
///
/// # Errors
/// When it does not answer.
pub async fn watch_events(client: &Client, resource: &str) -> kube::Result<u64> {
    let page = page(client).await?;
    Ok(samples(&page, "apiserver_watch_events_total")
        .filter(|(labels, _)| label(labels, "resource") == Some(resource))
        .map(|(_, value)| value)
        .sum())
}

async fn page(client: &Client) -> kube::Result<String> {
    let request = Request::get("/metrics")
        .body(Vec::new())
        .map_err(kube::Error::HttpError)?;
    client.request_text(request).await
}

/// The labels and values of a metric's samples.
fn samples<'a>(page: &'a str, metric: &'a str) -> impl Iterator<Item = (&'a str, u64)> {
    page.lines().filter_map(move |line| {
        let labelled = line.strip_prefix(metric)?.strip_prefix('{')?;
        let (labels, value) = labelled.rsplit_once("} ")?;
        Some((labels, count(value)?))
    })
}

/// A counter's value: whole, but large ones are written as `1.2345e+06`.
fn count(text: &str) -> Option<u64> {
    let value: f64 = text.trim().parse().ok()?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count of requests is neither negative nor beyond 2^53"
    )]
    (value.is_finite() && value >= 0.0).then_some(value as u64)
}

/// A label's value. None that is asked for here holds a quote or a comma.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels
        .split(',')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix("=\""))?
        .strip_suffix('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"# TYPE apiserver_request_total counter
apiserver_request_total{code="200",component="apiserver",resource="leases",subresource="",verb="PUT",version="v1"} 7
apiserver_request_total{code="200",resource="whatsappchannels",subresource="status",verb="APPLY"} 1.2e+04
apiserver_request_total{code="409",resource="whatsappchannels",subresource="status",verb="APPLY"} 1
apiserver_request_total{code="200",resource="whatsappchannels",subresource="",verb="WATCH"} 3
apiserver_request_total_other{resource="whatsappchannels",subresource="",verb="POST"} 99
apiserver_watch_events_total{group="",resource="secrets",version="v1"} 5
"#;

    #[test]
    fn answers_of_all_codes_are_counted_and_reads_are_no_writes() {
        let requests = Requests::parse(PAGE);
        assert_eq!(requests.writes_to("whatsappchannels", "status"), 12_001);
        assert_eq!(requests.writes_to("whatsappchannels", ""), 0);
        assert_eq!(requests.of("whatsappchannels", "WATCH"), 3);
        let events: Vec<_> = samples(PAGE, "apiserver_watch_events_total").collect();
        assert_eq!(label(events[0].0, "resource"), Some("secrets"));
        assert_eq!(events[0].1, 5);
    }

    #[test]
    fn what_has_come_since_is_the_difference() {
        let before = Requests::parse(PAGE);
        let after = Requests::parse(&PAGE.replace("verb=\"PUT\",version=\"v1\"} 7", "verb=\"PUT\"} 9"));
        let since = after.since(&before);
        assert_eq!(since.writes_to("leases", ""), 2);
        assert_eq!(since.writes().count(), 1);
    }
}
