//! Many objects at once, for what is measured and tested at scale. One object is `objects::apply`'s concern.

use std::fmt::Debug;

use futures::{StreamExt, TryStreamExt, stream};
use kube::{Api, Resource, api::PostParams};
use serde::{Serialize, de::DeserializeOwned};

/// Creates all objects, `at_once` of them at a time, and tells `made` how many there are after each.
///
/// # Errors
/// The first that the API server answers; what was under way then may have been created or not.
pub async fn create_all<K>(
    api: &Api<K>,
    objects: impl IntoIterator<Item = K>,
    at_once: usize,
    mut made: impl FnMut(usize),
) -> kube::Result<()>
where
    K: Resource + Clone + Debug + Serialize + DeserializeOwned,
{
    let parameters = PostParams::default();
    stream::iter(objects)
        .map(|object| {
            let (api, parameters) = (api.clone(), &parameters);
            async move { api.create(parameters, &object).await }
        })
        .buffer_unordered(at_once)
        .try_fold(0, |count, _| {
            made(count + 1);
            std::future::ready(Ok(count + 1))
        })
        .await
        .map(drop)
}
