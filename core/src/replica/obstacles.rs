//! What keeps a node from leading a shard well.

use std::fmt;

pub use trefoil_proto::cluster::v1::Obstacle;

/// How much an obstacle harms who is led: of two nodes the one with less should lead. Nothing is 0.
pub(super) type Harm = u8;

/// The least harm with which a node leads under no circumstances: that of damage.
pub(super) const MUST_NOT_LEAD: Harm = 6;

/// A set of obstacles.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Obstacles(u8);

impl Obstacles {
    /// Nothing: the node can lead.
    pub const NONE: Self = Self(0);

    /// The set with this obstacle, or without it.
    #[must_use]
    pub fn with(self, obstacle: Obstacle, stands: bool) -> Self {
        let bit = bit(obstacle);
        Self(if stands { self.0 | bit } else { self.0 & !bit })
    }

    /// Whether an obstacle is among them.
    #[must_use]
    pub fn has(self, obstacle: Obstacle) -> bool {
        self.0 & bit(obstacle) != 0
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// All of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// All that this version knows.
    pub fn known() -> impl Iterator<Item = Obstacle> {
        (1..=6).filter_map(|number| Obstacle::try_from(number).ok())
    }

    /// The obstacles, from what harms least to what harms most.
    pub fn iter(self) -> impl Iterator<Item = Obstacle> {
        Self::known().chain([Obstacle::Unspecified]).filter(move |obstacle| self.has(*obstacle))
    }

    /// What harms most: see [`Harm`].
    pub(super) fn harm(self) -> Harm {
        // The highest bit.
        u8::try_from(u8::BITS - self.0.leading_zeros()).expect("a byte has eight bits")
    }
}

/// The order of the bits is that of [`Harm`]; what a later version says is the worst.
fn bit(obstacle: Obstacle) -> u8 {
    match obstacle {
        Obstacle::NoRoom => 1,
        Obstacle::Draining => 1 << 1,
        Obstacle::SlowLink => 1 << 2,
        Obstacle::SlowDisk => 1 << 3,
        Obstacle::Stopping => 1 << 4,
        Obstacle::Damaged => 1 << 5,
        Obstacle::Unspecified => 1 << 6,
    }
}

/// From the wire.
impl FromIterator<Obstacle> for Obstacles {
    fn from_iter<T: IntoIterator<Item = Obstacle>>(obstacles: T) -> Self {
        obstacles.into_iter().fold(Self::NONE, |set, obstacle| set.with(obstacle, true))
    }
}

impl fmt::Display for Obstacles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, obstacle) in self.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            write!(f, "{comma}{}", name(obstacle).replace('_', " "))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Obstacles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}

/// The name of an obstacle, as in a label of metrics.
#[must_use]
pub fn name(obstacle: Obstacle) -> &'static str {
    match obstacle {
        Obstacle::NoRoom => "no_room",
        Obstacle::Draining => "draining",
        Obstacle::SlowLink => "slow_link",
        Obstacle::SlowDisk => "slow_disk",
        Obstacle::Stopping => "stopping",
        Obstacle::Damaged => "damaged",
        Obstacle::Unspecified => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_obstacle_counts() {
        assert_eq!(Obstacles::NONE.harm(), 0);
        assert_eq!(Obstacles::from_iter([Obstacle::Damaged]).harm(), MUST_NOT_LEAD);
        let mut before = 0;
        let order = [1, 2, 3, 4, 5, 6, 0].map(|number| Obstacle::try_from(number).unwrap());
        for obstacle in order {
            let set = Obstacles::from_iter([obstacle, Obstacle::NoRoom]);
            assert!(set.harm() >= before.max(1) && set.has(obstacle), "{set}");
            before = set.harm();
        }
        let set = Obstacles::from_iter(order);
        assert_eq!(set.iter().collect::<Vec<_>>(), order);
        assert_eq!(set.with(Obstacle::Unspecified, false).harm(), before - 1);
        assert!(order.into_iter().fold(set, |set, one| set.with(one, false)).is_empty());
    }
}
