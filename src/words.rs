//! Words for people: the known word that a misspelt one is near to, counts, lists, and texts from elsewhere without
//! what a terminal would act on. Pure.

/// How a word is compared: without its case and without what joins its parts.
fn plain(text: &str) -> String {
    text.to_lowercase().replace(['-', '_', '.'], "")
}

/// The known words that one may be meant as, the nearest first; of equally near ones, in their order.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let written = plain(word);
    let mut near: Vec<(usize, &str)> = known
        .into_iter()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&written, &plain(candidate)),
                candidate,
            )
        })
        .filter(|(distance, candidate)| distance * 3 <= candidate.len().max(3))
        .collect();
    near.sort_by_key(|(distance, _)| *distance);
    near.into_iter().map(|(_, candidate)| candidate).collect()
}

/// The nearest of the known words, if one is near enough to be meant.
pub(crate) fn near<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    nearest(word, known).first().copied()
}

/// The hint that follows a message: empty without a near word.
pub(crate) fn hint<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    near(word, known).map_or_else(String::new, |near| format!("; did you mean \"{near}\"?"))
}

/// `1 channel`, `2 channels`.
pub(crate) fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Words as a person lists them: `"a", "b" or "c"`.
pub(crate) fn listed(words: &[impl AsRef<str>]) -> String {
    let quoted: Vec<String> = words
        .iter()
        .map(|word| format!("\"{}\"", word.as_ref()))
        .collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

/// A text from elsewhere in one line, without characters that would move a terminal's cursor.
pub(crate) fn printable(text: &str) -> String {
    text.replace(char::is_control, "?")
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

    #[test]
    fn several_near_words_come_nearest_first() {
        let known = ["shop-es", "shop-ec", "shop", "zzz"];
        assert_eq!(nearest("shop-ec", known), ["shop-ec", "shop-es"]);
        assert_eq!(nearest("qqqq", known), Vec::<&str>::new());
    }

    #[test]
    fn a_text_from_elsewhere_stays_in_its_line() {
        assert_eq!(printable("a\u{1b}[31m\nb"), "a?[31m?b");
        assert_eq!(listed(&["a", "b", "c"]), "\"a\", \"b\" or \"c\"");
        assert_eq!(
            (counted(1, "file"), counted(0, "file")),
            ("1 file".into(), "0 files".into())
        );
    }
}
