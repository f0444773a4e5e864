//! Who may do what: the one function that every call passes, whichever way it came.
//!
//! A call is decided about where it enters the cluster, and again by the node that leads its shard when it was
//! forwarded there: [`Access`] travels with it, and covers no other command than the one that was asked for.

use std::net::SocketAddr;

use trefoil_core::call::ShardRequest;
pub use trefoil_proto::common::v1::Action;
use trefoil_proto::common::v1::{Reason, Resource as Kind};
pub use trefoil_proto::internal::v1::Access;
use trefoil_proto::internal::v1::{Command, Query, Refusal};
use trefoil_proto::lock::v1::LockWish;
use trefoil_proto::pipeline::v1::call::Operation;

use crate::calls::context::refusal;

/// Who calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Principal {
    /// Where the call came from; nobody logs in yet.
    pub address: Option<SocketAddr>,
}

/// What it is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource<'a> {
    /// All sessions of a namespace.
    Namespace(&'a str),
    /// One lock or semaphore, and the latch and the barrier of the same name.
    Lock {
        /// Its namespace.
        namespace: &'a str,
        /// Its name.
        name: &'a str,
    },
    /// Several locks of one call: each is decided about by itself.
    Locks {
        /// Their namespace.
        namespace: &'a str,
        /// Their names.
        locks: &'a [LockWish],
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

impl<'a> Resource<'a> {
    /// What an operation is done to.
    pub(crate) fn of(operation: &'a Operation) -> Self {
        let (namespace, name) = operation.names();
        match operation.method().facts().resource {
            Kind::Namespace => Self::Namespace(namespace),
            Kind::Lock => Self::of_locks(namespace, name, operation.locks()),
            Kind::Queue => Self::Queue { namespace, name },
            Kind::Key => Self::Key { namespace, key: name },
            Kind::Cluster | Kind::Unnamed | Kind::Unspecified => Self::Cluster,
        }
    }

    /// Several locks, or one where there are none.
    pub(crate) fn of_locks(namespace: &'a str, name: &'a str, locks: &'a [LockWish]) -> Self {
        match locks {
            [] => Self::Lock { namespace, name },
            locks => Self::Locks { namespace, locks },
        }
    }

    /// Namespace and name; empty where there is none.
    fn names(self) -> (&'a str, &'a str) {
        match self {
            Self::Namespace(namespace) | Self::Locks { namespace, .. } => (namespace, ""),
            Self::Lock { namespace, name } | Self::Queue { namespace, name } => (namespace, name),
            Self::Key { namespace, key } => (namespace, key),
            Self::Cluster => ("", ""),
        }
    }

    /// Asks about each lock of several, and about everything else once.
    ///
    /// # Errors
    /// The first refusal.
    pub(crate) fn each(
        self,
        mut decide: impl FnMut(Self) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let Self::Locks { namespace, locks } = self else { return decide(self) };
        locks.iter().try_for_each(|wish| decide(Resource::Lock { namespace, name: &wish.name }))
    }
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

/// What travels with a call that was allowed.
pub(crate) fn access(principal: &Principal, action: Action, resource: Resource<'_>) -> Access {
    let (namespace, name) = resource.names();
    let names = match resource {
        Resource::Locks { locks, .. } => names(locks),
        _ => Vec::new(),
    };
    Access {
        address: principal.address.map(|address| address.to_string()).unwrap_or_default(),
        action: action.into(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        names,
    }
}

fn names(locks: &[LockWish]) -> Vec<String> {
    locks.iter().map(|wish| wish.name.clone()).collect()
}

/// Decides about a call that another node took in and forwarded.
///
/// # Errors
/// PERMISSION_DENIED when it says nothing of its caller, or asks for something else than it was allowed to.
pub(crate) fn forwarded(
    authorizer: Authorizer,
    access: Option<&Access>,
    work: &ShardRequest,
) -> Result<(), Refusal> {
    let denied = |message: &str| refusal(Reason::PermissionDenied, message);
    let access = access.ok_or_else(|| denied("the forwarded call does not say who asks"))?;
    if !covers(access, work) {
        return Err(denied("the forwarded call is not what its caller was allowed to do"));
    }
    let address = match access.address.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| denied("the caller's address is malformed"))?),
    };
    let principal = Principal { address };
    if access.names.is_empty() {
        return authorizer(&principal, access.action(), resource(access));
    }
    access.names.iter().try_for_each(|name| {
        let on = Resource::Lock { namespace: &access.namespace, name };
        authorizer(&principal, access.action(), on)
    })
}

fn resource(access: &Access) -> Resource<'_> {
    let (namespace, name) = (access.namespace.as_str(), access.name.as_str());
    match access.action() {
        Action::UseSession => Resource::Namespace(namespace),
        Action::ReadLocks if name.is_empty() => Resource::Namespace(namespace),
        Action::UseLock | Action::ReadLocks | Action::ControlLocks => {
            Resource::Lock { namespace, name }
        }
        Action::CreateQueue | Action::Enqueue | Action::Consume => {
            Resource::Queue { namespace, name }
        }
        Action::ReadValue | Action::WriteValue => Resource::Key { namespace, key: name },
        Action::ReadNamespaces | Action::ManageNamespaces if !namespace.is_empty() => {
            Resource::Namespace(namespace)
        }
        Action::Unspecified
        | Action::ReadStatus
        | Action::MoveLeader
        | Action::ReadNamespaces
        | Action::ManageNamespaces => Resource::Cluster,
    }
}

/// Whether a command or query belongs to what was allowed. Partitions know their queue by its id alone.
fn covers(access: &Access, work: &ShardRequest) -> bool {
    let (actions, names, locks) = match work {
        ShardRequest::Command(Command { operation: Some(it), .. }) => {
            (it.actions(), it.names(), it.locks())
        }
        ShardRequest::Query(Query { query: Some(it), .. }) => {
            (it.actions(), it.names(), it.locks())
        }
        ShardRequest::Command(_) | ShardRequest::Query(_) => return false,
    };
    actions.contains(&access.action())
        && self::names(locks) == access.names
        && names
            .is_none_or(|(namespace, name)| namespace == access.namespace && name == access.name)
}

#[cfg(test)]
mod tests {
    use trefoil_proto::internal::v1::command::Operation;
    use trefoil_proto::internal::v1::query;
    use trefoil_proto::lock::v1::AcquireRequest;

    use super::*;

    fn covered_by(work: &ShardRequest) -> Vec<Action> {
        let access = |action: &Action| Access { action: (*action).into(), ..Access::default() };
        Action::ALL.iter().copied().filter(|action| covers(&access(action), work)).collect()
    }

    fn command(operation: Operation) -> ShardRequest {
        ShardRequest::Command(Command { operation: Some(operation), ..Command::default() })
    }

    fn asked(query: query::Query) -> ShardRequest {
        ShardRequest::Query(Query { query: Some(query), ..Query::default() })
    }

    #[test]
    fn steps_are_covered_by_what_their_operation_needs_alone() {
        use Action as A;
        use Operation as O;
        use query::Query as Q;
        for (work, actions) in [
            (command(O::Put(Default::default())), vec![A::WriteValue]),
            (command(O::CreateQueue(Default::default())), vec![A::CreateQueue, A::Enqueue]),
            (command(O::CancelAcquire(Default::default())), vec![A::UseLock]),
            (command(O::ReleaseHeld(Default::default())), vec![A::UseSession]),
            (command(O::ForceStep(Default::default())), vec![A::ControlLocks]),
            (asked(Q::FindQueue(Default::default())), vec![A::Enqueue, A::Consume]),
            (
                asked(Q::FindMark(Default::default())),
                vec![A::CreateQueue, A::Enqueue, A::Consume, A::ReadValue, A::WriteValue],
            ),
            // Leaders alone propose it.
            (command(O::LoseCaller(Default::default())), vec![]),
            (ShardRequest::Command(Command::default()), vec![]),
            (ShardRequest::Query(Query::default()), vec![]),
        ] {
            assert_eq!(covered_by(&work), actions, "{work:?}");
        }
    }

    #[test]
    fn what_travels_is_what_was_decided_about() {
        let principal = Principal { address: Some("[::1]:7001".parse().unwrap()) };
        for (action, on) in [
            (Action::UseSession, Resource::Namespace("a")),
            (Action::UseLock, Resource::Lock { namespace: "a", name: "b" }),
            (Action::ReadLocks, Resource::Lock { namespace: "a", name: "b" }),
            (Action::ReadLocks, Resource::Namespace("a")),
            (Action::ControlLocks, Resource::Lock { namespace: "a", name: "b" }),
            (Action::Consume, Resource::Queue { namespace: "a", name: "b" }),
            (Action::WriteValue, Resource::Key { namespace: "a", key: "b" }),
            (Action::MoveLeader, Resource::Cluster),
            (Action::ReadNamespaces, Resource::Cluster),
            (Action::ManageNamespaces, Resource::Namespace("a")),
        ] {
            let access = access(&principal, action, on);
            assert_eq!((access.address.as_str(), access.action()), ("[::1]:7001", action));
            assert_eq!(resource(&access), on);
        }
    }

    #[test]
    fn each_of_several_locks_is_decided_about() {
        let wish = |name: &str| LockWish { name: name.to_owned(), ..Default::default() };
        let acquire = |locks: &[LockWish]| {
            command(Operation::Acquire(AcquireRequest {
                namespace: "a".to_owned(),
                locks: locks.to_vec(),
                ..Default::default()
            }))
        };
        let only_b: Authorizer = |_, _, on| match on {
            Resource::Lock { namespace: "a", name: "b" } => Ok(()),
            _ => Err(refusal(Reason::PermissionDenied, "not that one")),
        };
        let (b, both) = ([wish("b")], [wish("b"), wish("c")]);
        let decide = |locks: &[LockWish], asked: &[LockWish]| {
            let on = Resource::Locks { namespace: "a", locks };
            let principal = Principal::default();
            let here = on.each(|on| only_b(&principal, Action::UseLock, on));
            let access = access(&principal, Action::UseLock, on);
            (here.is_ok(), forwarded(only_b, Some(&access), &acquire(asked)).is_ok())
        };
        assert_eq!(decide(&b, &b), (true, true));
        assert_eq!(decide(&both, &both), (false, false));
        assert_eq!(decide(&b, &both), (true, false), "another call than was decided about");
        assert_eq!(decide(&b, &[]), (true, false));
    }
}
