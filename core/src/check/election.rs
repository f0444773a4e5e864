//! What requests about elections may be.

use trefoil_proto::internal::v1::Refusal;
use trefoil_proto::lock::v1 as lock;

use super::{Check, namespace, number, proclaimed, request_id, some_id, text};
use crate::limits as l;

impl Check for lock::CampaignRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        some_id("session_id", self.session_id)?;
        text("name", &self.name, 1, l::NAME_BYTES_MAX)?;
        proclaimed(self.value.as_ref())?;
        number("wait_ms", self.wait_ms, 0, l::WAIT_MS_MAX)?;
        number("lock_delay_ms", self.lock_delay_ms(), 0, l::LOCK_DELAY_MS_MAX)?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for lock::ProclaimRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        some_id("session_id", self.session_id)?;
        text("name", &self.name, 1, l::NAME_BYTES_MAX)?;
        some_id("fencing_token", self.fencing_token)?;
        proclaimed(self.value.as_ref())?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for lock::LeaderRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        text("name", &self.name, 1, l::NAME_BYTES_MAX)
    }
}

impl Check for lock::ObserveRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        text("name", &self.name, 1, l::NAME_BYTES_MAX)
    }
}

impl Check for lock::ResignRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        some_id("session_id", self.session_id)?;
        text("name", &self.name, 1, l::NAME_BYTES_MAX)?;
        request_id(self.request_id.as_ref())
    }
}
