//! How a call can end without its answer, and what the caller may do then.

use std::collections::BTreeMap;
use std::time::Duration;

use tonic::{Code, Status};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::Refusal;
use trefoil_proto::pipeline::v1::Error as Pipelined;
use trefoil_proto::reason::{RefusalEffect, Retry};
use trefoil_proto::status;

/// Why there is no answer. The client has already retried what was safe to retry.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The cluster refused the call, with a reason of the table in `docs/errors.md`.
    #[error("{message} ({})", reason.name())]
    Refused {
        /// The row of the table.
        reason: Reason,
        /// One sentence for people.
        message: String,
        /// What goes with the reason, such as `field` and `limit`.
        metadata: BTreeMap<String, String>,
    },
    /// Something between the client and Trefoil answered, or a node of another version.
    #[error("the server answered {code:?}: {message}")]
    Status {
        /// The gRPC status code.
        code: Code,
        /// Its message.
        message: String,
    },
    /// No node could be reached: nothing happened.
    #[error("no node can be reached at {endpoint}: {cause}")]
    Unreachable {
        /// The endpoint that was tried last.
        endpoint: String,
        /// What was wrong there.
        cause: String,
    },
    /// The deadline passed, and nothing happened.
    #[error("no answer within {timeout_ms} ms")]
    Deadline {
        /// The time that the call had.
        timeout_ms: u64,
    },
    /// A try was sent whose end was never seen: it may take effect, once.
    #[error("it may or may not have taken effect: {last}")]
    MaybeApplied {
        /// How the last try ended.
        last: Box<Self>,
    },
    /// The endpoint is not a URL such as `http://127.0.0.1:7001`.
    #[error("{endpoint:?} is not an endpoint: write http://host:port")]
    InvalidEndpoint {
        /// What was given.
        endpoint: String,
    },
    /// No endpoint was given.
    #[error("at least one endpoint is needed")]
    NoEndpoint,
    /// The reply is not one to this call: client and server do not fit.
    #[error("the reply does not fit the call")]
    Protocol,
}

impl Error {
    /// The connection to a node broke.
    pub(crate) fn broken(endpoint: &str) -> Self {
        Self::Unreachable {
            endpoint: endpoint.to_owned(),
            cause: "the connection broke".to_owned(),
        }
    }

    /// Nothing came in time.
    pub(crate) fn late(timeout: Duration) -> Self {
        Self::Deadline { timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX) }
    }

    /// The reason, where the cluster itself refused.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Refused { reason, .. } => Some(*reason),
            Self::MaybeApplied { last } => last.reason(),
            Self::Status { .. }
            | Self::Unreachable { .. }
            | Self::Deadline { .. }
            | Self::InvalidEndpoint { .. }
            | Self::NoEndpoint
            | Self::Protocol => None,
        }
    }

    /// Whether the same call may well succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused { reason, .. } => reason.row().retry != Retry::Never,
            Self::Status { code, .. } => {
                matches!(code, Code::Unavailable | Code::ResourceExhausted)
            }
            Self::Unreachable { .. } | Self::Deadline { .. } => true,
            Self::MaybeApplied { .. }
            | Self::InvalidEndpoint { .. }
            | Self::NoEndpoint
            | Self::Protocol => false,
        }
    }

    /// Whether nothing happened and nothing will: false after a try whose end was not seen.
    #[must_use]
    pub fn has_no_side_effects(&self) -> bool {
        self.effect() != RefusalEffect::Unknown
    }

    /// What may have happened by the try that ended so, and by those before it.
    pub(crate) fn effect(&self) -> RefusalEffect {
        match self {
            Self::Refused { reason, .. } => reason.row().effect,
            Self::Status { .. } | Self::Unreachable { .. } | Self::Deadline { .. } => {
                RefusalEffect::NotThisTry
            }
            Self::InvalidEndpoint { .. } | Self::NoEndpoint => RefusalEffect::NoTry,
            Self::MaybeApplied { .. } | Self::Protocol => RefusalEffect::Unknown,
        }
    }

    /// How a stream of the server ended.
    pub(crate) fn from_status(status: &Status) -> Self {
        match status::from_status(status) {
            Some(refusal) => Self::from(refusal),
            None => Self::Status { code: status.code(), message: status.message().to_owned() },
        }
    }

    pub(crate) fn from_reply(error: Pipelined) -> Self {
        let (code, message) = (Code::from_i32(error.code), error.message.clone());
        match status::refusal_of(error) {
            Some(refusal) => Self::from(refusal),
            None => Self::Status { code, message },
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused {
            reason: refusal.reason(),
            message: refusal.message,
            metadata: refusal.metadata,
        }
    }
}
