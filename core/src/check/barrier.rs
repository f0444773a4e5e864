//! What requests about latches and barriers may be.

use trefoil_proto::internal::v1::Refusal;
use trefoil_proto::lock::v1 as lock;

use super::{Check, list, namespace, number, request_id, some_id, text};
use crate::limits as l;

impl Check for lock::SetLatchRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        text("name", &self.name, 1, l::NAME_BYTES_MAX)?;
        number("count", self.count, 1, l::LATCH_COUNT_MAX)?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for lock::CountDownRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        text("name", &self.name, 1, l::NAME_BYTES_MAX)?;
        if self.by == 0 {
            self.by = 1;
        }
        request_id(self.request_id.as_ref())
    }
}

impl Check for lock::AwaitLatchRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        text("name", &self.name, 1, l::NAME_BYTES_MAX)?;
        number("wait_ms", self.wait_ms, 0, l::WAIT_MS_MAX)
    }
}

impl Check for lock::GetLatchRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        text("name", &self.name, 1, l::NAME_BYTES_MAX)
    }
}

impl Check for lock::DeleteLatchRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        text("name", &self.name, 1, l::NAME_BYTES_MAX)?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for lock::ListLatchesRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        list(&mut self.namespace, &self.prefix, &mut self.page_size, &self.page_token)
    }
}

impl Check for lock::EnterBarrierRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        some_id("session_id", self.session_id)?;
        text("name", &self.name, 1, l::NAME_BYTES_MAX)?;
        number("parties", self.parties.into(), 1, l::BARRIER_PARTIES_MAX.into())?;
        number("wait_ms", self.wait_ms, 0, l::WAIT_MS_MAX)?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for lock::LeaveBarrierRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        some_id("session_id", self.session_id)?;
        text("name", &self.name, 1, l::NAME_BYTES_MAX)?;
        number("wait_ms", self.wait_ms, 0, l::WAIT_MS_MAX)?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for lock::GetBarrierRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        text("name", &self.name, 1, l::NAME_BYTES_MAX)
    }
}

impl Check for lock::ListBarriersRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        list(&mut self.namespace, &self.prefix, &mut self.page_size, &self.page_token)
    }
}
