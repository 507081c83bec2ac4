//! What was seen becomes a step: its outcome, what to say of it, and what to do next. Pure.

mod cluster;
mod kernel;
mod status;

pub(crate) use self::cluster::{cluster, definition, unread};
pub(super) use self::{cluster::*, kernel::*, status::*};
