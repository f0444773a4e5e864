//! What a node does with each operation, as its options in `proto/` say: checks, dispatch and the unary services.

use std::sync::Arc;

use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use trefoil_core::check::Check as _;
use trefoil_core::slot;
use trefoil_proto::internal::v1::Refusal;
use trefoil_proto::internal::v1::command::Operation as Command;
use trefoil_proto::internal::v1::query::Query;
use trefoil_proto::operation::Method;
use trefoil_proto::pipeline::v1::call::Operation;

use super::bounds::{REQUEST_MAX, RESPONSE_MAX, bounded};
use super::server_stream::ServerStream;
use super::unary::Unary;
use super::{Api, Context, Outcome, Shards, expect_answer, other_answer};

include!(concat!(env!("OUT_DIR"), "/operations.rs"));
