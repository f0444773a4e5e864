//! Who may do what: the one function that every call passes, whichever way it came.
//!
//! A call is decided about where it enters the cluster, and again by the node that leads its shard when it was
//! forwarded there: [`Access`] travels with it, and covers no other command than the one that was asked for.

use std::net::SocketAddr;

use trefoil_core::call::Work;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::command::Operation;
pub use trefoil_proto::internal::v1::{Access, Action};
use trefoil_proto::internal::v1::{Refusal, query};
use trefoil_proto::lock::v1::{AcquireRequest, LockWish};

use crate::node::work::refusal;

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
    /// What an Acquire asks for: one lock, or several.
    pub(crate) fn of_acquire(request: &'a AcquireRequest) -> Self {
        Self::of_locks(&request.namespace, &request.name, &request.locks)
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
    work: &Work,
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
#[allow(clippy::too_many_lines, reason = "one table")]
fn covers(access: &Access, work: &Work) -> bool {
    use Action as A;
    use Operation as O;
    let of_cluster = String::new();
    let (actions, names): (&[Action], _) = match work {
        Work::Command(command) => match &command.operation {
            Some(O::OpenSession(r)) => (&[A::UseSession], Some((&r.namespace, ""))),
            Some(O::KeepAlive(r)) => (&[A::UseSession], Some((&r.namespace, ""))),
            Some(O::CloseSession(r)) => (&[A::UseSession], Some((&r.namespace, ""))),
            Some(O::Acquire(r)) => (&[A::UseLock], Some((&r.namespace, r.name.as_str()))),
            Some(O::ForceStep(r)) => (&[A::ControlLocks], Some((&r.namespace, r.name.as_str()))),
            Some(O::RequestRelease(r)) => (&[A::UseLock], Some((&r.namespace, r.name.as_str()))),
            Some(O::ReleaseHeld(r)) => (&[A::UseSession], Some((&r.namespace, ""))),
            Some(O::Convert(r)) => (&[A::UseLock], Some((&r.namespace, r.name.as_str()))),
            Some(O::Release(r)) => (&[A::UseLock], Some((&r.namespace, r.name.as_str()))),
            Some(O::CancelAcquire(r)) => (&[A::UseLock], Some((&r.namespace, r.name.as_str()))),
            Some(O::Campaign(r)) => (&[A::UseLock], Some((&r.namespace, r.name.as_str()))),
            Some(O::Proclaim(r)) => (&[A::UseLock], Some((&r.namespace, r.name.as_str()))),
            Some(O::SetPermits(r)) => (&[A::UseLock], Some((&r.namespace, r.name.as_str()))),
            Some(O::DeleteSemaphore(r)) => (&[A::UseLock], Some((&r.namespace, r.name.as_str()))),
            Some(O::AcquirePermits(r)) => (&[A::UseLock], Some((&r.namespace, r.name.as_str()))),
            Some(O::ReleasePermits(r)) => (&[A::UseLock], Some((&r.namespace, r.name.as_str()))),
            Some(O::SetLatch(r)) => (&[A::UseLock], Some((&r.namespace, r.name.as_str()))),
            Some(O::CountDown(r)) => (&[A::UseLock], Some((&r.namespace, r.name.as_str()))),
            Some(O::DeleteLatch(r)) => (&[A::UseLock], Some((&r.namespace, r.name.as_str()))),
            Some(O::EnterBarrier(r)) => (&[A::UseLock], Some((&r.namespace, r.name.as_str()))),
            Some(O::LeaveBarrier(r)) => (&[A::UseLock], Some((&r.namespace, r.name.as_str()))),
            Some(O::WithdrawBarrier(r)) => (&[A::UseLock], Some((&r.namespace, r.name.as_str()))),
            Some(O::CreateQueue(r)) => {
                (&[A::CreateQueue, A::Enqueue], Some((&r.namespace, r.queue.as_str())))
            }
            Some(O::OpenPartition(_) | O::EnqueueTo(_)) => (&[A::Enqueue], None),
            Some(O::DequeueFrom(_) | O::AckLease(_) | O::ReturnLeases(_)) => (&[A::Consume], None),
            Some(O::Put(r)) => (&[A::WriteValue], Some((&r.namespace, r.key.as_str()))),
            Some(O::Delete(r)) => (&[A::WriteValue], Some((&r.namespace, r.key.as_str()))),
            Some(O::CreateNamespace(r)) => (&[A::ManageNamespaces], Some((&r.name, ""))),
            Some(O::UpdateNamespace(r)) => (&[A::ManageNamespaces], Some((&r.name, ""))),
            Some(O::DeleteNamespace(r)) => (&[A::ManageNamespaces], Some((&r.name, ""))),
            Some(O::ConfigureNamespace(r)) => (&[A::ManageNamespaces], Some((&r.namespace, ""))),
            Some(O::NamespaceStep(r)) => (&[A::ManageNamespaces], Some((&r.namespace, ""))),
            Some(O::SetNamespacePolicy(_) | O::ConfigureNamespacePolicy(_)) => {
                (&[A::ManageNamespaces], Some((&of_cluster, "")))
            }
            // For a fenced read. Whether the caller may use the lock was decided where the call came in, and by the lock's shard.
            Some(O::TouchFence(_)) => (&[A::ReadValue], None),
            // A leader proposes it itself.
            Some(O::LoseCaller(_)) | None => (&[], None),
        },
        Work::Query(query) => match &query.query {
            Some(query::Query::Get(r)) => (&[A::ReadValue], Some((&r.namespace, r.key.as_str()))),
            Some(query::Query::FindQueue(r)) => {
                (&[A::Enqueue, A::Consume], Some((&r.namespace, r.queue.as_str())))
            }
            Some(query::Query::GetNamespace(r)) => (&[A::ReadNamespaces], Some((&r.name, ""))),
            Some(query::Query::FindNamespace(r)) => {
                (&[A::ReadNamespaces], Some((&r.namespace, "")))
            }
            Some(query::Query::ListNamespaces(_) | query::Query::GetNamespacePolicy(_)) => {
                (&[A::ReadNamespaces], Some((&of_cluster, "")))
            }
            Some(query::Query::AwaitReady(_)) => (&[A::Consume], None),
            Some(query::Query::FindMark(_)) => {
                (&[A::CreateQueue, A::Enqueue, A::Consume, A::ReadValue, A::WriteValue], None)
            }
            Some(query::Query::DescribeLock(r)) => {
                (&[A::ReadLocks], Some((&r.namespace, r.name.as_str())))
            }
            Some(query::Query::Leader(r)) => {
                (&[A::ReadLocks], Some((&r.namespace, r.name.as_str())))
            }
            Some(query::Query::DescribeSemaphore(r)) => {
                (&[A::ReadLocks], Some((&r.namespace, r.name.as_str())))
            }
            Some(query::Query::ListSemaphores(r)) => (&[A::ReadLocks], Some((&r.namespace, ""))),
            Some(query::Query::AwaitLatch(r)) => {
                (&[A::UseLock], Some((&r.namespace, r.name.as_str())))
            }
            Some(query::Query::GetLatch(r)) => {
                (&[A::ReadLocks], Some((&r.namespace, r.name.as_str())))
            }
            Some(query::Query::ListLatches(r)) => (&[A::ReadLocks], Some((&r.namespace, ""))),
            Some(query::Query::AwaitBarrier(r)) => {
                (&[A::UseLock], Some((&r.namespace, r.name.as_str())))
            }
            Some(query::Query::GetBarrier(r)) => {
                (&[A::ReadLocks], Some((&r.namespace, r.name.as_str())))
            }
            Some(query::Query::ListBarriers(r)) => (&[A::ReadLocks], Some((&r.namespace, ""))),
            Some(query::Query::ListLocks(r)) => (&[A::ReadLocks], Some((&r.namespace, ""))),
            Some(query::Query::GetSession(r)) => (&[A::ReadLocks], Some((&r.namespace, ""))),
            Some(query::Query::FindReleaseRequests(r)) => {
                (&[A::UseSession], Some((&r.namespace, "")))
            }
            Some(query::Query::FindPlace(r)) => {
                (&[A::UseLock], Some((&r.namespace, r.name.as_str())))
            }
            Some(query::Query::ValidateToken(r)) => {
                (&[A::UseLock], Some((&r.namespace, r.name.as_str())))
            }
            Some(query::Query::ListDeadlocks(r)) => (&[A::ReadLocks], Some((&r.namespace, ""))),
            Some(query::Query::ListSessions(r)) => (&[A::ReadLocks], Some((&r.namespace, ""))),
            Some(query::Query::WatchLocks(r)) => {
                (&[A::ReadLocks], Some((&r.namespace, r.name.as_str())))
            }
            None => (&[], None),
        },
    };
    let several = match work {
        Work::Command(command) => match &command.operation {
            Some(O::Acquire(r)) => r.locks.as_slice(),
            Some(O::CancelAcquire(r)) => r.locks.as_slice(),
            _ => &[],
        },
        Work::Query(query) => match &query.query {
            Some(query::Query::FindPlace(r)) => r.locks.as_slice(),
            _ => &[],
        },
    };
    actions.contains(&access.action())
        && self::names(several) == access.names
        && names
            .is_none_or(|(namespace, name)| *namespace == access.namespace && name == access.name)
}

#[cfg(test)]
mod tests {
    use trefoil_proto::internal::v1::{Command, Query};

    use super::*;

    const ACTIONS: [Action; 13] = [
        Action::UseSession,
        Action::UseLock,
        Action::CreateQueue,
        Action::Enqueue,
        Action::Consume,
        Action::ReadValue,
        Action::WriteValue,
        Action::ReadStatus,
        Action::MoveLeader,
        Action::ReadLocks,
        Action::ControlLocks,
        Action::ReadNamespaces,
        Action::ManageNamespaces,
    ];

    fn covered_by(work: &Work) -> Vec<Action> {
        let access = |action: &Action| Access { action: (*action).into(), ..Access::default() };
        ACTIONS.into_iter().filter(|action| covers(&access(action), work)).collect()
    }

    fn command(operation: Operation) -> Work {
        Work::Command(Command { operation: Some(operation), ..Command::default() })
    }

    fn asked(query: query::Query) -> Work {
        Work::Query(Query { query: Some(query), ..Query::default() })
    }

    #[test]
    #[allow(clippy::too_many_lines, reason = "one table")]
    fn each_command_and_query_needs_its_own_leave() {
        use Action as A;
        use Operation as O;
        use query::Query as Q;
        for (work, actions) in [
            (command(O::OpenSession(Default::default())), vec![A::UseSession]),
            (command(O::KeepAlive(Default::default())), vec![A::UseSession]),
            (command(O::CloseSession(Default::default())), vec![A::UseSession]),
            (command(O::Acquire(Default::default())), vec![A::UseLock]),
            (command(O::Release(Default::default())), vec![A::UseLock]),
            (command(O::Convert(Default::default())), vec![A::UseLock]),
            (command(O::ReleaseHeld(Default::default())), vec![A::UseSession]),
            (command(O::ForceStep(Default::default())), vec![A::ControlLocks]),
            (command(O::RequestRelease(Default::default())), vec![A::UseLock]),
            (command(O::CancelAcquire(Default::default())), vec![A::UseLock]),
            (command(O::LoseCaller(Default::default())), vec![]),
            (command(O::Campaign(Default::default())), vec![A::UseLock]),
            (command(O::Proclaim(Default::default())), vec![A::UseLock]),
            (command(O::SetPermits(Default::default())), vec![A::UseLock]),
            (command(O::DeleteSemaphore(Default::default())), vec![A::UseLock]),
            (command(O::AcquirePermits(Default::default())), vec![A::UseLock]),
            (command(O::ReleasePermits(Default::default())), vec![A::UseLock]),
            (command(O::SetLatch(Default::default())), vec![A::UseLock]),
            (command(O::CountDown(Default::default())), vec![A::UseLock]),
            (command(O::DeleteLatch(Default::default())), vec![A::UseLock]),
            (command(O::EnterBarrier(Default::default())), vec![A::UseLock]),
            (command(O::LeaveBarrier(Default::default())), vec![A::UseLock]),
            (command(O::WithdrawBarrier(Default::default())), vec![A::UseLock]),
            (command(O::CreateQueue(Default::default())), vec![A::CreateQueue, A::Enqueue]),
            (command(O::OpenPartition(Default::default())), vec![A::Enqueue]),
            (command(O::EnqueueTo(Default::default())), vec![A::Enqueue]),
            (command(O::DequeueFrom(Default::default())), vec![A::Consume]),
            (command(O::AckLease(Default::default())), vec![A::Consume]),
            (command(O::ReturnLeases(Default::default())), vec![A::Consume]),
            (command(O::Put(Default::default())), vec![A::WriteValue]),
            (command(O::Delete(Default::default())), vec![A::WriteValue]),
            (command(O::TouchFence(Default::default())), vec![A::ReadValue]),
            (
                asked(Q::FindMark(Default::default())),
                vec![A::CreateQueue, A::Enqueue, A::Consume, A::ReadValue, A::WriteValue],
            ),
            (asked(Q::Get(Default::default())), vec![A::ReadValue]),
            (asked(Q::FindQueue(Default::default())), vec![A::Enqueue, A::Consume]),
            (asked(Q::AwaitReady(Default::default())), vec![A::Consume]),
            (asked(Q::DescribeLock(Default::default())), vec![A::ReadLocks]),
            (asked(Q::Leader(Default::default())), vec![A::ReadLocks]),
            (asked(Q::DescribeSemaphore(Default::default())), vec![A::ReadLocks]),
            (asked(Q::ListSemaphores(Default::default())), vec![A::ReadLocks]),
            (asked(Q::AwaitLatch(Default::default())), vec![A::UseLock]),
            (asked(Q::GetLatch(Default::default())), vec![A::ReadLocks]),
            (asked(Q::ListLatches(Default::default())), vec![A::ReadLocks]),
            (asked(Q::AwaitBarrier(Default::default())), vec![A::UseLock]),
            (asked(Q::GetBarrier(Default::default())), vec![A::ReadLocks]),
            (asked(Q::ListBarriers(Default::default())), vec![A::ReadLocks]),
            (asked(Q::ListLocks(Default::default())), vec![A::ReadLocks]),
            (asked(Q::GetSession(Default::default())), vec![A::ReadLocks]),
            (asked(Q::ListSessions(Default::default())), vec![A::ReadLocks]),
            (asked(Q::ListDeadlocks(Default::default())), vec![A::ReadLocks]),
            (asked(Q::ValidateToken(Default::default())), vec![A::UseLock]),
            (asked(Q::WatchLocks(Default::default())), vec![A::ReadLocks]),
            (asked(Q::FindPlace(Default::default())), vec![A::UseLock]),
            (asked(Q::FindReleaseRequests(Default::default())), vec![A::UseSession]),
            (command(O::CreateNamespace(Default::default())), vec![A::ManageNamespaces]),
            (command(O::UpdateNamespace(Default::default())), vec![A::ManageNamespaces]),
            (command(O::DeleteNamespace(Default::default())), vec![A::ManageNamespaces]),
            (command(O::SetNamespacePolicy(Default::default())), vec![A::ManageNamespaces]),
            (command(O::ConfigureNamespace(Default::default())), vec![A::ManageNamespaces]),
            (command(O::ConfigureNamespacePolicy(Default::default())), vec![A::ManageNamespaces]),
            (command(O::NamespaceStep(Default::default())), vec![A::ManageNamespaces]),
            (asked(Q::GetNamespace(Default::default())), vec![A::ReadNamespaces]),
            (asked(Q::ListNamespaces(Default::default())), vec![A::ReadNamespaces]),
            (asked(Q::GetNamespacePolicy(Default::default())), vec![A::ReadNamespaces]),
            (asked(Q::FindNamespace(Default::default())), vec![A::ReadNamespaces]),
            (Work::Command(Command::default()), vec![]),
            (Work::Query(Query::default()), vec![]),
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
