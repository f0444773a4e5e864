//! What a node knows of who is a member, and what travels on the streams of members.

use std::collections::BTreeMap;

use trefoil_core::member::{Introduction, Memory, Word};
use trefoil_core::replica::Input;
use trefoil_core::{NodeId, ShardId};

/// What a running process knows of who is a member.
#[derive(Debug)]
pub struct Membership {
    /// Decides.
    pub introduction: Introduction,
    /// Whether its replicas take part in their shards.
    pub takes_part: bool,
    /// What happened to them before.
    pub held: Vec<(ShardId, Input)>,
    pub(crate) links: BTreeMap<NodeId, MemberLink>,
    pub(crate) hold_until: u64,
    pub(crate) tell_at: u64,
}

/// The stream of a node to a peer.
#[derive(Debug, Default)]
pub(crate) struct MemberLink {
    pub(crate) state: LinkState,
    /// Counts the attempts.
    pub(crate) attempt: u64,
    /// Whether an attempt has ended, with whatever result.
    pub(crate) dialled: bool,
    /// What was told on it.
    pub(crate) told: Option<Said>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) enum LinkState {
    #[default]
    Closed,
    Dialling,
    Open {
        /// Process of the peer.
        life: u32,
        /// Its start.
        start: u64,
    },
}

/// What a node says of itself and of what it remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub(crate) word: Word,
    pub(crate) memory: Memory,
}

/// What travels on the streams of members.
#[derive(Clone, Debug)]
pub enum Letter {
    /// The first message of a stream, and which attempt it is.
    Greeting(u64, Said),
    /// The answer; none where the sender is refused, with whether it must end.
    Welcome(u64, Result<Said, bool>),
    /// What has changed.
    News(Said),
}
