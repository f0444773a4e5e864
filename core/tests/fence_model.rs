//! Random histories of fenced commands against a model of the locks: words about tokens come late, marks are forgotten,
//! and no older holder gets in after a newer one all the same.

mod support;

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;
use prost::Message as _;
use support::{Harness, command};
use trefoil_core::key::{Key, Kind};
use trefoil_core::limits::FENCE_MARKS_MAX;
use trefoil_core::machine::{Applied, Outcome, QueryOutcome};
use trefoil_core::slot::of_cache;
use trefoil_core::store::{Store as _, decode};
use trefoil_proto::cache::v1::{GetRequest, PutRequest};
use trefoil_proto::common::v1::{Fence, Reason, Value, value};
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{
    Answer, CheckedFence, Command, FenceMarks, TokenStanding, TouchFence, answer, query,
};
use trefoil_proto::lock::v1::LockMode;

const LOCKS: u8 = 2;

/// One step of the locks, or of the shard that stores the data.
#[derive(Clone, Debug)]
enum Step {
    /// Somebody gets a lock, and whoever stands in the way has lost it.
    Grant { lock: u8, mode: LockMode },
    /// A grant is lost.
    Lose(Index),
    /// The lock's shard is asked about a token, or it is not; what was learned is used whenever it likes.
    Ask { grant: Index, validate: bool },
    /// Commands of one entry, under words that were learned at some time.
    Entry(Vec<Index>),
    /// A read under such a word.
    Get(Index),
    /// A present holder does all that a node does for it.
    Holder { lock: u8, reads: bool },
    /// So many other locks are used, each for the first time: as many marks are forgotten.
    Others(u8),
    /// One of the two machines starts again from its store.
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let mode = prop_oneof![
        3 => Just(LockMode::Exclusive),
        2 => Just(LockMode::Update),
        3 => Just(LockMode::Shared)
    ];
    let words = proptest::collection::vec(any::<Index>(), 1..4);
    prop_oneof![
        4 => (0..LOCKS, mode).prop_map(|(lock, mode)| Step::Grant { lock, mode }),
        1 => any::<Index>().prop_map(Step::Lose),
        6 => (any::<Index>(), any::<bool>())
            .prop_map(|(grant, validate)| Step::Ask { grant, validate }),
        8 => words.prop_map(Step::Entry),
        3 => any::<Index>().prop_map(Step::Get),
        3 => (0..LOCKS, any::<bool>()).prop_map(|(lock, reads)| Step::Holder { lock, reads }),
        2 => (1..4_u8).prop_map(Step::Others),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Clone, Debug)]
struct Grant {
    lock: u8,
    token: u64,
    mode: LockMode,
    held: bool,
}

impl Grant {
    fn writes(&self) -> bool {
        matches!(self.mode, LockMode::Exclusive | LockMode::Update)
    }
}

/// What was learned of a token, and when by the shard of the data.
#[derive(Clone, Debug)]
struct Word {
    grant: usize,
    standing: TokenStanding,
    as_of: u64,
}

/// A newer holder's use of the shard.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    token: u64,
    index: u64,
}

struct World {
    machines: [Harness; 2],
    grants: Vec<Grant>,
    tokens: u64,
    words: Vec<Word>,
    /// The highest writer's token of each lock under which the shard was used; nothing is ever forgotten here.
    seen: BTreeMap<u8, Seen>,
    others: u64,
}

/// A shard that believes to keep as many marks as it may, and keeps three: each new one is in the place of the oldest.
fn full() -> Harness {
    let mut harness = Harness::new(1);
    harness.apply((0..3).map(|n| other(&format!("before-{n}"))).collect());
    let key = Key::system(Kind::FenceMarks);
    let mut marks =
        decode::<FenceMarks>(&harness.store.get(key.bytes()).expect("marks are counted"));
    marks.count = FENCE_MARKS_MAX;
    harness.store.put(key.into(), marks.encode_to_vec().into());
    harness
}

/// A first use under another lock.
fn other(lock: &str) -> Command {
    let fence = Fence { namespace: "n".to_owned(), lock: lock.to_owned(), token: 1 };
    let standing = TokenStanding::Writer.into();
    let checked = CheckedFence { fence: Some(fence), standing, as_of: u64::MAX, holder_token: 0 };
    let touch = Operation::TouchFence(TouchFence {});
    Command { fence: Some(checked), ..command(0, 1, None, touch) }
}

impl World {
    fn new() -> Self {
        let machines = [full(), full()];
        let (grants, words, seen) = (Vec::new(), Vec::new(), BTreeMap::new());
        Self { machines, grants, tokens: 0, words, seen, others: 0 }
    }

    fn index(&self) -> u64 {
        self.machines[0].machine.progress().index
    }

    fn apply(&mut self, commands: &[Command]) -> Applied {
        let [first, second] =
            self.machines.each_mut().map(|machine| machine.apply(commands.to_vec()));
        assert_eq!(first, second, "a machine that started again has the same state");
        first
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Grant { lock, mode } => self.grant(*lock, *mode),
            Step::Lose(_) | Step::Ask { .. } if self.grants.is_empty() => {}
            Step::Lose(grant) => {
                let grant = grant.index(self.grants.len());
                self.grants[grant].held = false;
            }
            Step::Ask { grant, validate } => {
                let grant = grant.index(self.grants.len());
                let word = self.word(grant, *validate);
                self.words.push(word);
            }
            Step::Entry(_) | Step::Get(_) if self.words.is_empty() => {}
            Step::Entry(words) => {
                let words = words.iter().map(|word| word.get(&self.words).clone());
                let words = words.collect::<Vec<_>>();
                self.entry(&words);
            }
            Step::Get(word) => {
                let word = word.get(&self.words).clone();
                self.get(&word);
            }
            Step::Holder { lock, reads } => self.holder(*lock, *reads),
            Step::Others(count) => {
                let first = self.others;
                self.others += u64::from(*count);
                let locks = (first..self.others).map(|n| other(&format!("after-{n}")));
                self.apply(&locks.collect::<Vec<_>>());
            }
            Step::Reopen => {
                let machine = &mut self.machines[1];
                machine.reopen();
            }
        }
    }

    fn grant(&mut self, lock: u8, mode: LockMode) {
        use LockMode::{Shared, Update};
        for grant in self.grants.iter_mut().filter(|grant| grant.lock == lock) {
            let beside = matches!((grant.mode, mode), (Shared, Shared | Update) | (Update, Shared));
            grant.held &= beside;
        }
        self.tokens += 1;
        self.grants.push(Grant { lock, token: self.tokens, mode, held: true });
    }

    /// What the lock's shard says now.
    fn word(&self, grant: usize, validate: bool) -> Word {
        let standing = match &self.grants[grant] {
            _ if !validate => TokenStanding::Unspecified,
            Grant { held: false, .. } => TokenStanding::NotHeld,
            grant if grant.writes() => TokenStanding::Writer,
            _ => TokenStanding::Reader,
        };
        Word { grant, standing, as_of: self.index() }
    }

    fn checked(&self, word: &Word) -> CheckedFence {
        let Grant { lock, token, .. } = self.grants[word.grant];
        let fence = Fence { namespace: "n".to_owned(), lock: lock.to_string(), token };
        let standing = word.standing.into();
        CheckedFence { fence: Some(fence), standing, as_of: word.as_of, holder_token: 0 }
    }

    fn entry(&mut self, words: &[Word]) -> Vec<Option<Reason>> {
        let commands = words.iter().map(|word| put(self.checked(word))).collect::<Vec<_>>();
        let applied = self.apply(&commands);
        let ends = applied.outcomes.iter().map(|outcome| match outcome {
            Outcome::Answered(Answer { answer: Some(answer::Answer::Put(_)) }) => None,
            Outcome::Answered(Answer { answer: Some(answer::Answer::Refusal(refusal)) }) => {
                Some(refusal.reason())
            }
            other => panic!("no answer of a put: {other:?}"),
        });
        let ends = ends.collect::<Vec<_>>();
        for (word, end) in words.iter().zip(&ends) {
            self.judge(word, *end);
        }
        ends
    }

    /// Only the first machine is the leader's: the other one is never asked.
    fn get(&mut self, word: &Word) -> Option<Reason> {
        let (namespace, key) = ("n".to_owned(), "k".to_owned());
        let slot = of_cache(&namespace, &key);
        let get = query::Query::Get(GetRequest { namespace, key, fence: None });
        let fence = Some(self.checked(word));
        let (_, outcome) = self.machines[0].fenced_query(slot, 1, get, fence);
        let end = match outcome {
            QueryOutcome::Answered(Answer { answer: Some(answer::Answer::Get(_)) }) => None,
            QueryOutcome::Answered(Answer { answer: Some(answer::Answer::Refusal(refusal)) }) => {
                Some(refusal.reason())
            }
            other => panic!("no answer of a get: {other:?}"),
        };
        let grant = &self.grants[word.grant];
        if end.is_none() && grant.writes() {
            let seen = self.seen.get(&grant.lock).map_or(0, |seen| seen.token);
            assert_eq!(seen, grant.token, "a holder's mark is in the log before it reads");
        }
        self.judge(word, end);
        end
    }

    /// What a node does: it validates, touches where it reads, and does what was asked.
    fn holder(&mut self, lock: u8, reads: bool) {
        let held = |grant: &Grant| grant.lock == lock && grant.held;
        let Some(grant) = self.grants.iter().rposition(held) else { return };
        let seen = self.seen.get(&lock).map_or(0, |seen| seen.token);
        let word = self.word(grant, true);
        let end = self.entry(std::slice::from_ref(&word))[0];
        let end = if reads && end.is_none() { self.get(&word) } else { end };
        if self.grants[grant].token >= seen {
            assert_eq!(end, None, "a present holder gets in, be its mark forgotten");
        }
    }

    /// The promise, by what was let in before and by what the locks' shard knew.
    fn judge(&mut self, word: &Word, end: Option<Reason>) {
        let grant = &self.grants[word.grant];
        let seen = self.seen.get(&grant.lock).copied().unwrap_or_default();
        if end.is_some() {
            assert!(matches!(end, Some(Reason::Fenced | Reason::FenceNotValidated)), "{end:?}");
            return;
        }
        if grant.token < seen.token {
            // One who holds it beside the newer one, as the lock's shard knew when the newer one had been here.
            let beside = word.standing == TokenStanding::Reader && word.as_of >= seen.index;
            assert!(beside && !grant.writes(), "{grant:?} after {seen:?} by {word:?}");
        } else if grant.writes() && grant.token > seen.token {
            let seen = Seen { token: grant.token, index: self.index() };
            self.seen.insert(grant.lock, seen);
        }
        let passes = word.standing != TokenStanding::NotHeld || grant.token == seen.token;
        assert!(passes, "a token that nobody holds passes as the mark alone");
    }
}

fn put(fence: CheckedFence) -> Command {
    let (namespace, key) = ("n".to_owned(), "k".to_owned());
    let slot = of_cache(&namespace, &key);
    let value = Some(Value { kind: Some(value::Kind::Text("v".to_owned())) });
    let put = PutRequest { namespace, key, value, ..PutRequest::default() };
    Command { fence: Some(fence), ..command(slot, 1, None, Operation::Put(put)) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_older_holder_gets_in_after_a_newer_one(steps in proptest::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.step(step));
    }
}
