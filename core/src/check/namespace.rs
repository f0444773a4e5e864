//! What declarations of namespaces may be.

use trefoil_proto::cluster::v1::{
    self as api, NamespaceSettings, QueueCreation, UnknownNamespaces,
};
use trefoil_proto::internal::v1::Refusal;

use super::{Check, DEFAULT_NAMESPACE, invalid, number, page_size, request_id, text};
use crate::{limits as l, page};

/// Refuses limits above those of the cluster, and policies that mean nothing.
pub(crate) fn namespace_settings(settings: &NamespaceSettings) -> Result<(), Refusal> {
    let s = settings;
    number("settings.sessions_max", s.sessions_max, 0, l::SESSIONS_PER_NAMESPACE_MAX)?;
    number("settings.locks_max", s.locks_max, 0, l::LOCKS_PER_NAMESPACE_MAX)?;
    number("settings.waits_max", s.waits_max, 0, l::WAITS_PER_NAMESPACE_MAX)?;
    number("settings.queues_max", s.queues_max, 0, l::NAMESPACE_QUEUES_MAX)?;
    if s.session_ttl_ms_max > 0 {
        let (min, max) = (l::SESSION_TTL_MS_MIN, l::SESSION_TTL_MS_MAX);
        number("settings.session_ttl_ms_max", s.session_ttl_ms_max, min, max)?;
    }
    let delay = s.lock_delay_ms_default;
    number("settings.lock_delay_ms_default", delay, 0, l::LOCK_DELAY_MS_MAX)?;
    match QueueCreation::try_from(s.queue_creation) {
        Ok(_) => Ok(()),
        Err(_) => Err(invalid("settings.queue_creation", "UNSPECIFIED, ALLOWED or REFUSED")),
    }
}

/// Refuses a policy that says nothing.
pub(crate) fn unknown_namespaces(unknown: i32) -> Result<UnknownNamespaces, Refusal> {
    match UnknownNamespaces::try_from(unknown) {
        Ok(UnknownNamespaces::Unspecified) | Err(_) => {
            Err(invalid("unknown", "CREATED or REFUSED"))
        }
        Ok(unknown) => Ok(unknown),
    }
}

/// Refuses the namespace that always exists.
pub(crate) fn deletable(name: &str) -> Result<(), Refusal> {
    if name == DEFAULT_NAMESPACE {
        Err(invalid("name", "another than \"default\""))
    } else {
        Ok(())
    }
}

fn name_or_default(name: &mut String) -> Result<(), Refusal> {
    if name.is_empty() {
        DEFAULT_NAMESPACE.clone_into(name);
    }
    text("name", name, 1, l::NAME_BYTES_MAX)
}

fn settings(settings: &mut Option<NamespaceSettings>) -> Result<(), Refusal> {
    namespace_settings(settings.get_or_insert_default())
}

impl Check for api::CreateNamespaceRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        text("name", &self.name, 1, l::NAME_BYTES_MAX)?;
        settings(&mut self.settings)?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for api::UpdateNamespaceRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        name_or_default(&mut self.name)?;
        settings(&mut self.settings)?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for api::GetNamespaceRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        name_or_default(&mut self.name)
    }
}

impl Check for api::ListNamespacesRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        text("prefix", &self.prefix, 0, l::NAME_BYTES_MAX)?;
        page_size(&mut self.page_size)?;
        page::check(&self.page_token)
    }
}

impl Check for api::DeleteNamespaceRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        text("name", &self.name, 1, l::NAME_BYTES_MAX)?;
        deletable(&self.name)?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for api::SetNamespacePolicyRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        unknown_namespaces(self.unknown)?;
        request_id(self.request_id.as_ref())
    }
}

/// Only the handler knows the shards and nodes.
macro_rules! checked_by_handler {
    ($($request:ident)*) => {$(
        impl Check for api::$request {
            fn check(&mut self) -> Result<(), Refusal> {
                Ok(())
            }
        }
    )*};
}

checked_by_handler! { StatusRequest TransferLeaderRequest GetNamespacePolicyRequest }
