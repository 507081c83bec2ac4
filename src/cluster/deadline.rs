//! A deadline on every call to the API server: to the answer's head, and to the end of its body.
//!
//! A deadline on the head alone would let a peer that sends its body byte by byte hold a reconciliation for as long as
//! it likes. Only a watch's body may take its time: the server ends it after minutes, and the library if it does not.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use hyper::{
    Request, Response,
    body::{Body, Frame},
};
use tokio::time::Sleep;
use tower::{BoxError, Layer, Service};

/// Gives every call a deadline.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeadlineLayer {
    /// From the call to the answer's head, the library's own repetitions included.
    pub head: Duration,
    /// From the head to the end of the body; not for watches.
    pub body: Duration,
}

#[derive(Clone, Debug)]
pub(super) struct Deadline<S> {
    inner: S,
    times: DeadlineLayer,
}

/// A body that must have come by a certain time.
pub(super) struct Bounded<B> {
    inner: B,
    /// `None`: it may take its time.
    until: Option<Pin<Box<Sleep>>>,
}

/// Whether a request asks for a watch.
pub(super) fn is_watch<B>(request: &Request<B>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    query
        .split('&')
        .any(|pair| matches!(pair, "watch=true" | "watch=1"))
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Deadline { inner, times: *self }
    }
}

impl<S, Q, B> Service<Request<Q>> for Deadline<S>
where
    S: Service<Request<Q>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: 'static,
{
    type Response = Response<Bounded<B>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let (times, watch) = (self.times, is_watch(&request));
        let call = self.inner.call(request);
        async move {
            let answer = tokio::time::timeout(times.head, call)
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
                .map_err(Into::into)?;
            Ok(answer.map(|inner| Bounded {
                inner,
                until: (!watch).then(|| Box::pin(tokio::time::sleep(times.body))),
            }))
        }
        .boxed()
    }
}

impl<B> Body for Bounded<B>
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        if let Some(until) = &mut self.until
            && until.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::TimedOut).into())));
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use futures::{StreamExt, stream};
    use http_body_util::{BodyExt, StreamBody};
    use tower::ServiceExt;

    use super::*;

    const TIMES: DeadlineLayer = DeadlineLayer {
        head: Duration::from_secs(10),
        body: Duration::from_secs(10),
    };

    /// The bytes that come of a call whose head takes `head` and whose body is ten bytes, one in `each`.
    async fn call(uri: &str, head: Duration, each: Duration) -> Result<usize, BoxError> {
        let server = tower::service_fn(move |_: Request<()>| async move {
            tokio::time::sleep(head).await;
            let bytes = stream::iter([b"x"; 10]).then(move |byte| async move {
                tokio::time::sleep(each).await;
                Ok::<_, Infallible>(Frame::data(Bytes::from_static(byte)))
            });
            Ok::<_, Infallible>(Response::new(StreamBody::new(Box::pin(bytes))))
        });
        let request = Request::builder().uri(uri).body(())?;
        let answer = TIMES.layer(server).oneshot(request).await?;
        Ok(answer.into_body().collect().await?.to_bytes().len())
    }

    #[tokio::test(start_paused = true)]
    async fn head_and_body_each_have_their_time() {
        let seconds = Duration::from_secs;
        assert_eq!(
            call("/a", seconds(9), Duration::from_millis(900)).await.unwrap(),
            10
        );
        assert!(call("/a", seconds(11), Duration::ZERO).await.is_err(), "no head");
        assert!(
            call("/a", seconds(0), seconds(2)).await.is_err(),
            "a body that drips"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_may_take_its_time_but_its_head_may_not() {
        let seconds = Duration::from_secs;
        assert_eq!(
            call("/a?x=y&watch=true", seconds(1), seconds(600)).await.unwrap(),
            10
        );
        assert!(call("/a?watch=true", seconds(11), Duration::ZERO).await.is_err());
        assert!(call("/a?watch=false", seconds(1), seconds(600)).await.is_err());
    }
}
