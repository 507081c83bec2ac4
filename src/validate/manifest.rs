//! Documents to channels and Secrets: which is which, and what the API server would refuse of each alone. Pure.
//!
//! A Secret's values are looked at for being there and are then gone: only the names of its keys are kept.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::{Code, Problem, Source, metadata, schema::Definition};
use crate::{
    api::{GROUP, SECRET_LABEL, WhatsAppChannelSpec},
    words::{hint, near},
    yaml::{self, Content, Document, Node, Position},
};

const KIND: &str = "WhatsAppChannel";
const VERSION: &str = "v1alpha1";

/// A channel as a manifest writes it.
#[derive(Debug)]
pub struct Channel {
    /// The file.
    pub file: String,
    /// Where its document starts.
    pub at: Position,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its spec as written.
    pub written: Value,
    /// Its spec, if it has the shape of one.
    pub spec: Option<WhatsAppChannelSpec>,
    /// Where each field stands.
    places: BTreeMap<String, Position>,
}

impl Channel {
    /// `namespace/name`.
    pub fn title(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Where to look: `file:line`.
    pub fn place(&self) -> String {
        format!("{}:{}", self.file, self.at.line)
    }

    /// A problem of one of its fields, where that field or what it is in stands.
    pub(super) fn problem(&self, code: Code, field: &str, message: String) -> Problem {
        let mut path = field;
        let at = loop {
            match (self.places.get(path), path.rsplit_once('.')) {
                (Some(at), _) => break *at,
                (None, Some((parent, _))) => path = parent,
                (None, None) => break self.at,
            }
        };
        Problem::of_file(code, &self.file, message)
            .at(at)
            .of(self.title())
            .field(field)
    }
}

/// A Secret, or what will make one, without its values.
pub(super) struct SecretSeen {
    pub file: String,
    pub at: Position,
    pub namespace: String,
    pub name: String,
    pub labelled: bool,
    /// Where its label is to be written.
    pub label_place: &'static str,
    /// Each key and whether it has a value; `None` if that is known in the cluster alone.
    pub keys: Option<BTreeMap<String, bool>>,
}

/// What the files hold.
#[derive(Default)]
pub(super) struct Found {
    pub channels: Vec<Channel>,
    pub secrets: Vec<SecretSeen>,
    pub skipped: usize,
    pub problems: Vec<Problem>,
}

/// Reads one text.
pub(super) fn read(source: &Source, definition: &Definition, namespace: &str, found: &mut Found) {
    let (documents, error) = yaml::parse(&source.text);
    let mut reader = Reader {
        file: &source.name,
        definition,
        namespace,
        found,
    };
    for document in &documents {
        reader.document(document);
    }
    if let Some(error) = error {
        let mut message = format!("not YAML: {}", error.why);
        if source.text.contains("{{") {
            message.push_str("; it looks like a template: render it first, and validate what comes out");
        }
        let problem = Problem::of_file(Code::Syntax, &source.name, message).at(error.at);
        reader.found.problems.push(problem);
    }
}

/// Every object of a text that parses, lists opened, for whoever goes on to use what was judged. Unlike a report it
/// holds the values of Secrets.
pub(crate) fn objects(text: &str) -> Vec<Value> {
    fn collect(node: &Node, into: &mut Vec<Value>) {
        match items(node) {
            Some(items) => items.iter().for_each(|item| collect(item, into)),
            None => into.push(node.json()),
        }
    }
    let mut objects = Vec::new();
    for document in &yaml::parse(text).0 {
        collect(&document.root, &mut objects);
    }
    objects
}

/// What a list holds; `None` for what is no list.
fn items(node: &Node) -> Option<&[Node]> {
    let text = |key: &str| node.get(key).and_then(Node::text).unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let ours = || {
        api_version
            .rsplit_once('/')
            .is_some_and(|(group, _)| group == GROUP)
    };
    if !kind.ends_with("List") || !(api_version == "v1" || ours()) {
        return None;
    }
    node.get("items").map(Node::items)
}

struct Reader<'a> {
    file: &'a str,
    definition: &'a Definition,
    namespace: &'a str,
    found: &'a mut Found,
}

impl Reader<'_> {
    fn document(&mut self, document: &Document) {
        let root = &document.root;
        if matches!(root.content, Content::Null) {
            return;
        }
        let before = (self.found.channels.len(), self.found.secrets.len());
        self.object(root);
        if (self.found.channels.len(), self.found.secrets.len()) != before {
            for (key, at) in &document.twice {
                // A key of a Secret may be a value that slipped.
                let key = if self.found.channels.len() == before.0 {
                    "a key".to_owned()
                } else {
                    format!("\"{key}\"")
                };
                let message = format!("{key} stands twice in one mapping");
                let problem = Problem::of_file(Code::DuplicateKey, self.file, message).at(*at);
                self.found.problems.push(problem);
            }
        }
    }

    fn object(&mut self, node: &Node) {
        if let Some(items) = items(node) {
            return items.iter().for_each(|item| self.object(item));
        }
        let text = |key: &str| node.get(key).and_then(Node::text).unwrap_or_default();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        match (group, kind) {
            ("", "Secret") if api_version == "v1" => return self.secret(node),
            ("external-secrets.io", "ExternalSecret") => return self.external_secret(node),
            ("bitnami.com", "SealedSecret") => return self.sealed_secret(node),
            _ => {}
        }
        let ours = format!("{GROUP}/{VERSION}");
        if kind == KIND && api_version == ours {
            return self.channel(node);
        }
        if kind == KIND || group == GROUP {
            let (key, message) = if kind == KIND {
                ("apiVersion", format!("a {KIND} has apiVersion {ours}"))
            } else if near(kind, [KIND]).is_some() {
                ("kind", format!("no such kind; did you mean \"{KIND}\"?"))
            } else {
                ("kind", format!("no such kind in {GROUP}: there is {KIND}"))
            };
            let at = node.entry(key).map_or(node.at, |entry| entry.at);
            let problem = Problem::of_file(Code::ApiVersion, self.file, message);
            self.found.problems.push(problem.at(at).field(key));
        }
        self.found.skipped += 1;
    }

    fn channel(&mut self, node: &Node) {
        let (namespace, name) = self.name(node);
        let mut places = BTreeMap::new();
        collect(node, "", &mut places);
        let written = node.get("spec").map_or(Value::Null, Node::json);
        let channel = Channel {
            file: self.file.to_owned(),
            at: node.at,
            spec: serde_json::from_value(written.clone()).ok(),
            written,
            namespace,
            name,
            places,
        };
        let mut findings = Vec::new();
        for entry in node.entries() {
            match entry.key.as_str() {
                "apiVersion" | "kind" => {}
                "metadata" => {
                    for (field, at, message) in metadata::problems(entry) {
                        let problem = Problem::of_file(Code::Metadata, self.file, message);
                        let problem = problem.at(at).of(channel.title()).field(&field);
                        self.found.problems.push(problem);
                    }
                }
                "spec" if matches!(entry.value.content, Content::Null) => {}
                "spec" => self.definition.spec(entry, &mut findings),
                "status" => {
                    self.definition.status(entry, &mut findings);
                    let message = "is written by the controller and dropped here; leave it out".to_owned();
                    let problem = channel.problem(Code::Status, "status", message).warning();
                    self.found.problems.push(problem);
                }
                key => {
                    let known = ["apiVersion", "kind", "metadata", "spec"];
                    let message = format!("no such field{}", hint(key, known));
                    self.found
                        .problems
                        .push(channel.problem(Code::UnknownField, key, message));
                }
            }
        }
        for (key, code, message) in [
            ("metadata.name", Code::Metadata, "is required"),
            ("spec", Code::Required, "is required"),
        ] {
            let path: Vec<&str> = key.split('.').collect();
            let value = node.below(&path);
            if value.is_none_or(|value| matches!(value.content, Content::Null)) {
                self.found
                    .problems
                    .push(channel.problem(code, key, message.to_owned()));
            }
        }
        for finding in findings {
            let problem = Problem::of_file(finding.code, self.file, finding.message);
            let problem = problem.at(finding.at).of(channel.title()).field(&finding.path);
            self.found.problems.push(problem);
        }
        self.found.channels.push(channel);
    }

    fn name(&self, node: &Node) -> (String, String) {
        let text = |key: &str| node.below(&["metadata", key]).and_then(Node::text);
        (
            text("namespace").unwrap_or(self.namespace).to_owned(),
            text("name").unwrap_or_default().to_owned(),
        )
    }

    fn secret(&mut self, node: &Node) {
        let (namespace, name) = self.name(node);
        let mut keys = BTreeMap::new();
        for part in ["data", "stringData"] {
            for entry in node.get(part).map(Node::entries).unwrap_or_default() {
                let (filled, wrong) = match &entry.value.content {
                    Content::Text(text) if part == "data" => {
                        // Go's decoder skips line breaks.
                        let text: String = text.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
                        (!text.trim().is_empty(), STANDARD.decode(text).is_err())
                    }
                    Content::Text(text) => (!text.trim().is_empty(), false),
                    Content::Null => (false, false),
                    _ => (false, true),
                };
                if wrong {
                    let must = if part == "data" { "base64" } else { "a string" };
                    let message = format!("a value of this Secret must be {must}; put a text in quotes");
                    let problem = Problem::of_file(Code::SecretInvalid, self.file, message);
                    let title = format!("{namespace}/{name}");
                    self.found
                        .problems
                        .push(problem.at(entry.at).of(title).field(part));
                }
                keys.insert(entry.key.clone(), filled || wrong);
            }
        }
        let labels = node.below(&["metadata", "labels"]);
        self.seen(node, (namespace, name), labels, "metadata.labels", Some(keys));
    }

    fn external_secret(&mut self, node: &Node) {
        let (namespace, own) = self.name(node);
        let target = node.below(&["spec", "target"]);
        let name = target.and_then(|target| target.get("name")).and_then(Node::text);
        let name = name.map_or(own, str::to_owned);
        let template = target.and_then(|target| target.get("template"));
        // Without a template, the Secret gets the labels of the ExternalSecret.
        let labels = match template {
            Some(template) => template.below(&["metadata", "labels"]),
            None => node.below(&["metadata", "labels"]),
        };
        let renders = template.is_some_and(|it| it.get("data").is_some() || it.get("templateFrom").is_some());
        let all_named = !renders && node.below(&["spec", "dataFrom"]).is_none();
        let keys = all_named.then(|| {
            let data = node.below(&["spec", "data"]).map(Node::items).unwrap_or_default();
            data.iter()
                .filter_map(|item| item.get("secretKey").and_then(Node::text))
                .map(|key| (key.to_owned(), true))
                .collect()
        });
        let place = "spec.target.template.metadata.labels";
        self.seen(node, (namespace, name), labels, place, keys);
    }

    fn sealed_secret(&mut self, node: &Node) {
        let (namespace, own) = self.name(node);
        let template = node.below(&["spec", "template"]);
        let text = template.and_then(|it| it.below(&["metadata", "name"])?.text());
        let name = text.map_or(own, str::to_owned);
        let keys = ["encryptedData", "template"].iter().flat_map(|part| {
            let node = node.below(&["spec", part]);
            let node = if *part == "template" {
                node.and_then(|it| it.get("data"))
            } else {
                node
            };
            node.map(Node::entries).unwrap_or_default()
        });
        let keys = keys.map(|entry| (entry.key.clone(), true)).collect();
        let labels = template.and_then(|it| it.below(&["metadata", "labels"]));
        self.seen(
            node,
            (namespace, name),
            labels,
            "spec.template.metadata.labels",
            Some(keys),
        );
    }

    fn seen(
        &mut self,
        node: &Node,
        (namespace, name): (String, String),
        labels: Option<&Node>,
        label_place: &'static str,
        keys: Option<BTreeMap<String, bool>>,
    ) {
        let label = labels
            .and_then(|labels| labels.get(SECRET_LABEL))
            .and_then(Node::text);
        self.found.secrets.push(SecretSeen {
            file: self.file.to_owned(),
            at: node.at,
            namespace,
            name,
            labelled: label == Some("true"),
            label_place,
            keys,
        });
        self.found.skipped += 1;
    }
}

/// Where each field stands, by its path.
fn collect(node: &Node, path: &str, places: &mut BTreeMap<String, Position>) {
    for entry in node.entries() {
        let path = if path.is_empty() {
            entry.key.clone()
        } else {
            format!("{path}.{}", entry.key)
        };
        collect(&entry.value, &path, places);
        places.insert(path, entry.at);
    }
}
