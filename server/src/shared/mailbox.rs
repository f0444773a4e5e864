//! The queue in front of each of the node's threads.
//!
//! Nobody ever waits for room in a mailbox, so no two threads can wait for each other: a sender is refused at the
//! bound that it names. What comes from outside (calls, messages of peers) is refused far below the capacity. What
//! the threads tell each other is bounded by the core, which limits the bytes that it lets be proposed, persisted
//! and applied at a time: were a mailbox to reach its capacity all the same, that promise is broken, and the
//! process ends rather than fill the memory.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Items that a mailbox holds at most, whoever sends.
const CAPACITY: usize = 1 << 20;

/// Many senders, one receiver that takes all that waits.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    waiting: Mutex<MailboxState<T>>,
    wake: Condvar,
    name: &'static str,
}

#[derive(Debug)]
struct MailboxState<T> {
    items: Vec<T>,
    closed: bool,
}

/// What a receiver took.
#[derive(Debug)]
pub(crate) struct Taken<T> {
    pub(crate) items: Vec<T>,
    /// Nothing will follow.
    pub(crate) closed: bool,
}

impl<T> Mailbox<T> {
    pub(crate) fn new(name: &'static str) -> Self {
        let waiting = Mutex::new(MailboxState { items: Vec::new(), closed: false });
        Self { waiting, wake: Condvar::new(), name }
    }

    fn lock(&self) -> MutexGuard<'_, MailboxState<T>> {
        // No code that can panic runs under the lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends from outside: false when `limit` items wait already, or the receiver has stopped.
    #[must_use]
    pub(crate) fn offer(&self, item: T, limit: usize) -> bool {
        let mut waiting = self.lock();
        if waiting.closed || waiting.items.len() >= limit {
            return false;
        }
        waiting.items.push(item);
        drop(waiting);
        self.wake.notify_one();
        true
    }

    /// Sends from within. What a stopped receiver is sent is dropped.
    pub(crate) fn send(&self, item: T) {
        self.send_all(&mut vec![item]);
    }

    /// Sends all items from within, in order, and leaves the vector empty.
    ///
    /// # Panics
    /// When the capacity is reached: see the head of this file.
    pub(crate) fn send_all(&self, items: &mut Vec<T>) {
        if items.is_empty() {
            return;
        }
        let mut waiting = self.lock();
        if waiting.closed {
            items.clear();
            return;
        }
        waiting.items.append(items);
        let count = waiting.items.len();
        drop(waiting);
        assert!(count <= CAPACITY, "the mailbox of {} overflowed", self.name);
        self.wake.notify_one();
    }

    /// Takes all that waits; waits for something until the deadline, or for ever where there is none.
    pub(crate) fn take(&self, deadline: Option<Instant>) -> Taken<T> {
        let mut waiting = self.lock();
        while waiting.items.is_empty() && !waiting.closed {
            let Some(deadline) = deadline else {
                waiting = self.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            waiting =
                self.wake.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Taken { items: std::mem::take(&mut waiting.items), closed: waiting.closed }
    }

    /// Tells the receiver to stop once it has taken what waits.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_all();
    }

    /// Whether it was closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_waits_is_taken_in_order_and_at_once() {
        let mailbox = Mailbox::new("test");
        assert!(mailbox.offer(1, 2));
        assert!(mailbox.offer(2, 2));
        assert!(!mailbox.offer(3, 2), "refused at the limit");
        mailbox.send_all(&mut vec![4, 5]);
        assert_eq!(mailbox.take(None).items, [1, 2, 4, 5]);
    }

    #[test]
    fn a_receiver_wakes_for_an_item_a_deadline_and_the_end() {
        let mailbox = Arc::new(Mailbox::<u8>::new("test"));
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(mailbox.take(Some(soon)).items.is_empty());
        assert!(Instant::now() >= soon);

        let sender = Arc::clone(&mailbox);
        let thread = std::thread::spawn(move || sender.send(7));
        assert_eq!(mailbox.take(None).items, [7]);
        thread.join().unwrap();

        mailbox.send(8);
        mailbox.close();
        let last = mailbox.take(None);
        assert_eq!((last.items, last.closed), (vec![8], true));
        assert!(!mailbox.offer(9, 10), "nothing is taken after the end");
    }
}
