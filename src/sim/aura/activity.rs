//! What an activity must have to be taken.

use jiff::Timestamp;
use serde_json::Value;
use url::Url;
use uuid::Uuid;

use super::ledger::ReceivedActivity;

/// The text at this path; empty counts as missing.
fn text<'a>(activity: &'a Value, path: &[&str]) -> Result<&'a str, String> {
    let value = path.iter().try_fold(activity, |value, key| value.get(key));
    let text = value.and_then(Value::as_str).filter(|text| !text.is_empty());
    text.ok_or_else(|| format!("{} must be a string and not empty", path.join(".")))
}

pub(super) fn parse(body: Value) -> Result<ReceivedActivity, String> {
    let service_url = text(&body, &["serviceUrl"])?;
    let parsed = Url::parse(service_url).map_err(|why| format!("serviceUrl is no URL: {why}"))?;
    if !matches!(parsed.scheme(), "http" | "https") {
        return Err("serviceUrl must be http or https".to_owned());
    }
    let channel_id = text(&body, &["channelData", "channelId"])?;
    if Uuid::parse_str(channel_id).is_err() {
        return Err("channelData.channelId must be a UUID".to_owned());
    }
    if let Some(timestamp) = body.get("timestamp") {
        let rfc3339 = timestamp.as_str().filter(|text| !text.contains('['));
        if rfc3339.and_then(|text| text.parse::<Timestamp>().ok()).is_none() {
            return Err("timestamp must be RFC 3339".to_owned());
        }
    }
    if body.get("text").is_some_and(|text| !text.is_string()) {
        return Err("text must be a string".to_owned());
    }
    Ok(ReceivedActivity {
        at: Timestamp::now(),
        kind: text(&body, &["type"])?.to_owned(),
        id: text(&body, &["id"])?.to_owned(),
        conversation_id: text(&body, &["conversation", "id"])?.to_owned(),
        from_id: text(&body, &["from", "id"])?.to_owned(),
        service_url: service_url.to_owned(),
        channel_id: channel_id.to_owned(),
        correlator: text(&body, &["channelData", "correlator"])
            .ok()
            .map(str::to_owned),
        text: body["text"].as_str().map(str::to_owned),
        body,
    })
}

#[cfg(test)]
pub(super) fn example(id: &str, text: &str, service_url: &str) -> Value {
    serde_json::json!({
        "type": "message", "id": id, "timestamp": "2026-01-02T03:04:05.678Z", "text": text,
        "from": {"id": "user-1"}, "conversation": {"id": "conv-1"}, "serviceUrl": service_url,
        "channelData": {"channelId": "6f1c2a9e-5f0e-4a57-9d2c-0b7a3c1d8e42", "correlator": "corr-1"},
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn good() -> Value {
        example("act-1", "hola", "http://127.0.0.1:9/base")
    }

    #[test]
    fn every_required_field_is_required() {
        assert!(parse(good()).is_ok());
        let paths = [
            "/type",
            "/id",
            "/conversation/id",
            "/from/id",
            "/serviceUrl",
            "/channelData/channelId",
        ];
        for path in paths {
            for wrong in [json!(null), json!(""), json!(7), json!({})] {
                let mut activity = good();
                *activity.pointer_mut(path).unwrap() = wrong;
                assert!(parse(activity.clone()).is_err(), "was taken: {activity}");
            }
        }
        assert!(parse(json!([])).is_err());
    }

    #[test]
    fn what_is_given_must_be_well_formed() {
        let wrong = [
            ("timestamp", json!("yesterday")),
            ("timestamp", json!(1_700_000_000)),
            ("timestamp", json!("2026-01-02T03:04:05Z[Europe/Madrid]")),
            ("timestamp", json!(null)),
            ("serviceUrl", json!("ftp://example.com")),
            ("serviceUrl", json!("example.com")),
            ("channelData", json!({"channelId": "shop-es"})),
            ("text", json!(7)),
        ];
        for (field, value) in wrong {
            let mut activity = good();
            activity[field] = value;
            assert!(parse(activity.clone()).is_err(), "was taken: {activity}");
        }
    }

    #[test]
    fn text_timestamp_and_correlator_may_be_left_out() {
        let mut activity = good();
        for field in ["text", "timestamp"] {
            activity.as_object_mut().unwrap().remove(field);
        }
        activity["channelData"]
            .as_object_mut()
            .unwrap()
            .remove("correlator");
        let activity = parse(activity).unwrap();
        assert_eq!((activity.text, activity.correlator), (None, None));
    }
}
