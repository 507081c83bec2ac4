//! The WhatsApp wire model, as Kernel's v1 API shows it: what a webhook call holds and what a send looks like.
//!
//! Pure: bytes in, values out. Unknown fields and kinds are kept as they came, never dropped.

mod inbound;
mod outbound;
mod status;

pub use self::{
    inbound::{Event, InboundMessage, Malformed, Status, parse},
    outbound::{OutboundMessage, TEXT_LIMIT, text_parts},
    status::{Class, Trouble, trouble},
};
