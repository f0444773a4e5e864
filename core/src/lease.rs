//! What names a lease outside of its shard: the queue with its number, the message, and a secret. It cannot be guessed, and
//! a guess is told from it without asking a shard.

use std::fmt;
use std::str::FromStr;

use trefoil_proto::internal::v1::{AckLease, Catalogue, Drawn, Refusal};

use trefoil_proto::reason::invalid;

use crate::siphash::siphash;

/// A lease of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseId {
    /// The queue, by the number that no other queue has or had.
    pub queue_id: u64,
    /// Partition of the message.
    pub partition: u32,
    /// Sequence of the message in it.
    pub sequence: u64,
    /// What nobody knows but who was granted the lease.
    pub secret: u64,
}

impl LeaseId {
    /// The secret of the `number`th lease of a message, of all that the command draws for: one of them does not tell another.
    #[must_use]
    pub fn drawn(queue_id: u64, partition: u32, sequence: u64, number: u64, drawn: &Drawn) -> Self {
        let secret = if crate::mutant!(LeasesCount) {
            number
        } else {
            siphash(drawn, &[queue_id, partition.into(), sequence, number])
        };
        Self { queue_id, partition, sequence, secret }
    }

    /// The id that a consumer gets: sealed by the key of its queue.
    #[must_use]
    pub fn sealed(&self, key: &Drawn) -> String {
        format!("{self}{:016x}", self.seal(key))
    }

    /// Reads the id of a lease of this queue, made with its key.
    ///
    /// # Errors
    /// It is none, or that of another queue, or a guess.
    pub fn of_queue(queue: &Catalogue, id: &str) -> Result<Self, Refusal> {
        let (lease, seal) = split(id)?;
        let key = queue.lease_key.unwrap_or_default();
        if lease.queue_id == queue.queue_id && lease.seal(&key) == seal {
            Ok(lease)
        } else {
            Err(invalid("lease_id", "the lease_id of a delivery of this queue"))
        }
    }

    /// What settles it.
    #[must_use]
    pub fn ack(self) -> AckLease {
        let Self { queue_id, partition, sequence, secret } = self;
        AckLease { queue_id, partition, sequence, secret }
    }

    fn seal(&self, key: &Drawn) -> u64 {
        siphash(key, &[self.queue_id, self.partition.into(), self.sequence, self.secret])
    }
}

/// An id without its seal, and the seal.
pub(crate) fn split(id: &str) -> Result<(LeaseId, u64), Refusal> {
    let parts = id.len().checked_sub(16).and_then(|end| id.split_at_checked(end));
    let parsed = parts.and_then(|(id, seal)| {
        let (lease, number) = (id.parse().ok()?, u64::from_str_radix(seal, 16).ok()?);
        (format!("{number:016x}") == seal).then_some((lease, number))
    });
    parsed.ok_or_else(|| invalid("lease_id", "the lease_id of a delivery"))
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { queue_id, partition, sequence, secret } = self;
        write!(f, "{queue_id}-{partition}-{sequence}-{secret:016x}")
    }
}

/// A text that is no lease id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotALease;

impl FromStr for LeaseId {
    type Err = NotALease;

    fn from_str(text: &str) -> Result<Self, NotALease> {
        let mut parts = text.splitn(4, '-');
        let mut next = || parts.next().ok_or(NotALease);
        let number = |text: &str| text.parse::<u64>().map_err(|_| NotALease);
        let lease = Self {
            queue_id: number(next()?)?,
            partition: next()?.parse().map_err(|_| NotALease)?,
            sequence: number(next()?)?,
            secret: u64::from_str_radix(next()?, 16).map_err(|_| NotALease)?,
        };
        // No lease has two names.
        if lease.to_string() == text { Ok(lease) } else { Err(NotALease) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Drawn = Drawn { high: 3, low: 4 };

    fn queue(queue_id: u64) -> Catalogue {
        Catalogue { queue_id, partitions: 8, version: 1, lease_key: Some(KEY) }
    }

    #[test]
    fn ids_are_read_as_they_are_written_and_no_other() {
        for lease in [
            LeaseId { queue_id: 1, partition: 0, sequence: 1, secret: 0 },
            LeaseId {
                queue_id: u64::MAX,
                partition: u32::MAX,
                sequence: u64::MAX,
                secret: u64::MAX,
            },
        ] {
            assert_eq!(lease.to_string().parse(), Ok(lease));
            assert_eq!(LeaseId::of_queue(&queue(lease.queue_id), &lease.sealed(&KEY)), Ok(lease));
            assert!(lease.sealed(&KEY).len() <= 100);
        }
        for text in [
            "",
            "1-2-3",
            "1-2-3-",
            "1-2-3-4",
            "01-2-3-0000000000000004",
            "+1-2-3-0000000000000004",
            "1-2-3-000000000000000A",
            "1-2-3-0000000000000004-5",
            "1-2-3-0000000000000004 ",
            "1-4294967296-3-0000000000000004",
            "-1-2-3-0000000000000004",
            "ä-2-3-0000000000000004",
        ] {
            assert_eq!(text.parse::<LeaseId>(), Err(NotALease), "{text}");
            assert!(split(text).is_err(), "{text}");
            assert!(split(&format!("{text}äöüäöüäö")).is_err(), "{text}");
        }
    }

    #[test]
    fn a_lease_is_good_for_its_queue_and_as_it_was_made() {
        let lease = LeaseId::drawn(7, 2, 9, 1, &Drawn { high: 1, low: 2 });
        let id = lease.sealed(&KEY);
        assert_eq!(LeaseId::of_queue(&queue(7), &id), Ok(lease));
        assert!(LeaseId::of_queue(&queue(8), &id).is_err(), "the lease of another queue");
        let other = Catalogue { lease_key: Some(Drawn { high: 3, low: 5 }), ..queue(7) };
        assert!(LeaseId::of_queue(&other, &id).is_err(), "sealed by another key");
        let at = id.rfind('-').expect("it has parts") + 1;
        for place in at..id.len() {
            let digit = if &id[place..=place] == "0" { "1" } else { "0" };
            let guess = format!("{}{digit}{}", &id[..place], &id[place + 1..]);
            assert!(LeaseId::of_queue(&queue(7), &guess).is_err(), "{guess}");
        }
        assert!(LeaseId::of_queue(&queue(7), &id.replacen("7-2-9", "7-2-8", 1)).is_err());
    }

    #[test]
    fn leases_of_one_command_do_not_share_their_secrets() {
        let drawn = Drawn { high: 1, low: 2 };
        let secrets = (1..=1_000).map(|n| LeaseId::drawn(7, n % 4, n.into(), 1, &drawn).secret);
        let mut secrets = secrets.collect::<Vec<_>>();
        secrets.push(LeaseId::drawn(7, 1, 1, 2, &drawn).secret);
        secrets.push(LeaseId::drawn(8, 1, 1, 1, &drawn).secret);
        secrets.sort_unstable();
        assert!(secrets.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
