//! Every order in which members may hear each other, write, die and lose their directories: however it goes, a cluster
//! is formed of directories that all promised it, and none beside one that a member still has.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::collections::{BTreeSet, VecDeque};

use trefoil_core::NodeId;
use trefoil_core::member::formation::cluster_id;
use trefoil_core::member::{Formation, Incarnations, Objection, Refused, Stage, Word};

const SETUP: [u8; 16] = [7; 16];
const NODES: [NodeId; 3] = [1, 2, 3];

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct World {
    /// The process of each member; none after one was refused.
    members: Vec<Option<Formation>>,
    /// What is on each disk.
    disks: Vec<Word>,
    /// What was ever promised, by directory.
    promises: BTreeSet<(NodeId, u64, Incarnations)>,
    deaths: u8,
    losses: u8,
}

fn process(node: NodeId, disk: &Word) -> Formation {
    Formation::new(node, NODES.into(), SETUP, disk.clone())
}

fn at(node: NodeId) -> usize {
    usize::try_from(node).unwrap() - 1
}

impl World {
    fn new(deaths: u8, losses: u8) -> Self {
        let disks = NODES.map(|node| Word { incarnation: node, stage: Stage::New }).to_vec();
        let members = NODES.iter().zip(&disks).map(|(node, disk)| Some(process(*node, disk)));
        Self { members: members.collect(), disks, promises: BTreeSet::new(), deaths, losses }
    }

    /// A member writes how far it is.
    fn write(&mut self, node: NodeId, stage: Stage) {
        let disk = &mut self.disks[at(node)];
        disk.stage = stage.clone();
        if let Stage::Promised(set) = &stage {
            self.promises.insert((node, disk.incarnation, set.clone()));
        }
        if let Some(member) = &mut self.members[at(node)] {
            member.reached(stage);
        }
    }

    /// What may happen next.
    fn next(&self) -> Vec<Self> {
        let mut worlds = Vec::new();
        for node in NODES {
            let here = at(node);
            if let Some(member) = &self.members[here] {
                for from in NODES.into_iter().filter(|from| *from != node) {
                    // A word may be heard although its sender has died since.
                    let mut world = self.clone();
                    let heard =
                        world.members[here].as_mut().unwrap().hear(from, &self.disks[at(from)]);
                    if heard.is_err_and(Objection::is_about_this_node) {
                        world.members[here] = None;
                    }
                    worlds.push(world);
                }
                if let Some(stage) = member.next() {
                    let mut world = self.clone();
                    world.write(node, stage);
                    worlds.push(world);
                }
            }
            if self.deaths > 0 {
                let mut world = self.clone();
                world.deaths -= 1;
                world.members[here] = Some(process(node, &self.disks[here]));
                worlds.push(world);
            }
            if self.losses > 0 {
                let mut world = self.clone();
                world.losses -= 1;
                world.disks[here] =
                    Word { incarnation: self.disks[here].incarnation + 10, stage: Stage::New };
                world.members[here] = Some(process(node, &world.disks[here]));
                worlds.push(world);
            }
        }
        worlds
    }

    fn check(&self) {
        let mut clusters = BTreeSet::new();
        for disk in &self.disks {
            let Stage::Formed { cluster, members } = &disk.stage else { continue };
            clusters.insert(*cluster);
            assert_eq!(*cluster, cluster_id(SETUP, members), "its id is that of its directories");
            assert_eq!(members.len(), NODES.len(), "it is formed of all members");
            for (node, incarnation) in members {
                let promise = (*node, *incarnation, members.clone());
                assert!(self.promises.contains(&promise), "node {node} promised it: {self:?}");
            }
        }
        assert!(clusters.len() < 2, "no two clusters stand beside each other: {self:?}");
        let of = |(node, incarnation, _): &(NodeId, u64, Incarnations)| (*node, *incarnation);
        let directories = self.promises.iter().map(of).collect::<BTreeSet<_>>();
        assert_eq!(directories.len(), self.promises.len(), "a directory promises once: {self:?}");
    }

    /// From here on everybody hears everybody.
    fn settle(mut self) -> Self {
        for _ in 0..4 {
            for node in NODES {
                for from in NODES.into_iter().filter(|from| *from != node) {
                    let Some(member) = &mut self.members[at(node)] else { continue };
                    // Whoever is refused is told so; what matters here is what is formed.
                    member.hear(from, &self.disks[at(from)]).ok();
                    while let Some(stage) =
                        self.members[at(node)].as_ref().and_then(Formation::next)
                    {
                        self.write(node, stage);
                    }
                }
            }
        }
        self
    }

    fn formed(&self) -> usize {
        self.disks.iter().filter(|disk| matches!(disk.stage, Stage::Formed { .. })).count()
    }
}

fn explore(deaths: u8, losses: u8, mut see: impl FnMut(&World)) -> usize {
    let first = World::new(deaths, losses);
    let (mut seen, mut queue) = (BTreeSet::from([first.clone()]), VecDeque::from([first]));
    while let Some(world) = queue.pop_front() {
        world.check();
        see(&world);
        for next in world.next() {
            if seen.insert(next.clone()) {
                queue.push_back(next);
            }
        }
    }
    seen.len()
}

#[test]
fn whoever_dies_on_the_way_goes_on_and_all_are_formed() {
    let worlds = explore(2, 0, |world| {
        assert_eq!(world.clone().settle().formed(), NODES.len(), "{world:?}");
    });
    assert!(worlds > 500, "{worlds} worlds");
}

#[test]
fn whoever_loses_a_directory_on_the_way_forms_no_second_cluster() {
    let (mut stuck, mut formed, mut seen) = (0, 0, 0);
    let worlds = explore(0, 2, |world| {
        seen += 1;
        if seen % 32 > 0 {
            return;
        }
        let settled = world.clone().settle();
        settled.check();
        stuck += usize::from(settled.formed() == 0);
        formed += usize::from(settled.formed() > 1);
    });
    assert!(worlds > 1_000 && stuck > 0 && formed > 0, "{worlds} worlds, {stuck}, {formed}");
}

fn formed_of(members: &Incarnations) -> Stage {
    Stage::Formed { cluster: cluster_id(SETUP, members), members: members.clone() }
}

#[test]
fn two_emptied_members_wait_for_the_third_and_are_refused_by_it() {
    let members = Incarnations::from([(1, 1), (2, 2), (3, 3)]);
    let third = Word { incarnation: 3, stage: formed_of(&members) };
    let new = |incarnation| Word { incarnation, stage: Stage::New };
    let mut first = process(1, &new(11));
    let mut second = process(2, &new(12));
    assert_eq!((first.hear(2, second.word()), second.hear(1, first.word())), (Ok(()), Ok(())));
    assert_eq!((first.next(), first.missing()), (None, vec![3]));
    assert_eq!(first.hear(3, &third), Err(Objection::Replaced { formed: true }));
    let mut old = process(3, &third);
    assert_eq!(old.hear(1, first.word()), Err(Objection::OtherIncarnation));
    // An older copy of a directory, from before it promised.
    assert_eq!(process(2, &new(2)).hear(3, &third), Err(Objection::Forgotten));
    assert_eq!(old.hear(2, &new(2)), Err(Objection::Behind));
}

#[test]
fn members_of_two_clusters_refuse_each_other_and_none_must_end() {
    let formed = |member: NodeId, members: &Incarnations| {
        process(member, &Word { incarnation: members[&member], stage: formed_of(members) })
    };
    let old = Incarnations::from([(1, 1), (2, 2), (3, 3)]);
    // All were emptied, or a majority by force.
    for new in [[(1, 11), (2, 12), (3, 13)].into(), Incarnations::from([(1, 11), (2, 12)])] {
        let (mut first, mut third) = (formed(1, &new), formed(3, &old));
        for end in [first.hear(3, third.word()), third.hear(1, first.word())] {
            assert_eq!(end, Err(Objection::OtherCluster));
            assert!(!Refused::from(Objection::OtherCluster).is_verdict(true));
        }
    }
}

#[test]
fn by_force_a_majority_forms_and_the_others_join_once() {
    let new = |incarnation| Word { incarnation, stage: Stage::New };
    let mut first = process(1, &new(1));
    let mut second = process(2, &new(2));
    first.hear(2, second.word()).unwrap();
    assert_eq!(first.next(), None);
    first.force();
    let step = |member: &mut Formation| {
        let stage = member.next().expect("it goes on");
        member.reached(stage);
    };
    step(&mut first);
    second.hear(1, first.word()).unwrap();
    step(&mut second);
    first.hear(2, second.word()).unwrap();
    step(&mut first);
    second.hear(1, first.word()).unwrap();
    step(&mut second);
    let cluster = first.cluster().expect("it is formed");
    assert_eq!(second.cluster(), Some(cluster));
    let mut third = process(3, &new(3));
    third.hear(1, first.word()).unwrap();
    step(&mut third);
    assert_eq!(third.cluster(), Some(cluster));
    first.hear(3, third.word()).unwrap();
    step(&mut first);
    assert_eq!(first.next(), None);
    assert_eq!(first.hear(3, &new(33)), Err(Objection::OtherIncarnation), "emptied since");
    assert_eq!(first.cluster(), Some(cluster), "whoever joins changes nothing");
}
