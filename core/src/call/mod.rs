//! What a node does about one call, from its first try to its end: where each try goes, what its end means, when the
//! next one is made, when a leader is given up, and what the caller is told at last.
//!
//! The node that a client asks carries this out with its own replica and its links to the others; the simulator's
//! nodes run the same. Whoever carries it out says what it knows (a [`View`]) and does what comes back (a [`Step`]).
//! An answer of the state machine ends a call at once and is no business of this one.

mod shard_request;

use std::fmt;

use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::Refusal;
use trefoil_proto::reason::RefusalEffect;

use self::shard_request::refusal;
pub use self::shard_request::{Failure, ShardRequest, failure, unseen};
use crate::NodeId;
use crate::limits as l;

/// Silence after which a leader that was asked is given up: the longest election timeout.
pub const SILENCE_MS: u64 = l::ELECTION_TICKS_MAX as u64 * l::TICK_MS;
/// The same for a leader that the shard has replaced: three signs of life that did not come.
const REPLACED_SILENCE_MS: u64 = 3 * l::FORWARD_ALIVE_MS;

/// What a node knows at the moment of a step.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// This node.
    pub node: NodeId,
    /// The clock of [`crate::Now::boot_ms`].
    pub now_ms: u64,
    /// The leader of the shard, where it is known.
    pub leader: Option<NodeId>,
    /// The term of the shard's replica on this node.
    pub term: u64,
    /// Since when no leader is known; nothing where one is.
    pub leaderless_since_ms: u64,
    /// Log time of the last entry that the shard's replica on this node has applied.
    pub applied_log_time_ms: u64,
    /// Since when the node takes no calls any more.
    pub stopping_since_ms: Option<u64>,
    /// When a node gave its last sign of life on the link for calls to it.
    pub heard_ms: &'a dyn Fn(NodeId) -> u64,
    /// Chance, from 0 to 1,000: spreads the pauses.
    pub jitter: u64,
}

/// What has happened to a call.
#[derive(Clone, Debug, PartialEq)]
pub enum CallEvent {
    /// It begins; time has passed; another node leads; the node is stopping.
    Look,
    /// The try under way has failed.
    Failed(Refusal, Failure),
    /// Its caller is gone.
    Cancel,
}

/// What to do about a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Cancel the try under way: nobody waits for its end any more.
    pub cancels: bool,
    /// And then.
    pub act: Act,
}

/// See [`Step`].
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    /// Ask this node or another for [`Call::work`] as it is now.
    Try(NodeId),
    /// Look again when the leader is another one, and at this time.
    Wait(u64),
    /// Tell the caller.
    End(Refusal),
    /// Nothing is left to do.
    Over,
}

/// A try under way.
#[derive(Clone, Copy, Debug)]
struct Try {
    to: NodeId,
    term: u64,
    begun_ms: u64,
    /// When another leader was seen in its place.
    replaced_ms: Option<u64>,
}

/// A pause between tries. News of a leader ends it.
#[derive(Clone, Copy, Debug)]
struct Rest {
    until_ms: u64,
    /// The node that was asked last, and the term then.
    asked: Option<(NodeId, u64)>,
}

/// One call.
#[derive(Clone, Debug)]
pub struct Call {
    work: ShardRequest,
    answer_by_ms: u64,
    trying: Option<Try>,
    rest: Option<Rest>,
    pause_ms: u64,
    /// What to say of the last try whose end was not seen.
    unseen: Option<Refusal>,
    /// What was applied here before the first try: none of them is applied earlier.
    not_before_ms: Option<u64>,
    /// The leader that the last refusal named, and the term that was known here then.
    hint: Option<(NodeId, u64)>,
    /// A hint was followed without a pause: the next one is not.
    was_hinted: bool,
    /// A leader that was given up as silent, its term, and when.
    silent: Option<(NodeId, u64, u64)>,
    is_over: bool,
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, now_ms, leader, term, .. } = self;
        write!(f, "n{node} at {now_ms} ms: term {term}, leader {leader:?}")
    }
}

impl View<'_> {
    /// Whether no leader has been known for so long that nothing is worth waiting for.
    #[must_use]
    pub fn is_leaderless(&self) -> bool {
        self.leader.is_none() && self.now_ms >= self.leaderless_since_ms + l::LEADERLESS_MS
    }
}

impl Call {
    /// A call that has to be answered by a time of the boot clock.
    #[must_use]
    pub fn new(work: ShardRequest, answer_by_ms: u64) -> Self {
        Self {
            work,
            answer_by_ms,
            trying: None,
            rest: None,
            pause_ms: l::CALL_PAUSE_MS_MIN,
            unseen: None,
            not_before_ms: None,
            hint: None,
            was_hinted: false,
            silent: None,
            is_over: false,
        }
    }

    /// What to ask for in the next try.
    #[must_use]
    pub fn work(&self) -> &ShardRequest {
        &self.work
    }

    /// Whether an earlier try may have taken effect unseen.
    #[must_use]
    pub fn has_unseen(&self) -> bool {
        self.unseen.is_some()
    }

    /// Decides what to do next. Once it was cancelled or has ended, a call is over.
    pub fn step(&mut self, view: &View<'_>, event: CallEvent) -> Step {
        let was_trying = self.trying.is_some() && !matches!(event, CallEvent::Failed(..));
        let act = match event {
            _ if self.is_over => Act::Over,
            CallEvent::Cancel if !crate::mutant!(CancelledRetried) => Act::Over,
            CallEvent::Cancel | CallEvent::Look => match self.trying {
                Some(tried) => self.look_at(view, tried),
                None => self.next(view),
            },
            CallEvent::Failed(why, failure) => self.failed(view, why, failure),
        };
        if matches!(act, Act::End(_) | Act::Over) {
            self.is_over = true;
            self.trying = None;
        }
        let waits = self.trying.is_some() && matches!(act, Act::Wait(_));
        Step { cancels: was_trying && !waits, act }
    }

    /// Time passes while a try is under way.
    fn look_at(&mut self, view: &View<'_>, mut tried: Try) -> Act {
        let stop_by = view.stopping_since_ms.map(|since| since + l::STOP_ANSWER_MS);
        let until = stop_by.map_or(self.answer_by_ms, |by| by.min(self.answer_by_ms));
        if view.now_ms >= until {
            // The try may have been proposed.
            let unseen = self.unseen.take();
            return Act::End(unseen.unwrap_or_else(|| self.work.unseen().0));
        }
        if tried.to == view.node {
            // This node's own replica says when it no longer leads.
            return Act::Wait(until);
        }
        if view.term > tried.term && view.leader.is_some_and(|leader| leader != tried.to) {
            tried.replaced_ms.get_or_insert(view.now_ms);
        }
        self.trying = Some(tried);
        let heard_ms = (view.heard_ms)(tried.to).max(tried.begun_ms);
        let give_up_ms = match tried.replaced_ms {
            None => heard_ms + SILENCE_MS,
            // One that is alive says itself what became of the call.
            Some(at) => (heard_ms + REPLACED_SILENCE_MS).min(at + l::REPLACED_LEADER_MS),
        };
        if view.now_ms < give_up_ms {
            return Act::Wait(until.min(give_up_ms));
        }
        self.silent = Some((tried.to, tried.term, view.now_ms));
        let (why, failure) = self.work.unseen();
        self.failed(view, why, failure)
    }

    fn failed(&mut self, view: &View<'_>, why: Refusal, failure: Failure) -> Act {
        let tried = self.trying.take();
        match failure {
            Failure::Final => return Act::End(self.final_word(why)),
            Failure::Unknown if !self.work.is_repeatable() && !crate::mutant!(BlindRetry) => {
                return Act::End(why);
            }
            Failure::Unknown => {
                self.work.count_attempt(self.not_before_ms.unwrap_or_default());
                self.unseen = Some(why);
            }
            Failure::Definite => {
                let named = why.metadata.get("leader").and_then(|leader| leader.parse().ok());
                self.hint = named.filter(|node| *node != view.node).map(|node| (node, view.term));
            }
        }
        let pause_ms = self.pause_ms * (500 + view.jitter.min(1_000) / 2) / 1_000;
        self.pause_ms = (self.pause_ms * 2).min(l::CALL_PAUSE_MS_MAX);
        let asked = tried.map(|tried| (tried.to, tried.term));
        self.rest = Some(Rest { until_ms: view.now_ms + pause_ms, asked });
        self.next(view)
    }

    /// What to do while no try is under way.
    fn next(&mut self, view: &View<'_>) -> Act {
        if view.stopping_since_ms.is_some() {
            return self.give_up(refusal(Reason::Stopping, "the node is stopping"));
        }
        if view.now_ms >= self.answer_by_ms {
            return self.give_up(unreached(view.leader.filter(|leader| *leader != view.node)));
        }
        // What was named in an older term than this node knows by now is no news.
        let hint = self.hint.filter(|(_, term)| view.leader.is_none() || *term == view.term);
        let Some(to) = hint.map(|(node, _)| node).or(view.leader) else {
            if view.is_leaderless() {
                return self.give_up(unreached(None));
            }
            return Act::Wait(self.answer_by_ms.min(view.leaderless_since_ms + l::LEADERLESS_MS));
        };
        if let Some(until_ms) = self.pauses_until(view, to, hint.is_some()) {
            return Act::Wait(until_ms.min(self.answer_by_ms));
        }
        (self.hint, self.rest) = (None, None);
        self.not_before_ms.get_or_insert(view.applied_log_time_ms);
        let begun_ms = view.now_ms;
        self.trying = Some(Try { to, term: view.term, begun_ms, replaced_ms: None });
        Act::Try(to)
    }

    /// Until when a node is not asked.
    fn pauses_until(&mut self, view: &View<'_>, to: NodeId, is_hint: bool) -> Option<u64> {
        if let Some((node, term, at)) = self.silent
            && (node, term) == (to, view.term)
            && (view.heard_ms)(to) <= at
        {
            // To hang on every one of its calls would only give it more to do when it wakes.
            return Some(view.now_ms + l::CALL_PAUSE_MS_MAX);
        }
        let rest = self.rest.filter(|rest| view.now_ms < rest.until_ms)?;
        let is_news = !is_hint && rest.asked.is_some_and(|asked| asked != (to, view.term));
        if is_news || (is_hint && !std::mem::replace(&mut self.was_hinted, true)) {
            return None;
        }
        Some(rest.until_ms)
    }

    /// Nothing more is tried.
    fn give_up(&mut self, why: Refusal) -> Act {
        Act::End(self.unseen.take().unwrap_or(why))
    }

    /// What to say of a call whose last try ended for good, after one whose end was not seen: a refusal of the last one
    /// alone says nothing about the first.
    fn final_word(&mut self, why: Refusal) -> Refusal {
        match why.reason().row().effect {
            RefusalEffect::NotThisTry if !crate::mutant!(UnseenHidden) => {
                self.unseen.take().unwrap_or(why)
            }
            _ => why,
        }
    }
}

/// When a replica must have proposed a command or confirmed a read of a call, so that its word that it did not is
/// there before the call ends as unseen.
#[must_use]
pub fn propose_by_ms(now_ms: u64, answer_by_ms: u64) -> u64 {
    answer_by_ms - (answer_by_ms.saturating_sub(now_ms) / 4).min(2 * l::TICK_MS)
}

/// The refusal of a call for a shard that nobody could be asked about: with the leader where known.
#[must_use]
pub fn unreached(leader: Option<NodeId>) -> Refusal {
    let Some(leader) = leader else {
        return refusal(Reason::NoQuorum, "the shard has no leader with a quorum");
    };
    let mut refusal =
        refusal(Reason::NotLeader, "this node could not reach the leader of the shard");
    refusal.metadata.insert("leader".to_owned(), leader.to_string());
    refusal
}
