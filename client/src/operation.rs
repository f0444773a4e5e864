//! The operations of the contract: how each is sent, stamped, routed and answered, as their options in `proto/` say.

use trefoil_proto::common::v1::{RequestId, ResponseHeader};
use trefoil_proto::pipeline::v1::{call, reply};
use trefoil_proto::slot::META_SHARD;

use crate::lane::Lane;
use crate::layouts::Layouts;
use crate::routing_key::RoutingKey;

/// A request of the contract that travels in a frame. Sealed: the operations are those of `proto/`.
pub trait Request: Clone + Send + Sync + 'static + sealed::Sealed {
    /// What answers it.
    type Response: Send + 'static;
    /// Whether it changes state, and therefore carries a request id.
    const MUTATION: bool;

    #[doc(hidden)]
    fn operation(self) -> call::Operation;
    #[doc(hidden)]
    fn response(outcome: reply::Outcome) -> Option<Self::Response>;
    #[doc(hidden)]
    fn header(response: &Self::Response) -> Option<&ResponseHeader>;
    #[doc(hidden)]
    fn stamp(&mut self, id: RequestId);
    /// The state that it touches, where one shard holds all of it.
    #[doc(hidden)]
    fn routing_key(&self, layouts: &Layouts) -> RoutingKey;
    /// Keeps what its response tells of its queue.
    #[doc(hidden)]
    fn learn(&self, response: &Self::Response, layouts: &Layouts);
    #[doc(hidden)]
    fn lane(&self) -> Lane;
    /// How long the server may wait before it answers, in ms.
    #[doc(hidden)]
    fn wait_ms(&mut self) -> Option<&mut u64>;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! operations {
    ($($variant:ident: $request:ty => $response:ty {
        $key:expr, $lane:expr, $(id = $id:ident,)? $(wait = $wait:ident,)? $(layout = $layout:ident,)?
    })*) => {$(
        impl sealed::Sealed for $request {}

        impl Request for $request {
            type Response = $response;
            const MUTATION: bool = operations!(@has $($id)?);

            fn operation(self) -> call::Operation {
                call::Operation::$variant(self)
            }

            fn response(outcome: reply::Outcome) -> Option<Self::Response> {
                match outcome {
                    reply::Outcome::$variant(response) => Some(response),
                    _ => None,
                }
            }

            fn header(response: &Self::Response) -> Option<&ResponseHeader> {
                response.header.as_ref()
            }

            fn stamp(&mut self, _id: RequestId) {
                $(self.$id = Some(_id);)?
            }

            fn routing_key(&self, layouts: &Layouts) -> RoutingKey {
                let key: fn(&Self, &Layouts) -> RoutingKey = $key;
                key(self, layouts)
            }

            fn learn(&self, _response: &Self::Response, _layouts: &Layouts) {
                $(_layouts.learn(&self.namespace, &self.queue, _response.$layout);)?
            }

            fn lane(&self) -> Lane {
                let lane: fn(&Self) -> Lane = $lane;
                lane(self)
            }

            fn wait_ms(&mut self) -> Option<&mut u64> {
                operations!(@wait self $($wait)?)
            }
        }
    )*};
    (@has $id:ident) => { true };
    (@has) => { false };
    (@wait $self:ident $wait:ident) => { Some(&mut $self.$wait) };
    (@wait $self:ident) => { None };
}

include!(concat!(env!("OUT_DIR"), "/operations.rs"));

fn unless_at_once(wait_ms: u64) -> Lane {
    if wait_ms == 0 { Lane::Calls } else { Lane::Waits }
}
