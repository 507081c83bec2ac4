//! What an object is called: one allocation, shared by all that name it. Pure.

use std::{ops::Deref, sync::Arc};

use kube::ResourceExt;

/// An object, by namespace and name. A clone is another handle of the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ObjectKey(Arc<Names>);

/// What an [`ObjectKey`] reads as.
#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Names {
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
}

impl ObjectKey {
    /// The key of an object of this namespace and name.
    pub fn new(namespace: impl Into<Box<str>>, name: impl Into<Box<str>>) -> Self {
        Self(Arc::new(Names {
            namespace: namespace.into(),
            name: name.into(),
        }))
    }

    /// The key of an object; `None` for one that was never stored.
    pub fn of(object: &impl ResourceExt) -> Option<Self> {
        Some(Self::new(object.namespace()?, object.name_any()))
    }
}

impl Deref for ObjectKey {
    type Target = Names;

    fn deref(&self) -> &Names {
        &self.0
    }
}
