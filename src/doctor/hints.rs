//! What `docs/reasons.md` says to do about a reason: one text, so that the page and the doctor can't differ. Pure.

const PAGE: &str = include_str!("../../docs/reasons.md");

/// What the page says of a reason, as plain text.
pub(super) fn hint(reason: &str) -> Option<String> {
    let start = format!("| `{reason}` |");
    let row = PAGE.lines().find(|line| line.starts_with(&start))?;
    let text = row.trim_end_matches(['|', ' ']).rsplit(" | ").next()?.trim();
    (!text.is_empty()).then(|| text.replace('`', ""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::conditions::Reason;

    #[test]
    fn every_reason_has_a_hint() {
        for reason in Reason::ALL {
            let hint = hint(reason.as_str()).unwrap();
            assert!(hint.len() > 10 && !hint.contains('|'), "{reason}: {hint}");
        }
        assert!(
            hint("CredentialsRejected")
                .unwrap()
                .contains("Put the right ones into the Secret")
        );
        assert_eq!(hint("NoSuchReason"), None);
    }
}
