//! Which function carries out which command and answers which query: the one of its name.

use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::query::Query;

use super::context::{CommandContext, CommandResult, QueryContext, QueryOutcome};
use crate::store::Store;

/// Everything that has the name of a command or a query.
mod handlers {
    pub(super) use super::super::cache::*;
    pub(super) use super::super::catalogue::*;
    pub(super) use super::super::fence::*;
    pub(super) use super::super::lock::handlers::*;
    pub(super) use super::super::namespace::*;
    pub(super) use super::super::namespace_copy::*;
    pub(super) use super::super::queue::*;
}

include!(concat!(env!("OUT_DIR"), "/dispatch.rs"));
