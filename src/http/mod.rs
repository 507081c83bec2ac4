//! What both HTTP clients share: how a client is built, how an answer is read within bounds, `Retry-After`.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use jiff::{Timestamp, fmt::rfc2822};
use reqwest::{Certificate, Client, ClientBuilder, Identity, Response, header::HeaderMap};

use crate::tls::Contents;

/// Bounds for a `Retry-After` that we honour: a peer can neither make us hammer it nor stop us for a day.
const RETRY_AFTER: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// A client that follows no redirect (a redirect would carry credentials elsewhere) and keeps connections for a
/// short time only: peers that close idle ones after 5 s would otherwise close them under our requests.
///
/// # Errors
/// When TLS can't be set up.
pub fn client(connect_timeout: Duration) -> Result<Client, reqwest::Error> {
    builder(connect_timeout).build()
}

/// The same for what is in the cluster: no proxy stands in between, whatever the environment says.
///
/// # Errors
/// When TLS can't be set up.
pub fn direct_client(connect_timeout: Duration) -> Result<Client, reqwest::Error> {
    builder(connect_timeout).no_proxy().build()
}

/// The same, with a certificate of its own, and with those who may have signed the other side's where they are named.
///
/// # Errors
/// When TLS can't be set up with these.
pub fn client_with(connect_timeout: Duration, contents: &Contents) -> Result<Client, reqwest::Error> {
    let mut builder = builder(connect_timeout).identity(Identity::from_pem(&contents.identity())?);
    if let Some(ca) = contents.ca() {
        builder = builder.tls_certs_only(Certificate::from_pem_bundle(ca)?);
    }
    builder.build()
}

fn builder(connect_timeout: Duration) -> ClientBuilder {
    Client::builder()
        .user_agent(concat!("aura-whatsapp-operator/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(connect_timeout)
        .pool_idle_timeout(Duration::from_secs(4))
        .pool_max_idle_per_host(32)
        .tcp_nodelay(true)
}

/// Makes ring the process's TLS provider. More than one call is fine.
pub fn install_tls_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Why an answer's body was not read.
#[derive(Debug, PartialEq, Eq)]
pub enum BodyError {
    /// It is larger than the limit.
    TooLarge,
    /// The connection broke.
    Broken,
    /// The time was up.
    TimedOut,
}

/// Reads an answer's body, at most `limit` bytes of it.
///
/// # Errors
/// When it is larger or ends early.
pub async fn read_body(mut response: Response, limit: usize) -> Result<Bytes, BodyError> {
    let mut body = BytesMut::new();
    let failed = |error: reqwest::Error| {
        if error.is_timeout() {
            BodyError::TimedOut
        } else {
            BodyError::Broken
        }
    };
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > limit {
            return Err(BodyError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// The wait that a `Retry-After` header asks for (RFC 9110, section 10.2.3: seconds or a date), within bounds.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(reqwest::header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if let Ok(seconds) = text.parse::<u64>() {
        Duration::from_secs(seconds)
    } else {
        let at = rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
        Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
    };
    Some(wait.clamp(*RETRY_AFTER.start(), *RETRY_AFTER.end()))
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderValue, RETRY_AFTER};

    use super::*;

    #[test]
    fn retry_after_is_read_as_seconds_or_date_and_kept_within_bounds() {
        let now: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_str(text).unwrap());
            retry_after(&headers, now).map(|wait| wait.as_secs())
        };
        assert_eq!(read("7"), Some(7));
        assert_eq!(read("0"), Some(1));
        assert_eq!(read("999999999"), Some(3600));
        assert_eq!(read("Sun, 22 Nov 2026 10:00:30 GMT"), Some(30));
        assert_eq!(read("Sat, 22 Nov 2025 10:00:30 GMT"), Some(1));
        assert_eq!(read("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
