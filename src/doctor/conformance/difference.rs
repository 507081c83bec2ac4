//! How a webhook that Kernel shows differs from the one that was set. Pure.

use super::{evidence::place, writes::HARMLESS};

/// How a URL differs from the harmless one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Difference {
    Empty,
    Elsewhere,
    /// The key alone: masked.
    Key,
    /// The same parameters, in another order.
    Order,
    /// Written in another way that means the same.
    Spelling,
    /// A parameter is missing or new.
    Parameters,
}

impl Difference {
    pub fn words(self) -> &'static str {
        match self {
            Self::Empty => "no webhook",
            Self::Elsewhere => "another host or path",
            Self::Key => "the key, which is masked",
            Self::Order => "the order of its parameters",
            Self::Spelling => "its spelling",
            Self::Parameters => "its parameters, of which some are missing or new",
        }
    }
}

/// How a URL that Kernel shows differs from the one that was set; `None`: not at all.
pub(super) fn difference(url: &str) -> Option<Difference> {
    if url == HARMLESS {
        return None;
    }
    if url.is_empty() {
        return Some(Difference::Empty);
    }
    if place(url) != place(HARMLESS) {
        return Some(Difference::Elsewhere);
    }
    let pairs = |text: &str| -> Vec<(String, String)> {
        let url = url::Url::parse(text).ok();
        let url = url.iter().flat_map(url::Url::query_pairs);
        url.map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect()
    };
    let (is, was) = (pairs(url), pairs(HARMLESS));
    if is == was {
        return Some(Difference::Spelling);
    }
    let sorted = |mut pairs: Vec<(String, String)>| {
        pairs.sort();
        pairs
    };
    if sorted(is.clone()) == sorted(was.clone()) {
        return Some(Difference::Order);
    }
    let without_key = |pairs: &[(String, String)]| -> Vec<(String, String)> {
        pairs
            .iter()
            .filter(|(name, _)| !name.eq_ignore_ascii_case("apikey"))
            .cloned()
            .collect()
    };
    let same = sorted(without_key(&is)) == sorted(without_key(&was)) && is.len() == was.len();
    Some(if same {
        Difference::Key
    } else {
        Difference::Parameters
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_told_by_its_kind() {
        let tail = HARMLESS.split_once('?').unwrap().1;
        let (key, id) = tail.split_once('&').unwrap();
        let base = HARMLESS.split_once('?').unwrap().0;
        for (url, expected) in [
            (HARMLESS.to_owned(), None),
            (String::new(), Some(Difference::Empty)),
            (format!("{base}?{id}&{key}"), Some(Difference::Order)),
            (HARMLESS.replace("https", "HTTPS"), Some(Difference::Spelling)),
            (format!("{base}?apikey=****&{id}"), Some(Difference::Key)),
            (format!("{base}?{id}"), Some(Difference::Parameters)),
            (
                "https://elsewhere.example.com/".to_owned(),
                Some(Difference::Elsewhere),
            ),
        ] {
            assert_eq!(difference(&url), expected, "{url}");
        }
    }
}
