//! What is drawn for commands: the ids of sessions, and that no command that needs chance goes without.

mod support;

use support::{Harness, command, request_id};
use trefoil_core::machine::Outcome;
use trefoil_core::slot::{of_locks, of_partition};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{Answer, Command, DequeueFrom, Drawn, answer};
use trefoil_proto::lock::v1 as lock;

fn open(chance: Option<Drawn>, id: Option<&str>) -> Command {
    let namespace = "default".to_owned();
    let open = lock::OpenSessionRequest { namespace, ttl_ms: 1_000, ..Default::default() };
    let operation = Operation::OpenSession(open);
    let command = command(of_locks("default"), 1, id.map(request_id), operation);
    Command { chance, ..command }
}

fn send(harness: &mut Harness, command: Command) -> answer::Answer {
    match harness.apply(vec![command]).outcomes.remove(0) {
        Outcome::Answered(Answer { answer: Some(answer) }) => answer,
        other => panic!("{other:?}"),
    }
}

fn opened(answer: &answer::Answer) -> (u64, u64) {
    let answer::Answer::OpenSession(opened) = answer else { panic!("{answer:?}") };
    (opened.session_id, opened.remaining_ms)
}

#[test]
fn a_session_has_the_id_that_was_drawn() {
    let mut harness = Harness::new(1);
    let drawn = |high, low| Some(Drawn { high, low });
    let mut send = |drawn, id| send(&mut harness, open(drawn, id));
    let large = u64::MAX >> 1;
    assert_eq!(opened(&send(drawn(7, u64::MAX), None)).0, large, "63 bits");
    assert_eq!(opened(&send(drawn(7, u64::MAX), None)).0, 7, "the first is taken");
    let both = send(drawn(7, large), None);
    let answer::Answer::Refusal(refusal) = &both else { panic!("{both:?}") };
    assert_eq!(refusal.reason(), Reason::Overloaded, "a retry draws again");
    assert_eq!(opened(&send(drawn(9, 1 << 63), None)).0, 9, "no session is 0");

    // A retry is another command, for which something else was drawn.
    let first = send(drawn(1, 2), Some("c/1"));
    assert_eq!(opened(&first), (2, 1_000));
    assert_eq!(opened(&send(drawn(3, 4), Some("c/1/0/1"))).0, 2);
}

#[test]
fn a_retry_says_what_is_left_of_the_session() {
    let mut harness = Harness::new(1);
    let retry = || open(None, Some("c/1/0/1"));
    let first = send(&mut harness, open(None, Some("c/1")));
    assert_eq!(opened(&first), (1, 1_000));
    harness.now_ms += 400;
    assert_eq!(opened(&send(&mut harness, retry())), (1, 600));
    harness.now_ms += 599;
    assert_eq!(opened(&send(&mut harness, retry())), (1, 1));
    harness.now_ms += 1;
    assert_eq!(opened(&send(&mut harness, retry())), (1, 0), "it is over");
    harness.advance(10_000);
    assert_eq!(opened(&send(&mut harness, retry())), (1, 0), "and swept away");
}

#[test]
fn a_command_without_chance_is_refused() {
    let mut harness = Harness::new(1);
    let dequeue = Operation::DequeueFrom(DequeueFrom::default());
    let dequeue = command(of_partition(0, 0, 1), 1, None, dequeue);
    for command in [open(None, None), dequeue] {
        let answer = harness.apply_as_it_is(vec![command]).outcomes.remove(0);
        let Outcome::Answered(Answer { answer: Some(answer::Answer::Refusal(refusal)) }) = answer
        else {
            panic!("{answer:?}")
        };
        assert_eq!(refusal.reason(), Reason::InvalidField);
    }
}
