//! [`Refusal`] to [`tonic::Status`] and back: the only place that builds a status.

use std::collections::HashMap;

use tonic::{Code as GrpcCode, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::common::v1::Reason;
use crate::internal::v1::Refusal;
use crate::pipeline::v1::Error;
use crate::reason::{Code, DOMAIN, Retry};

/// The descriptors of the details of a status, so that reflection can show them.
pub const DETAIL_DESCRIPTORS: &[u8] = tonic_types::pb::FILE_DESCRIPTOR_SET;

impl From<Code> for GrpcCode {
    fn from(code: Code) -> Self {
        match code {
            Code::InvalidArgument => Self::InvalidArgument,
            Code::NotFound => Self::NotFound,
            Code::AlreadyExists => Self::AlreadyExists,
            Code::PermissionDenied => Self::PermissionDenied,
            Code::ResourceExhausted => Self::ResourceExhausted,
            Code::FailedPrecondition => Self::FailedPrecondition,
            Code::Aborted => Self::Aborted,
            Code::Internal => Self::Internal,
            Code::Unavailable => Self::Unavailable,
            Code::DeadlineExceeded => Self::DeadlineExceeded,
            Code::Unimplemented => Self::Unimplemented,
            Code::OutOfRange => Self::OutOfRange,
        }
    }
}

/// The status of a refusal. A retry with the same request id is safe after MAYBE_APPLIED, so stock retry
/// policies may see UNAVAILABLE then; without one they must not, and see ABORTED.
#[must_use]
pub fn to_status(refusal: &Refusal, has_request_id: bool) -> Status {
    let reason = refusal.reason();
    let row = reason.row();
    let code = match (reason, row.retry) {
        (Reason::MaybeApplied, Retry::WithRequestId) if has_request_id => GrpcCode::Unavailable,
        _ => row.code.into(),
    };
    let metadata = refusal.metadata.iter().map(|(key, value)| (key.clone(), value.clone()));
    let details =
        ErrorDetails::with_error_info(reason.name(), DOMAIN, metadata.collect::<HashMap<_, _>>());
    Status::with_error_details(code, refusal.message.clone(), details)
}

/// The refusal that a status carries; none where the status came from elsewhere (a proxy, the transport).
#[must_use]
pub fn from_status(status: &Status) -> Option<Refusal> {
    let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN)?;
    let reason = Reason::from_name(&info.reason)?;
    Some(Refusal {
        reason: reason.into(),
        message: status.message().to_owned(),
        metadata: info.metadata.into_iter().collect(),
    })
}

/// The refusal that ended a pipelined call; none where it came from elsewhere.
#[must_use]
pub fn refusal_of(error: Error) -> Option<Refusal> {
    from_status(&Status::with_details(GrpcCode::from_i32(error.code), error.message, error.details))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_survive_the_round_trip() {
        for reason in Reason::ALL.iter().copied() {
            let refusal = Refusal {
                reason: reason.into(),
                message: "name is longer than its limit".to_owned(),
                metadata: [("field".to_owned(), "name".to_owned())].into(),
            };
            assert_eq!(from_status(&to_status(&refusal, false)), Some(refusal));
        }
    }

    #[test]
    fn an_ambiguous_end_is_aborted_unless_a_retry_is_safe() {
        let refusal = Refusal { reason: Reason::MaybeApplied.into(), ..Refusal::default() };
        assert_eq!(to_status(&refusal, false).code(), GrpcCode::Aborted);
        assert_eq!(to_status(&refusal, true).code(), GrpcCode::Unavailable);
    }
}
