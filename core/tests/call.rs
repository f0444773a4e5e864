//! The course of one call: step by step, and against its promises under random turns.

use proptest::prelude::*;
use trefoil_core::NodeId;
use trefoil_core::call::{
    Act, Call, CallEvent, Failure, SILENCE_MS, ShardRequest, View, unreached,
};
use trefoil_core::limits::{LEADERLESS_MS, REPLACED_LEADER_MS, STOP_ANSWER_MS};
use trefoil_proto::cache::v1::PutRequest;
use trefoil_proto::common::v1::{Reason, RequestId};
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{Command, Query, Refusal};

/// The node that carries the call out.
const HERE: NodeId = 1;

/// A call, and what its node knows.
struct Node {
    call: Call,
    now_ms: u64,
    leader: Option<NodeId>,
    term: u64,
    leaderless_since_ms: u64,
    stopping_since_ms: Option<u64>,
    heard_ms: u64,
    /// Whether the last step cancelled the try under way.
    cancelled: bool,
}

fn put(has_id: bool) -> ShardRequest {
    let request_id =
        has_id.then(|| RequestId { client: "c".to_owned(), sequence: 1, ..RequestId::default() });
    let operation = Some(Operation::Put(PutRequest::default()));
    ShardRequest::Command(Command { request_id, operation, ..Command::default() })
}

fn refusal(reason: Reason) -> Refusal {
    Refusal { reason: reason.into(), ..Refusal::default() }
}

impl Node {
    /// A call of ten seconds, while node 2 leads term 5.
    fn new(work: ShardRequest) -> Self {
        Self {
            call: Call::new(work, 11_000),
            now_ms: 1_000,
            leader: Some(2),
            term: 5,
            leaderless_since_ms: 0,
            stopping_since_ms: None,
            heard_ms: 1_000,
            cancelled: false,
        }
    }

    fn step(&mut self, event: CallEvent) -> Act {
        let heard_ms = self.heard_ms;
        let view = View {
            node: HERE,
            now_ms: self.now_ms,
            leader: self.leader,
            term: self.term,
            leaderless_since_ms: self.leaderless_since_ms,
            applied_log_time_ms: self.now_ms / 2,
            stopping_since_ms: self.stopping_since_ms,
            heard_ms: &|_| heard_ms,
            jitter: 1_000,
        };
        let step = self.call.step(&view, event);
        self.cancelled = step.cancels;
        step.act
    }

    fn look(&mut self) -> Act {
        self.step(CallEvent::Look)
    }

    fn look_at(&mut self, now_ms: u64) -> Act {
        self.now_ms = now_ms;
        self.look()
    }

    fn fails(&mut self, reason: Reason, failure: Failure) -> Act {
        self.step(CallEvent::Failed(refusal(reason), failure))
    }

    fn leads(&mut self, leader: Option<NodeId>, term: u64) {
        if leader.is_none() && self.leader.is_some() {
            self.leaderless_since_ms = self.now_ms;
        }
        (self.leader, self.term) = (leader, term);
    }

    /// By the client, by the node, and what was applied before the node's first.
    fn attempts(&self) -> Option<(u32, u32, u64)> {
        let ShardRequest::Command(command) = self.call.work() else { return None };
        let attempt = command.request_id.as_ref()?.attempt;
        Some((attempt, command.node_attempt, command.not_before_ms))
    }
}

fn reason(act: Act) -> Reason {
    let Act::End(refusal) = act else { panic!("{act:?} ends nothing") };
    refusal.reason()
}

#[test]
fn what_did_not_happen_is_tried_again_after_a_pause_or_at_once_where_another_node_leads() {
    let mut node = Node::new(put(false));
    assert_eq!(node.look(), Act::Try(2));
    assert_eq!(node.fails(Reason::NotLeader, Failure::Definite), Act::Wait(1_010));
    assert_eq!(node.look_at(1_010), Act::Try(2));
    node.leads(Some(3), 6);
    assert_eq!(node.fails(Reason::Lost, Failure::Definite), Act::Try(3));
    let mut named = unreached(Some(2));
    named.metadata.insert("leader".to_owned(), "2".to_owned());
    assert_eq!(
        node.step(CallEvent::Failed(named, Failure::Definite)),
        Act::Try(2),
        "as it was told"
    );
}

#[test]
fn an_unseen_end_is_told_or_tried_again_under_the_request_id_alone() {
    let mut node = Node::new(put(false));
    node.look();
    assert_eq!(reason(node.fails(Reason::MaybeApplied, Failure::Unknown)), Reason::MaybeApplied);
    assert_eq!(node.look(), Act::Over);

    let mut node = Node::new(put(true));
    node.look();
    assert_eq!(node.fails(Reason::MaybeApplied, Failure::Unknown), Act::Wait(1_010));
    assert_eq!(node.attempts(), Some((0, 1, 500)), "and what was applied here before the first");
    assert_eq!(node.look_at(1_010), Act::Try(2));
    for hides in [Reason::DeadlinePassed, Reason::Overloaded, Reason::LimitReached] {
        let mut node = Node { call: node.call.clone(), ..Node::new(put(true)) };
        assert_eq!(reason(node.fails(hides, Failure::Final)), Reason::MaybeApplied, "{hides:?}");
    }
    // It says itself that nobody knows, and that no retry can help.
    let mut forgotten = Node { call: node.call.clone(), ..Node::new(put(true)) };
    let end = forgotten.fails(Reason::RequestForgotten, Failure::Final);
    assert_eq!(reason(end), Reason::RequestForgotten);
    assert_eq!(reason(node.fails(Reason::NotHolder, Failure::Final)), Reason::NotHolder);
}

#[test]
fn a_silent_leader_is_given_up_within_an_election_timeout_and_left_alone() {
    let mut node = Node::new(put(true));
    node.look();
    node.heard_ms = 1_500;
    assert_eq!(node.look_at(1_500 + SILENCE_MS - 1), Act::Wait(1_500 + SILENCE_MS));
    let Act::Wait(until_ms) = node.look_at(1_500 + SILENCE_MS) else { panic!("it is given up") };
    assert!(node.cancelled && until_ms > node.now_ms);
    assert!(matches!(node.look_at(until_ms), Act::Wait(_)), "it is as silent as before");
    node.heard_ms = until_ms;
    assert_eq!(node.look_at(until_ms + 1), Act::Try(2), "it is there again");

    let mut node = Node::new(put(false));
    node.look();
    assert_eq!(reason(node.look_at(1_000 + SILENCE_MS)), Reason::MaybeApplied);
    assert!(node.cancelled);
}

#[test]
fn a_leader_that_is_alive_is_waited_for_however_long_it_takes() {
    let mut node = Node::new(put(false));
    node.look();
    for now_ms in (1_000..10_999).step_by(100) {
        node.heard_ms = now_ms;
        assert!(matches!(node.look_at(now_ms), Act::Wait(_)));
    }
    assert_eq!(reason(node.look_at(11_000)), Reason::MaybeApplied);
}

#[test]
fn a_replaced_leader_has_a_moment_to_say_what_became_of_the_call() {
    let mut node = Node::new(put(true));
    node.look();
    (node.now_ms, node.heard_ms) = (3_000, 3_000);
    node.leads(Some(3), 6);
    assert_eq!(node.look(), Act::Wait(3_000 + REPLACED_LEADER_MS));
    node.heard_ms = 3_200;
    assert_eq!(node.look_at(3_000 + REPLACED_LEADER_MS), Act::Try(3));
    assert!(node.cancelled);

    let mut node = Node::new(ShardRequest::Query(Query::default()));
    node.look();
    node.now_ms = 1_900;
    node.leads(Some(3), 6);
    assert_eq!(node.look(), Act::Try(3), "it has been silent for long enough");
}

#[test]
fn without_a_leader_a_call_ends_in_time_and_a_later_one_at_once() {
    let mut node = Node::new(put(true));
    node.look();
    node.leads(None, 6);
    assert_eq!(node.fails(Reason::NoQuorum, Failure::Definite), Act::Wait(1_000 + LEADERLESS_MS));
    assert_eq!(reason(node.look_at(1_000 + LEADERLESS_MS)), Reason::NoQuorum);
    let mut later = Node { call: Call::new(put(true), 20_000), ..node };
    assert_eq!(reason(later.look_at(9_000)), Reason::NoQuorum);

    let mut node = Node::new(put(true));
    node.look();
    node.leads(None, 6);
    node.fails(Reason::MaybeApplied, Failure::Unknown);
    assert_eq!(reason(node.look_at(1_000 + LEADERLESS_MS)), Reason::MaybeApplied);
}

#[test]
fn a_node_that_stops_answers_at_once_what_was_not_proposed_and_soon_what_was() {
    let mut node = Node::new(put(false));
    node.stopping_since_ms = Some(900);
    assert_eq!(reason(node.look()), Reason::Stopping);

    let mut node = Node::new(put(false));
    node.look();
    node.stopping_since_ms = Some(1_000);
    assert_eq!(node.look(), Act::Wait(1_000 + STOP_ANSWER_MS));
    assert_eq!(reason(node.look_at(1_000 + STOP_ANSWER_MS)), Reason::MaybeApplied);
}

#[test]
fn a_cancelled_call_is_over() {
    let mut node = Node::new(put(true));
    node.look();
    assert_eq!((node.step(CallEvent::Cancel), node.cancelled), (Act::Over, true));
    assert_eq!((node.look(), node.cancelled), (Act::Over, false));
    assert_eq!(node.fails(Reason::NotLeader, Failure::Definite), Act::Over);
}

/// A turn of events.
#[derive(Clone, Debug)]
enum Turn {
    Passes(u64),
    Leads(Option<NodeId>),
    Speaks,
    Fails(Reason, Failure),
    Stops,
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        6 => (0_u64..1_500).prop_map(Turn::Passes),
        2 => prop::option::weighted(0.7, 1_u64..=3).prop_map(Turn::Leads),
        2 => Just(Turn::Speaks),
        3 => prop_oneof![
            Just(Turn::Fails(Reason::NotLeader, Failure::Definite)),
            Just(Turn::Fails(Reason::MaybeApplied, Failure::Unknown)),
            Just(Turn::Fails(Reason::Overloaded, Failure::Final)),
        ],
        1 => Just(Turn::Stops),
    ]
}

proptest! {
    /// Tries, ends and waits of any course: a try whose end was not seen is repeated only where that is safe, and an
    /// end that says that nothing happened says the truth; and no call outlives its time.
    #[test]
    fn any_course_keeps_the_promises(has_id: bool, turns in prop::collection::vec(turn(), 0..60)) {
        let mut node = Node::new(put(has_id));
        let (mut is_trying, mut unseen) = (false, false);
        let mut act = node.look();
        let mut turns = turns.into_iter();
        while !matches!(act, Act::Over) {
            match &act {
                Act::Try(_) => {
                    prop_assert!(has_id || !unseen, "it may have happened, and is tried again");
                    is_trying = true;
                }
                Act::Wait(until_ms) => {
                    prop_assert!(*until_ms > node.now_ms && *until_ms <= 11_000);
                    if node.cancelled {
                        (is_trying, unseen) = (false, true);
                    }
                }
                Act::End(refusal) => {
                    unseen |= node.cancelled;
                    let maybe = refusal.reason() == Reason::MaybeApplied;
                    prop_assert_eq!(maybe, unseen, "{:?}", refusal);
                    prop_assert!(node.now_ms <= 11_000, "it ended in time");
                    act = node.look();
                    prop_assert_eq!(&act, &Act::Over);
                    continue;
                }
                Act::Over => {}
            }
            let wakes_ms = match act {
                Act::Wait(until_ms) => until_ms,
                _ => node.now_ms,
            };
            act = match turns.next() {
                // Whoever carries a call out looks when it was told to, at the latest.
                Some(Turn::Passes(ms)) => node.look_at(wakes_ms.min(node.now_ms + ms)),
                Some(Turn::Leads(leader)) => {
                    let term = node.term + 1;
                    node.leads(leader, term);
                    node.look()
                }
                Some(Turn::Speaks) => {
                    node.heard_ms = node.now_ms;
                    node.look()
                }
                Some(Turn::Fails(reason, failure)) if is_trying => {
                    is_trying = false;
                    unseen |= failure == Failure::Unknown;
                    node.fails(reason, failure)
                }
                Some(Turn::Fails(..)) => continue,
                Some(Turn::Stops) => {
                    node.stopping_since_ms.get_or_insert(node.now_ms);
                    node.look()
                }
                None => node.look_at(wakes_ms),
            };
            if is_trying && node.cancelled && matches!(act, Act::Try(_)) {
                unseen = true;
            }
        }
    }
}
