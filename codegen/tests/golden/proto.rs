// Written by trefoil-codegen from the options in proto/.
impl Reason {
    /// Every one, in the order of their numbers.
    pub const ALL: &[Self] = &[
    ];
}

impl Action {
    /// Every one, in the order of their numbers.
    pub const ALL: &[Self] = &[
        Self::UseSession,
        Self::UseLock,
        Self::CreateQueue,
        Self::Enqueue,
        Self::Consume,
        Self::ReadValue,
        Self::WriteValue,
        Self::ReadStatus,
        Self::MoveLeader,
        Self::ReadLocks,
        Self::ControlLocks,
        Self::ReadNamespaces,
        Self::ManageNamespaces,
    ];
}

/// An RPC of the client port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// Opens a gate.
    OpenGate,
    /// Waits at a gate.
    AwaitGate,
    /// Shows a gate.
    GetGate,
    /// Tells what happens to gates.
    WatchGates,
    /// Whether a service serves.
    HealthCheck,
    /// Tells whenever that changes.
    HealthWatch,
    /// Describes the services.
    Reflection,
    /// The same for older tools.
    ReflectionAlpha,
}

impl Method {
    /// Every RPC, in the order of [`Method::index`].
    pub const ALL: &[Self] = &[
        Self::OpenGate,
        Self::AwaitGate,
        Self::GetGate,
        Self::WatchGates,
        Self::HealthCheck,
        Self::HealthWatch,
        Self::Reflection,
        Self::ReflectionAlpha,
    ];

    /// The RPC with this path; none for any other path.
    #[must_use]
    pub fn of_path(path: &str) -> Option<Self> {
        match path {
            "/trefoil.lock.v1.GateService/OpenGate" => Some(Self::OpenGate),
            "/trefoil.lock.v1.GateService/AwaitGate" => Some(Self::AwaitGate),
            "/trefoil.lock.v1.GateService/GetGate" => Some(Self::GetGate),
            "/trefoil.lock.v1.GateService/WatchGates" => Some(Self::WatchGates),
            "/grpc.health.v1.Health/Check" => Some(Self::HealthCheck),
            "/grpc.health.v1.Health/Watch" => Some(Self::HealthWatch),
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo" => Some(Self::Reflection),
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo" => Some(Self::ReflectionAlpha),
            _ => None,
        }
    }
}

/// What is to be known of each, in the order of [`Method::ALL`].
const FACTS: &[Facts] = &[
    Facts {
        service: "trefoil.lock.v1.GateService",
        name: "OpenGate",
        shape: "unary",
        action: Action::UseLock,
        resource: Resource::Lock,
        admission: AdmissionClass::Ordinary,
        has_request_id: true,
    },
    Facts {
        service: "trefoil.lock.v1.GateService",
        name: "AwaitGate",
        shape: "unary",
        action: Action::UseLock,
        resource: Resource::Lock,
        admission: AdmissionClass::Reserved,
        has_request_id: false,
    },
    Facts {
        service: "trefoil.lock.v1.GateService",
        name: "GetGate",
        shape: "unary",
        action: Action::ReadLocks,
        resource: Resource::Lock,
        admission: AdmissionClass::Ordinary,
        has_request_id: false,
    },
    Facts {
        service: "trefoil.lock.v1.GateService",
        name: "WatchGates",
        shape: "server_stream",
        action: Action::ReadLocks,
        resource: Resource::Namespace,
        admission: AdmissionClass::Stream,
        has_request_id: false,
    },
    Facts {
        service: "grpc.health.v1.Health",
        name: "Check",
        shape: "unary",
        action: Action::Unspecified,
        resource: Resource::Unspecified,
        admission: AdmissionClass::Reserved,
        has_request_id: false,
    },
    Facts {
        service: "grpc.health.v1.Health",
        name: "Watch",
        shape: "server_stream",
        action: Action::Unspecified,
        resource: Resource::Unspecified,
        admission: AdmissionClass::Stream,
        has_request_id: false,
    },
    Facts {
        service: "grpc.reflection.v1.ServerReflection",
        name: "ServerReflectionInfo",
        shape: "bidi_stream",
        action: Action::Unspecified,
        resource: Resource::Unspecified,
        admission: AdmissionClass::Stream,
        has_request_id: false,
    },
    Facts {
        service: "grpc.reflection.v1alpha.ServerReflection",
        name: "ServerReflectionInfo",
        shape: "bidi_stream",
        action: Action::Unspecified,
        resource: Resource::Unspecified,
        admission: AdmissionClass::Stream,
        has_request_id: false,
    },
];

impl call::Operation {
    /// The RPC that it is.
    #[must_use]
    pub fn method(&self) -> Method {
        match self {
            Self::OpenGate(_) => Method::OpenGate,
            Self::AwaitGate(_) => Method::AwaitGate,
            Self::GetGate(_) => Method::GetGate,
        }
    }

    /// Its request id.
    #[must_use]
    pub fn request_id(&self) -> Option<&RequestId> {
        match self {
            Self::OpenGate(request) => request.request_id.as_ref(),
            Self::AwaitGate(_) |
            Self::GetGate(_) => None,
        }
    }

    /// The field of its request id, where it has one.
    #[must_use]
    pub fn request_id_mut(&mut self) -> Option<&mut Option<RequestId>> {
        match self {
            Self::OpenGate(request) => Some(&mut request.request_id),
            Self::AwaitGate(_) |
            Self::GetGate(_) => None,
        }
    }

    /// How long it may wait, in ms.
    #[must_use]
    pub fn wait_ms(&self) -> u64 {
        match self {
            Self::AwaitGate(request) => request.wait_ms,
            Self::OpenGate(_) |
            Self::GetGate(_) => 0,
        }
    }

    /// The field of how long it may wait, in ms, where it has one.
    #[must_use]
    pub fn wait_ms_mut(&mut self) -> Option<&mut u64> {
        match self {
            Self::AwaitGate(request) => Some(&mut request.wait_ms),
            Self::OpenGate(_) |
            Self::GetGate(_) => None,
        }
    }

    /// The field of its fence, where it has one.
    #[must_use]
    pub fn fence_mut(&mut self) -> Option<&mut Option<Fence>> {
        match self {
            Self::OpenGate(_) |
            Self::AwaitGate(_) |
            Self::GetGate(_) => None,
        }
    }

    /// Namespace and name of what it is done to; empty where it has none.
    #[must_use]
    pub fn names(&self) -> (&str, &str) {
        match self {
            Self::OpenGate(request) => (&request.namespace, &request.name),
            Self::AwaitGate(request) => (&request.namespace, &request.name),
            Self::GetGate(request) => (&request.namespace, &request.name),
        }
    }

    /// The locks that it asks for; none where it names one lock, or something else.
    #[must_use]
    pub fn locks(&self) -> &[LockWish] {
        match self {
            Self::OpenGate(_) |
            Self::AwaitGate(_) |
            Self::GetGate(_) => &[],
        }
    }

}

impl reply::Outcome {
    /// Its header.
    #[must_use]
    pub fn header(&self) -> Option<&ResponseHeader> {
        match self {
            Self::OpenGate(request) => request.header.as_ref(),
            Self::AwaitGate(request) => request.header.as_ref(),
            Self::GetGate(request) => request.header.as_ref(),
            Self::Error(_) => None,
        }
    }

    /// The field of its header, where it has one.
    #[must_use]
    pub fn header_mut(&mut self) -> Option<&mut Option<ResponseHeader>> {
        match self {
            Self::OpenGate(request) => Some(&mut request.header),
            Self::AwaitGate(request) => Some(&mut request.header),
            Self::GetGate(request) => Some(&mut request.header),
            Self::Error(_) => None,
        }
    }

}

impl command::Operation {
    /// Whether doing it twice is doing it once.
    #[must_use]
    pub fn is_idempotent(&self) -> bool {
        match self {
            Self::OpenGate(_) => false,
            Self::AwaitGate(_) |
            Self::CloseGate(_) |
            Self::LoseGate(_) => true,
        }
    }

    /// Whether it makes room: it is taken even when the disk is nearly full.
    #[must_use]
    pub fn frees_space(&self) -> bool {
        match self {
            Self::OpenGate(_) => false,
            Self::AwaitGate(_) |
            Self::CloseGate(_) |
            Self::LoseGate(_) => true,
        }
    }

    /// Whether the node that makes it draws chance for it, because what applies it draws nothing.
    #[must_use]
    pub fn draws_chance(&self) -> bool {
        match self {
            Self::OpenGate(_) => true,
            Self::AwaitGate(_) |
            Self::CloseGate(_) |
            Self::LoseGate(_) => false,
        }
    }

    /// Namespace and id of the session that it names, and what it does to that.
    #[must_use]
    pub fn session(&self) -> Option<(&str, u64, SessionUse)> {
        match self {
            Self::OpenGate(request) => Some((&request.namespace, request.session_id, SessionUse::Renews)),
            Self::LoseGate(request) => Some((&request.namespace, request.session_id, SessionUse::Names)),
            Self::AwaitGate(_) |
            Self::CloseGate(_) => None,
        }
    }

    /// What it counts against at the leader.
    #[must_use]
    pub fn admission(&self) -> AdmissionClass {
        match self {
            Self::AwaitGate(request) if request.wait_ms > 0 => AdmissionClass::Waiting,
            Self::OpenGate(_) |
            Self::LoseGate(_) => AdmissionClass::Ordinary,
            Self::AwaitGate(_) |
            Self::CloseGate(_) => AdmissionClass::Reserved,
        }
    }

    /// The rights of which its caller needs one. None at all: leaders alone propose it.
    #[must_use]
    pub fn actions(&self) -> &'static [Action] {
        match self {
            Self::OpenGate(_) |
            Self::AwaitGate(_) => &[Action::UseLock],
            Self::CloseGate(_) => &[Action::UseLock, Action::ReadLocks],
            Self::LoseGate(_) => &[],
        }
    }

    /// Namespace and name of what it is done to; none where it does not say.
    #[must_use]
    pub fn names(&self) -> Option<(&str, &str)> {
        match self {
            Self::OpenGate(request) => Some((&request.namespace, &request.name)),
            Self::AwaitGate(request) => Some((&request.namespace, &request.name)),
            Self::LoseGate(request) => Some((&request.namespace, "")),
            Self::CloseGate(_) => None,
        }
    }

    /// The locks that it asks for; none where it names one lock, or something else.
    #[must_use]
    pub fn locks(&self) -> &[LockWish] {
        match self {
            Self::OpenGate(_) |
            Self::AwaitGate(_) |
            Self::CloseGate(_) |
            Self::LoseGate(_) => &[],
        }
    }

}

impl query::Query {
    /// What it counts against at the leader.
    #[must_use]
    pub fn admission(&self) -> AdmissionClass {
        match self {
            Self::GetGate(_) => AdmissionClass::Ordinary,
        }
    }

    /// The rights of which its caller needs one. None at all: leaders alone propose it.
    #[must_use]
    pub fn actions(&self) -> &'static [Action] {
        match self {
            Self::GetGate(_) => &[Action::ReadLocks],
        }
    }

    /// Namespace and name of what it is done to; none where it does not say.
    #[must_use]
    pub fn names(&self) -> Option<(&str, &str)> {
        match self {
            Self::GetGate(request) => Some((&request.namespace, &request.name)),
        }
    }

    /// The locks that it asks for; none where it names one lock, or something else.
    #[must_use]
    pub fn locks(&self) -> &[LockWish] {
        match self {
            Self::GetGate(_) => &[],
        }
    }

}
