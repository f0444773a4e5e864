//! Values of the cache: each that expires is looked at then, and nothing else is.

use std::collections::BTreeSet;

use bytes::{Buf as _, Bytes};
use trefoil_proto::internal::v1::CacheItem;

use super::equal;
use crate::key::Kind;
use crate::store::decode;

pub(super) fn check(records: &[(Bytes, Bytes)]) -> Result<(), String> {
    let (mut timers, mut expected) = (BTreeSet::new(), BTreeSet::new());
    for (key, value) in records {
        let mut key = key.clone();
        let (slot, kind) = (key.get_u16(), key.get_u8());
        if kind == Kind::Timer as u8 {
            let (due_ms, slot, kind) = (key.get_u64(), key.get_u16(), key.get_u8());
            if kind == Kind::CacheItem as u8 {
                timers.insert((due_ms, slot, key));
            }
        } else if kind == Kind::CacheItem as u8 {
            let due_ms = decode::<CacheItem>(value).expires_at_ms;
            if due_ms > 0 {
                expected.insert((due_ms, slot, key));
            }
        }
    }
    equal!(timers, expected, "timers are those of values that expire");
    Ok(())
}
