//! A value against the structural schema of the resource's definition, as the API server does it. Pure.
//!
//! The schema is the generated one: a keyword that this file does not know is an error when it is read, so that no
//! rule can come into the definition and be missed here. A message names no value: it may have been written into the
//! wrong field.

use std::collections::BTreeMap;

use serde::{Deserialize, de::IgnoredAny};

use super::{
    Code,
    rules::{NotJudged, Rules},
};
use crate::{
    words::{hint, listed},
    yaml::{Content, Entry, Node, Position},
};

/// The schema of a value.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Shape {
    #[serde(rename = "type")]
    kind: Kind,
    #[serde(default)]
    properties: BTreeMap<String, Shape>,
    #[serde(default)]
    required: Vec<String>,
    items: Option<Box<Shape>>,
    #[serde(rename = "enum", default)]
    words: Vec<String>,
    minimum: Option<f64>,
    maximum: Option<f64>,
    min_length: Option<usize>,
    max_length: Option<usize>,
    max_items: Option<usize>,
    #[serde(rename = "x-kubernetes-validations", default)]
    rules: Vec<Rule>,
    // In the status alone, which a manifest does not hold: what it says is not judged.
    #[serde(rename = "pattern")]
    _pattern: Option<IgnoredAny>,
    #[serde(rename = "x-kubernetes-list-map-keys")]
    _list_map_keys: Option<IgnoredAny>,
    #[serde(rename = "x-kubernetes-list-type")]
    _list_type: Option<IgnoredAny>,
    #[serde(rename = "default")]
    _default: Option<IgnoredAny>,
    // For people.
    #[serde(rename = "description")]
    _description: Option<IgnoredAny>,
    #[serde(rename = "title")]
    _title: Option<IgnoredAny>,
    #[serde(rename = "format")]
    _format: Option<IgnoredAny>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Object,
    Array,
    String,
    Integer,
    Boolean,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    rule: String,
    message: String,
}

/// Something that the API server would refuse.
pub(super) struct Finding {
    pub at: Position,
    pub path: String,
    pub code: Code,
    pub message: String,
}

/// The resource's definition, ready to judge by.
pub(super) struct Definition {
    spec: Shape,
    status: Shape,
    rules: Rules,
}

/// The definition holds what can't be judged here: a defect of this program, never of a manifest.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    /// It can't be generated.
    #[error(transparent)]
    Generated(#[from] crate::api::crd::CrdError),
    /// A keyword of its schema is not known here.
    #[error("the resource's definition can't be read: {0}")]
    Unknown(#[from] serde_json::Error),
    /// One of its rules can't be evaluated here.
    #[error("{0}")]
    Rule(String),
}

impl From<NotJudged> for DefinitionError {
    fn from(error: NotJudged) -> Self {
        Self::Rule(error.to_string())
    }
}

impl Definition {
    /// The definition of this release.
    pub fn new() -> Result<Self, DefinitionError> {
        let mut definition = serde_json::to_value(crate::api::crd::definition()?)?;
        let mut part = |name: &str| {
            let path = format!("/spec/versions/0/schema/openAPIV3Schema/properties/{name}");
            let shape = definition.pointer_mut(&path).map(serde_json::Value::take);
            serde_json::from_value::<Shape>(shape.unwrap_or_default())
        };
        let (spec, status) = (part("spec")?, part("status")?);
        let mut texts = Vec::new();
        spec.rule_texts(&mut texts);
        let rules = Rules::compile(texts)?;
        Ok(Self { spec, status, rules })
    }

    /// Everything that is wrong with a spec.
    pub fn spec(&self, entry: &Entry, findings: &mut Vec<Finding>) {
        let judge = Judge {
            definition: self,
            findings,
        };
        judge.all(entry);
    }

    /// The fields of a status that do not exist: nothing else of it is judged, because the API server drops it.
    pub fn status(&self, entry: &Entry, findings: &mut Vec<Finding>) {
        self.status.unknown(&entry.value, "status", findings);
    }

    /// The paths of a spec's fields that have no fields of their own, without `spec.`.
    #[cfg(test)]
    pub fn leaves(&self) -> Vec<String> {
        let mut leaves = Vec::new();
        self.spec.leaves("", &mut leaves);
        leaves
    }
}

struct Judge<'a> {
    definition: &'a Definition,
    findings: &'a mut Vec<Finding>,
}

impl Judge<'_> {
    fn all(mut self, entry: &Entry) {
        let shape = &self.definition.spec;
        self.value(shape, &entry.value, "spec", entry.at);
    }

    fn say(&mut self, at: Position, path: &str, code: Code, message: String) {
        self.findings.push(Finding {
            at,
            path: path.to_owned(),
            code,
            message,
        });
    }

    fn value(&mut self, shape: &Shape, node: &Node, path: &str, at: Position) {
        let before = self.findings.len();
        if !shape.kind.fits(&node.content) {
            let message = format!("must be {}, not {}", shape.kind.words(), words(&node.content));
            return self.say(at, path, Code::Type, message);
        }
        match &node.content {
            Content::Map(entries) => self.map(shape, entries, path, at),
            Content::List(items) => self.list(shape, items, path, at),
            Content::Text(text) => self.text(shape, text, path, at),
            Content::Number(number) => self.number(shape, number.as_f64().unwrap_or(f64::NAN), path, at),
            Content::Null | Content::Bool(_) => {}
        }
        if self.findings.len() == before && !shape.rules.is_empty() {
            let value = node.json();
            for rule in &shape.rules {
                if !self.definition.rules.keeps(&rule.rule, &value) {
                    self.say(at, path, Code::Rule, rule.message.clone());
                }
            }
        }
    }

    fn map(&mut self, shape: &Shape, entries: &[Entry], path: &str, at: Position) {
        for entry in entries {
            let path = format!("{path}.{}", entry.key);
            match shape.properties.get(&entry.key) {
                // A null is left out where a field may not be null.
                Some(_) if matches!(entry.value.content, Content::Null) => {}
                Some(field) => self.value(field, &entry.value, &path, entry.at),
                None => {
                    let message = no_such_field(&entry.key, shape, Some(&self.definition.spec));
                    self.say(entry.at, &path, Code::UnknownField, message);
                }
            }
        }
        for name in &shape.required {
            let there = |entry: &Entry| entry.key == *name && !matches!(entry.value.content, Content::Null);
            if !entries.iter().any(there) {
                let path = format!("{path}.{name}");
                self.say(at, &path, Code::Required, "is required".to_owned());
            }
        }
    }

    fn list(&mut self, shape: &Shape, items: &[Node], path: &str, at: Position) {
        if shape.max_items.is_some_and(|most| items.len() > most) {
            let message = format!("must have at most {} items", shape.max_items.unwrap_or_default());
            self.say(at, path, Code::TooLong, message);
        }
        let Some(item) = &shape.items else { return };
        for (index, node) in items.iter().enumerate() {
            self.value(item, node, &format!("{path}[{index}]"), node.at);
        }
    }

    fn text(&mut self, shape: &Shape, text: &str, path: &str, at: Position) {
        let length = text.chars().count();
        if let Some(most) = shape.max_length.filter(|most| length > *most) {
            let message = format!("too long: at most {most} characters");
            self.say(at, path, Code::TooLong, message);
        }
        if shape.min_length.is_some_and(|least| length < least) {
            self.say(at, path, Code::TooShort, "must not be empty".to_owned());
        }
        if !shape.words.is_empty() && !shape.words.iter().any(|word| word == text) {
            let message = format!(
                "must be one of {}{}",
                listed(&shape.words),
                hint(text, shape.words.iter().map(String::as_str))
            );
            self.say(at, path, Code::Enum, message);
        }
    }

    fn number(&mut self, shape: &Shape, number: f64, path: &str, at: Position) {
        if let Some(least) = shape.minimum.filter(|least| number < *least) {
            self.say(at, path, Code::Range, format!("must be at least {least}"));
        }
        if let Some(most) = shape.maximum.filter(|most| number > *most) {
            self.say(at, path, Code::Range, format!("must be at most {most}"));
        }
    }
}

impl Shape {
    fn rule_texts<'a>(&'a self, texts: &mut Vec<&'a str>) {
        texts.extend(self.rules.iter().map(|rule| rule.rule.as_str()));
        self.properties
            .values()
            .chain(self.items.as_deref())
            .for_each(|shape| shape.rule_texts(texts));
    }

    fn unknown(&self, node: &Node, path: &str, findings: &mut Vec<Finding>) {
        for entry in node.entries() {
            let path = format!("{path}.{}", entry.key);
            match self.properties.get(&entry.key) {
                Some(field) => field.unknown(&entry.value, &path, findings),
                None => findings.push(Finding {
                    at: entry.at,
                    path,
                    code: Code::UnknownField,
                    message: no_such_field(&entry.key, self, None),
                }),
            }
        }
        if let Some(item) = &self.items {
            for (index, node) in node.items().iter().enumerate() {
                item.unknown(node, &format!("{path}[{index}]"), findings);
            }
        }
    }

    /// Where in this schema a field of that name stands.
    fn places(&self, name: &str, path: &str, places: &mut Vec<String>) {
        for (key, field) in &self.properties {
            let path = format!("{path}.{key}");
            field.places(name, &path, places);
            if key == name {
                places.push(path);
            }
        }
    }

    #[cfg(test)]
    fn leaves(&self, path: &str, leaves: &mut Vec<String>) {
        for (key, field) in &self.properties {
            let path = format!("{path}{key}");
            if field.properties.is_empty() {
                leaves.push(path);
            } else {
                field.leaves(&format!("{path}."), leaves);
            }
        }
    }
}

fn no_such_field(name: &str, shape: &Shape, whole: Option<&Shape>) -> String {
    let mut places = Vec::new();
    if let Some(spec) = whole {
        spec.places(name, "spec", &mut places);
    }
    let hint = match places.as_slice() {
        [] => hint(name, shape.properties.keys().map(String::as_str)),
        places => format!("; did you mean {}?", places.join(" or ")),
    };
    format!("no such field{hint}")
}

impl Kind {
    fn fits(self, content: &Content) -> bool {
        match content {
            Content::Null => false,
            Content::Bool(_) => self == Self::Boolean,
            // A float without a fraction is an integer, as in JSON Schema.
            Content::Number(number) => {
                self == Self::Integer
                    && (number.is_i64() || number.as_f64().is_some_and(|value| value.fract() == 0.0))
            }
            Content::Text(_) => self == Self::String,
            Content::List(_) => self == Self::Array,
            Content::Map(_) => self == Self::Object,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Object => "a mapping",
            Self::Array => "a list",
            Self::String => "a string",
            Self::Integer => "a whole number",
            Self::Boolean => "true or false",
        }
    }
}

/// What a value is, in words.
fn words(content: &Content) -> &'static str {
    match content {
        Content::Null => "nothing",
        Content::Bool(_) => "a boolean (put a text in quotes)",
        Content::Number(_) => "a number (put a text in quotes)",
        Content::Text(_) => "a string",
        Content::List(_) => "a list",
        Content::Map(_) => "a mapping",
    }
}
