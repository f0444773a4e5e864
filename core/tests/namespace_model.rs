//! Random histories of namespaces: decisions of the meta shard reach a data shard late, twice, in any order or not at all.
//! Whatever happens, the shard never goes back, never loses limits while somebody is there, and one round of the front's
//! protocol makes both agree.

mod support;

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;
use support::{Harness, command};
use trefoil_core::machine::{Outcome, QueryOutcome};
use trefoil_core::slot::{SYSTEM_SLOT, of_locks};
use trefoil_proto::cluster::v1::{
    CreateNamespaceRequest, DeleteNamespaceRequest, GetNamespaceRequest, Namespace,
    NamespaceSettings, UpdateNamespaceRequest,
};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::command::Operation as O;
use trefoil_proto::internal::v1::query::Query as Q;
use trefoil_proto::internal::v1::{
    ConfigureNamespace, FindNamespace, NamespaceHere, NamespaceStep, answer::Answer as A,
};
use trefoil_proto::lock::v1::{CloseSessionRequest, OpenSessionRequest};

const NAMES: [&str; 3] = ["a", "b", "c"];

#[derive(Clone, Debug)]
enum Step {
    Create(usize, u64),
    Update(usize, u64),
    Delete(usize),
    /// One of all decisions so far reaches the shard, perhaps again.
    Deliver(Index),
    /// A removal that the shard has confirmed is finished; another is taken back.
    Finish(Index),
    Open(usize),
    Close(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = || 0..NAMES.len();
    let step = prop_oneof![
        3 => (name(), 0..3_u64).prop_map(|(name, most)| Step::Create(name, most)),
        2 => (name(), 0..3_u64).prop_map(|(name, most)| Step::Update(name, most)),
        3 => name().prop_map(Step::Delete),
        8 => any::<Index>().prop_map(Step::Deliver),
        3 => any::<Index>().prop_map(Step::Finish),
        3 => name().prop_map(Step::Open),
        3 => name().prop_map(Step::Close),
    ];
    proptest::collection::vec(step, 1..80)
}

struct World {
    meta: Harness,
    data: Harness,
    /// Every decision so far; one without settings is a removal.
    decided: Vec<ConfigureNamespace>,
    /// Removals that were begun, and whether the shard has confirmed them.
    removals: Vec<(String, u64, bool)>,
    /// Open sessions by namespace.
    sessions: BTreeMap<&'static str, Vec<u64>>,
}

impl World {
    fn new() -> Self {
        let (meta, data) = (Harness::new(0), Harness::new(1));
        Self { meta, data, decided: Vec::new(), removals: Vec::new(), sessions: BTreeMap::new() }
    }

    /// What the meta shard answers.
    fn decide(&mut self, operation: O) -> A {
        said(&self.meta.apply(vec![command(SYSTEM_SLOT, 1, None, operation)]).outcomes[0])
    }

    fn tell(&mut self, news: ConfigureNamespace) -> A {
        let slot = of_locks(&news.namespace);
        let news = O::ConfigureNamespace(news);
        said(&self.data.apply(vec![command(slot, 1, None, news)]).outcomes[0])
    }

    fn note(&mut self, namespace: Option<Namespace>) {
        let Namespace { name, settings, version, deleting } = namespace.expect("it is shown");
        let settings = settings.filter(|_| !deleting);
        if deleting {
            self.removals.push((name.clone(), version, false));
        }
        self.decided.push(ConfigureNamespace { namespace: name, version, settings });
    }

    fn here(&mut self, name: &str) -> NamespaceHere {
        let find = Q::FindNamespace(FindNamespace { namespace: name.to_owned() });
        let QueryOutcome::Answered(answer) = self.data.query(of_locks(name), 1, find).1 else {
            panic!("nobody waits");
        };
        match answer.answer {
            Some(A::NamespaceHere(here)) => here,
            other => panic!("{other:?}"),
        }
    }

    fn known(&mut self, name: &str) -> Option<Namespace> {
        let get = Q::GetNamespace(GetNamespaceRequest { name: name.to_owned() });
        let QueryOutcome::Answered(answer) = self.meta.query(SYSTEM_SLOT, 1, get).1 else {
            panic!("nobody waits");
        };
        match answer.answer {
            Some(A::GetNamespace(got)) => got.namespace,
            Some(A::Refusal(refusal)) if refusal.reason() == Reason::UnknownNamespace => None,
            other => panic!("{other:?}"),
        }
    }

    fn step(&mut self, step: &Step) {
        let settings =
            |most: u64| Some(NamespaceSettings { sessions_max: most, ..Default::default() });
        match step {
            Step::Create(name, most) => {
                let (name, settings) = (NAMES[*name].to_owned(), settings(*most));
                let create = CreateNamespaceRequest { name, settings, request_id: None };
                if let A::CreateNamespace(made) = self.decide(O::CreateNamespace(create)) {
                    self.note(made.namespace);
                }
            }
            Step::Update(name, most) => {
                let (name, settings) = (NAMES[*name].to_owned(), settings(*most));
                let update = UpdateNamespaceRequest { name, settings, ..Default::default() };
                if let A::UpdateNamespace(made) = self.decide(O::UpdateNamespace(update)) {
                    self.note(made.namespace);
                }
            }
            Step::Delete(name) => {
                let name = NAMES[*name].to_owned();
                let delete = DeleteNamespaceRequest { name, ..Default::default() };
                if let A::UpdateNamespace(made) = self.decide(O::DeleteNamespace(delete)) {
                    self.note(made.namespace);
                }
            }
            Step::Deliver(index) if !self.decided.is_empty() => {
                let news = index.get(&self.decided).clone();
                self.deliver(&news);
            }
            Step::Finish(index) if !self.removals.is_empty() => {
                let (name, version, confirmed) = index.get(&self.removals).clone();
                self.finish(name, version, confirmed);
            }
            Step::Open(name) => self.open(NAMES[*name]),
            Step::Close(name) => self.close(NAMES[*name]),
            Step::Deliver(_) | Step::Finish(_) => {}
        }
    }

    /// The shard hears of a decision, for the first time or again.
    fn deliver(&mut self, news: &ConfigureNamespace) {
        let before = self.here(&news.namespace);
        let answer = self.tell(news.clone());
        let after = self.here(&news.namespace).version;
        match &answer {
            A::NamespaceConfigured(now) => assert_eq!(now.version, after),
            A::Refusal(refusal) => {
                assert_eq!(refusal.reason(), Reason::NamespaceInUse);
                assert_eq!(after, before.version, "a refused removal changes nothing");
            }
            other => panic!("{other:?}"),
        }
        let removed = after == 0 && before.version > 0;
        assert!(removed || after >= before.version, "a shard never goes back");
        if removed {
            assert!(news.settings.is_none() && news.version > before.version);
            assert_eq!(before.usage.expect("it has the locks").sessions, 0, "nobody was there");
        }
        let is_refused = matches!(answer, A::Refusal(_));
        if news.settings.is_none() && after == 0 && !is_refused {
            assert_eq!(before.usage.expect("it has the locks").sessions, 0, "nobody is there");
            let of = |it: &&mut (String, u64, bool)| it.1 == news.version;
            self.removals.iter_mut().find(of).expect("it was begun").2 = true;
        }
    }

    fn finish(&mut self, namespace: String, version: u64, confirmed: bool) {
        let step = NamespaceStep { namespace, version, remove: confirmed };
        match self.decide(O::NamespaceStep(step)) {
            A::UpdateNamespace(made) => self.note(made.namespace),
            A::Done(_) => {}
            A::Refusal(refusal) => assert!(
                matches!(refusal.reason(), Reason::UnknownNamespace | Reason::NamespaceChanged),
                "{refusal:?}"
            ),
            other => panic!("{other:?}"),
        }
    }

    fn open(&mut self, name: &'static str) {
        let namespace = name.to_owned();
        let open = OpenSessionRequest { namespace, ttl_ms: 86_400_000, ..Default::default() };
        let open = command(of_locks(name), 1, None, O::OpenSession(open));
        let version = self.here(name).version;
        let settings = self.decided.iter().find(|it| it.version == version);
        let most = settings.and_then(|it| it.settings).map_or(0, |settings| settings.sessions_max);
        let sessions = self.sessions.entry(name).or_default();
        match said(&self.data.apply(vec![open]).outcomes[0]) {
            A::OpenSession(opened) => {
                assert!(most == 0 || (sessions.len() as u64) < most, "the limit holds");
                sessions.push(opened.session_id);
            }
            A::Refusal(refusal) => {
                assert_eq!(refusal.reason(), Reason::LimitReached);
                assert!(most > 0 && sessions.len() as u64 >= most, "there was room");
            }
            other => panic!("{other:?}"),
        }
    }

    fn close(&mut self, name: &'static str) {
        let Some(session_id) = self.sessions.entry(name).or_default().pop() else { return };
        let namespace = name.to_owned();
        let close = CloseSessionRequest { namespace, session_id, request_id: None };
        let close = command(of_locks(name), 1, None, O::CloseSession(close));
        assert!(matches!(said(&self.data.apply(vec![close]).outcomes[0]), A::CloseSession(_)));
    }

    /// What the front does once nothing is in its way.
    fn settle(&mut self, name: &'static str) {
        while let Some(known) = self.known(name) {
            let version = known.version;
            let settings = known.settings.filter(|_| !known.deleting);
            let namespace = name.to_owned();
            let news = ConfigureNamespace { namespace: namespace.clone(), version, settings };
            let answer = self.tell(news);
            let is_told = matches!(answer, A::NamespaceConfigured(now) if now.version == version);
            if is_told {
                break;
            }
            let is_gone = matches!(answer, A::NamespaceConfigured(now) if now.version == 0);
            self.finish(namespace, version, known.deleting && is_gone);
        }
        let (known, here) = (self.known(name), self.here(name).version);
        assert_eq!(here, known.map_or(0, |known| known.version), "both agree about {name}");
    }
}

fn said(outcome: &Outcome) -> A {
    match outcome {
        Outcome::Answered(answer) => answer.answer.clone().expect("an answer says something"),
        Outcome::Waiting(_) => panic!("nothing waits"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_decided_is_what_is_known_in_the_end(steps in steps()) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.step(step));
        NAMES.into_iter().for_each(|name| world.settle(name));
    }
}
