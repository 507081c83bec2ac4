//! Text to documents, where each value knows its line and column. Pure.
//!
//! A plain scalar means what `kubectl` and the API server take it for (YAML 1.1, as in `sigs.k8s.io/yaml`): `on` is a
//! boolean, `0x10` a number. JSON is read as the YAML that it is. Nothing of a document's text stands in an error:
//! the text may hold a Secret.

use std::{borrow::Cow, collections::HashMap};

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, Tag};
use serde_json::{Number, Value};

/// How many values the aliases of one text may stand for: without a limit a few lines could stand for billions.
const MAX_ALIASED: usize = 100_000;

/// A place in a text: line and column, both from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

/// A value and where it starts. It has no `Debug`: it may be a Secret's.
#[derive(Clone)]
pub(crate) struct Node {
    pub at: Position,
    pub content: Content,
}

/// What a value is.
#[derive(Clone)]
pub(crate) enum Content {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key of a mapping.
#[derive(Clone)]
pub(crate) struct Entry {
    pub key: String,
    pub at: Position,
    pub value: Node,
    /// It came by a merge key (`<<`): a key of the mapping itself wins over it.
    merged: bool,
}

/// One document of a text.
pub(crate) struct Document {
    pub root: Node,
    /// Keys that stand twice in one mapping; the API server refuses them.
    pub twice: Vec<(String, Position)>,
}

/// A text is not YAML: where, and why.
#[derive(Debug)]
pub(crate) struct Unreadable {
    pub at: Position,
    pub why: String,
}

impl Node {
    /// The value under a key.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// The entry of a key. Of two the last counts, as in a lenient reader.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().rev().find(|entry| entry.key == key)
    }

    /// The entries; none if it is no mapping.
    pub fn entries(&self) -> &[Entry] {
        match &self.content {
            Content::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The items; none if it is no list.
    pub fn items(&self) -> &[Node] {
        match &self.content {
            Content::List(items) => items,
            _ => &[],
        }
    }

    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value below these keys.
    pub fn below(&self, path: &[&str]) -> Option<&Node> {
        path.iter().try_fold(self, |node, key| node.get(key))
    }

    /// Where a field stands, its keys joined by dots, or the nearest that is written of what it stands in. A key may have
    /// dots itself.
    pub fn place(&self, field: &str) -> Position {
        self.entries()
            .iter()
            .rev()
            .find_map(|entry| match field.strip_prefix(entry.key.as_str())? {
                "" => Some(entry.at),
                rest => {
                    let deeper = entry.value.place(rest.strip_prefix('.')?);
                    // Nothing of the rest is written: the mapping begins where its first entry does.
                    Some(if deeper == entry.value.at {
                        entry.at
                    } else {
                        deeper
                    })
                }
            })
            .unwrap_or(self.at)
    }

    /// The value as JSON. A key without a value is left out, as the API server leaves it out where a field may not be
    /// null.
    pub fn json(&self) -> Value {
        match &self.content {
            Content::Null => Value::Null,
            Content::Bool(value) => Value::Bool(*value),
            Content::Number(value) => Value::Number(value.clone()),
            Content::Text(text) => Value::String(text.clone()),
            Content::List(items) => items.iter().map(Node::json).collect(),
            Content::Map(entries) => entries
                .iter()
                .filter(|entry| !matches!(entry.value.content, Content::Null))
                .map(|entry| (entry.key.clone(), entry.value.json()))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        }
    }

    fn size(&self) -> usize {
        match &self.content {
            Content::List(items) => 1 + items.iter().map(Node::size).sum::<usize>(),
            Content::Map(entries) => 1 + entries.iter().map(|entry| entry.value.size()).sum::<usize>(),
            _ => 1,
        }
    }
}

/// Reads every document. What stands before an error is read all the same.
pub(crate) fn parse(text: &str) -> (Vec<Document>, Option<Unreadable>) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let options = granit_parser::options! { emit_comments: false, block_scalar_eof_without_line_feed: true };
    let mut builder = Builder::default();
    let mut documents = Vec::new();
    for next in Parser::new_from_str_with_options(text, options) {
        let step = next
            .map_err(|error| Unreadable {
                at: position(*error.marker()),
                why: words(error.kind()),
            })
            .and_then(|(event, span)| builder.take(event, position(span.start)));
        match step {
            Ok(Some(document)) => documents.push(document),
            Ok(None) => {}
            Err(error) => return (documents, Some(error)),
        }
    }
    (documents, None)
}

fn position(marker: granit_parser::Marker) -> Position {
    Position {
        line: marker.line().max(1),
        column: marker.col() + 1,
    }
}

/// The words of the parser, but for those that quote the text.
fn words(kind: &ErrorKind) -> String {
    match kind {
        ErrorKind::UnexpectedCharacter { .. } => "unexpected character".to_owned(),
        ErrorKind::Custom(_) => "not YAML".to_owned(),
        kind => kind.to_string(),
    }
}

/// A collection that has not ended yet.
enum Open {
    List(Position, usize, Vec<Node>),
    Map(Position, usize, Vec<Entry>, Option<Key>),
}

struct Key {
    text: String,
    at: Position,
    merges: bool,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    root: Option<Node>,
    twice: Vec<(String, Position)>,
    aliased: usize,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, at: Position) -> Result<Option<Document>, Unreadable> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let content = scalar(&text, style, tag.as_deref());
                // A merge key is one only where it is plain.
                let merges = text == "<<" && style == ScalarStyle::Plain;
                self.value(Node { at, content }, anchor, merges)?;
            }
            Event::SequenceStart(_, anchor, _) => self.open.push(Open::List(at, anchor, Vec::new())),
            Event::MappingStart(_, anchor, _) => self.open.push(Open::Map(at, anchor, Vec::new(), None)),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List(at, anchor, items)) => {
                    let content = Content::List(items);
                    self.value(Node { at, content }, anchor, false)?;
                }
                Some(Open::Map(at, anchor, entries, _)) => {
                    let content = Content::Map(entries);
                    self.value(Node { at, content }, anchor, false)?;
                }
                None => {}
            },
            Event::Alias(anchor) => {
                let mut node = self.anchors.get(&anchor).cloned().ok_or_else(|| Unreadable {
                    at,
                    why: "an alias stands inside of what it stands for".to_owned(),
                })?;
                self.aliased += node.size();
                if self.aliased > MAX_ALIASED {
                    let why = format!("aliases stand for more than {MAX_ALIASED} values");
                    return Err(Unreadable { at, why });
                }
                node.at = at;
                self.value(node, 0, false)?;
            }
            Event::DocumentEnd => {
                self.anchors.clear();
                let twice = std::mem::take(&mut self.twice);
                return Ok(self.root.take().map(|root| Document { root, twice }));
            }
            _ => {}
        }
        Ok(None)
    }

    fn value(&mut self, node: Node, anchor: usize, merges: bool) -> Result<(), Unreadable> {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::List(_, _, items)) => items.push(node),
            Some(Open::Map(_, _, _, key @ None)) => {
                let text = match node.content {
                    Content::Text(text) => text,
                    Content::Bool(value) => value.to_string(),
                    Content::Number(number) => number.to_string(),
                    Content::Null => "null".to_owned(),
                    Content::List(_) | Content::Map(_) => {
                        let why = "a key is a list or a mapping; write a text".to_owned();
                        return Err(Unreadable { at: node.at, why });
                    }
                };
                let at = node.at;
                *key = Some(Key { text, at, merges });
            }
            Some(Open::Map(_, _, entries, key)) => {
                let Some(Key { text, at, merges }) = key.take() else {
                    return Ok(());
                };
                if merges {
                    merge(entries, &node);
                    return Ok(());
                }
                entries.retain(|entry| entry.key != text || !entry.merged);
                if entries.iter().any(|entry| entry.key == text) {
                    self.twice.push((text.clone(), at));
                }
                entries.push(Entry {
                    key: text,
                    at,
                    value: node,
                    merged: false,
                });
            }
        }
        Ok(())
    }
}

/// Adds what a merge key brings; of several mappings the first wins.
fn merge(entries: &mut Vec<Entry>, from: &Node) {
    for map in from.items() {
        merge(entries, map);
    }
    for entry in from.entries() {
        if entries.iter().all(|own| own.key != entry.key) {
            entries.push(Entry {
                merged: true,
                ..entry.clone()
            });
        }
    }
}

/// What a scalar means.
fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Content {
    let tag = tag.and_then(Tag::core_suffix);
    if style != ScalarStyle::Plain && tag.is_none() || tag == Some("str") {
        return Content::Text(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Content::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            Content::Bool(true)
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Content::Bool(false)
        }
        text => number(text).map_or_else(|| Content::Text(text.to_owned()), Content::Number),
    }
}

/// A number, if the text starts as one and is one: decimal, octal (`010`, `0o10`), hexadecimal, binary, or a float.
fn number(text: &str) -> Option<Number> {
    text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c))
        .then_some(())?;
    let plain: Cow<'_, str> = text.replace('_', "").into();
    let (negative, digits) = match plain.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, plain.strip_prefix('+').unwrap_or(&plain)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.get(..2) {
        Some("0x") => (16, &lower[2..]),
        Some("0o") => (8, &lower[2..]),
        Some("0b") => (2, &lower[2..]),
        _ if lower.len() > 1 && lower.starts_with('0') && lower.bytes().all(|b| b.is_ascii_digit()) => {
            (8, &lower[1..])
        }
        _ => (10, lower.as_str()),
    };
    if let Ok(magnitude) = i128::from_str_radix(digits, radix)
        && !digits.starts_with(['+', '-'])
        && let Some(number) = Number::from_i128(if negative { -magnitude } else { magnitude })
    {
        return Some(number);
    }
    let float = |c: char| c.is_ascii_digit() || "+-.eE".contains(c);
    let starts = lower.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    (starts && lower.contains(|c: char| c.is_ascii_digit()) && plain.chars().all(float))
        .then(|| plain.parse().ok().and_then(Number::from_f64))
        .flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn one(text: &str) -> Value {
        let (documents, error) = parse(text);
        assert!(error.is_none(), "{error:?}");
        documents[0].root.json()
    }

    #[test]
    fn a_plain_scalar_means_what_kubectl_takes_it_for() {
        for (text, value) in [
            ("on", json!(true)),
            ("No", json!(false)),
            ("\"on\"", json!("on")),
            ("!!str 12", json!("12")),
            ("+34600001002", json!(34_600_001_002_i64)),
            ("010", json!(8)),
            ("0x10", json!(16)),
            ("1_000", json!(1000)),
            ("1.5e3", json!(1500.0)),
            ("1.2.3", json!("1.2.3")),
            ("6f1c2a9e-5f0e", json!("6f1c2a9e-5f0e")),
            ("2026-12-01", json!("2026-12-01")),
            ("1h30m", json!("1h30m")),
            ("-", json!([null])),
            ("099", json!(99.0)),
        ] {
            assert_eq!(
                one(&format!("a: {text}\n").replace("a: -\n", "a: [~]\n"))["a"],
                value,
                "{text}"
            );
        }
    }

    #[test]
    fn every_value_knows_its_place_in_yaml_and_in_json() {
        let (documents, _) =
            parse("# first\n---\na:\n  b: [1, x]\n---\n{\n\t\"c\": {\"d\": \"\\ud83d\\ude00\"}\n}\n");
        let at = |line, column| Position { line, column };
        let entry = &documents[0].root.get("a").unwrap().entries()[0];
        assert_eq!((entry.at, entry.value.items()[1].at), (at(4, 3), at(4, 10)));
        assert_eq!(documents[1].root.entry("c").unwrap().at, at(7, 2));
        assert_eq!(documents[1].root.json(), json!({"c": {"d": "😀"}}));
    }

    #[test]
    fn anchors_and_merge_keys_are_followed_and_aliases_cannot_stand_for_everything() {
        for text in [
            "b: 2\n  <<: *base\n",
            "<<: *base\n  b: 2\n",
            "<<: [*base, {a: 3}]\n  b: 2\n",
        ] {
            let text = format!("base: &base {{a: 1, b: 1}}\nmine:\n  {text}");
            assert_eq!(one(&text)["mine"], json!({"a": 1, "b": 2}));
            assert!(parse(&text).0[0].twice.is_empty());
        }
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let list = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb = format!("{bomb}a{level}: &a{level} [{list}]\n");
        }
        assert!(parse(&bomb).1.unwrap().why.contains("aliases"));
        assert!(parse("a: &a [*a]\n").1.is_some());
    }

    #[test]
    fn what_stands_before_an_error_is_read_and_no_text_stands_in_the_error() {
        let (documents, error) = parse("a: 1\n---\nsecret: \"sentinel\n  @x: [\n");
        let error = error.unwrap();
        assert_eq!(documents.len(), 1);
        assert!(error.at.line >= 3 && !error.why.contains("sentinel"), "{error:?}");
        let (_, error) = parse("secret: @sentinel\n");
        assert!(!error.unwrap().why.contains('@'));
    }

    #[test]
    fn a_key_that_stands_twice_is_told_of() {
        let twice = &parse("a: 1\nb: 2\na: 3\n").0[0].twice;
        assert_eq!(twice, &[("a".to_owned(), Position { line: 3, column: 1 })]);
    }
}
