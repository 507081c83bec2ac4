//! Who holds a channel when several resources name it. Pure; both roles apply the same rule to their own view
//! (Law 10).

use std::cmp::Ordering;

/// One resource's claim to a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// When the resource was created, in seconds since 1970.
    pub created: i64,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Ord for Claim {
    /// The oldest resource holds the channel; of two equally old ones, the first by namespace and name (the rule
    /// of the Gateway API, GEP-1364).
    fn cmp(&self, other: &Self) -> Ordering {
        (self.created, &self.namespace, &self.name).cmp(&(other.created, &other.namespace, &other.name))
    }
}

impl PartialOrd for Claim {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
