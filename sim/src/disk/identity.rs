//! Whose a simulated disk is: the file `identity`, replaced as a whole and durably, as the real one is.

use std::collections::BTreeMap;

use prost::Message as _;
use trefoil_core::member::{Memory, Stage, Standing, Starts, Word};
use trefoil_proto::internal::v1::Greeting;

use super::volume::Volume;

const NAME: &str = "identity";
const NEW: &str = "identity.tmp";

/// What a directory says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskIdentity {
    /// Its incarnation, and how far it is on its way into a cluster.
    pub word: Word,
    /// How often it was started.
    pub starts: Starts,
}

impl DiskIdentity {
    /// That of a new directory.
    #[must_use]
    pub fn new(incarnation: u64) -> Self {
        let word = Word { incarnation, stage: Stage::New };
        Self { word, starts: Starts::default() }
    }

    /// Reads it.
    ///
    /// # Panics
    /// When there is none: it is written before anything else.
    #[must_use]
    pub fn read(volume: &Volume) -> Self {
        let id = volume.open(NAME).expect("a directory has an identity");
        let mut bytes = vec![0; usize::try_from(volume.len(id)).expect("small")];
        volume.read(id, 0, &mut bytes).expect("faults strike the log");
        let greeting = Greeting::decode(&bytes[..]).expect("it is whole");
        let formation = greeting.formation.unwrap_or_default();
        let word = Word::of_proto(greeting.incarnation, &formation);
        let own = greeting.memory.map(|memory| Memory::of_proto(&memory)).unwrap_or_default();
        Self { word, starts: own.peers.into_values().next().unwrap_or_default().starts }
    }

    /// Writes it; it is durable when this returns.
    ///
    /// # Panics
    /// Never: faults strike the log.
    pub fn write(&self, volume: &Volume) {
        let own = Standing { starts: self.starts.clone(), ..Standing::default() };
        let greeting = Greeting {
            incarnation: self.word.incarnation,
            formation: Some(self.word.to_proto()),
            memory: Some(Memory { peers: BTreeMap::from([(0, own)]) }.to_proto()),
            ..Greeting::default()
        };
        let id = volume.create(NEW);
        let written = volume.write(id, 0, &greeting.encode_to_vec());
        written.and_then(|()| volume.sync(id)).expect("faults strike the log");
        volume.rename(NEW, NAME);
        volume.sync_directory("");
    }

    /// Whether it belongs to a cluster.
    #[must_use]
    pub fn is_formed(&self) -> bool {
        matches!(self.word.stage, Stage::Formed { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn it_outlives_a_loss_of_power() {
        let volume = Volume::default();
        let mut identity = DiskIdentity::new(7);
        identity.write(&volume);
        identity.word.stage = Stage::Formed { cluster: [1; 16], members: [(1, 7), (2, 9)].into() };
        identity.starts = identity.starts.next(5);
        identity.write(&volume);
        volume.lose_power(&mut Rng::new(1));
        assert_eq!(DiskIdentity::read(&volume), identity);
        assert!(identity.is_formed());
    }
}
