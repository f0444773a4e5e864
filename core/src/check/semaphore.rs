//! What requests about semaphores may be.

use trefoil_proto::internal::v1::Refusal;
use trefoil_proto::lock::v1 as lock;

use super::{Check, list, namespace, number, request_id, some_id, text};
use crate::limits as l;

impl Check for lock::SetPermitsRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        text("name", &self.name, 1, l::NAME_BYTES_MAX)?;
        number("permits", self.permits, 1, l::SEMAPHORE_PERMITS_MAX)?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for lock::DeleteSemaphoreRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        text("name", &self.name, 1, l::NAME_BYTES_MAX)?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for lock::AcquirePermitsRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        some_id("session_id", self.session_id)?;
        text("name", &self.name, 1, l::NAME_BYTES_MAX)?;
        if self.permits == 0 {
            self.permits = 1;
        }
        number("permits", self.permits, 1, l::SEMAPHORE_PERMITS_MAX)?;
        number("wait_ms", self.wait_ms, 0, l::WAIT_MS_MAX)?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for lock::ReleasePermitsRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        some_id("session_id", self.session_id)?;
        text("name", &self.name, 1, l::NAME_BYTES_MAX)?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for lock::DescribeSemaphoreRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        text("name", &self.name, 1, l::NAME_BYTES_MAX)
    }
}

impl Check for lock::ListSemaphoresRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        list(&mut self.namespace, &self.prefix, &mut self.page_size, &self.page_token)
    }
}
