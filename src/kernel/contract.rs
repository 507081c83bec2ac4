//! Everything that this program assumes about Kernel, in one place, each with where it is known from.
//!
//! *Documented* names the source. *Unknown* marks a guess: it is a setting, or this is the one line to change.
//! The simulator of Kernel is written from the same knowledge, not from this file.

use crate::api::Period;

/// The token endpoint's path below the auth URL.
/// Documented: Aura's guide "Get access token" and the source of Kernel's Python SDK (`baikal-sdk` 1.2.5).
pub(crate) fn token_path() -> String {
    "/token".to_owned()
}

/// The webhook setting's path below the API URL.
/// Documented for v1: Aura's page "Support several WhatsApp channels". *Unknown* for v2: the same with its number.
pub(crate) fn webhook_path() -> String {
    "/whatsapp/{version}/settings/webhook".to_owned()
}

/// The path that messages are sent to.
/// *Unknown*: by analogy with the on-premises WhatsApp API (`POST /v1/messages`).
pub(crate) fn messages_path() -> String {
    "/whatsapp/{version}/messages".to_owned()
}

/// The time for one call. Documented: the SDK's own timeout is 15 s.
pub(crate) fn timeout() -> Period {
    Period::seconds(15)
}

/// Whether Kernel keeps one webhook per OAuth client.
/// *Unknown*: the setting's body names no number, so the client must be what tells the webhooks apart.
pub const ONE_WEBHOOK_PER_CLIENT: bool = true;

/// The header that ties the calls of an exchange to logs, here and there. Documented: Kernel's common data, v2.2: a call may
/// have one, and its answer says it back. *Unknown* whether webhook calls have one.
pub const CORRELATOR: &str = "x-correlator";

/// The header that lets Kernel recognise a second attempt to send a message. *Unknown* whether Kernel looks at it. It is not
/// the correlator, which other calls of the same exchange have as well.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// A token's life when the answer gives none that can be used, in seconds.
/// Documented: about an hour (3599). Short on purpose: a needless fetch is cheap, a stale token is not.
pub const DEFAULT_EXPIRES_IN: u64 = 300;
/// The longest life that is believed, in seconds. *Unknown*: a day.
pub const MAX_EXPIRES_IN: u64 = 86_400;

// In v2 each message carries `biz_opaque_callback_data`, which its statuses tell back. Documented for the Cloud API, whose
// shapes v2 has; *unknown* whether Kernel passes it on. In v1 there is no such field.

/// Statuses of the PATCH that mean the webhook was set. Documented: 201; 200 and 204 are taken too (*unknown*).
pub const SET_STATUSES: &[u16] = &[200, 201, 204];
/// Statuses of the GET that mean that the webhook can't be read back. *Unknown* whether the GET exists at all.
pub const NO_READ_BACK: &[u16] = &[404, 405, 501];

/// The path of the bridge that Kernel calls, below an environment's public URL.
/// Documented: the body of the registration in Aura's page "Support several WhatsApp channels".
pub const WEBHOOK_CALL_PATH: &str = "/aura-services/v1/whatsapp/messages";
/// Names that the API key may have in the query. *Unknown* which Kernel keeps; the first is the one we register.
pub const API_KEY_NAMES: &[&str] = &["apikey", "apiKey"];
/// Names that the channel id may have in the query; the first is the one we register.
pub const CHANNEL_ID_NAMES: &[&str] = &["channelId", "channelid"];

/// Largest answer of Kernel that is read, in bytes.
pub const MAX_ANSWER: usize = 256 * 1024;
