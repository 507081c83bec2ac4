//! What is sent to a user: the body of `POST …/messages`.

use serde::Serialize;

/// The longest text of one message, in characters (WhatsApp's own limit).
pub const TEXT_LIMIT: usize = 4096;

/// One message to one user. Its `Debug` is left out on purpose: it holds a number and a text.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct OutboundMessage {
    recipient_type: &'static str,
    /// The user's WhatsApp id: digits.
    pub to: String,
    /// What each status of the message is to tell back.
    #[serde(rename = "biz_opaque_callback_data", skip_serializing_if = "Option::is_none")]
    pub echo: Option<String>,
    #[serde(flatten)]
    content: Content,
}

#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Content {
    Text { text: Text },
}

#[derive(Clone, PartialEq, Eq, Serialize)]
struct Text {
    body: String,
    preview_url: bool,
}

impl OutboundMessage {
    /// A text message. A text with a link is shown with a preview of it.
    pub fn text(to: impl Into<String>, body: impl Into<String>) -> Self {
        let body = body.into();
        let preview_url = body.contains("https://") || body.contains("http://");
        Self {
            recipient_type: "individual",
            to: to.into(),
            echo: None,
            content: Content::Text {
                text: Text { body, preview_url },
            },
        }
    }
}

/// Cuts a text into parts that WhatsApp takes, at a line or word end where there is one.
pub fn text_parts(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end();
    while let Some((limit, _)) = rest.char_indices().nth(TEXT_LIMIT) {
        let head = &rest[..limit];
        let late = |at: &usize| *at > limit / 2;
        let cut = head
            .rfind('\n')
            .filter(late)
            .or_else(|| head.rfind(' ').filter(late))
            .unwrap_or(limit);
        parts.push(rest[..cut].trim_end());
        rest = rest[cut..].trim_start();
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_text_has_the_documented_shape_and_a_preview_where_it_has_a_link() {
        let message = |body: &str| serde_json::to_value(OutboundMessage::text("34600000001", body)).unwrap();
        assert_eq!(
            message("hola"),
            json!({"recipient_type": "individual", "to": "34600000001", "type": "text",
                   "text": {"body": "hola", "preview_url": false}})
        );
        assert_eq!(message("see https://example.org")["text"]["preview_url"], true);
    }

    #[test]
    fn a_long_text_is_cut_at_a_word_end() {
        let text = "palabra ".repeat(1000);
        let parts = text_parts(&text);
        assert_eq!(parts.len(), 2);
        assert!(parts.iter().all(|part| part.ends_with("palabra")));
        let text = format!("Hola\n{text}");
        assert!(
            text_parts(&text).iter().all(|part| part.ends_with("palabra")),
            "an early line end is no reason"
        );
    }

    proptest! {
        #[test]
        fn parts_hold_every_visible_character_in_order(text in "[a-zñ \n€]{0,9000}") {
            let parts = text_parts(&text);
            prop_assert!(parts.iter().all(|part| part.chars().count() <= TEXT_LIMIT));
            let visible = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            prop_assert_eq!(visible(&parts.concat()), visible(&text));
        }
    }
}
