//! The name of a resource, made of what a document is known by. Pure.

use std::collections::BTreeSet;

use super::document::AuraChannel;

/// The longest name that is made: its Secret's name and a suffix still fit into a label.
const MAX: usize = 48;

/// A template of names, such as `{prefix}-{number}`.
#[derive(Clone, Debug)]
pub struct NameTemplate(String);

/// The template holds what can't be filled in.
#[derive(Debug, thiserror::Error)]
#[error("a name may be made of {{name}}, {{prefix}}, {{number}} and {{channelId}}, not of {{{0}}}")]
pub struct InvalidTemplate(String);

const PLACES: &[&str] = &["name", "prefix", "number", "channelId"];

impl std::str::FromStr for NameTemplate {
    type Err = InvalidTemplate;

    fn from_str(text: &str) -> Result<Self, InvalidTemplate> {
        for place in text.split('{').skip(1) {
            let place = place.split('}').next().unwrap_or_default();
            if !PLACES.contains(&place) {
                return Err(InvalidTemplate(place.to_owned()));
            }
        }
        Ok(Self(text.to_owned()))
    }
}

impl NameTemplate {
    fn fill(&self, channel: &AuraChannel) -> String {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        self.0
            .replace("{name}", &text(&channel.name))
            .replace("{prefix}", &text(&channel.prefix))
            .replace("{number}", &text(&channel.number))
            .replace("{channelId}", &channel.channel_id)
    }
}

/// The name of a channel's resource: by the template, else its name, its prefix, its number, its id.
pub(super) fn name(channel: &AuraChannel, template: Option<&NameTemplate>) -> String {
    let number = channel.number.as_ref().map(|number| format!("number-{number}"));
    template
        .map(|template| template.fill(channel))
        .into_iter()
        .chain(channel.name.clone())
        .chain(channel.prefix.clone())
        .chain(number)
        .map(|text| plain(&text))
        .find(|text| !text.is_empty())
        .unwrap_or_else(|| plain(&format!("channel-{}", short(channel))))
}

/// The files of a channel of this name, without their ending: its own and its Secret's.
pub(super) fn files(name: &str) -> [String; 2] {
    [name.to_owned(), secret_file(name)]
}

/// The file of a channel's Secret, without its ending.
pub fn secret_file(name: &str) -> String {
    format!("{name}-secret")
}

/// A name of which neither file is taken yet: with the start of the channel's id, then with a number. That `shop` has
/// a Secret's file of the name that a channel `shop-secret` would have is nothing to lose a Secret by.
pub(super) fn free(name: &str, channel: &AuraChannel, taken: &BTreeSet<String>) -> String {
    let with_id = format!("{name}-{}", short(channel));
    let numbered = (2..).map(|number| format!("{with_id}-{number}"));
    std::iter::once(name.to_owned())
        .chain(std::iter::once(with_id.clone()))
        .chain(numbered)
        .find(|name| !files(name).iter().any(|file| taken.contains(file)))
        .unwrap_or(with_id)
}

fn short(channel: &AuraChannel) -> String {
    plain(&channel.channel_id).chars().take(8).collect()
}

/// A DNS label (RFC 1123): lower case letters, digits and single hyphens.
fn plain(text: &str) -> String {
    let mut name = String::new();
    for c in text.to_lowercase().chars() {
        if c.is_ascii_alphanumeric() {
            name.push(c);
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
    }
    name.truncate(MAX);
    name.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_made_of_anything() {
        for (text, name) in [
            ("Shop España", "shop-espa-a"),
            ("__x__", "x"),
            ("+34 600", "34-600"),
            ("日本", ""),
            (&"a".repeat(99), &"a".repeat(48)),
        ] {
            assert_eq!(plain(text), name);
        }
        assert!("{prefix}-{number}".parse::<NameTemplate>().is_ok());
        assert!("{secret}".parse::<NameTemplate>().is_err());
    }
}
