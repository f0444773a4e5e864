//! What watchers see of published entries.

use std::time::Duration;

use tokio::time::timeout;
use trefoil_core::limits::{WATCH_EVENTS_MAX, WATCH_WINDOW_EVENTS_MAX};
use trefoil_core::machine::{Body, Event};
use trefoil_proto::lock::v1::LockEvent;

use super::*;

fn event(name: &str) -> Event {
    let event = LockEvent { name: name.to_owned(), ..LockEvent::default() };
    Event { namespace: "n".to_owned(), body: Body::Lock(event) }
}

fn entry(index: u64, names: &[&str]) -> Applied {
    let events = names.iter().map(|name| event(name)).collect();
    Applied { index, term: 2, log_time_ms: 10 * index, events, ..Applied::default() }
}

fn feeds() -> Arc<Feeds> {
    let feeds = Arc::new(Feeds::new(1));
    feeds.opened(1, Tip { index: 10, term: 1, log_time_ms: 0 });
    feeds
}

fn all() -> Filter {
    Filter { topic: Topic::Namespace("n".to_owned()), prefix: String::new() }
}

fn one(name: &str) -> Filter {
    let topic = Topic::Name { namespace: "n".to_owned(), name: name.to_owned() };
    Filter { topic, prefix: String::new() }
}

fn shown(seen: &[Seen]) -> Vec<(u64, u32, &str)> {
    seen.iter().map(|seen| (seen.tip().index, seen.ordinal, seen.event().name())).collect()
}

#[tokio::test]
async fn a_watcher_sees_each_event_once_and_in_order() {
    let feeds = feeds();
    let mut follower = feeds.follow(1, all(), Cursor::after(10)).unwrap();
    feeds.publish(1, &mut [entry(11, &["a", "b"]), entry(12, &[]), entry(13, &["a"])]);
    let seen = follower.next().await.unwrap();
    assert_eq!(shown(&seen), [(11, 0, "a"), (11, 1, "b"), (13, 0, "a")]);
    assert_eq!(follower.cursor(), Cursor::after(13));
    assert!(timeout(Duration::from_millis(20), follower.next()).await.is_err(), "nothing is new");

    let mut narrow = feeds.follow(1, one("b"), Cursor::after(10)).unwrap();
    assert_eq!(shown(&narrow.next().await.unwrap()), [(11, 1, "b")]);
    let prefix = Filter { prefix: "a".to_owned(), ..all() };
    let rest = Cursor { index: 11, ordinal: Some(0) };
    let mut prefix = feeds.follow(1, prefix, rest).unwrap();
    assert_eq!(shown(&prefix.next().await.unwrap()), [(13, 0, "a")]);

    let waiting = tokio::spawn(async move { shown(&narrow.next().await.unwrap()).len() });
    feeds.publish(1, &mut [entry(14, &["a"])]);
    feeds.publish(1, &mut [entry(15, &["b"])]);
    assert_eq!(waiting.await.unwrap(), 1);
    drop((follower, prefix));
    assert!(feeds.state(1).topics.is_empty(), "nothing is left of watchers that are gone");
}

#[tokio::test]
async fn a_response_has_a_bounded_part_of_a_large_entry() {
    let feeds = feeds();
    let names = vec!["a"; WATCH_EVENTS_MAX + 5];
    feeds.publish(1, &mut [entry(11, &names)]);
    let mut follower = feeds.follow(1, all(), Cursor::after(10)).unwrap();
    assert_eq!(follower.next().await.unwrap().len(), WATCH_EVENTS_MAX);
    let part = follower.cursor();
    let last = u32::try_from(WATCH_EVENTS_MAX).unwrap() - 1;
    assert_eq!(part, Cursor { index: 11, ordinal: Some(last) });
    let mut resumed = feeds.follow(1, all(), part).unwrap();
    for follower in [&mut follower, &mut resumed] {
        let rest = follower.next().await.unwrap();
        assert_eq!((rest.len(), rest[0].ordinal), (5, last + 1));
        assert_eq!(follower.cursor(), Cursor::after(11));
    }
}

#[tokio::test]
async fn who_falls_behind_is_told_and_who_watches_something_quiet_does_not_fall_behind() {
    let feeds = feeds();
    let mut slow = feeds.follow(1, all(), Cursor::after(10)).unwrap();
    let mut quiet = feeds.follow(1, one("quiet"), Cursor::after(10)).unwrap();
    assert!(quiet.take().unwrap().0.is_empty());
    let many = WATCH_WINDOW_EVENTS_MAX as u64 / 1_000 + 2;
    for index in 11..11 + many {
        feeds.publish(1, &mut [entry(index, &["a"; 1_000])]);
    }
    let oldest = feeds.state(1).window.after(Cursor::after(0)).0[0].tip.index - 1;
    let gone = Gone { after: Cursor::after(10), oldest, was_slow: true };
    assert_eq!(slow.next().await.unwrap_err(), gone);
    assert!(feeds.follow(1, all(), Cursor::after(oldest)).is_ok());
    let part = Cursor { index: oldest, ordinal: Some(3) };
    assert!(feeds.follow(1, all(), part).is_err(), "the rest of that entry is gone");

    assert!(quiet.take().unwrap().0.is_empty());
    assert_eq!(quiet.cursor(), Cursor::after(10 + many));
    let next = 11 + many;
    // Not even when much happens elsewhere between two looks of it.
    feeds.publish(1, &mut [entry(next, &["quiet"])]);
    for index in next + 1..next + many - 2 {
        feeds.publish(1, &mut [entry(index, &["a"; 1_000])]);
    }
    assert_eq!(shown(&quiet.next().await.unwrap()), [(next, 0, "quiet")]);
    for index in next + many - 2..next + 2 * many {
        feeds.publish(1, &mut [entry(index, &["a"; 1_000])]);
    }
    feeds.publish(1, &mut [entry(next + 2 * many, &["quiet"])]);
    assert_eq!(shown(&quiet.next().await.unwrap()), [(next + 2 * many, 0, "quiet")]);
}

#[tokio::test]
async fn a_snapshot_ends_those_who_have_not_seen_what_it_skipped() {
    let feeds = feeds();
    let mut follower = feeds.follow(1, one("a"), Cursor::after(10)).unwrap();
    assert!(follower.take().unwrap().0.is_empty());
    let waiting = tokio::spawn(async move { follower.next().await.unwrap_err() });
    feeds.opened(1, Tip { index: 500, term: 3, log_time_ms: 9 });
    let gone = waiting.await.unwrap();
    assert_eq!(gone, Gone { after: Cursor::after(10), oldest: 500, was_slow: false });
    feeds.reached(1, 500).await;
    assert!(feeds.follow(1, one("a"), Cursor::after(500)).is_ok());
    assert!(feeds.follow(1, one("a"), Cursor::after(499)).is_err());
}
