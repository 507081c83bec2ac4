//! What a message to a user may look like: the documented fields and limits of WhatsApp's messages, for both versions
//! of Kernel's API. A field that is not documented is refused, as the on-premises API did (error 1010).

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    fields::{Checked, Object},
    ledger::ApiVersion,
};

/// What of a valid message is of interest.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub to: String,
    pub kind: String,
    pub text: String,
}

pub(super) fn check(body: &Value, version: ApiVersion) -> Checked<Message> {
    let message = Object::of(body, "the body")?;
    let kind = message.text("type", 1..=20)?;
    let mut allowed = vec![
        "recipient_type",
        "to",
        "type",
        "context",
        "biz_opaque_callback_data",
        kind,
    ];
    match version {
        ApiVersion::V1 => allowed.push("preview_url"),
        ApiVersion::V2 => allowed.push("messaging_product"),
    }
    message.only(&allowed)?;
    if message.text("recipient_type", 1..=20)? != "individual" {
        return Err("recipient_type must be individual".to_owned());
    }
    if message
        .optional_text("messaging_product", 1..=20)?
        .is_some_and(|product| product != "whatsapp")
    {
        return Err("messaging_product must be whatsapp".to_owned());
    }
    let to = message.text("to", 3..=15)?;
    if !to.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("to must be digits".to_owned());
    }
    message.optional_bool("preview_url")?;
    message.optional_text("biz_opaque_callback_data", 1..=512)?;
    if let Some(context) = message.optional("context")? {
        context.only(&["message_id"])?;
        context.text("message_id", 1..=512)?;
    }
    let text = content(&message, kind)?;
    Ok(Message {
        to: to.to_owned(),
        kind: kind.to_owned(),
        text,
    })
}

/// Checks the part that the type names; gives what of it can be read.
fn content(message: &Object<'_>, kind: &str) -> Checked<String> {
    match kind {
        "text" => {
            let text = message.object("text")?;
            text.only(&["body", "preview_url"])?;
            text.optional_bool("preview_url")?;
            Ok(text.text("body", 1..=4096)?.to_owned())
        }
        "image" | "video" | "document" | "audio" | "sticker" => media(&message.object(kind)?, kind),
        "location" => {
            let location = message.object("location")?;
            location.only(&["latitude", "longitude", "name", "address", "url"])?;
            location.degrees("latitude", 90.0)?;
            location.degrees("longitude", 180.0)?;
            Ok(location
                .optional_text("name", 0..=1000)?
                .unwrap_or_default()
                .to_owned())
        }
        "contacts" => {
            for contact in message.list("contacts", 1..=257)? {
                contact.object("name")?.text("formatted_name", 1..=1000)?;
            }
            Ok(String::new())
        }
        "template" => {
            let template = message.object("template")?;
            template.only(&["namespace", "name", "language", "components"])?;
            let name = template.text("name", 1..=512)?;
            let language = template.object("language")?;
            language.only(&["policy", "code"])?;
            language.text("code", 2..=10)?;
            if template.get("components").is_some() {
                template.list("components", 0..=20)?;
            }
            Ok(name.to_owned())
        }
        "interactive" => interactive(&message.object("interactive")?),
        "reaction" => {
            let reaction = message.object("reaction")?;
            reaction.only(&["message_id", "emoji"])?;
            reaction.text("message_id", 1..=512)?;
            Ok(reaction.text("emoji", 0..=16)?.to_owned())
        }
        _ => Err(format!("{kind} is no type of message")),
    }
}

fn media(media: &Object<'_>, kind: &str) -> Checked<String> {
    let mut allowed = vec!["id", "link"];
    if matches!(kind, "image" | "video" | "document") {
        allowed.push("caption");
    }
    if kind == "document" {
        allowed.push("filename");
    }
    media.only(&allowed)?;
    match (
        media.optional_text("id", 1..=512)?,
        media.optional_text("link", 1..=2048)?,
    ) {
        (Some(_), None) => {}
        (None, Some(link)) if link.starts_with("https://") || link.starts_with("http://") => {}
        (None, Some(_)) => return Err(format!("{kind}.link must be http or https")),
        _ => return Err(format!("{kind} needs either an id or a link")),
    }
    media.optional_text("filename", 1..=240)?;
    Ok(media
        .optional_text("caption", 0..=1024)?
        .unwrap_or_default()
        .to_owned())
}

fn interactive(interactive: &Object<'_>) -> Checked<String> {
    interactive.only(&["type", "header", "body", "footer", "action"])?;
    let body = interactive.object("body")?;
    body.only(&["text"])?;
    let text = body.text("text", 1..=1024)?;
    if let Some(footer) = interactive.optional("footer")? {
        footer.only(&["text"])?;
        footer.text("text", 1..=60)?;
    }
    let header = interactive.optional("header")?;
    let header_kind = header
        .as_ref()
        .map(|header| header.text("type", 1..=20))
        .transpose()?;
    if let (Some(header), Some(kind)) = (&header, header_kind) {
        header.only(&["type", kind])?;
        match kind {
            "text" => drop(header.text("text", 1..=60)?),
            "image" | "video" | "document" => drop(media(&header.object(kind)?, kind)?),
            _ => return Err(format!("{kind} is no type of header")),
        }
    }
    let action = interactive.object("action")?;
    match interactive.text("type", 1..=20)? {
        "button" => buttons(&action)?,
        "list" if header_kind.is_none_or(|kind| kind == "text") => rows(&action)?,
        "list" => return Err("a list's header must be text".to_owned()),
        kind => return Err(format!("{kind} is no type of interactive message")),
    }
    Ok(text.to_owned())
}

fn buttons(action: &Object<'_>) -> Checked {
    action.only(&["buttons"])?;
    let (mut ids, mut titles) = (BTreeSet::new(), BTreeSet::new());
    for button in action.list("buttons", 1..=3)? {
        button.only(&["type", "reply"])?;
        if button.text("type", 1..=20)? != "reply" {
            return Err("a button's type must be reply".to_owned());
        }
        let reply = button.object("reply")?;
        reply.only(&["id", "title"])?;
        if !ids.insert(reply.text("id", 1..=256)?) || !titles.insert(reply.text("title", 1..=20)?) {
            return Err("each button needs its own id and title".to_owned());
        }
    }
    Ok(())
}

fn rows(action: &Object<'_>) -> Checked {
    action.only(&["button", "sections"])?;
    action.text("button", 1..=20)?;
    let sections = action.list("sections", 1..=10)?;
    let mut ids = BTreeSet::new();
    for section in &sections {
        section.only(&["title", "rows"])?;
        if section.optional_text("title", 1..=24)?.is_none() && sections.len() > 1 {
            return Err("with more than one section each needs a title".to_owned());
        }
        for row in section.list("rows", 1..=10)? {
            row.only(&["id", "title", "description"])?;
            row.text("title", 1..=24)?;
            row.optional_text("description", 1..=72)?;
            let id = row.text("id", 1..=200)?;
            if !ids.insert(id.to_owned()) {
                return Err("each row needs its own id".to_owned());
            }
        }
    }
    if ids.len() > 10 {
        Err("a list has at most 10 rows".to_owned())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(kind: &str, content: &Value) -> Value {
        json!({"recipient_type": "individual", "to": "34600000001", "type": kind, kind: content})
    }

    fn text_of(kind: &str, content: &Value) -> Checked<String> {
        check(&message(kind, content), ApiVersion::V1).map(|message| message.text)
    }

    fn refused(kind: &str, contents: &[Value]) {
        for content in contents {
            assert!(text_of(kind, content).is_err(), "{kind} was taken: {content}");
        }
    }

    #[test]
    fn text_has_1_to_4096_characters() {
        assert_eq!(text_of("text", &json!({"body": "hola"})).unwrap(), "hola");
        assert!(text_of("text", &json!({"body": "ñ".repeat(4096), "preview_url": true})).is_ok());
        let long = json!({"body": "ñ".repeat(4097)});
        let odd = json!({"body": "a", "x": 1});
        let not_bool = json!({"body": "a", "preview_url": "yes"});
        refused(
            "text",
            &[
                json!({"body": ""}),
                long,
                json!({"body": 1}),
                json!({}),
                json!("a"),
                odd,
                not_bool,
            ],
        );
    }

    #[test]
    fn the_frame_is_strict() {
        let good = message("text", &json!({"body": "a"}));
        assert!(check(&good, ApiVersion::V1).is_ok());
        let with = |field: &str, value: Value| {
            let mut changed = good.clone();
            changed[field] = value;
            changed
        };
        let without = |field: &str| {
            let mut changed = good.clone();
            changed.as_object_mut().unwrap().remove(field);
            changed
        };
        let bad = [
            json!([]),
            with("recipient_type", json!("group")),
            with("to", json!("+34600000001")),
            with("to", json!("12")),
            with("to", json!(34_600_000_001_u64)),
            with("type", json!("image")),
            with("type", json!("poem")),
            with("poem", json!("a")),
            with("image", json!({"id": "1"})),
            with("context", json!({})),
            with("biz_opaque_callback_data", json!("a".repeat(513))),
            without("recipient_type"),
            without("to"),
            without("type"),
            without("text"),
        ];
        for body in bad {
            assert!(check(&body, ApiVersion::V1).is_err(), "was taken: {body}");
        }
        assert!(check(&with("context", json!({"message_id": "wamid.x"})), ApiVersion::V1).is_ok());
    }

    #[test]
    fn messaging_product_belongs_to_v2_and_a_top_level_preview_to_v1() {
        let mut v2 = message("text", &json!({"body": "a"}));
        let mut v1 = v2.clone();
        v2["messaging_product"] = json!("whatsapp");
        v1["preview_url"] = json!(true);
        assert!(check(&v2, ApiVersion::V2).is_ok() && check(&v2, ApiVersion::V1).is_err());
        assert!(check(&v1, ApiVersion::V1).is_ok() && check(&v1, ApiVersion::V2).is_err());
        v2["messaging_product"] = json!("telegram");
        assert!(check(&v2, ApiVersion::V2).is_err());
    }

    #[test]
    fn media_has_an_id_or_a_link_and_what_its_kind_may_have() {
        let link = "https://example.com/a";
        assert_eq!(
            text_of("image", &json!({"link": link, "caption": "c"})).unwrap(),
            "c"
        );
        assert!(text_of("document", &json!({"id": "1", "filename": "a.pdf"})).is_ok());
        refused(
            "image",
            &[
                json!({}),
                json!({"id": "1", "link": link}),
                json!({"link": "file:///a"}),
            ],
        );
        refused(
            "image",
            &[
                json!({"id": "1", "filename": "a"}),
                json!({"id": "1", "caption": "c".repeat(1025)}),
            ],
        );
        refused("audio", &[json!({"id": "1", "caption": "c"})]);
    }

    #[test]
    fn the_other_kinds_need_their_parts() {
        assert!(text_of("location", &json!({"latitude": 40.4, "longitude": -3.7})).is_ok());
        refused(
            "location",
            &[
                json!({"latitude": 91, "longitude": 0}),
                json!({"latitude": "1", "longitude": 0}),
            ],
        );
        assert!(text_of("contacts", &json!([{"name": {"formatted_name": "A"}}])).is_ok());
        refused("contacts", &[json!([]), json!([{"name": {}}]), json!({})]);
        assert_eq!(
            text_of("template", &json!({"name": "t", "language": {"code": "es"}})).unwrap(),
            "t"
        );
        refused(
            "template",
            &[json!({"name": "t"}), json!({"language": {"code": "es"}})],
        );
        assert!(text_of("reaction", &json!({"message_id": "wamid.x", "emoji": ""})).is_ok());
        refused(
            "reaction",
            &[json!({"emoji": "a"}), json!({"message_id": "wamid.x"})],
        );
    }

    fn button(id: &str, title: &str) -> Value {
        json!({"type": "reply", "reply": {"id": id, "title": title}})
    }

    #[test]
    fn buttons_are_few_short_and_distinct() {
        let with = |buttons: &[Value]| json!({"type": "button", "body": {"text": "b"}, "action": {"buttons": buttons}});
        let some: Vec<_> = ["a", "b", "c", "d"].iter().map(|id| button(id, id)).collect();
        assert_eq!(text_of("interactive", &with(&some[..3])).unwrap(), "b");
        refused(
            "interactive",
            &[with(&[]), with(&some), with(&[button("a", &"t".repeat(21))])],
        );
        refused(
            "interactive",
            &[
                with(&[button("a", "t"), button("a", "u")]),
                with(&[button("", "t")]),
            ],
        );
        refused("interactive", &[with(&[button("a", "t"), button("b", "t")])]);
    }

    #[test]
    fn a_list_has_at_most_ten_rows_in_all() {
        let rows = |from: u32, to: u32| -> Vec<Value> {
            (from..to)
                .map(|n| json!({"id": n.to_string(), "title": "t", "description": "d"}))
                .collect()
        };
        let with = |sections: Value| {
            let action = json!({"button": "Ver", "sections": sections});
            json!({"type": "list", "header": {"type": "text", "text": "h"}, "body": {"text": "b"},
                "footer": {"text": "f"}, "action": action})
        };
        let two = json!([{"title": "1", "rows": rows(0, 5)}, {"title": "2", "rows": rows(5, 10)}]);
        assert!(text_of("interactive", &with(two)).is_ok());
        let eleven = json!([{"title": "1", "rows": rows(0, 5)}, {"title": "2", "rows": rows(5, 11)}]);
        let untitled = json!([{"rows": rows(0, 1)}, {"rows": rows(1, 2)}]);
        let twice = json!([{"title": "1", "rows": rows(0, 2)}, {"title": "2", "rows": rows(1, 3)}]);
        let long = json!([{"rows": [{"id": "1", "title": "t".repeat(25)}]}]);
        refused(
            "interactive",
            &[
                with(eleven),
                with(untitled),
                with(twice),
                with(long),
                with(json!([])),
            ],
        );
        let mut picture = with(json!([{"rows": rows(0, 1)}]));
        picture["header"] = json!({"type": "image", "image": {"id": "1"}});
        refused("interactive", &[picture]);
    }

    #[test]
    fn an_interactive_message_keeps_to_its_lengths() {
        let with = |body: &str, footer: &str, kind: &str| {
            json!({"type": kind, "body": {"text": body}, "footer": {"text": footer},
                "action": {"buttons": [button("a", "t")]}})
        };
        assert!(text_of("interactive", &with(&"b".repeat(1024), &"f".repeat(60), "button")).is_ok());
        refused(
            "interactive",
            &[
                with(&"b".repeat(1025), "f", "button"),
                with("b", &"f".repeat(61), "button"),
            ],
        );
        refused("interactive", &[with("b", "f", "flow"), with("", "f", "button")]);
    }
}
