//! "Did you mean": the known word that a misspelt one is nearest to. Pure.

/// The nearest of the known words, if one is near enough to be meant.
pub(super) fn near<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace(['-', '_', '.'], "");
    let written = plain(word);
    known
        .into_iter()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&written, &plain(candidate)),
                candidate,
            )
        })
        .filter(|(distance, candidate)| distance * 3 <= candidate.len().max(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The hint that follows a message: empty without a near word.
pub(super) fn hint<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    near(word, known).map_or_else(String::new, |near| format!("; did you mean \"{near}\"?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_word_and_nonsense_finds_none() {
        let known = ["channelId", "phoneNumber", "environment", "kernel", "webhook"];
        for (written, meant) in [
            ("channelID", Some("channelId")),
            ("channel_id", Some("channelId")),
            ("enviroment", Some("environment")),
            ("kernal", Some("kernel")),
            ("webhok", Some("webhook")),
            ("replicas", None),
            ("x", None),
        ] {
            assert_eq!(near(written, known), meant, "{written}");
        }
    }
}
