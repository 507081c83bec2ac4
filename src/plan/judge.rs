//! A channel's change and the controller's forecast become a line of the report. Pure.

use kube::ResourceExt;

use super::{
    overlay::{Change, Planned},
    report::{Action, Line},
};
use crate::{
    api::WebhookMode,
    controller::preview::{Forecast, Preview},
};

/// The reason of a change that the API server would refuse.
const IMMUTABLE: &str = "Immutable";
/// The reason of a channel that nobody looks after.
const NOT_WATCHED: &str = "NamespaceNotWatched";

fn line(planned: &Planned, action: Action) -> Line {
    Line {
        namespace: planned.channel.namespace().unwrap_or_default(),
        name: planned.channel.name_any(),
        action,
        change: planned.change,
        fields: planned.fields.clone(),
        reason: None,
        host: None,
        message: String::new(),
        key_not_compared: false,
    }
}

/// A channel of the cluster that the files do not name.
pub(super) fn unmanaged(planned: &Planned) -> Line {
    Line {
        message: "not among the files".to_owned(),
        ..line(planned, Action::Unmanaged)
    }
}

/// A change that the API server would refuse, if it would.
pub(super) fn immutable(planned: &Planned) -> Option<Line> {
    let fields = planned.immutable();
    let message = format!(
        "the API server would refuse it: {} can't be changed; delete the channel and create it anew",
        fields.join(" and ")
    );
    (!fields.is_empty()).then(|| Line {
        reason: Some(IMMUTABLE.to_owned()),
        message,
        ..line(planned, Action::Refused)
    })
}

/// A channel of a namespace that no role looks at.
pub(super) fn not_watched(planned: &Planned) -> Line {
    let line = line(planned, Action::Refused);
    Line {
        reason: Some(NOT_WATCHED.to_owned()),
        message: format!(
            "namespace {} is not among the installation's watchNamespaces: nobody looks after the channel",
            line.namespace
        ),
        ..line
    }
}

/// A channel that can't be judged, because of this.
pub(super) fn unknown(planned: &Planned, why: impl Into<String>) -> Line {
    Line {
        message: why.into(),
        ..line(planned, Action::Unknown)
    }
}

/// What the controller would come to; `asked` is whether Kernel was asked.
pub(super) fn forecast(planned: &Planned, mode: WebhookMode, preview: Preview, asked: bool) -> Line {
    let says = |action, message: String| Line {
        message,
        key_not_compared: preview.key_not_compared,
        ..line(planned, action)
    };
    let mut line = match preview.forecast {
        Forecast::Nothing(why) => says(Action::None, why),
        Forecast::Register => says(
            Action::Register,
            if mode == WebhookMode::Legacy {
                "would register the callback of the system before (mode Legacy)".to_owned()
            } else {
                "would register the webhook".to_owned()
            },
        ),
        Forecast::Renew(why) => says(Action::Renew, format!("would renew the webhook: {why}")),
        Forecast::PutBack => says(
            Action::PutBack,
            "would put the webhook back: somebody has changed it".to_owned(),
        ),
        Forecast::TakeOver { host } => Line {
            host: Some(host.clone()),
            ..says(Action::TakeOver, format!("would take over from {host}"))
        },
        Forecast::ReplaceLegacy { host } => Line {
            host: Some(host.clone()),
            ..says(
                Action::ReplaceLegacy,
                format!("would replace what the system before has, at {host}"),
            )
        },
        Forecast::Refused { reason, message } => Line {
            reason: Some(reason.as_str().to_owned()),
            ..says(Action::Refused, message)
        },
        Forecast::Unclear(why) => says(Action::Unknown, why),
    };
    if !asked && line.action.changes_webhook() {
        line.message
            .push_str(", if nobody else's is there (Kernel was not asked)");
    }
    line
}

impl Action {
    /// Whether something would be set at Kernel.
    pub(super) fn changes_webhook(self) -> bool {
        matches!(
            self,
            Self::Register | Self::Renew | Self::PutBack | Self::TakeOver | Self::ReplaceLegacy
        )
    }
}

impl Line {
    /// Whether something would be another than it is.
    pub(super) fn is_change(&self) -> bool {
        self.action.changes_webhook() || self.action == Action::None && self.change != Change::None
    }
}
