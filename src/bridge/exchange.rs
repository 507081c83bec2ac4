//! The headers of a call that tell to which exchange it belongs, and the answer's that says it back. Thin: what they may
//! say is decided in `telemetry::context`.

use axum::{
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode},
    response::Response,
};

use crate::{
    kernel::contract::CORRELATOR,
    telemetry::{
        Context,
        w3c::{TRACEPARENT, TRACESTATE},
    },
};

/// What a call's headers say.
pub(super) fn received(headers: &HeaderMap) -> Context {
    let text = |value: &'_ HeaderValue| value.to_str().ok().map(ToOwned::to_owned);
    // Given twice, nobody knows which one is meant.
    let only = |name: &str| {
        let mut all = headers.get_all(name).iter();
        all.next().filter(|_| all.next().is_none()).and_then(text)
    };
    let states: Vec<String> = headers.get_all(TRACESTATE).iter().filter_map(text).collect();
    Context::received(
        only(TRACEPARENT).as_deref(),
        Some(states.join(",")).as_deref(),
        only(CORRELATOR).as_deref(),
    )
}

/// Says the caller's correlator back, but not to one that is not known.
pub(super) fn say_back(response: &mut Response, context: &Context) {
    let unknown = [StatusCode::UNAUTHORIZED, StatusCode::TOO_MANY_REQUESTS];
    let Some(Ok(correlator)) = context.correlator().map(HeaderValue::from_str) else {
        return;
    };
    if !unknown.contains(&response.status()) {
        response
            .headers_mut()
            .insert(HeaderName::from_static(CORRELATOR), correlator);
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(lines: &[(&'static str, &[u8])]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| {
                let value = HeaderValue::from_bytes(value).unwrap();
                (HeaderName::from_static(name), value)
            })
            .collect()
    }

    #[test]
    fn lines_of_a_tracestate_are_one_list_and_of_the_rest_there_is_one() {
        let parent = (TRACEPARENT, PARENT.as_bytes());
        let mut lines = vec![
            parent,
            (TRACESTATE, b"a=1"),
            (TRACESTATE, b"b=2"),
            (CORRELATOR, b"c"),
        ];
        let expected = Context::received(Some(PARENT), Some("a=1,b=2"), Some("c"));
        assert_eq!(received(&headers(&lines)), expected);
        lines.push(parent);
        assert_eq!(
            received(&headers(&lines)),
            Context::received(None, None, Some("c"))
        );
        lines.push((CORRELATOR, b"d"));
        assert_eq!(received(&headers(&lines)), Context::default());
        assert_eq!(received(&headers(&[(CORRELATOR, b"\xe9")])), Context::default());
        assert_eq!(received(&HeaderMap::new()), Context::default());
    }

    #[test]
    fn a_correlator_is_said_back_to_who_is_known() {
        let said = |status: StatusCode, correlator| {
            let mut response = status.into_response();
            say_back(&mut response, &Context::received(None, None, correlator));
            let said = response.headers().get(CORRELATOR).cloned();
            said.map(|value| value.to_str().unwrap().to_owned())
        };
        let known = Some("corr-1".to_owned());
        for status in [
            StatusCode::OK,
            StatusCode::SERVICE_UNAVAILABLE,
            StatusCode::BAD_REQUEST,
        ] {
            assert_eq!(said(status, Some("corr-1")), known);
        }
        assert_eq!(said(StatusCode::UNAUTHORIZED, Some("corr-1")), None);
        assert_eq!(said(StatusCode::TOO_MANY_REQUESTS, Some("corr-1")), None);
        assert_eq!(said(StatusCode::OK, None), None);
    }
}
