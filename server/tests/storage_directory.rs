//! Whose data directory it is: one process, one node, one cluster, and nobody else looks in.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use trefoil_core::{BIRTH_INDEX, BIRTH_TERM};
use trefoil_server::storage::{DataDirectory, Expected, Refusal, node};

const CACHE_BYTES: usize = 4 << 20;

fn expected() -> Expected {
    Expected {
        cluster_id: [7; 16],
        node_id: 2,
        node_name: "b".to_owned(),
        members: BTreeMap::from([(1, "a".to_owned()), (2, "b".to_owned()), (3, "c".to_owned())]),
        shards: 2,
        services: BTreeSet::from(["cache".to_owned(), "lock".to_owned(), "queue".to_owned()]),
    }
}

fn refusal(path: &Path, expected: &Expected) -> String {
    let Refusal(sentence) = DataDirectory::open(path, expected).map(drop).unwrap_err();
    assert!(!sentence.contains('\n'), "a refusal is one line: {sentence}");
    assert!(sentence.contains(path.to_str().unwrap()), "a refusal names the directory: {sentence}");
    sentence
}

#[test]
fn a_node_is_born_once_and_comes_back_the_same() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("data");
    let disk = node::open(&path, &expected(), CACHE_BYTES).unwrap();
    let incarnation = disk.directory.identity().incarnation;
    assert_eq!(disk.shards.len(), 3, "two data shards and the meta shard");
    drop(disk);
    let disk = node::open(&path, &expected(), CACHE_BYTES).unwrap();
    assert_eq!(disk.directory.identity().incarnation, incarnation);
    for (recovered, store) in &disk.shards {
        assert_eq!(recovered.boot.truncated, (BIRTH_INDEX, BIRTH_TERM));
        assert_eq!(recovered.boot.applied, (BIRTH_INDEX, BIRTH_TERM));
        assert_eq!(recovered.boot.last_index, BIRTH_INDEX);
        assert_eq!(
            (recovered.boot.hard_state.term, recovered.boot.hard_state.commit),
            (BIRTH_TERM, BIRTH_INDEX)
        );
        assert_eq!((recovered.boot.uncertain, recovered.generation), (false, 1));
        assert_eq!(store.progress().unwrap().index, BIRTH_INDEX);
    }
}
