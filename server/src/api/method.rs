//! Every RPC of the client port: its names, and how it is weighed when there is too much to do.

/// What a call costs, and whether it may be shed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Counts against the calls in flight.
    Work,
    /// So does this one, but with a share of its own: it ends work or keeps locks, so that overload never loses them.
    Priority,
    /// Lives long and works through calls of its own.
    Stream,
    /// So does this one, but with a share of its own: it keeps the locks of a session.
    Renewal,
}

macro_rules! methods {
    ($($variant:ident: $service:literal $name:literal $load:ident $meaning:literal;)*) => {
        /// An RPC.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Method {
            $(#[doc = $meaning] $variant,)*
        }

        impl Method {
            /// Every RPC, in the order of [`Method::index`].
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Full name of its service.
            #[must_use]
            pub fn service(self) -> &'static str {
                match self { $(Self::$variant => $service),* }
            }

            /// Its name within the service.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// How it is weighed.
            #[must_use]
            pub fn load(self) -> Load {
                match self { $(Self::$variant => Load::$load),* }
            }

            /// The RPC with this path; none for any other path.
            #[must_use]
            pub fn of_path(path: &str) -> Option<Self> {
                match path {
                    $(concat!("/", $service, "/", $name) => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

methods! {
    OpenSession: "trefoil.lock.v1.LockService" "OpenSession" Work "Opens a session.";
    KeepAlive: "trefoil.lock.v1.LockService" "KeepAlive" Priority "Renews a session.";
    CloseSession: "trefoil.lock.v1.LockService" "CloseSession" Priority "Closes a session.";
    Acquire: "trefoil.lock.v1.LockService" "Acquire" Work "Acquires a lock.";
    Release: "trefoil.lock.v1.LockService" "Release" Priority "Releases a lock.";
    Convert: "trefoil.lock.v1.LockService" "Convert" Work "Changes the mode of a grant.";
    ReleaseAll: "trefoil.lock.v1.LockService" "ReleaseAll" Priority "Releases all locks of a session.";
    DescribeLock: "trefoil.lock.v1.LockService" "DescribeLock" Work "Shows a lock.";
    ListLocks: "trefoil.lock.v1.LockService" "ListLocks" Work "Lists locks.";
    GetSession: "trefoil.lock.v1.LockService" "GetSession" Work "Shows a session.";
    ListSessions: "trefoil.lock.v1.LockService" "ListSessions" Work "Lists sessions.";
    ListDeadlocks: "trefoil.lock.v1.LockService" "ListDeadlocks" Work "Lists the last deadlocks.";
    ForceRelease: "trefoil.lock.v1.LockService" "ForceRelease" Priority "Takes a lock away.";
    ValidateToken: "trefoil.lock.v1.LockService" "ValidateToken" Work "Checks a fencing token.";
    RequestRelease: "trefoil.lock.v1.LockService" "RequestRelease" Priority "Asks holders to release a lock.";
    KeepAliveStream: "trefoil.lock.v1.LockService" "KeepAliveStream" Renewal "Renews a session and tells its state.";
    WatchLocks: "trefoil.lock.v1.LockService" "WatchLocks" Stream "Tells what happens to locks.";
    AcquireStream: "trefoil.lock.v1.LockService" "AcquireStream" Stream "Acquires a lock and tells its place in line.";
    Campaign: "trefoil.lock.v1.ElectionService" "Campaign" Work "Waits to become the leader.";
    Proclaim: "trefoil.lock.v1.ElectionService" "Proclaim" Work "Changes the leader's value.";
    Leader: "trefoil.lock.v1.ElectionService" "Leader" Work "Shows the leader.";
    Observe: "trefoil.lock.v1.ElectionService" "Observe" Stream "Tells who leads, and each change of that.";
    Resign: "trefoil.lock.v1.ElectionService" "Resign" Priority "Ends a leadership.";
    SetPermits: "trefoil.lock.v1.SemaphoreService" "SetPermits" Work "Makes a semaphore, or changes its permits.";
    DeleteSemaphore: "trefoil.lock.v1.SemaphoreService" "DeleteSemaphore" Priority "Deletes a semaphore.";
    AcquirePermits: "trefoil.lock.v1.SemaphoreService" "AcquirePermits" Work "Takes permits of a semaphore.";
    ReleasePermits: "trefoil.lock.v1.SemaphoreService" "ReleasePermits" Priority "Gives permits back.";
    DescribeSemaphore: "trefoil.lock.v1.SemaphoreService" "DescribeSemaphore" Work "Shows a semaphore.";
    ListSemaphores: "trefoil.lock.v1.SemaphoreService" "ListSemaphores" Work "Lists semaphores.";
    SetLatch: "trefoil.lock.v1.BarrierService" "SetLatch" Work "Sets a latch.";
    CountDown: "trefoil.lock.v1.BarrierService" "CountDown" Priority "Counts a latch down.";
    AwaitLatch: "trefoil.lock.v1.BarrierService" "AwaitLatch" Work "Waits for a latch.";
    GetLatch: "trefoil.lock.v1.BarrierService" "GetLatch" Work "Shows a latch.";
    DeleteLatch: "trefoil.lock.v1.BarrierService" "DeleteLatch" Priority "Deletes a latch.";
    ListLatches: "trefoil.lock.v1.BarrierService" "ListLatches" Work "Lists latches.";
    EnterBarrier: "trefoil.lock.v1.BarrierService" "EnterBarrier" Work "Enters a barrier with others.";
    LeaveBarrier: "trefoil.lock.v1.BarrierService" "LeaveBarrier" Priority "Leaves a barrier with others.";
    GetBarrier: "trefoil.lock.v1.BarrierService" "GetBarrier" Work "Shows a barrier.";
    ListBarriers: "trefoil.lock.v1.BarrierService" "ListBarriers" Work "Lists barriers.";
    CreateQueue: "trefoil.queue.v1.QueueService" "CreateQueue" Work "Creates a queue.";
    Enqueue: "trefoil.queue.v1.QueueService" "Enqueue" Work "Stores messages.";
    Dequeue: "trefoil.queue.v1.QueueService" "Dequeue" Work "Leases messages.";
    Ack: "trefoil.queue.v1.QueueService" "Ack" Priority "Settles a delivery.";
    Put: "trefoil.cache.v1.CacheService" "Put" Work "Stores a value.";
    Get: "trefoil.cache.v1.CacheService" "Get" Work "Reads a value.";
    Delete: "trefoil.cache.v1.CacheService" "Delete" Work "Removes a key.";
    Status: "trefoil.cluster.v1.ClusterService" "Status" Priority "State of the node.";
    TransferLeader: "trefoil.cluster.v1.ClusterService" "TransferLeader" Priority "Hands a shard over.";
    CreateNamespace: "trefoil.cluster.v1.NamespaceService" "CreateNamespace" Work "Declares a namespace.";
    UpdateNamespace: "trefoil.cluster.v1.NamespaceService" "UpdateNamespace" Work "Changes a namespace.";
    GetNamespace: "trefoil.cluster.v1.NamespaceService" "GetNamespace" Work "Shows a namespace.";
    ListNamespaces: "trefoil.cluster.v1.NamespaceService" "ListNamespaces" Work "Lists namespaces.";
    DeleteNamespace: "trefoil.cluster.v1.NamespaceService" "DeleteNamespace" Work "Removes a namespace.";
    GetNamespacePolicy: "trefoil.cluster.v1.NamespaceService" "GetNamespacePolicy" Work "Shows the policy for others.";
    SetNamespacePolicy: "trefoil.cluster.v1.NamespaceService" "SetNamespacePolicy" Work "Sets the policy for others.";
    Pipeline: "trefoil.pipeline.v1.PipelineService" "Open" Stream "Frames of calls.";
    HealthCheck: "grpc.health.v1.Health" "Check" Priority "Whether a service serves.";
    HealthWatch: "grpc.health.v1.Health" "Watch" Stream "Tells whenever that changes.";
    Reflection: "grpc.reflection.v1.ServerReflection" "ServerReflectionInfo" Stream "Describes the services.";
    ReflectionAlpha: "grpc.reflection.v1alpha.ServerReflection" "ServerReflectionInfo" Stream "The same for older tools.";
}

impl Method {
    /// Whether a call of it ends with one answer, soon or after the wait that it asked for.
    #[must_use]
    pub fn is_unary(self) -> bool {
        matches!(self.load(), Load::Work | Load::Priority)
    }

    /// Type, service and name, as gRPC metrics have them in every language.
    #[must_use]
    pub fn labels(self) -> [&'static str; 3] {
        let kind = match self {
            Self::Pipeline | Self::KeepAliveStream | Self::Reflection | Self::ReflectionAlpha => {
                "bidi_stream"
            }
            _ if self.is_unary() => "unary",
            _ => "server_stream",
        };
        [kind, self.service(), self.name()]
    }

    /// Its place in [`Method::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_places_lead_back_to_the_method() {
        for (n, method) in Method::ALL.iter().enumerate() {
            assert_eq!(method.index(), n);
            assert_eq!(
                Method::of_path(&format!("/{}/{}", method.service(), method.name())),
                Some(*method)
            );
        }
        assert_eq!(Method::of_path("/trefoil.lock.v1.LockService/Other"), None);
    }
}
