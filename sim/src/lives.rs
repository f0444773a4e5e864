//! Sessions and waits as the state has them before an entry, for what the entry then does with them.

use std::collections::BTreeMap;

use bytes::{Buf as _, Bytes};
use trefoil_core::ShardId;
use trefoil_core::key::{Key, Kind};
use trefoil_core::machine::{Applied, Outcome};
use trefoil_core::slot;
use trefoil_core::store::{Store, decode, prefix_end};
use trefoil_proto::common::v1::SessionUse;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{Answer, Entry, Session, Wait, answer};

use crate::check::Violation;
use crate::check::lives::{EntryTimes, SessionLife, granted, renewed};
use crate::disk::state::MachineStore;
use crate::workload::lock::NAMESPACES;

/// Sessions by namespace and id, whose wait it is by the key of the wait.
#[derive(Debug, Default)]
pub(crate) struct Lives {
    sessions: BTreeMap<(&'static str, u64), SessionLife>,
    waits: BTreeMap<Bytes, (&'static str, u64)>,
}

fn scan(store: &MachineStore, prefix: &Key) -> Vec<(Bytes, Bytes)> {
    store.scan(prefix.bytes(), &prefix_end(prefix.bytes()), usize::MAX)
}

impl Lives {
    /// Those of a shard.
    pub(crate) fn of(store: &MachineStore, shard: ShardId, shards: u32) -> Self {
        let mut lives = Self::default();
        for namespace in NAMESPACES {
            let slot = slot::of_locks(namespace);
            if slot::shard(slot, shards) != shard {
                continue;
            }
            let prefix = Key::new(slot, Kind::Session).text(namespace);
            for (key, value) in scan(store, &prefix) {
                let session = decode::<Session>(&value);
                let until_ms = session.renewed_at_ms.saturating_add(session.ttl_ms);
                let id = (&key[prefix.bytes().len()..]).get_u64();
                let life = SessionLife { until_ms, ended: session.ended };
                lives.sessions.insert((namespace, id), life);
            }
            for (key, value) in scan(store, &Key::new(slot, Kind::Wait).text(namespace)) {
                lives.waits.insert(key, (namespace, decode::<Wait>(&value).session_id));
            }
        }
        lives
    }

    /// Judges what an entry did.
    #[must_use]
    pub(crate) fn check(
        &self,
        entry: &Entry,
        applied: &Applied,
        times: EntryTimes,
    ) -> Vec<Violation> {
        let mut found = Vec::new();
        let mut touched = Vec::new();
        for (command, outcome) in entry.commands.iter().zip(&applied.outcomes) {
            let Some(operation) = &command.operation else { continue };
            let (namespace, session) = match (operation, operation.session()) {
                (Operation::OpenSession(open), _) => (open.namespace.as_str(), None),
                (_, Some((namespace, id, SessionUse::Renews | SessionUse::Keeps))) => {
                    (namespace, Some(id))
                }
                _ => continue,
            };
            // Opened or renewed by this entry itself.
            let by_itself =
                touched.contains(&(namespace, session)) || touched.contains(&(namespace, None));
            touched.push((namespace, session));
            let keep = matches!(operation, Operation::KeepAlive(_))
                && matches!(
                    outcome,
                    Outcome::Answered(Answer { answer: Some(answer::Answer::KeepAlive(_)) })
                );
            if let (true, false, Some(id)) = (keep, by_itself, session) {
                found.extend(renewed(&format!("session {id}"), self.life(namespace, id), times));
            }
        }
        for settled in &applied.settled {
            let Some((namespace, id)) = self.waits.get(&settled.waiter.0) else { continue };
            let was_granted = match &settled.answer.answer {
                Some(answer::Answer::Acquire(acquire)) => acquire.acquired,
                Some(answer::Answer::Convert(convert)) => convert.converted,
                Some(answer::Answer::AcquirePermits(got)) => got.acquired,
                _ => false,
            };
            if was_granted && !touched.contains(&(*namespace, Some(*id))) {
                found.extend(granted(&format!("session {id}"), self.life(namespace, *id), times));
            }
        }
        found
    }

    fn life(&self, namespace: &str, id: u64) -> Option<SessionLife> {
        let of = NAMESPACES.iter().find(|name| **name == namespace)?;
        self.sessions.get(&(*of, id)).copied()
    }
}
