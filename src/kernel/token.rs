//! Access tokens: fetched by client credentials, kept until shortly before they end, one fetch at a time.
//!
//! A token is kept under a hash of everything that defines it (auth server, client, secret, scopes, purposes), so a
//! rotated secret can never be answered from the cache (Law 5).

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::{
    Client, KernelError,
    client::{Answer, new_correlator},
    contract,
    turnstile::{Operation, Turnstile},
};

/// A channel's Kernel client.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The OAuth client id. Not a secret, but nobody's business either: it is not printed.
    pub id: SecretString,
    /// The OAuth client secret.
    pub secret: SecretString,
}

/// What a token is asked for.
#[derive(Clone)]
pub struct TokenRequest {
    /// The token endpoint.
    pub url: String,
    /// The client.
    pub credentials: Credentials,
    /// The scopes to ask for.
    pub scopes: Vec<String>,
    /// The purposes to ask for.
    pub purposes: Vec<String>,
    /// How long one call may take.
    pub timeout: Duration,
    /// What each call passes through; none: it is made at once.
    pub turnstile: Option<Arc<dyn Turnstile>>,
}

/// An access token. Its `Debug` shows nothing of it.
#[derive(Clone, Debug)]
pub struct AccessToken(Arc<SecretString>);

impl AccessToken {
    /// The token, for an `Authorization` header.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

#[derive(Default)]
struct Slot {
    held: Mutex<Option<Held>>,
    /// Locked while a token is fetched. The last fetch failed, and when that was known.
    fetching: tokio::sync::Mutex<Option<(KernelError, Instant)>>,
}

#[derive(Clone)]
struct Held {
    token: AccessToken,
    /// From then on the next one is fetched, while this one is used.
    refresh_at: Instant,
    /// Its end.
    until: Instant,
}

/// How soon a token that could not be refreshed is tried to be refreshed again, while the one before is good.
const REFRESH_AGAIN: Duration = Duration::from_secs(10);

impl Slot {
    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token that is good now, and whether it need not be refreshed.
    fn good(&self) -> Option<(AccessToken, bool)> {
        let now = Instant::now();
        let held = self.held();
        let held = held.as_ref().filter(|held| held.until > now)?;
        Some((held.token.clone(), held.refresh_at > now))
    }

    /// The token could not be refreshed: it serves on for a while.
    fn serves_on(&self, token: &AccessToken) {
        if let Some(held) = &mut *self.held()
            && Arc::ptr_eq(&held.token.0, &token.0)
        {
            held.refresh_at = Instant::now() + REFRESH_AGAIN;
        }
    }
}

/// How many tokens are kept: with more channels than that, those that were not used for longest are thrown out, and fetched
/// again when they are needed.
pub const TOKENS_KEPT: usize = 4096;

/// Bytes of memory that one of them takes, about, with a token of so many bytes.
pub fn bytes_of_token(len: usize) -> usize {
    // The map has an eighth of its places free, and a byte of its own for each.
    (size_of::<([u8; 32], Kept)>() + 1) * 8 / 7 + size_of::<Slot>() + 2 * size_of::<usize>() + len
}

/// The tokens of all channels.
#[derive(Default)]
pub struct Tokens {
    slots: Mutex<Slots>,
}

type Slots = HashMap<[u8; 32], Kept>;

struct Kept {
    slot: Arc<Slot>,
    used: Instant,
}

#[derive(Deserialize)]
struct Granted {
    access_token: SecretString,
    #[serde(default)]
    expires_in: Option<Seconds>,
    #[serde(default)]
    scope: Option<String>,
}

/// RFC 6749 says a number; some servers write it as a text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Seconds {
    Number(f64),
    Text(String),
    Other(serde::de::IgnoredAny),
}

impl Seconds {
    fn value(&self) -> Option<f64> {
        match self {
            Self::Number(seconds) => Some(*seconds),
            Self::Text(text) => text.trim().parse().ok(),
            Self::Other(_) => None,
        }
    }
}

#[derive(Deserialize, Default)]
struct OAuthError {
    #[serde(default)]
    error: String,
}

impl Tokens {
    fn slot(&self, request: &TokenRequest) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let key = request.key();
        let now = Instant::now();
        if let Some(kept) = slots.get_mut(&key) {
            kept.used = now;
            return kept.slot.clone();
        }
        if slots.len() >= TOKENS_KEPT {
            make_room(&mut slots);
        }
        let slot = Arc::default();
        slots.insert(
            key,
            Kept {
                slot: Arc::clone(&slot),
                used: now,
            },
        );
        slot
    }

    /// The token for this request: the one that is kept, or a new one. Callers at the same time share one fetch. One that
    /// is near its end is used on by all but the caller that fetches the next one; and by that one too, if the auth
    /// server can't give any.
    ///
    /// # Errors
    /// When Kernel's auth server gives none and none is good, or does not take the credentials any more.
    pub(super) async fn get(
        &self,
        client: &Client,
        request: &TokenRequest,
    ) -> Result<AccessToken, KernelError> {
        let slot = self.slot(request);
        let began = Instant::now();
        let good = match slot.good() {
            Some((token, true)) => return Ok(token),
            Some((token, false)) => Some(token),
            None => None,
        };
        let mut failed = match &good {
            // Somebody else refreshes it.
            Some(token) => match slot.fetching.try_lock() {
                Ok(failed) => failed,
                Err(_) => return Ok(token.clone()),
            },
            None => slot.fetching.lock().await,
        };
        // Who waited while a fetch failed shares its failure: a rejected client is not tried once for each caller.
        if let Some((error, at)) = &*failed
            && *at > began
        {
            return Err(error.clone());
        }
        if let Some((token, true)) = slot.good() {
            return Ok(token);
        }
        match fetch(client, request).await {
            Ok((token, life)) => {
                let now = Instant::now();
                *slot.held() = Some(Held {
                    token: token.clone(),
                    refresh_at: now + refresh_after(life),
                    until: now + life,
                });
                *failed = None;
                Ok(token)
            }
            Err(error) => {
                *failed = Some((error.clone(), Instant::now()));
                match good.filter(|_| error.is_transient()) {
                    Some(token) => {
                        slot.serves_on(&token);
                        Ok(token)
                    }
                    None => Err(error),
                }
            }
        }
    }

    /// Drops a token that Kernel did not take, unless another has already taken its place.
    pub(super) fn reject(&self, request: &TokenRequest, rejected: &AccessToken) {
        let slot = self.slot(request);
        slot.held()
            .take_if(|held| Arc::ptr_eq(&held.token.0, &rejected.0));
    }
}

/// Throws out a quarter of the slots: those that were not used for longest. Who is in the middle of using one keeps it.
fn make_room(slots: &mut Slots) {
    let mut idle: Vec<(Instant, [u8; 32])> = slots
        .iter()
        .filter(|(_, kept)| Arc::strong_count(&kept.slot) == 1)
        .map(|(key, kept)| (kept.used, *key))
        .collect();
    idle.sort_unstable();
    for (_, key) in idle.iter().take(TOKENS_KEPT / 4) {
        slots.remove(key);
    }
}

impl TokenRequest {
    fn key(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut part = |text: &str| {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text.as_bytes());
        };
        part(&self.url);
        part(self.credentials.id.expose_secret());
        part(self.credentials.secret.expose_secret());
        part(&self.scopes.join(" "));
        part(&self.purposes.join(" "));
        hash.finalize().into()
    }
}

/// When to ask for the next token: at 80 to 90 % of its life, spread so that many channels do not ask at once.
fn refresh_after(life: Duration) -> Duration {
    life.mul_f64(0.8 + fastrand::f64() * 0.1)
}

async fn fetch(client: &Client, request: &TokenRequest) -> Result<(AccessToken, Duration), KernelError> {
    let mut form = vec![("grant_type", "client_credentials".to_owned())];
    for (name, words) in [("scope", &request.scopes), ("purpose", &request.purposes)] {
        if !words.is_empty() {
            form.push((name, words.join(" ")));
        }
    }
    let call = client
        .http()
        .post(&request.url)
        .basic_auth(
            request.credentials.id.expose_secret(),
            Some(request.credentials.secret.expose_secret()),
        )
        .form(&form);
    let issued = |answer: &Answer| match answer.status {
        200 => granted(&answer.body, &request.scopes),
        400 | 401 => Err(refused(answer.status, &answer.body, &request.scopes)),
        _ => Err(match answer.error() {
            KernelError::Refused { .. } => refused(answer.status, &answer.body, &request.scopes),
            KernelError::PermissionDenied => KernelError::TokenDenied,
            error => error,
        }),
    };
    let judge = |answer: &Answer| issued(answer).map(drop);
    let answer = client
        .call(call, request, Operation::Token, &new_correlator(), &judge)
        .await?;
    issued(&answer)
}

fn granted(body: &[u8], asked: &[String]) -> Result<(AccessToken, Duration), KernelError> {
    let granted: Granted =
        serde_json::from_slice(body).map_err(|_| KernelError::InvalidResponse("the token is missing"))?;
    let token = granted.access_token.expose_secret();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(KernelError::InvalidResponse("the token is not one"));
    }
    // RFC 6749, section 5.1: an absent scope means the one asked for.
    if let Some(scope) = granted.scope {
        let have: HashSet<&str> = scope.split_whitespace().collect();
        let missing: Vec<String> = asked
            .iter()
            .filter(|word| !have.contains(word.as_str()))
            .cloned()
            .collect();
        if !missing.is_empty() {
            return Err(KernelError::ScopeNotGranted(missing));
        }
    }
    Ok((
        AccessToken(Arc::new(granted.access_token)),
        life(granted.expires_in.as_ref().and_then(Seconds::value)),
    ))
}

/// A token's life: what the answer says, within reason.
fn life(expires_in: Option<f64>) -> Duration {
    let seconds = expires_in.filter(|seconds| *seconds >= 1.0).unwrap_or(0.0);
    if seconds == 0.0 {
        return Duration::from_secs(contract::DEFAULT_EXPIRES_IN);
    }
    Duration::try_from_secs_f64(seconds)
        .unwrap_or(Duration::MAX)
        .min(Duration::from_secs(contract::MAX_EXPIRES_IN))
}

/// RFC 6749, section 5.2.
fn refused(status: u16, body: &[u8], asked: &[String]) -> KernelError {
    let error: OAuthError = serde_json::from_slice(body).unwrap_or_default();
    match error.error.as_str() {
        "invalid_scope" => KernelError::ScopeNotGranted(asked.to_vec()),
        "invalid_client" | "unauthorized_client" | "invalid_grant" => KernelError::CredentialsRejected,
        _ if status == 401 => KernelError::CredentialsRejected,
        // No message or setting has been judged: only the way to a token is wrong.
        _ => KernelError::InvalidResponse("its auth server refuses the request for a token"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Vec<String> {
        vec!["a:x".into(), "a:y".into()]
    }

    #[test]
    fn a_granted_scope_that_lacks_one_asked_for_is_an_error_that_names_it() {
        let body = br#"{"access_token":"t","expires_in":3599,"scope":"a:x b:z"}"#;
        assert_eq!(
            granted(body, &asked()).unwrap_err(),
            KernelError::ScopeNotGranted(vec!["a:y".into()])
        );
        assert!(granted(br#"{"access_token":"t"}"#, &asked()).is_ok());
        assert!(
            granted(br#"{"access_token":"t","scope":""}"#, &asked()).is_err(),
            "nothing was granted"
        );
        for (expires_in, seconds) in [
            ("60", 60),
            ("\"60\"", 60),
            ("\"soon\"", contract::DEFAULT_EXPIRES_IN),
            ("[]", contract::DEFAULT_EXPIRES_IN),
            ("null", contract::DEFAULT_EXPIRES_IN),
        ] {
            let body = format!(r#"{{"access_token":"t","expires_in":{expires_in}}}"#);
            let (_, life) = granted(body.as_bytes(), &asked()).unwrap();
            assert_eq!(life.as_secs(), seconds, "{expires_in}");
        }
    }

    #[test]
    fn a_life_that_cannot_be_meant_is_replaced() {
        let seconds = |expires_in| life(expires_in).as_secs();
        assert_eq!(seconds(Some(3599.0)), 3599);
        for odd in [None, Some(0.0), Some(-5.0), Some(f64::NAN)] {
            assert_eq!(seconds(odd), contract::DEFAULT_EXPIRES_IN, "{odd:?}");
        }
        assert_eq!(seconds(Some(1e300)), contract::MAX_EXPIRES_IN);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_were_not_used_for_longest_make_room_and_one_in_use_stays() {
        let tokens = Tokens::default();
        let request = |n: usize| TokenRequest {
            url: "https://auth.example.com/token".into(),
            credentials: Credentials {
                id: format!("client-{n}").into(),
                secret: "fake-secret".to_owned().into(),
            },
            scopes: asked(),
            purposes: Vec::new(),
            timeout: Duration::from_secs(1),
            turnstile: None,
        };
        let in_use = tokens.slot(&request(0));
        for n in 0..TOKENS_KEPT {
            tokio::time::advance(Duration::from_millis(1)).await;
            drop(tokens.slot(&request(n)));
        }
        let known = |n: usize| tokens.slots.lock().unwrap().contains_key(&request(n).key());
        tokio::time::advance(Duration::from_millis(1)).await;
        tokens.slot(&request(1));
        tokens.slot(&request(TOKENS_KEPT));
        assert!(known(0) && known(1) && known(TOKENS_KEPT) && known(TOKENS_KEPT - 1));
        assert!(!known(2) && !known(TOKENS_KEPT / 4));
        assert_eq!(
            tokens.slots.lock().unwrap().len(),
            TOKENS_KEPT - TOKENS_KEPT / 4 + 1
        );
        drop(in_use);
    }

    #[test]
    fn a_refusal_is_told_apart_by_its_code() {
        let class = |status, body: &str| refused(status, body.as_bytes(), &asked()).class();
        assert_eq!(
            class(400, r#"{"error":"invalid_client"}"#),
            "credentials_rejected"
        );
        assert_eq!(class(400, r#"{"error":"invalid_scope"}"#), "scope_not_granted");
        assert_eq!(class(401, "<html>"), "credentials_rejected");
        assert_eq!(class(400, "{}"), "invalid_response");
        assert_eq!(class(404, "<html>"), "invalid_response");
    }

    #[test]
    fn a_token_without_sense_is_refused() {
        for body in [
            "",
            "{}",
            r#"{"access_token":""}"#,
            r#"{"access_token":"a b"}"#,
            r#"{"access_token":1}"#,
        ] {
            assert!(granted(body.as_bytes(), &[]).is_err(), "{body}");
        }
    }
}
