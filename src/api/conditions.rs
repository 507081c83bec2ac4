//! The vocabulary of a channel's status: condition types and reasons, each in one place.
//!
//! A reason is the one word that a person searches for; `docs/reasons.md` tells what to do about each.

/// Condition types. They follow kstatus: `Ready` sums up, `Reconciling` and `Stalled` exist only while true.
pub mod types {
    /// Sums up the three conditions below: the channel does its job.
    pub const READY: &str = "Ready";
    /// The Secret is there and Kernel takes its credentials with every scope asked for.
    pub const CREDENTIALS_VALID: &str = "CredentialsValid";
    /// The environment is known and allowed here, and no other resource holds this channel.
    pub const ACCEPTED: &str = "Accepted";
    /// Kernel calls our webhook for this channel.
    pub const WEBHOOK_REGISTERED: &str = "WebhookRegistered";
    /// Kernel was read back and holds our URL.
    pub const WEBHOOK_VERIFIED: &str = "WebhookVerified";
    /// How the data plane does, coarsely; not part of `Ready`.
    pub const DELIVERING: &str = "Delivering";
    /// Only while true: work is under way.
    pub const RECONCILING: &str = "Reconciling";
    /// Only while true: trying again will not help, somebody has to change something.
    pub const STALLED: &str = "Stalled";
    /// Only while true: `spec.suspend` is set.
    pub const SUSPENDED: &str = "Suspended";
}

/// Why a condition is as it is. Each variant's name is the word in the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(
    missing_docs,
    reason = "the words are documented, with what to do, in docs/reasons.md"
)]
pub enum Reason {
    Succeeded,
    Observed,
    LegacyRegistered,
    Progressing,
    ProgressingWithRetry,
    Suspended,
    SecretNotFound,
    SecretNotAllowed,
    SecretKeyMissing,
    SecretInvalid,
    EnvironmentUnknown,
    EnvironmentNotAllowed,
    EnvironmentHeld,
    CredentialsRejected,
    ScopeNotGranted,
    PermissionDenied,
    ChannelConflict,
    ClientShared,
    WebhookForeign,
    WebhookContested,
    ReadBackUnsupported,
    RateLimited,
    UpstreamUnavailable,
    UpstreamTimeout,
    InvalidResponse,
    CleanupFailed,
    CleanupSkipped,
}

impl Reason {
    /// Every reason, for documentation and for tests that must miss none.
    pub const ALL: &[Self] = &[
        Self::Succeeded,
        Self::Observed,
        Self::LegacyRegistered,
        Self::Progressing,
        Self::ProgressingWithRetry,
        Self::Suspended,
        Self::SecretNotFound,
        Self::SecretNotAllowed,
        Self::SecretKeyMissing,
        Self::SecretInvalid,
        Self::EnvironmentUnknown,
        Self::EnvironmentNotAllowed,
        Self::EnvironmentHeld,
        Self::CredentialsRejected,
        Self::ScopeNotGranted,
        Self::PermissionDenied,
        Self::ChannelConflict,
        Self::ClientShared,
        Self::WebhookForeign,
        Self::WebhookContested,
        Self::ReadBackUnsupported,
        Self::RateLimited,
        Self::UpstreamUnavailable,
        Self::UpstreamTimeout,
        Self::InvalidResponse,
        Self::CleanupFailed,
        Self::CleanupSkipped,
    ];

    /// The word as it stands in the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "Succeeded",
            Self::Observed => "Observed",
            Self::LegacyRegistered => "LegacyRegistered",
            Self::Progressing => "Progressing",
            Self::ProgressingWithRetry => "ProgressingWithRetry",
            Self::Suspended => "Suspended",
            Self::SecretNotFound => "SecretNotFound",
            Self::SecretNotAllowed => "SecretNotAllowed",
            Self::SecretKeyMissing => "SecretKeyMissing",
            Self::SecretInvalid => "SecretInvalid",
            Self::EnvironmentUnknown => "EnvironmentUnknown",
            Self::EnvironmentNotAllowed => "EnvironmentNotAllowed",
            Self::EnvironmentHeld => "EnvironmentHeld",
            Self::CredentialsRejected => "CredentialsRejected",
            Self::ScopeNotGranted => "ScopeNotGranted",
            Self::PermissionDenied => "PermissionDenied",
            Self::ChannelConflict => "ChannelConflict",
            Self::ClientShared => "ClientShared",
            Self::WebhookForeign => "WebhookForeign",
            Self::WebhookContested => "WebhookContested",
            Self::ReadBackUnsupported => "ReadBackUnsupported",
            Self::RateLimited => "RateLimited",
            Self::UpstreamUnavailable => "UpstreamUnavailable",
            Self::UpstreamTimeout => "UpstreamTimeout",
            Self::InvalidResponse => "InvalidResponse",
            Self::CleanupFailed => "CleanupFailed",
            Self::CleanupSkipped => "CleanupSkipped",
        }
    }

    /// Whether the channel does what it should.
    pub fn is_good(self) -> bool {
        matches!(self, Self::Succeeded | Self::Observed | Self::LegacyRegistered)
    }

    /// Whether trying again can not help until somebody changes something: kstatus calls the object failed.
    pub fn is_stalled(self) -> bool {
        matches!(
            self,
            Self::SecretNotAllowed
                | Self::SecretKeyMissing
                | Self::SecretInvalid
                | Self::EnvironmentUnknown
                | Self::EnvironmentNotAllowed
                | Self::CredentialsRejected
                | Self::ScopeNotGranted
                | Self::PermissionDenied
                | Self::ChannelConflict
                | Self::ClientShared
                | Self::WebhookForeign
                | Self::WebhookContested
        )
    }

    /// Whether it says that the credentials in the Secret are no good, or not good enough.
    pub fn is_of_credentials(self) -> bool {
        self.condition() == types::CREDENTIALS_VALID || self == Self::PermissionDenied
    }

    /// The condition that the reason sits on; `Ready` copies the first that fails.
    pub fn condition(self) -> &'static str {
        match self {
            Self::EnvironmentUnknown
            | Self::EnvironmentNotAllowed
            | Self::EnvironmentHeld
            | Self::ChannelConflict
            | Self::ClientShared => types::ACCEPTED,
            Self::SecretNotFound
            | Self::SecretNotAllowed
            | Self::SecretKeyMissing
            | Self::SecretInvalid
            | Self::CredentialsRejected
            | Self::ScopeNotGranted => types::CREDENTIALS_VALID,
            _ => types::WEBHOOK_REGISTERED,
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
