//! Scripts of the cache, and what a script cannot say in few lines.

#[path = "support/books.rs"]
mod books;
mod support;

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use goldenscript::Context;
use support::{Harness, checked_fence, command, request_id, show_answer};
use trefoil_core::limits::TIMERS_PER_ENTRY_MAX;
use trefoil_core::machine::{Outcome, QueryOutcome};
use trefoil_core::slot::of_cache;
use trefoil_proto::cache::v1::{DeleteRequest, DeleteResponse, GetRequest, LineState, PutRequest};
use trefoil_proto::common::v1::{Value, value};
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{
    Answer, CheckedFence, Command, Done, FindMark, TouchFence, answer, query,
};

test_each_file::test_each_path! { in "./core/tests/scripts/cache" as scripts => run_script }

fn run_script(path: &Path) {
    goldenscript::run(&mut Runner(Harness::new(1)), path).expect("a script that reads");
}

/// One data shard; a prefix names the node that is asked, 1 where there is none.
struct Runner(Harness);

impl goldenscript::Runner for Runner {
    type Command = goldenscript::Command;

    #[allow(clippy::too_many_lines, reason = "one table")]
    fn run(
        &mut self,
        script: &goldenscript::Command,
        context: &Context,
    ) -> Result<String, Box<dyn Error>> {
        let node = context.prefix.as_deref().map(str::parse).transpose()?.unwrap_or(1);
        let mut args = script.consume_args();
        let number = |text: Option<&str>| text.map(str::parse::<u64>).transpose();
        let namespace = args.take_key("namespace").unwrap_or("default").to_owned();
        let slot = number(args.take_key("slot"))?.map(u16::try_from).transpose()?;
        let id = args.take_key("id").map(request_id);
        let fence = args.take_key("fence").map(checked_fence);
        let (ttl, ahead) = (number(args.take_key("ttl"))?, number(args.take_key("ahead"))?);
        let mut next = || args.next_pos().ok_or("an argument is missing");
        let output = match script.name.as_str() {
            "put" => {
                let (key, value) = (next()?.to_owned(), text(next()?));
                let slot = slot.unwrap_or_else(|| of_cache(&namespace, &key));
                let ttl_ms = ttl.unwrap_or_default();
                let put =
                    PutRequest { namespace, key, value, ttl_ms, request_id: None, fence: None };
                self.apply(Command { fence, ..command(slot, node, id, Operation::Put(put)) })
            }
            "delete" => {
                let key = next()?.to_owned();
                let slot = slot.unwrap_or_else(|| of_cache(&namespace, &key));
                let delete = DeleteRequest { namespace, key, request_id: None, fence: None };
                self.apply(Command { fence, ..command(slot, node, id, Operation::Delete(delete)) })
            }
            "get" => {
                let key = next()?.to_owned();
                let slot = slot.unwrap_or_else(|| of_cache(&namespace, &key));
                let get = GetRequest { namespace, key, fence: None };
                self.get(slot, node, get, fence, ahead.unwrap_or_default())
            }
            "touch" => {
                let touch = Operation::TouchFence(TouchFence {});
                self.apply(Command { fence, ..command(0, node, id, touch) })
            }
            "mark" => {
                let lock = next()?.to_owned();
                let (_, outcome) =
                    self.0.query(0, node, query::Query::FindMark(FindMark { namespace, lock }));
                let QueryOutcome::Answered(answer) = outcome else { panic!("a mark is found") };
                format!("{}\n", show_answer(&answer))
            }
            "index" => format!("{}\n", self.0.machine.progress().index),
            "fill" => {
                self.fill(next()?.parse()?);
                String::new()
            }
            "advance" => match self.0.advance(next()?.parse()?).counts.cache_expired {
                0 => String::new(),
                expired => format!("values that expired: {expired}\n"),
            },
            "term" => {
                self.0.machine.step_down();
                self.0.new_term();
                String::new()
            }
            "reopen" => {
                self.0.reopen();
                String::new()
            }
            "records" => books::dump(&self.0.store),
            name @ ("asks" | "tried" | "recalled") => {
                let mut numbers = Vec::new();
                while let Some(number) = args.next_pos() {
                    numbers.push(number.parse()?);
                }
                self.0.request_line(name, &numbers).ok_or("numbers")?
            }
            name => return Err(format!("no command {name}").into()),
        };
        args.reject_next()?;
        Ok(output)
    }

    fn end_command(
        &mut self,
        _: &goldenscript::Command,
        _: &Context,
    ) -> Result<String, Box<dyn Error>> {
        books::check_cache(&self.0.store);
        Ok(String::new())
    }
}

impl Runner {
    /// Sets marks of so many other locks, in entries of a thousand.
    fn fill(&mut self, locks: u64) {
        let touch = |n: u64| {
            let fence = Some(checked_fence(&format!("other-{n:05}/1/writer/{}", u64::MAX)));
            Command { fence, ..command(0, 1, None, Operation::TouchFence(TouchFence {})) }
        };
        let all = (0..locks).map(touch).collect::<Vec<_>>();
        for some in all.chunks(1_000) {
            let applied = self.0.apply(some.to_vec());
            let done = Outcome::Answered(answer::Answer::Done(Done {}).into());
            assert!(applied.outcomes.iter().all(|outcome| *outcome == done));
        }
    }

    fn apply(&mut self, command: Command) -> String {
        let before = books::without_progress(&self.0.store);
        let remembers = command.request_id.is_some();
        let applied = self.0.apply(vec![command]);
        let Outcome::Answered(answer) = &applied.outcomes[0] else {
            panic!("the cache never waits")
        };
        match &answer.answer {
            Some(answer::Answer::Put(put)) => {
                format!("version {} {}\n", put.version, state(put.state()))
            }
            Some(answer::Answer::Delete(delete)) if delete.deleted => {
                format!("deleted, version {}\n", delete.version)
            }
            Some(answer::Answer::Done(_)) => "done\n".to_owned(),
            Some(answer::Answer::Delete(delete)) => {
                format!("nothing to delete, version {}\n", delete.version)
            }
            _ => {
                let after = books::without_progress(&self.0.store);
                assert!(remembers || before == after, "a refused command changes nothing");
                format!("{}\n", show_answer(answer))
            }
        }
    }

    /// Reads with the leader's clock ahead of log time.
    fn get(
        &mut self,
        slot: u16,
        node: u64,
        get: GetRequest,
        fence: Option<CheckedFence>,
        ahead_ms: u64,
    ) -> String {
        self.0.now_ms += ahead_ms;
        let (_, outcome) = self.0.fenced_query(slot, node, query::Query::Get(get), fence);
        self.0.now_ms -= ahead_ms;
        let answer = match outcome {
            QueryOutcome::Answered(answer) => answer,
            QueryOutcome::Due(ms) => return format!("due at {ms}\n"),
            QueryOutcome::Parked => panic!("the cache never waits"),
        };
        let Some(answer::Answer::Get(get)) = &answer.answer else {
            return format!("{}\n", show_answer(&answer));
        };
        if !get.hit {
            assert_eq!((&get.value, get.version, get.ttl_ms), (&None, 0, 0));
            return format!("miss {}\n", state(get.state()));
        }
        let value = get.value.as_ref().and_then(|value| value.kind.as_ref());
        let Some(value::Kind::Text(text)) = value else { panic!("scripts put text") };
        let mut line = format!("{text} version {} {}", get.version, state(get.state()));
        if get.ttl_ms > 0 {
            write!(line, " for {} ms", get.ttl_ms).expect("text grows");
        }
        line + "\n"
    }
}

fn state(state: LineState) -> &'static str {
    state.as_str_name().trim_start_matches("LINE_STATE_")
}

fn text(text: &str) -> Option<Value> {
    Some(Value { kind: Some(value::Kind::Text(text.to_owned())) })
}

/// A put without a value, a key that is too long, a TTL without end: answers, not panics.
#[test]
fn no_command_is_a_panic() {
    let mut runner = Runner(Harness::new(1));
    let puts = [
        PutRequest { namespace: "n".to_owned(), key: "k".to_owned(), ..PutRequest::default() },
        PutRequest { value: Some(Value { kind: None }), ..PutRequest::default() },
        PutRequest { key: "k".repeat(100_000), value: text("v"), ..PutRequest::default() },
        PutRequest { namespace: "n".repeat(256), value: text("v"), ..PutRequest::default() },
    ];
    for put in puts {
        let slot = of_cache(&put.namespace, &put.key);
        let shown = runner.apply(command(slot, 1, None, Operation::Put(put)));
        assert!(shown.starts_with("refused INVALID_FIELD"), "{shown}");
    }
    let (namespace, key) = ("n".to_owned(), "k".to_owned());
    let slot = of_cache(&namespace, &key);
    let put = PutRequest {
        namespace,
        key,
        value: text("v"),
        ttl_ms: u64::MAX,
        request_id: None,
        fence: None,
    };
    let shown = runner.apply(command(slot, 1, None, Operation::Put(put)));
    assert_eq!(shown, "version 1 MODIFIED\n");
    let get = GetRequest { namespace: "n".to_owned(), key: "k".to_owned(), fence: None };
    assert_eq!(
        runner.get(slot, 1, get, None, 1_000),
        "v version 1 MODIFIED for 18446744073709540615 ms\n"
    );
}

/// More values end at once than one entry may remove: those that are left over are gone all the same.
#[test]
fn an_end_counts_before_its_timer_fires() {
    let mut harness = Harness::new(1);
    let count = TIMERS_PER_ENTRY_MAX + 10;
    let key = |n: usize| format!("key-{n:05}");
    for n in 0..count {
        let (namespace, key) = ("n".to_owned(), key(n));
        let slot = of_cache(&namespace, &key);
        let put = PutRequest {
            namespace,
            key,
            value: text("v"),
            ttl_ms: 100,
            request_id: None,
            fence: None,
        };
        harness.apply(vec![command(slot, 1, None, Operation::Put(put))]);
    }
    let delete = |n| {
        let (namespace, key) = ("n".to_owned(), key(n));
        let slot = of_cache(&namespace, &key);
        let delete = DeleteRequest { namespace, key, request_id: None, fence: None };
        command(slot, 1, None, Operation::Delete(delete))
    };
    harness.now_ms += 100;
    let first = harness.apply((0..count).map(delete).collect());
    let nothing = answer::Answer::Delete(DeleteResponse::default());
    assert!(first.outcomes.iter().all(|o| *o == Outcome::Answered(nothing.clone().into())));
    assert_eq!(first.counts.cache_expired, TIMERS_PER_ENTRY_MAX as u64);
    assert_eq!(first.next_due_ms, Some(harness.now_ms), "the next entry goes on");
    for n in 0..count {
        let (namespace, key) = ("n".to_owned(), key(n));
        let slot = of_cache(&namespace, &key);
        let get = GetRequest { namespace, key, fence: None };
        let (_, outcome) = harness.query(slot, 1, query::Query::Get(get));
        let QueryOutcome::Answered(Answer { answer: Some(answer::Answer::Get(get)) }) = outcome
        else {
            panic!("a get is answered");
        };
        assert!(!get.hit);
    }
    books::check_cache(&harness.store);
    let second = harness.advance(0);
    assert_eq!((second.counts.cache_expired, second.next_due_ms), (10, None));
}

/// Who holds a line is told by the leader, so nobody else pays for knowing it; the state is the same on all.
#[test]
fn only_a_leader_keeps_lines() {
    let (slot, [mut leader, mut follower]) = (of_cache("n", "k"), [1, 1].map(Harness::new));
    follower.machine.lead(false);
    let put = PutRequest {
        namespace: "n".to_owned(),
        key: "k".to_owned(),
        value: text("v"),
        ttl_ms: 0,
        request_id: None,
        fence: None,
    };
    let put = command(slot, 7, None, Operation::Put(put));
    let [told, silent] =
        [&mut leader, &mut follower].map(|machine| machine.apply(vec![put.clone()]));
    assert_eq!(told, silent);
    let get = || {
        let (namespace, key) = ("n".to_owned(), "k".to_owned());
        query::Query::Get(GetRequest { namespace, key, fence: None })
    };
    let states = [leader, follower].map(|mut machine| match machine.query(slot, 7, get()).1 {
        QueryOutcome::Answered(Answer { answer: Some(answer::Answer::Get(get)) }) => get.state(),
        other => panic!("{other:?}"),
    });
    assert_eq!(states, [LineState::Modified, LineState::Exclusive]);
}
