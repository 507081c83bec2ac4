//! Answers that are not what was asked for: each says what to do instead.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::view::Wrong;
use crate::journal::{AppendError, ReadError, Seq};

/// Why something is not done or not shown.
#[derive(Debug)]
pub(super) enum Refused {
    /// 400: what was asked can't be meant.
    Wrong(String),
    /// 415: the content is not declared as this.
    NotDeclared(&'static str),
    /// 413: more than so many bytes.
    TooLarge(usize),
    /// 403: not called by a loopback address.
    Foreign,
    /// 403: the configuration does not allow it.
    BodiesHidden,
    /// 404: no such path.
    NoSuchPath,
    /// 404: no such message any more.
    NotKept(Seq),
    /// 404: nothing is known by that id.
    NoSuchId,
    /// 404: nothing of that contact is kept.
    NoSuchLane,
    /// 409: the lane is not parked.
    NotParked,
    /// 409: several contacts' digests begin so.
    Ambiguous,
    /// 409: only a dead letter can be sent on its way again.
    NoDeadLetter(Seq),
    /// 409: it has arrived.
    SentAlready(Seq),
    /// 409: it ends just now.
    Ending(Seq),
    /// 410: its text is gone.
    KeyDestroyed(Seq),
    /// 500: the journal's files.
    Damaged(Seq),
    /// 503: the journal has no room, or its disk fails.
    NotNow(String),
}

impl Refused {
    /// Its word, which is stable.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Wrong(_) => "Wrong",
            Self::NotDeclared(_) => "NotDeclared",
            Self::TooLarge(_) => "TooLarge",
            Self::Foreign => "NotLoopback",
            Self::BodiesHidden => "BodiesHidden",
            Self::NoSuchPath => "NoSuchPath",
            Self::NotKept(_) => "NotKept",
            Self::NoSuchId => "NoSuchId",
            Self::NoSuchLane => "NoSuchLane",
            Self::NotParked => "NotParked",
            Self::Ambiguous => "Ambiguous",
            Self::NoDeadLetter(_) => "NoDeadLetter",
            Self::SentAlready(_) => "SentAlready",
            Self::Ending(_) => "Ending",
            Self::KeyDestroyed(_) => "KeyDestroyed",
            Self::Damaged(_) => "Damaged",
            Self::NotNow(_) => "NotNow",
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Wrong(_) => StatusCode::BAD_REQUEST,
            Self::NotDeclared(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Foreign | Self::BodiesHidden => StatusCode::FORBIDDEN,
            Self::NoSuchPath | Self::NotKept(_) | Self::NoSuchId | Self::NoSuchLane => StatusCode::NOT_FOUND,
            Self::NotParked
            | Self::Ambiguous
            | Self::NoDeadLetter(_)
            | Self::SentAlready(_)
            | Self::Ending(_) => StatusCode::CONFLICT,
            Self::KeyDestroyed(_) => StatusCode::GONE,
            Self::Damaged(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NotNow(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Wrong(message) | Self::NotNow(message) => message.clone(),
            Self::NotDeclared(kind) => format!("send content-type: {kind}"),
            Self::TooLarge(limit) => format!("at most {limit} bytes"),
            Self::Foreign => "call it by a loopback address, such as http://127.0.0.1:8084".to_owned(),
            Self::BodiesHidden => {
                "texts and phone numbers are not shown here: set bridge.showBodies to true in the \
                                   configuration to allow it"
                    .to_owned()
            }
            Self::NoSuchPath => "no such path".to_owned(),
            Self::NotKept(seq) => {
                format!(
                    "message {} is not kept: delivered, dropped, or never accepted",
                    seq.0
                )
            }
            Self::NoSuchId => "nothing that is remembered or kept has this id".to_owned(),
            Self::NoSuchLane => {
                "no message of this contact is kept in this direction of the channel".to_owned()
            }
            Self::NotParked => "no such conversation is parked".to_owned(),
            Self::Ambiguous => "several contacts' digests begin so: give more digits".to_owned(),
            Self::NoDeadLetter(seq) => format!("message {} is no dead letter", seq.0),
            Self::SentAlready(seq) => format!("message {} has been sent", seq.0),
            Self::Ending(seq) => format!("message {} ends just now: look again", seq.0),
            Self::KeyDestroyed(seq) => {
                format!("the key of message {} is destroyed: its time was over", seq.0)
            }
            Self::Damaged(seq) => format!("message {} can't be read: the journal is damaged there", seq.0),
        }
    }

    /// The error as it stands in an answer.
    pub fn error(&self) -> Value {
        json!({"code": self.code(), "message": self.message()})
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.status(), Json(json!({"error": self.error()}))).into_response()
    }
}

impl From<Wrong> for Refused {
    fn from(wrong: Wrong) -> Self {
        Self::Wrong(wrong.0)
    }
}

impl From<ReadError> for Refused {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::NotKept(seq) => Self::NotKept(seq),
            ReadError::KeyDestroyed(seq) => Self::KeyDestroyed(seq),
            ReadError::Damaged { seq, .. } => {
                tracing::error!(%error, "can't show a message");
                Self::Damaged(seq)
            }
            ReadError::Io(_) => Self::NotNow(error.to_string()),
        }
    }
}

impl From<AppendError> for Refused {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::NoDeadLetter(seq) => Self::NoDeadLetter(seq),
            error => Self::NotNow(error.to_string()),
        }
    }
}
