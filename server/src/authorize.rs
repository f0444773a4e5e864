//! Who may do what: the one function that every call passes, whichever way it came.

use std::net::SocketAddr;

use trefoil_proto::internal::v1::Refusal;

/// Who calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Principal {
    /// Where the call came from; nobody logs in yet.
    pub address: Option<SocketAddr>,
}

/// What a caller wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Open, renew or close a session.
    UseSession,
    /// Acquire or release a lock.
    UseLock,
    /// Create a queue by name.
    CreateQueue,
    /// Store messages, and create their queue where that is on.
    Enqueue,
    /// Lease and acknowledge messages.
    Consume,
    /// Read a value.
    ReadValue,
    /// Store or remove a value.
    WriteValue,
    /// See the state of the cluster.
    ReadStatus,
    /// Change who leads.
    MoveLeader,
}

/// What it is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource<'a> {
    /// All sessions of a namespace.
    Namespace(&'a str),
    /// One lock.
    Lock {
        /// Its namespace.
        namespace: &'a str,
        /// Its name.
        name: &'a str,
    },
    /// One queue.
    Queue {
        /// Its namespace.
        namespace: &'a str,
        /// Its name.
        name: &'a str,
    },
    /// One key of the cache.
    Key {
        /// Its namespace.
        namespace: &'a str,
        /// The key.
        key: &'a str,
    },
    /// The cluster itself.
    Cluster,
}

/// Decides about one call.
pub type Authorizer = fn(&Principal, Action, Resource<'_>) -> Result<(), Refusal>;

/// Allows everything: there are no accounts yet.
///
/// # Errors
/// None so far; later PERMISSION_DENIED.
pub fn authorize(_: &Principal, _: Action, _: Resource<'_>) -> Result<(), Refusal> {
    Ok(())
}
