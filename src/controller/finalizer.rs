//! The finalizer, held only where a deletion has something to do.
//!
//! A channel whose webhook is kept (the default) has none: it goes at once, also when its namespace, and with it our
//! right to remove a finalizer, is going (Law 9). Both patches are guarded by a `test`, so that nobody else's
//! finalizer is ever touched.

use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::api::{FINALIZER, WhatsAppChannel};

/// Whether the channel carries our finalizer.
pub(super) fn is_held(channel: &WhatsAppChannel) -> bool {
    channel.finalizers().iter().any(|one| one == FINALIZER)
}

/// The JSON patch that adds the finalizer.
fn addition(finalizers: &[String]) -> Value {
    if finalizers.is_empty() {
        json!([
            {"op": "test", "path": "/metadata/finalizers", "value": null},
            {"op": "add", "path": "/metadata/finalizers", "value": [FINALIZER]},
        ])
    } else {
        json!([
            {"op": "test", "path": "/metadata/finalizers", "value": finalizers},
            {"op": "add", "path": "/metadata/finalizers/-", "value": FINALIZER},
        ])
    }
}

/// The JSON patch that removes the finalizer; `None` where it is not there.
fn removal(finalizers: &[String]) -> Option<Value> {
    let at = finalizers.iter().position(|one| one == FINALIZER)?;
    let path = format!("/metadata/finalizers/{at}");
    Some(json!([{"op": "test", "path": path, "value": FINALIZER}, {"op": "remove", "path": path}]))
}

async fn patch(api: &Api<WhatsAppChannel>, name: &str, operations: Value) -> Result<(), kube::Error> {
    let patch = serde_json::from_value(operations).map_err(kube::Error::SerdeError)?;
    match api
        .patch(name, &PatchParams::default(), &Patch::Json::<()>(patch))
        .await
    {
        Ok(_) => Ok(()),
        // It is gone.
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        // Also that somebody changed the list meanwhile (a failed `test` is 422): the next event tells, sooner than the
        // next try; but what is refused for good must be told of.
        Err(error) => Err(error),
    }
}

/// Adds the finalizer.
///
/// # Errors
/// When the API server does not take it.
pub(super) async fn add(api: &Api<WhatsAppChannel>, channel: &WhatsAppChannel) -> Result<(), kube::Error> {
    patch(api, &channel.name_any(), addition(channel.finalizers())).await
}

/// Removes the finalizer.
///
/// # Errors
/// When the API server does not take it.
pub(super) async fn remove(api: &Api<WhatsAppChannel>, channel: &WhatsAppChannel) -> Result<(), kube::Error> {
    match removal(channel.finalizers()) {
        Some(operations) => patch(api, &channel.name_any(), operations).await,
        None => Ok(()),
    }
}

/// How an administrator removes the finalizer where we may not.
pub(super) fn way_out(channel: &WhatsAppChannel) -> String {
    let operations = removal(channel.finalizers()).unwrap_or_default();
    format!(
        "kubectl --namespace {} patch whatsappchannel {} --type json --patch '{operations}'",
        channel.namespace().unwrap_or_default(),
        channel.name_any(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_guarded_and_leave_other_finalizers_alone() {
        assert_eq!(addition(&[])[0]["value"], Value::Null);
        let others = ["a/b".to_owned(), "c/d".to_owned()];
        assert_eq!(addition(&others)[0]["value"], json!(others));
        assert_eq!(addition(&others)[1]["path"], "/metadata/finalizers/-");
        assert_eq!(removal(&others), None);
        let with_ours = ["a/b".to_owned(), FINALIZER.to_owned()];
        let operations = removal(&with_ours).unwrap();
        assert_eq!(
            operations[0],
            json!({"op": "test", "path": "/metadata/finalizers/1", "value": FINALIZER})
        );
        assert_eq!(
            operations[1],
            json!({"op": "remove", "path": "/metadata/finalizers/1"})
        );
    }
}
