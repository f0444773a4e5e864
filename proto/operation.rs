//! What is to be known of each operation, command and query: generated from the options that stand beside their RPCs in the
//! `.proto` files (`trefoil/common/v1/operation.proto` says what they mean).

use crate::common::v1::{
    Action, AdmissionClass, Fence, Reason, RequestId, Resource, ResponseHeader, SessionUse,
};
use crate::internal::v1::{command, query};
use crate::lock::v1::LockWish;
use crate::pipeline::v1::{call, reply};

/// What is to be known of an RPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Full name of its service.
    pub service: &'static str,
    /// Its name within the service.
    pub name: &'static str,
    /// `unary`, `server_stream` or `bidi_stream`, as gRPC metrics have it in every language.
    pub shape: &'static str,
    /// The right that its caller needs.
    pub action: Action,
    /// Upon what.
    pub resource: Resource,
    /// What it counts against where it enters the cluster.
    pub admission: AdmissionClass,
    /// Whether a retry is told apart by its request id.
    pub has_request_id: bool,
}

impl Method {
    /// Its place in [`Method::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }

    /// What is to be known of it.
    #[must_use]
    pub fn facts(self) -> &'static Facts {
        &FACTS[self.index()]
    }

    /// Whether a call of it ends with one answer, soon or after the wait that it asked for.
    #[must_use]
    pub fn is_unary(self) -> bool {
        self.facts().shape == "unary"
    }
}

include!(concat!(env!("OUT_DIR"), "/operations.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_places_lead_back_to_the_method() {
        for (n, method) in Method::ALL.iter().enumerate() {
            let Facts { service, name, .. } = method.facts();
            assert_eq!(method.index(), n);
            assert_eq!(Method::of_path(&format!("/{service}/{name}")), Some(*method));
        }
        assert_eq!(Method::of_path("/trefoil.lock.v1.LockService/Other"), None);
    }
}
