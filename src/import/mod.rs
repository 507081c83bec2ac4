//! Makes manifests of the channel documents of Aura's channel model.
//!
//! Pure: texts come in, manifests and problems go out; `cli/import.rs` writes the files. What comes out has passed
//! [`crate::validate`]. A credential stands in the text of a [`Manifest`] that says so and nowhere else.

mod document;
mod name;
mod secret;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use self::document::{AuraChannel, Read};
pub use self::{
    name::{InvalidTemplate, NameTemplate, secret_file},
    secret::{SecretForm, Store},
};
use crate::{
    api::{GROUP, WebhookMode},
    validate::{self, Severity, Source, Validator},
    words::printable,
};

/// What a document does not say.
#[derive(Clone, Debug)]
pub struct Options {
    /// The environment; without one the document's own.
    pub environment: Option<String>,
    /// The namespace; without one the manifests name none.
    pub namespace: Option<String>,
    /// How names are made.
    pub name: Option<NameTemplate>,
    /// `spec.webhook.mode`.
    pub mode: WebhookMode,
    /// What becomes of the credentials.
    pub secrets: SecretForm,
    /// For an ExternalSecret.
    pub store: Option<Store>,
}

/// A channel's manifests.
pub struct Imported {
    /// The name of the resource.
    pub name: String,
    /// The `WhatsAppChannel`.
    pub channel: String,
    /// Its Secret, or what makes one.
    pub secret: Option<SecretString>,
}

/// What came of the documents.
#[derive(Default)]
pub struct Outcome {
    /// The channels.
    pub channels: Vec<Imported>,
    /// What kept a document from being taken over, one line each.
    pub errors: Vec<String>,
    /// What to look at, one line each.
    pub warnings: Vec<String>,
    /// How many documents are of another type of channel.
    pub other_types: usize,
    /// Fields that were not taken over, and in how many documents.
    pub left_out: BTreeMap<String, usize>,
}

/// The scopes that the roles ask for by default.
const SCOPES: [&str; 2] = ["whatsapp:app-admin", "whatsapp:app-messaging"];

/// Makes the manifests of every document in these texts.
///
/// # Errors
/// When this program's own definition of the resource can't be judged by: a defect, never of an input.
pub fn import(sources: &[Source], options: &Options) -> Result<Outcome, validate::DefinitionError> {
    let mut importer = Importer {
        validator: Validator::new()?,
        options,
        files: BTreeSet::new(),
        ids: BTreeMap::new(),
        clients: BTreeMap::new(),
        outcome: Outcome::default(),
    };
    for source in sources {
        let (documents, error) = document::split(&source.text);
        let several = documents.len() > 1;
        for (index, value) in documents.iter().enumerate() {
            let mut place = source.name.clone();
            if several {
                let _ = write!(place, " document {}", index + 1);
            }
            if let Some(title) = document::title(value) {
                let _ = write!(place, " ({title})");
            }
            importer.document(value, &printable(&place));
        }
        if let Some((line, column)) = error {
            let what = format!(
                "{}:{line}:{column}: not JSON; nothing is read from here on",
                source.name
            );
            importer.outcome.errors.push(what);
        }
    }
    Ok(importer.outcome)
}

struct Importer<'a> {
    validator: Validator,
    options: &'a Options,
    /// The files that are taken, without their ending.
    files: BTreeSet<String>,
    /// Which document has a channelId.
    ids: BTreeMap<String, String>,
    /// Which document has a Kernel client.
    clients: BTreeMap<String, String>,
    outcome: Outcome,
}

impl Importer<'_> {
    fn document(&mut self, value: &Value, place: &str) {
        let channel = match document::read(value) {
            Read::Channel(channel) => channel,
            Read::OtherType => {
                self.outcome.other_types += 1;
                return;
            }
            Read::Unusable(why) => return self.outcome.errors.push(format!("{place}: {why}")),
        };
        let environment = self.options.environment.clone().or(channel.environment.clone());
        let Some(environment) = environment else {
            let why = "names no environment; say which with --environment";
            return self.outcome.errors.push(format!("{place}: {why}"));
        };
        if let Some(other) = self.ids.get(&channel.channel_id) {
            let why = format!("{place}: has the channel_id of {other}");
            return self.outcome.errors.push(why);
        }
        let wanted = name::name(&channel, self.options.name.as_ref());
        let name = name::free(&wanted, &channel, &self.files);
        let mut warnings = Vec::new();
        if name != wanted {
            warnings.push(format!("the name {wanted} is taken: it becomes {name}"));
        }
        let imported = self.manifests(&channel, &name, &environment, &mut warnings);
        let problems = self.judge(&imported);
        if !problems.is_empty() {
            let problems = problems.into_iter().map(|problem| format!("{place}: {problem}"));
            return self.outcome.errors.extend(problems);
        }
        if let Some(other) = self.clients.get(channel.client_id.expose_secret()) {
            warnings.push(format!(
                "has the Kernel client of {other}: Kernel holds one webhook per client"
            ));
        }
        self.clients
            .entry(channel.client_id.expose_secret().to_owned())
            .or_insert_with(|| place.to_owned());
        self.ids.insert(channel.channel_id.clone(), place.to_owned());
        self.files.extend(name::files(&name));
        for field in document::left_out(value) {
            *self.outcome.left_out.entry(printable(&field)).or_default() += 1;
        }
        let warnings = warnings.into_iter().map(|warning| format!("{place}: {warning}"));
        self.outcome.warnings.extend(warnings);
        self.outcome.channels.push(imported);
    }

    fn manifests(
        &self,
        channel: &AuraChannel,
        name: &str,
        environment: &str,
        warnings: &mut Vec<String>,
    ) -> Imported {
        let namespace = self.options.namespace.as_deref();
        let secret_name = format!("{name}-kernel");
        let mut kernel = json!({"credentialsSecretRef": {"name": secret_name}});
        if !channel.purposes.is_empty() {
            kernel["purposes"] = json!(channel.purposes);
        }
        match channel.version.as_deref().map(str::to_lowercase).as_deref() {
            None | Some("v1" | "1") => {}
            Some("v2" | "2") => kernel["apiVersion"] = json!("v2"),
            Some(_) => warnings.push("whatsapp.client.version is neither v1 nor v2: v1 is taken".to_owned()),
        }
        scopes(&channel.scopes, warnings);
        let mut spec = json!({
            "channelId": channel.channel_id,
            "environment": environment,
            "kernel": kernel,
            "webhook": {"mode": self.options.mode},
        });
        if let Some(number) = &channel.number {
            spec["phoneNumber"] = json!(number);
        }
        let mut metadata = json!({"name": name});
        if let Some(namespace) = namespace {
            metadata["namespace"] = json!(namespace);
        }
        let manifest = json!({
            "apiVersion": format!("{GROUP}/v1alpha1"), "kind": "WhatsAppChannel", "metadata": metadata, "spec": spec,
        });
        let form = self.options.secrets;
        let store = self.options.store.as_ref();
        let secret = secret::manifest(form, store, channel, &secret_name, namespace);
        let note = secret::note(form, &secret_name, namespace);
        Imported {
            name: name.to_owned(),
            channel: yaml(&manifest),
            secret: secret.map(|secret| SecretString::from(format!("{note}{}", yaml(&secret)))),
        }
    }

    /// What `validate` says of the manifests: a document may hold what no manifest may.
    fn judge(&self, imported: &Imported) -> Vec<String> {
        let mut sources = vec![Source {
            name: "channel".to_owned(),
            text: imported.channel.clone(),
        }];
        sources.extend(imported.secret.as_ref().map(|secret| Source {
            name: "secret".to_owned(),
            text: secret.expose_secret().to_owned(),
        }));
        let options = validate::Options {
            namespace: "default",
            ..validate::Options::default()
        };
        let report = self.validator.judge(&sources, options);
        let errors = report
            .problems
            .into_iter()
            .filter(|it| it.severity == Severity::Error);
        errors
            .map(|it| format!("{}: {}", it.field.unwrap_or_default(), it.message))
            .collect()
    }
}

/// The roles ask for a scope each, and that is said by leaving them out. Others have no field to stand in.
fn scopes(scopes: &[String], warnings: &mut Vec<String>) {
    if scopes.is_empty() {
        return;
    }
    for scope in SCOPES
        .iter()
        .filter(|scope| !scopes.iter().any(|it| it == *scope))
    {
        warnings.push(format!(
            "its scopes lack {scope}, which is asked for by default: have it granted, or set spec.kernel.scopes"
        ));
    }
    let other: Vec<&str> = scopes
        .iter()
        .map(String::as_str)
        .filter(|scope| !SCOPES.contains(scope))
        .collect();
    if !other.is_empty() {
        warnings.push(format!(
            "scopes that nothing asks for are left out: {}",
            other.join(" ")
        ));
    }
}

fn yaml(value: &Value) -> String {
    // A JSON value is always YAML too: the serializer has nothing to fail at.
    serde_saphyr::to_string(value).unwrap_or_else(|_| value.to_string())
}

#[cfg(test)]
mod tests;
