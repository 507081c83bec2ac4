//! What can go wrong with Kernel, by what a caller can do about it.

use std::time::Duration;

use crate::api::conditions::Reason;

/// A call to Kernel failed. Its text is stable and free of ids, addresses and secrets: it may stand in a status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// The auth server does not take the client id and secret.
    #[error("Kernel's auth server rejects the client id or secret")]
    CredentialsRejected,
    /// The token lacks scopes that were asked for.
    #[error("Kernel did not grant the scope {}", .0.join(" "))]
    ScopeNotGranted(Vec<String>),
    /// The API does not take a token that was fetched a moment ago.
    #[error("Kernel's API rejects a token that its auth server has just issued")]
    Unauthorized,
    /// The webhook could be read before and can't be now, as if there were no such endpoint.
    #[error("Kernel's webhook can't be read back now, as it could before")]
    NotReadable,
    /// 403 from the auth server: the client may have no token.
    #[error("Kernel's auth server says that this client may have no token (403)")]
    TokenDenied,
    /// 403: the client may not do this.
    #[error("Kernel says that this client may not do this (403)")]
    PermissionDenied,
    /// 429.
    #[error("Kernel limits the rate of calls (429)")]
    RateLimited {
        /// How long it asks us to wait.
        retry_after: Option<Duration>,
    },
    /// 5xx.
    #[error("Kernel answers {status}")]
    Unavailable {
        /// The status.
        status: u16,
        /// How long it asks us to wait.
        retry_after: Option<Duration>,
    },
    /// No connection: nothing was sent.
    #[error("Kernel can't be reached")]
    Unreachable,
    /// The connection broke after the request was on its way: it may have been carried out.
    #[error("the connection to Kernel broke before it answered")]
    Interrupted,
    /// No answer in time: it may have been carried out.
    #[error("Kernel did not answer in time")]
    TimedOut,
    /// The request itself is at fault: the same one will be refused again.
    #[error("Kernel refuses the request ({status})")]
    Refused {
        /// The status.
        status: u16,
    },
    /// The call was not made: this process may not act now.
    #[error("this process may not call Kernel now")]
    StoodDown,
    /// An answer that can't be understood.
    #[error("Kernel's answer can't be understood: {0}")]
    InvalidResponse(&'static str),
}

impl KernelError {
    /// The reason that stands in the status.
    pub fn reason(&self) -> Reason {
        match self {
            Self::CredentialsRejected => Reason::CredentialsRejected,
            Self::ScopeNotGranted(_) => Reason::ScopeNotGranted,
            Self::PermissionDenied | Self::TokenDenied => Reason::PermissionDenied,
            Self::RateLimited { .. } => Reason::RateLimited,
            // Its two halves do not know each other, for now: the client is not at fault.
            Self::Unauthorized
            | Self::NotReadable
            | Self::Unavailable { .. }
            | Self::Unreachable
            | Self::Interrupted
            | Self::StoodDown => Reason::UpstreamUnavailable,
            Self::TimedOut => Reason::UpstreamTimeout,
            Self::Refused { .. } | Self::InvalidResponse(_) => Reason::InvalidResponse,
        }
    }

    /// Whether the same request may succeed later, with nothing changed.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::RateLimited { .. }
                | Self::Unauthorized
                | Self::NotReadable
                | Self::Unavailable { .. }
                | Self::Unreachable
                | Self::Interrupted
                | Self::TimedOut
                | Self::StoodDown
                | Self::InvalidResponse(_)
        )
    }

    /// Whether it may speak of the whole environment, not of one client: nobody's calls get through. (A page that says
    /// "maintenance" with a 200 is no better than a 503.)
    pub fn is_outage(&self) -> bool {
        matches!(
            self,
            Self::NotReadable
                | Self::Unavailable { .. }
                | Self::Unreachable
                | Self::Interrupted
                | Self::TimedOut
                | Self::InvalidResponse(_)
        )
    }

    /// Whether the credentials are at fault, not the request.
    pub fn is_credentials(&self) -> bool {
        matches!(
            self,
            Self::CredentialsRejected | Self::ScopeNotGranted(_) | Self::Unauthorized | Self::TokenDenied
        )
    }

    /// Whether the request may have been carried out although it failed.
    pub fn outcome_unknown(&self) -> bool {
        matches!(
            self,
            Self::Interrupted | Self::TimedOut | Self::InvalidResponse(_)
        )
    }

    /// How long Kernel asks us to wait, already within bounds.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after } | Self::Unavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// One word for metrics and logs.
    pub fn class(&self) -> &'static str {
        match self {
            Self::CredentialsRejected => "credentials_rejected",
            Self::ScopeNotGranted(_) => "scope_not_granted",
            Self::Unauthorized => "unauthorized",
            Self::NotReadable => "not_readable",
            Self::TokenDenied => "token_denied",
            Self::PermissionDenied => "permission_denied",
            Self::RateLimited { .. } => "rate_limited",
            Self::Unavailable { .. } => "unavailable",
            Self::Unreachable => "unreachable",
            Self::Interrupted => "interrupted",
            Self::TimedOut => "timed_out",
            Self::StoodDown => "stood_down",
            Self::Refused { .. } => "refused",
            Self::InvalidResponse(_) => "invalid_response",
        }
    }
}
