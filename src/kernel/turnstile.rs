//! What stands between a caller and Kernel: whether a call may be made now, for how long, and who hears how it ended.
//!
//! The controller puts its limits, its circuit and its leadership here. The client knows nothing of them: it asks
//! before each call that really goes out (a token from the cache asks nobody) and tells what came of it.

use std::{any::Any, time::Duration};

use futures::future::BoxFuture;

use super::KernelError;

/// A call to Kernel, by what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A token is fetched from the auth server.
    Token,
    /// The webhook is read back.
    WebhookGet,
    /// The webhook is set or cleared.
    WebhookSet,
    /// A message is sent.
    Send,
}

impl Operation {
    /// One word for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::WebhookGet => "webhook_get",
            Self::WebhookSet => "webhook_set",
            Self::Send => "send",
        }
    }
}

/// The right to make one call; it ends when this is dropped.
pub struct Turn {
    /// Ends the call when it ends itself: the right to make it was lost.
    pub lost: BoxFuture<'static, ()>,
    /// What is given back at the end of the call.
    pub place: Box<dyn Any + Send>,
}

/// Lets calls through when it is their turn, and hears how they ended.
pub trait Turnstile: Send + Sync {
    /// Waits until this call may be made.
    ///
    /// # Errors
    /// Why it must not be made: what the environment answered to others, or [`KernelError::StoodDown`].
    fn enter(&self, operation: Operation) -> BoxFuture<'_, Result<Turn, KernelError>>;

    /// A call that was let through has ended: with an HTTP status, or with an error, after this time.
    fn left(&self, operation: Operation, ended: Result<u16, &KernelError>, took: Duration);
}
