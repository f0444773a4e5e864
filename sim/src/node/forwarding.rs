//! The calls that a node carries out, and what travels on the streams for calls between nodes.

use trefoil_core::call::{Call, ShardRequest};
use trefoil_core::replica::Reply;
use trefoil_core::{CallId, ShardId};

use super::process::Process;

/// A call of a client that a node carries out.
#[derive(Debug)]
pub struct Served {
    /// The client.
    pub client: u64,
    /// Its try.
    pub token: u64,
    pub(crate) shard: ShardId,
    pub(crate) call: Call,
    pub(crate) answer_by_ms: u64,
    pub(crate) trying: Option<Trying>,
    pub(crate) tries: u32,
    /// The client has hung up.
    pub(crate) is_gone: bool,
}

/// Where a try is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trying {
    /// At this node's own replica.
    Here(CallId),
    /// At a peer.
    There {
        /// The stream.
        epoch: u64,
        /// Its name there.
        id: u64,
    },
}

/// Who asked a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// This node, for a call that it carries out.
    Served(u64),
    /// Another one.
    Peer {
        /// Which.
        process: Process,
        /// The stream.
        epoch: u64,
        /// The name of the call there.
        id: u64,
    },
}

/// Who waits for the answer to a call of a replica.
#[derive(Clone, Copy, Debug)]
pub struct CallOrigin {
    /// Who asked.
    pub asker: Asker,
    /// The shard that was asked.
    pub shard: ShardId,
    /// Highest index that any node had applied when the call came: an answer stands at it or behind it.
    pub floor: u64,
}

/// A node's stream for calls to a peer.
#[derive(Debug)]
pub struct CallStream {
    pub(crate) epoch: u64,
    /// Something was lost on it: nothing arrives any more, and both ends see so later.
    pub(crate) is_broken: bool,
    /// Nothing was sent on it.
    pub(crate) is_fresh: bool,
    /// When it can be used.
    pub(crate) open_at: u64,
    /// The last sign of life, by the boot clock of the node.
    pub(crate) heard_ms: u64,
}

/// What travels on a stream for calls.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "there are a few at a time")]
pub enum Forwarded {
    /// A call.
    Call {
        /// Its name on the stream.
        id: u64,
        /// The shard.
        shard: ShardId,
        /// How long it may take.
        timeout_ms: u64,
        /// What is asked.
        work: ShardRequest,
    },
    /// A call is not waited for any more.
    Cancel(u64),
    /// There is a grant for a call, if its caller is still there.
    Offer(u64),
    /// It is.
    Claim(u64),
    /// The end of a call.
    Reply(u64, Reply),
    /// A sign of life.
    Alive,
}
