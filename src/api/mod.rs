//! The `WhatsAppChannel` resource: its types, its vocabulary of conditions and reasons, and the definition
//! (CRD) that the API server is given. It looks at nothing else in this program.

mod channel;
mod claims;
pub mod conditions;
pub mod crd;
mod delivering;
mod duration;
mod effective;
mod ids;
mod settings;
mod status;

pub use channel::{
    ApiVersion, ChoiceStyle, Conversion, CredentialsRef, DataVersion, Delivery, DeliveryMode, Existing,
    Kernel, KeyRef, MaxAge, OnDelete, OnUndeliverable, OnUnknownSend, ReplyOrder, ReportedStatus, Scopes,
    Webhook, WebhookMode, WhatsAppChannel, WhatsAppChannelSpec,
};
pub use claims::Claim;
pub use delivering::{Deliveries, Delivering, NoSuchWord};
pub use duration::{InvalidDuration, Period};
pub use effective::{ChannelDefaults, Effective, KernelDefaults};
pub use ids::{ChannelId, InvalidChannelId};
pub use settings::{Setting, Source, settings, settings_yaml, yaml_scalar};
pub use status::{Condition, LeftAlone, TakenOver, WebhookKeyStatus, WhatsAppChannelStatus};

/// The API group of the resource.
pub const GROUP: &str = "channels.auracognitive.com";

/// A Secret may be referenced by a channel only with this label set to `"true"`: whoever may create a channel
/// could otherwise have any Secret of the namespace sent to his own Kernel client.
pub const SECRET_LABEL: &str = "channels.auracognitive.com/channel-secret";

/// The finalizer that keeps a deleted channel until its webhook has been dealt with.
pub const FINALIZER: &str = "channels.auracognitive.com/webhook";

/// Setting this annotation to any new value asks for a reconciliation now; the value is echoed in
/// `status.lastHandledReconcileAt`.
pub const REQUESTED_AT: &str = "channels.auracognitive.com/requestedAt";
