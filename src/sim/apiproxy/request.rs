//! What a request asks of the API server (verb, resource, subresource, name), and which requests a test means. Pure.
//!
//! The rules are those of the API server's own `RequestInfo`, as far as resources go.

use jiff::Timestamp;

/// What is done to a resource, in RBAC's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Read one.
    Get,
    /// Read all.
    List,
    /// Be told of changes.
    Watch,
    /// Make one.
    Create,
    /// Replace one.
    Update,
    /// Change one, also by server-side apply.
    Patch,
    /// Remove one or all.
    Delete,
}

impl Verb {
    /// Whether it changes something.
    pub fn writes(self) -> bool {
        matches!(self, Self::Create | Self::Update | Self::Patch | Self::Delete)
    }
}

/// One request that came through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiRequest {
    /// When it came.
    pub at: Timestamp,
    /// What was to be done.
    pub verb: Verb,
    /// To what, as RBAC names it: `secrets`, `whatsappchannels/status`. The whole path where it is no resource.
    pub resource: String,
    /// In which namespace; empty for what has none, and for all of them.
    pub namespace: String,
    /// To which one; empty for all of them.
    pub name: String,
    /// The status that was answered; `None` while it is under way, and where the answer was withheld.
    pub status: Option<u16>,
}

impl ApiRequest {
    pub(super) fn new(method: &str, path: &str, query: &str, at: Timestamp) -> Self {
        let Place {
            resource,
            namespace,
            name,
        } = place(path);
        let watch = url::form_urlencoded::parse(query.as_bytes())
            .any(|(key, value)| key == "watch" && matches!(&*value, "true" | "1"));
        let verb = match method {
            "POST" => Verb::Create,
            "PUT" => Verb::Update,
            "PATCH" => Verb::Patch,
            "DELETE" => Verb::Delete,
            _ if watch => Verb::Watch,
            _ if name.is_empty() && resource != path => Verb::List,
            _ => Verb::Get,
        };
        Self {
            at,
            verb,
            resource,
            namespace,
            name,
            status: None,
        }
    }
}

#[derive(Default)]
struct Place {
    resource: String,
    namespace: String,
    name: String,
}

/// `/api/v1/…` and `/apis/GROUP/VERSION/…`, then `namespaces/NS/RESOURCE/NAME/SUBRESOURCE` or without the namespace.
fn place(path: &str) -> Place {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let rest: &[&str] = match parts.as_slice() {
        ["api", _, rest @ ..] | ["apis", _, _, rest @ ..] if !rest.is_empty() => rest,
        _ => {
            return Place {
                resource: path.to_owned(),
                ..Place::default()
            };
        }
    };
    let (namespace, rest): (&str, &[&str]) = match rest {
        // A namespace itself has two subresources; whatever else stands there is a resource within it.
        ["namespaces", _, "status" | "finalize", ..] => ("", rest),
        ["namespaces", namespace, within @ ..] if !within.is_empty() => (namespace, within),
        _ => ("", rest),
    };
    let at = |n: usize| rest.get(n).copied().unwrap_or_default();
    let subresource = rest.get(2..).unwrap_or_default().join("/");
    let resource = match subresource.as_str() {
        "" => at(0).to_owned(),
        subresource => format!("{}/{subresource}", at(0)),
    };
    Place {
        resource,
        namespace: namespace.to_owned(),
        name: at(1).to_owned(),
    }
}

/// Which requests are meant: `Calls::writes().of("whatsappchannels/status")`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    verbs: Option<Vec<Verb>>,
    resource: Option<String>,
    not: Option<String>,
    name: Option<String>,
}

impl Calls {
    /// All of them.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Those with one of these verbs.
    #[must_use]
    pub fn verbs(verbs: &[Verb]) -> Self {
        Self {
            verbs: Some(verbs.to_vec()),
            ..Self::default()
        }
    }

    /// Those that change something.
    #[must_use]
    pub fn writes() -> Self {
        Self::verbs(&[Verb::Create, Verb::Update, Verb::Patch, Verb::Delete])
    }

    /// Watches.
    #[must_use]
    pub fn watches() -> Self {
        Self::verbs(&[Verb::Watch])
    }

    /// Reads of one object.
    #[must_use]
    pub fn gets() -> Self {
        Self::verbs(&[Verb::Get])
    }

    /// Only those to this resource, as RBAC names it: `secrets` leaves out subresources, `whatsappchannels/status` is
    /// one.
    #[must_use]
    pub fn of(mut self, resource: &str) -> Self {
        self.resource = Some(resource.to_owned());
        self
    }

    /// Only those to another resource than this one.
    #[must_use]
    pub fn but(mut self, resource: &str) -> Self {
        self.not = Some(resource.to_owned());
        self
    }

    /// Only those to an object of this name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Whether a request is among them.
    pub fn fit(&self, request: &ApiRequest) -> bool {
        let is =
            |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        self.verbs
            .as_ref()
            .is_none_or(|verbs| verbs.contains(&request.verb))
            && is(&self.resource, &request.resource)
            && is(&self.name, &request.name)
            && self.not.as_ref().is_none_or(|not| *not != request.resource)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, path: &str, query: &str) -> ApiRequest {
        ApiRequest::new(method, path, query, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_request_is_told_by_method_path_and_query() {
        let cases = [
            (
                "GET",
                "/api/v1/namespaces/a/secrets/s",
                "",
                Verb::Get,
                "secrets",
                "a",
                "s",
            ),
            (
                "GET",
                "/api/v1/namespaces/a/secrets",
                "limit=5",
                Verb::List,
                "secrets",
                "a",
                "",
            ),
            (
                "GET",
                "/api/v1/secrets",
                "watch=true&x=y",
                Verb::Watch,
                "secrets",
                "",
                "",
            ),
            (
                "GET",
                "/api/v1/secrets",
                "watch=false",
                Verb::List,
                "secrets",
                "",
                "",
            ),
            (
                "GET",
                "/api/v1/namespaces/a",
                "",
                Verb::Get,
                "namespaces",
                "",
                "a",
            ),
            (
                "PUT",
                "/api/v1/namespaces/a/finalize",
                "",
                Verb::Update,
                "namespaces/finalize",
                "",
                "a",
            ),
            (
                "PATCH",
                "/apis/channels.auracognitive.com/v1alpha1/namespaces/a/whatsappchannels/n/status",
                "force=true",
                Verb::Patch,
                "whatsappchannels/status",
                "a",
                "n",
            ),
            (
                "POST",
                "/apis/coordination.k8s.io/v1/namespaces/a/leases",
                "",
                Verb::Create,
                "leases",
                "a",
                "",
            ),
            (
                "DELETE",
                "/api/v1/namespaces/a/secrets/s",
                "",
                Verb::Delete,
                "secrets",
                "a",
                "s",
            ),
            ("GET", "/readyz", "", Verb::Get, "/readyz", "", ""),
            ("GET", "/apis/apps/v1", "", Verb::Get, "/apis/apps/v1", "", ""),
        ];
        for (method, path, query, verb, resource, namespace, name) in cases {
            let found = request(method, path, query);
            assert_eq!(
                (found.verb, &*found.resource, &*found.namespace, &*found.name),
                (verb, resource, namespace, name),
                "{path}"
            );
        }
    }

    #[test]
    fn calls_are_chosen_by_verb_resource_and_name() {
        let status = request("PATCH", "/apis/g/v1/namespaces/a/whatsappchannels/n/status", "");
        let secret = request("GET", "/api/v1/namespaces/a/secrets/s", "");
        assert!(Calls::all().fit(&status) && Calls::all().fit(&secret));
        assert!(Calls::writes().fit(&status) && !Calls::writes().fit(&secret));
        assert!(Calls::writes().of("whatsappchannels/status").fit(&status));
        assert!(!Calls::all().of("whatsappchannels").fit(&status));
        assert!(Calls::gets().of("secrets").named("s").fit(&secret));
        assert!(!Calls::gets().of("secrets").named("other").fit(&secret));
        assert!(Calls::all().but("secrets").fit(&status) && !Calls::all().but("secrets").fit(&secret));
    }
}
