//! Whose data directory it is: one process, one node, one cluster, and nobody else looks in.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use trefoil_core::member::{Incarnations, Stage, Starts};
use trefoil_core::{BIRTH_INDEX, BIRTH_TERM};
use trefoil_server::storage::{DataDirectory, Expected, OpenError};

use crate::support::open_node;

fn expected() -> Expected {
    Expected {
        setup: [7; 16],
        node_id: 2,
        node_name: "b".to_owned(),
        members: BTreeMap::from([(1, "a".to_owned()), (2, "b".to_owned()), (3, "c".to_owned())]),
        shards: 2,
        services: BTreeSet::from(["cache".to_owned(), "lock".to_owned(), "queue".to_owned()]),
    }
}

fn refusal(path: &Path, expected: &Expected) -> String {
    let sentence = DataDirectory::open(path, expected).map(drop).unwrap_err().to_string();
    assert!(!sentence.contains('\n'), "a refusal is one line: {sentence}");
    assert!(sentence.contains(path.to_str().unwrap()), "a refusal names the directory: {sentence}");
    sentence
}

#[test]
fn a_node_is_born_once_and_comes_back_the_same() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("data");
    let disk = open_node(&path, &expected()).unwrap();
    let incarnation = disk.directory.identity().incarnation;
    assert_eq!(disk.shards.len(), 3, "two data shards and the meta shard");
    drop(disk);
    let disk = open_node(&path, &expected()).unwrap();
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
        assert_eq!(store.as_ref().unwrap().progress().unwrap().index, BIRTH_INDEX);
    }
}

#[test]
fn what_the_configuration_says_otherwise_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("data");
    drop(open_node(&path, &expected()).unwrap());
    type Change = fn(&mut Expected);
    let cases: [(&str, Change); 5] = [
        ("belongs to another cluster, with the members a,b,c", |expected| expected.setup = [8; 16]),
        ("belongs to node b (2), not c (3)", |expected| {
            expected.node_id = 3;
            expected.node_name = "c".to_owned();
        }),
        ("give --name b", |expected| expected.node_name = "z".to_owned()),
        ("--shards 2, not 6", |expected| expected.shards = 6),
        ("--services cache,lock,queue, not queue", |expected| {
            expected.services = BTreeSet::from(["queue".to_owned()])
        }),
    ];
    for (words, change) in cases {
        let mut other = expected();
        change(&mut other);
        let sentence = refusal(&path, &other);
        assert!(sentence.contains(words), "{sentence}");
    }
    assert!(open_node(&path, &expected()).is_ok(), "a refusal changes nothing");
}

#[test]
fn a_second_process_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let disk = open_node(root.path(), &expected()).unwrap();
    assert!(refusal(root.path(), &expected()).contains("in use by another process"));
    drop(disk);
    assert!(open_node(root.path(), &expected()).is_ok());
}

#[test]
fn a_damaged_or_missing_identity_is_refused() {
    let root = tempfile::tempdir().unwrap();
    drop(open_node(root.path(), &expected()).unwrap());
    let identity = root.path().join("identity");
    let text = std::fs::read_to_string(&identity).unwrap();
    for at in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[at] ^= 1;
        std::fs::write(&identity, bytes).unwrap();
        assert!(refusal(root.path(), &expected()).contains("identity is damaged"), "byte {at}");
    }
    std::fs::write(&identity, "").unwrap();
    assert!(refusal(root.path(), &expected()).contains("identity is damaged"));
    std::fs::remove_file(&identity).unwrap();
    assert!(refusal(root.path(), &expected()).contains("no file named identity"));
    std::fs::write(&identity, text).unwrap();
    assert!(open_node(root.path(), &expected()).is_ok());
}

#[test]
fn another_format_is_refused_whatever_else_it_holds() {
    let root = tempfile::tempdir().unwrap();
    drop(open_node(root.path(), &expected()).unwrap());
    let json = r#"{"format":3,"something":"new"}"#;
    let text = format!("{json}\nxxh3 {:016x}\n", xxhash_rust::xxh3::xxh3_64(json.as_bytes()));
    std::fs::write(root.path().join("identity"), text).unwrap();
    assert!(refusal(root.path(), &expected()).contains("has format 3"));
}

#[test]
fn somebody_elses_files_are_left_alone() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("lost+found")).unwrap();
    std::fs::write(root.path().join("thesis.txt"), "years").unwrap();
    assert!(refusal(root.path(), &expected()).contains("holds thesis.txt"));
    assert_eq!(std::fs::read_to_string(root.path().join("thesis.txt")).unwrap(), "years");
    std::fs::remove_file(root.path().join("thesis.txt")).unwrap();
    assert!(open_node(root.path(), &expected()).is_ok(), "the root of an empty volume");
}

#[test]
fn a_bootstrap_that_was_interrupted_begins_again() {
    let root = tempfile::tempdir().unwrap();
    let (directory, identity, new) = DataDirectory::open(root.path(), &expected()).unwrap();
    assert!(new && !identity.born);
    std::fs::create_dir(root.path().join("state")).unwrap();
    std::fs::write(root.path().join("state/0-1.redb"), "half").unwrap();
    std::fs::write(root.path().join("log.mark"), "half").unwrap();
    drop(directory);
    let disk = open_node(root.path(), &expected()).unwrap();
    assert!(disk.directory.identity().born);
    assert_eq!(disk.directory.identity().incarnation, identity.incarnation);
}

#[test]
fn nobody_else_looks_in() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("deep/data");
    let mut disk = open_node(&path, &expected()).unwrap();
    disk.directory.start(11).unwrap();
    let mut folders = vec![path];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        assert_eq!(
            std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777,
            0o700,
            "{}",
            folder.display()
        );
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            files += 1;
            assert_eq!(
                std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
                0o600,
                "{}",
                path.display()
            );
        }
    }
    assert!(files > 8, "{files} files");
}

#[test]
fn what_is_wrong_with_the_disk_is_told_from_what_is_wrong_with_its_use() {
    let root = tempfile::tempdir().unwrap();
    drop(open_node(root.path(), &expected()).unwrap());
    let other = Expected { shards: 3, ..expected() };
    assert!(matches!(open_node(root.path(), &other), Err(OpenError::Misuse(_))));
    std::fs::write(root.path().join("identity"), "").unwrap();
    assert!(matches!(open_node(root.path(), &expected()), Err(OpenError::Damaged(_))));
}

#[test]
fn a_directory_remembers_its_starts_and_its_way_into_a_cluster() {
    let root = tempfile::tempdir().unwrap();
    let members = Incarnations::from([(1, 11), (2, 22), (3, 33)]);
    let mut disk = open_node(root.path(), &expected()).unwrap();
    assert_eq!(disk.directory.identity().word().stage, Stage::New);
    for number in 1..=20 {
        disk.directory.start(number).unwrap();
    }
    disk.directory.reach(&Stage::Promised(members.clone())).unwrap();
    drop(disk);
    let mut disk = open_node(root.path(), &expected()).unwrap();
    let incarnation = disk.directory.identity().incarnation;
    assert_eq!(disk.directory.identity().word().stage, Stage::Promised(members.clone()));
    assert_eq!(
        disk.directory.identity().starts(),
        Starts { count: 20, numbers: (5..=20).collect() }
    );
    // By force it becomes another directory, which has promised nothing.
    disk.directory.break_promise(7).unwrap();
    assert_eq!(disk.directory.identity().word().stage, Stage::New);
    assert_ne!(disk.directory.identity().incarnation, incarnation);
    let formed = Stage::Formed { cluster: [9; 16], members };
    disk.directory.reach(&formed).unwrap();
    disk.directory.break_promise(8).unwrap();
    drop(disk);
    let disk = open_node(root.path(), &expected()).unwrap();
    assert_eq!(disk.directory.identity().word().stage, formed, "a formed one stays what it is");
}
