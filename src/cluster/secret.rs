//! How a channel's Secret is read: same namespace, labelled, with usable values. Both roles judge alike.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt};
use secrecy::SecretString;

use crate::{
    api::{CredentialsRef, KeyRef, SECRET_LABEL, conditions::Reason},
    kernel::Credentials,
    keys::ApiKey,
};

/// The time for one read, its body included: the client's own deadline ends at an answer's headers.
const DEADLINE: Duration = Duration::from_secs(12);
/// Longest value that is taken as a credential, in bytes.
const MAX_VALUE: usize = 4096;

/// Why a Secret can't be used. Its text says what to do and holds nothing of the Secret's values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretProblem {
    /// It is not there.
    #[error("Secret {0:?} is not in this namespace; create it, or correct the reference")]
    NotFound(String),
    /// It lacks the label.
    #[error(
        "Secret {name:?} may not be used by a channel: label it with \
         kubectl label secret {name} {SECRET_LABEL}=true"
    )]
    NotAllowed {
        /// The Secret.
        name: String,
    },
    /// A key is missing or empty.
    #[error("Secret {name:?} has no value under the key {key:?}")]
    KeyMissing {
        /// The Secret.
        name: String,
        /// The key.
        key: String,
    },
    /// A value can't be a credential.
    #[error(
        "Secret {name:?} holds something under the key {key:?} that can't be a credential (not one line of text)"
    )]
    Invalid {
        /// The Secret.
        name: String,
        /// The key.
        key: String,
    },
}

impl SecretProblem {
    /// The Secret's name.
    pub fn secret(&self) -> &str {
        match self {
            Self::NotFound(name)
            | Self::NotAllowed { name }
            | Self::KeyMissing { name, .. }
            | Self::Invalid { name, .. } => name,
        }
    }

    /// The reason that stands in the status.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotFound(_) => Reason::SecretNotFound,
            Self::NotAllowed { .. } => Reason::SecretNotAllowed,
            Self::KeyMissing { .. } => Reason::SecretKeyMissing,
            Self::Invalid { .. } => Reason::SecretInvalid,
        }
    }
}

/// Reads a Secret; `None` where there is none.
///
/// # Errors
/// When the API server does not answer, or does not allow it.
pub async fn get(secrets: &Api<Secret>, name: &str) -> Result<Option<Secret>, kube::Error> {
    let answer = tokio::time::timeout(DEADLINE, secrets.get_opt(name)).await;
    answer.unwrap_or_else(|_| Err(kube::Error::Service("no answer in time".into())))
}

/// The Kernel client that a Secret holds.
///
/// # Errors
/// When it is missing, not labelled, or not usable.
pub fn credentials(
    secret: Option<&Secret>,
    reference: &CredentialsRef,
) -> Result<Credentials, SecretProblem> {
    let secret = allowed(secret, &reference.name)?;
    Ok(Credentials {
        id: value(secret, reference.id_key())?,
        secret: value(secret, reference.secret_key())?,
    })
}

/// The id alone of the Kernel client that a Secret holds.
///
/// # Errors
/// As [`credentials`].
pub fn client_id(secret: &Secret, reference: &CredentialsRef) -> Result<SecretString, SecretProblem> {
    value(allowed(Some(secret), &reference.name)?, reference.id_key())
}

/// The API key, issued elsewhere, that a Secret holds.
///
/// # Errors
/// As [`credentials`].
pub fn issued_key(secret: Option<&Secret>, reference: &KeyRef) -> Result<ApiKey, SecretProblem> {
    use secrecy::ExposeSecret;
    Ok(ApiKey::issued(
        value(allowed(secret, &reference.name)?, &reference.key)?.expose_secret(),
    ))
}

fn allowed<'a>(secret: Option<&'a Secret>, name: &str) -> Result<&'a Secret, SecretProblem> {
    let secret = secret.ok_or_else(|| SecretProblem::NotFound(name.to_owned()))?;
    if secret
        .labels()
        .get(SECRET_LABEL)
        .is_some_and(|value| value == "true")
    {
        Ok(secret)
    } else {
        Err(SecretProblem::NotAllowed {
            name: name.to_owned(),
        })
    }
}

/// Whether a value has white space around it, which is not taken as a part of it.
pub fn is_spaced(secret: &Secret, key: &str) -> bool {
    let value = secret.data.as_ref().and_then(|data| data.get(key));
    value.is_some_and(|value| value.0.trim_ascii().len() != value.0.len())
}

/// A value, without the white space around it that editors and `echo` leave.
fn value(secret: &Secret, key: &str) -> Result<SecretString, SecretProblem> {
    let name = secret.name_any();
    let bytes = secret
        .data
        .as_ref()
        .and_then(|data| data.get(key))
        .map(|bytes| bytes.0.as_slice());
    let trimmed = bytes.unwrap_or_default().trim_ascii();
    if trimmed.is_empty() {
        return Err(SecretProblem::KeyMissing {
            name,
            key: key.to_owned(),
        });
    }
    match std::str::from_utf8(trimmed) {
        Ok(text) if text.len() <= MAX_VALUE && !text.chars().any(char::is_control) => {
            Ok(SecretString::from(text))
        }
        _ => Err(SecretProblem::Invalid {
            name,
            key: key.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use secrecy::ExposeSecret;

    use super::*;

    fn secret(labelled: bool, entries: &[(&str, &[u8])]) -> Secret {
        let mut secret = Secret::default();
        secret.metadata.name = Some("shop".into());
        if labelled {
            secret.labels_mut().insert(SECRET_LABEL.into(), "true".into());
        }
        secret.data = Some(
            entries
                .iter()
                .map(|(key, value)| ((*key).to_owned(), ByteString(value.to_vec())))
                .collect(),
        );
        secret
    }

    fn reference() -> CredentialsRef {
        CredentialsRef {
            name: "shop".into(),
            id_key: None,
            secret_key: Some("pw".into()),
        }
    }

    #[test]
    fn values_are_read_without_the_white_space_around_them() {
        let found = credentials(
            Some(&secret(true, &[("id", b"me\n"), ("pw", b" fake-secret ")])),
            &reference(),
        );
        let found = found.unwrap();
        assert_eq!(
            (found.id.expose_secret(), found.secret.expose_secret()),
            ("me", "fake-secret")
        );
    }

    #[test]
    fn each_problem_has_its_reason_and_says_what_to_do() {
        let good: &[(&str, &[u8])] = &[("id", b"me"), ("pw", b"fake-secret")];
        let reason = |secret: Option<&Secret>| {
            let problem = credentials(secret, &reference()).unwrap_err();
            assert!(!problem.to_string().contains("fake-secret"));
            problem.reason()
        };
        assert_eq!(reason(None), Reason::SecretNotFound);
        assert_eq!(reason(Some(&secret(false, good))), Reason::SecretNotAllowed);
        assert_eq!(
            reason(Some(&secret(true, &[("id", b"me")]))),
            Reason::SecretKeyMissing
        );
        assert_eq!(
            reason(Some(&secret(true, &[("id", b"me"), ("pw", b" \n")]))),
            Reason::SecretKeyMissing
        );
        assert_eq!(
            reason(Some(&secret(true, &[("id", b"me"), ("pw", b"a\nb")]))),
            Reason::SecretInvalid
        );
        assert_eq!(
            reason(Some(&secret(true, &[("id", b"me"), ("pw", b"\xff\xfe")]))),
            Reason::SecretInvalid
        );
        let text = SecretProblem::NotAllowed { name: "shop".into() }.to_string();
        assert!(text.contains("kubectl label secret shop channels.auracognitive.com/channel-secret=true"));
    }
}
