//! How the records of a shard's state are stored, in its file and on their way to another node.

use bytes::Bytes;
use redb::{ReadOnlyTable, TableDefinition, WriteTransaction};
use trefoil_core::ShardId;
use trefoil_core::key::{Key, Kind};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Version of the records in a state file.
pub(super) const STATE_FORMAT: u32 = 2;
const CHECKSUM_BYTES: usize = 8;

pub(super) type Records = TableDefinition<'static, &'static [u8], &'static [u8]>;
/// Key to checksum and value.
pub(super) const RECORDS: Records = TableDefinition::new("records");
/// Facts of the file.
pub(super) const FACTS: TableDefinition<'_, &str, u64> = TableDefinition::new("facts");

pub(super) type Base = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// Checksum of a record over shard, key and value.
fn checksum(shard: ShardId, key: &[u8], value: &[u8]) -> u64 {
    xxh3_64_with_seed(value, xxh3_64_with_seed(key, u64::from(shard)))
}

/// A record as it is stored: the checksum before the value.
pub(super) fn encode_record(shard: ShardId, key: &[u8], value: &[u8], buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.extend_from_slice(&checksum(shard, key, value).to_le_bytes());
    buffer.extend_from_slice(value);
}

/// The value of a stored record, where its checksum is right.
pub(super) fn verified_value<'a>(shard: ShardId, key: &[u8], stored: &'a [u8]) -> Option<&'a [u8]> {
    let (sum, value) = stored.split_first_chunk::<CHECKSUM_BYTES>()?;
    (u64::from_le_bytes(*sum) == checksum(shard, key, value)).then_some(value)
}

/// Bytes of a record's value as they are counted: without the checksum.
pub(super) fn value_bytes(stored: &[u8]) -> u64 {
    (stored.len() - CHECKSUM_BYTES) as u64
}

/// The key under which the machine says how far it is.
pub(super) fn progress_key() -> Bytes {
    Key::system(Kind::Progress).into()
}

pub(super) fn write_facts(
    write: &WriteTransaction,
    shard: ShardId,
    bytes: u64,
) -> Result<(), redb::Error> {
    let mut facts = write.open_table(FACTS)?;
    facts.insert("format", u64::from(STATE_FORMAT))?;
    facts.insert("shard", u64::from(shard))?;
    facts.insert("bytes", bytes)?;
    Ok(())
}

/// XXH3 of the records of a snapshot chunk, in order.
pub(super) fn chunk_checksum<'a>(records: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> u64 {
    records.fold(0, |sum, (key, value)| {
        xxh3_64_with_seed(value, xxh3_64_with_seed(key, sum).wrapping_add(1))
    })
}
