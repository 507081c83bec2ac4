//! A manifest's metadata: names, labels, annotations, as the API server takes them. Pure.

use crate::words::hint;
use crate::yaml::{Content, Entry, Position};

/// The fields of `metav1.ObjectMeta`.
const METADATA: &[&str] = &[
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// What is wrong with the metadata: field, place, message.
pub(super) fn problems(metadata: &Entry) -> Vec<(String, Position, String)> {
    let mut wrong = Vec::new();
    if !matches!(metadata.value.content, Content::Map(_) | Content::Null) {
        wrong.push(("metadata".to_owned(), metadata.at, "must be a mapping".to_owned()));
    }
    for entry in metadata.value.entries() {
        let field = format!("metadata.{}", entry.key);
        let text = entry.value.text();
        let null = matches!(entry.value.content, Content::Null);
        let message = match entry.key.as_str() {
            _ if null => continue,
            "name" if !text.is_some_and(|text| is_name(text, 253, true)) => {
                "must be lower case letters, digits, '-' and '.', up to 253".to_owned()
            }
            "namespace" if !text.is_some_and(|text| is_name(text, 63, false)) => {
                "must be lower case letters, digits and '-', up to 63".to_owned()
            }
            key @ ("labels" | "annotations") => {
                let Content::Map(entries) = &entry.value.content else {
                    wrong.push((field, entry.at, "must be a mapping".to_owned()));
                    continue;
                };
                for pair in entries {
                    let field = format!("{field}.{}", pair.key);
                    let value = pair.value.text();
                    let message = if !is_key(&pair.key) {
                        "is no key for this: write a name of up to 63 characters, with or without a prefix/"
                    } else if value.is_none() && !matches!(pair.value.content, Content::Null) {
                        "must be a string; put it in quotes"
                    } else if key == "labels" && !value.is_none_or(is_label) {
                        "must be up to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends"
                    } else {
                        continue;
                    };
                    wrong.push((field, pair.at, message.to_owned()));
                }
                continue;
            }
            key if !METADATA.contains(&key) => {
                format!("no such field{}", hint(key, METADATA.iter().copied()))
            }
            _ => continue,
        };
        wrong.push((field, entry.at, message));
    }
    wrong
}

/// A DNS label, or with `dots` a DNS subdomain (RFC 1123).
pub(super) fn is_name(text: &str, most: usize, dots: bool) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let label = |part: &str| {
        !part.is_empty() && !part.starts_with('-') && !part.ends_with('-') && part.chars().all(inner)
    };
    text.len() <= most
        && if dots {
            text.split('.').all(label)
        } else {
            label(text)
        }
}

/// The value of a label.
fn is_label(text: &str) -> bool {
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text.is_empty()
        || text.len() <= 63
            && end(text.chars().next())
            && end(text.chars().next_back())
            && text.chars().all(inner)
}

/// The key of a label or annotation.
fn is_key(text: &str) -> bool {
    let name = |name: &str| !name.is_empty() && is_label(name);
    match text.split_once('/') {
        None => name(text),
        Some((prefix, rest)) => is_name(&prefix.to_lowercase(), 253, true) && name(rest),
    }
}
