//! A disk that is full: what takes room is refused, what makes room still works, and nothing acknowledged is lost.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use trefoil_client::proto::cluster::v1::{Obstacle, ShardStatus, StatusResponse};
use trefoil_client::proto::common::v1::Reason;
use trefoil_client::{Client, Message};

use crate::support::{Cluster, eventually};

/// Bytes of the disk of each node.
const DISK_BYTES: u64 = 256 << 20;
const QUEUE: &str = "jobs";

/// A file system in memory over the data directory of a node.
struct Disk(PathBuf);

impl Disk {
    /// None where this user may not mount one.
    fn mount(at: &Path) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let size = format!("size={DISK_BYTES},mode=0700");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output();
        mounted.is_ok_and(|mounted| mounted.status.success()).then(|| Self(at.to_owned()))
    }

    fn free(&self) -> u64 {
        let space = statvfs(&self.0).unwrap();
        space.f_bavail * space.f_frsize
    }

    fn filler(&self) -> PathBuf {
        self.0.join("somebody-elses-file")
    }

    /// Somebody else takes all but so many bytes.
    fn fill(&self, leave: u64) {
        let file = std::fs::File::options().create(true).append(true).open(self.filler()).unwrap();
        let taken = file.metadata().unwrap().len();
        let take = self.free().saturating_sub(leave);
        if take > 0 {
            fallocate(&file, FallocateFlags::empty(), taken, take).unwrap();
        }
    }

    fn empty(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(&self.0).status().ok();
    }
}

async fn is_refused(client: &Client, n: usize) -> bool {
    let put = client.cache().put(format!("more-{n}"), "value").await;
    put.is_err_and(|error| error.reason() == Some(Reason::DiskFull))
}

/// The shards that the first node leads, and whether it says of each that its disk has no room.
async fn first_node(client: &Client) -> (usize, bool) {
    let answers = client.cluster().status().await;
    let statuses = answers.into_iter().filter_map(|answer| answer.status.ok());
    let of_first = |status: &StatusResponse| status.header.as_ref().unwrap().node_id == 1;
    let status = statuses.into_iter().find(of_first).expect("the first node answers");
    let led = status.shards.iter().filter(|shard| shard.role == 2).count();
    let no_room = |shard: &ShardStatus| shard.obstacles().any(|one| one == Obstacle::NoRoom);
    (led, status.shards.iter().all(no_room))
}

/// Writes for a while, one after the other over all shards, and counts how many got no answer, and the longest wait.
async fn write_for(client: &Client, time: Duration) -> (usize, usize, Duration) {
    let (begin, mut failed, mut slowest) = (Instant::now(), 0, Duration::ZERO);
    let mut n = 0;
    while begin.elapsed() < time {
        let since = Instant::now();
        let put = client.cache().put(format!("put-{}", n % 50), "value").await;
        failed += usize::from(put.inspect_err(|error| eprintln!("put {n}: {error}")).is_err());
        slowest = slowest.max(since.elapsed());
        n += 1;
    }
    (n, failed, slowest)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_full_disk_of_three_refuses_nothing() {
    let mut cluster = Cluster::prepare(3, &["--min-free-bytes", "33554432"]).await;
    let Some(disk) = Disk::mount(&cluster.nodes[0].data_dir) else {
        eprintln!("SKIPPED: this user may not mount a file system for the test");
        return;
    };
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.ready().await;
    let client = cluster.client().await;
    eventually("the first node leads", async || first_node(&client).await.0 > 0).await;

    // First there is little room, and then none at all.
    for leave in [16 << 20, 0] {
        disk.fill(leave);
        let (all, failed, slowest) = write_for(&client, Duration::from_secs(8)).await;
        println!(
            "{leave} bytes are left: {failed} of {all} writes failed, the slowest took {slowest:?}"
        );
        assert_eq!(failed, 0, "of {all} writes with {leave} bytes left");
        assert_eq!(first_node(&client).await, (0, true));
    }

    // With room again it is given its shards back.
    disk.empty();
    eventually("the first node leads again", async || first_node(&client).await.0 > 0).await;
    let (all, failed, _) = write_for(&client, Duration::from_secs(2)).await;
    assert_eq!(failed, 0, "of {all} writes with room again");
    drop(cluster);
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_what_takes_room_and_loses_nothing() {
    let mut cluster = Cluster::prepare(3, &["--min-free-bytes", "33554432"]).await;
    let disks = cluster.nodes.iter().map(|node| Disk::mount(&node.data_dir));
    let Some(disks) = disks.collect::<Option<Vec<_>>>() else {
        eprintln!("SKIPPED: this user may not mount a file system for the test");
        return;
    };
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.ready().await;
    let client = cluster.client().await;
    let queue = client.queue(QUEUE);
    for n in 0..20 {
        queue.enqueue([Message::new("job").key(format!("key-{n}"))]).await.unwrap();
        client.cache().put(format!("key-{n}"), "value").await.unwrap();
    }
    let session = client.session(Duration::from_secs(60)).await.unwrap();
    let held = session.lock("printer").acquire().await.unwrap().unwrap();
    let leased = queue.dequeue().max(10).await.unwrap();
    assert!(!leased.is_empty());

    // Little is left on every disk: each leader refuses what takes room.
    disks.iter().for_each(|disk| disk.fill(16 << 20));
    eventually("writes are refused", async || {
        is_refused(&client, 1).await && is_refused(&client, 2).await && is_refused(&client, 3).await
    })
    .await;
    // Nothing at all is left: what makes room still works, in the room that was held back.
    disks.iter().for_each(|disk| disk.fill(0));
    for delivery in &leased {
        delivery.ack().await.unwrap();
    }
    held.release().await.unwrap();
    for n in 0..10 {
        client.cache().delete(format!("key-{n}")).await.unwrap();
    }
    let key = "k".repeat(1_000);
    let gave_up = |disk: &Disk| !disk.0.join("reserve").exists();
    for n in 0..10_000 {
        client.cache().delete(format!("{key}-{}", n % 20)).await.unwrap();
        if n % 100 == 0 && disks.iter().all(gave_up) {
            break;
        }
    }
    assert!(disks.iter().all(gave_up), "every disk needed what was held back");
    assert!(is_refused(&client, 4).await);

    // There is room again.
    disks.iter().for_each(Disk::empty);
    eventually("writes are taken again", async || {
        client.cache().put("after", "value").await.is_ok()
    })
    .await;
    eventually("room is held back again", async || !disks.iter().any(gave_up)).await;
    for node in &mut cluster.nodes {
        node.kill();
        node.start();
    }
    cluster.ready().await;
    let client = cluster.client().await;
    for n in 0..20 {
        let value = client.cache().get(format!("key-{n}")).await.unwrap();
        assert_eq!(value.is_some(), n >= 10, "key-{n}");
    }
    let mut left = 0;
    while left + leased.len() < 20 {
        let more = client.queue(QUEUE).dequeue().max(20).wait(Duration::from_secs(5)).await;
        left += more.unwrap().len();
    }
    assert_eq!(left + leased.len(), 20, "every job is there once");
    drop(cluster);
    drop(disks);
}
