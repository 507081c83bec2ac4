//! A layer of a client that does something around each call: waits before it, or looks at its answer. What it does is an
//! [`Around`]; the rest of what tower wants of a layer stands here once.

use std::{
    future::Future,
    task::{Context, Poll},
};

use futures::{FutureExt, future::BoxFuture};
use hyper::{Request, Response};
use tower::{Layer, Service};

/// What is done around each call.
pub(super) trait Around: Clone + Send + Sync + 'static {
    /// What of a request is needed when it has been handed on.
    type About: Send + 'static;

    /// Looks at a request.
    fn about<B>(&self, request: &Request<B>) -> Self::About;

    /// Makes the call. It does nothing before it is waited for: a request goes out after what is waited for before that.
    fn around<R, E>(
        self,
        about: Self::About,
        call: impl Future<Output = Result<Response<R>, E>> + Send,
    ) -> impl Future<Output = Result<Response<R>, E>> + Send
    where
        R: Send,
        E: Send;
}

/// The layer.
#[derive(Clone)]
pub(super) struct AroundLayer<A>(pub A);

/// A service with something around it.
#[derive(Clone)]
pub(super) struct Surrounded<S, A> {
    inner: S,
    around: A,
}

impl<S, A: Clone> Layer<S> for AroundLayer<A> {
    type Service = Surrounded<S, A>;

    fn layer(&self, inner: S) -> Self::Service {
        Surrounded {
            inner,
            around: self.0.clone(),
        }
    }
}

impl<S, A, B, R> Service<Request<B>> for Surrounded<S, A>
where
    A: Around,
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    R: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let about = self.around.about(&request);
        let call = self.inner.call(request);
        self.around.clone().around(about, call).boxed()
    }
}
