//! Fences: a shard remembers the highest token of each lock under which it was used, and refuses older ones.
//!
//! The mark of a lock rises with each command whose token is held in mode EXCLUSIVE or UPDATE; such tokens exclude each
//! other, so the one that is held now is the highest that ever was. A token that is the mark passes; a lower one is
//! refused for ever. Any other token passes only with the word of the lock's shard that it is held, which the leader
//! fetches before it proposes and the command carries: apply asks nobody.
//!
//! **Marks may be forgotten.** There are at most [`FENCE_MARKS_MAX`]; the one that was raised longest ago goes, the same
//! on all replicas. Without it nothing here tells that a newer holder was here, so only the lock's shard can. Its word
//! counts when it was asked after the mark was gone: a command says up to which index of this shard everything was applied
//! before the lock's shard was asked, and passes when no mark was forgotten after that index. This is safe: had a newer
//! holder's command been applied here and its mark been forgotten by then, its token was granted before the lock's shard
//! was asked, and a token that excludes it was no longer held. (One that does not exclude it, a reader's beside an
//! updater's, is that of a present holder and may pass.) One index for all locks is coarse: that some other mark was
//! forgotten costs a validation too, and never lets anything pass.
//!
//! The word "held" may be old in time and still count while no mark was forgotten: a newer holder that nobody has heard of
//! here is no reason to refuse, and once it was here the mark decides. Marks belong to the shard, not to a slot: a shard
//! that takes over a slot must count as having forgotten marks at that moment.

use bytes::Bytes;
use trefoil_proto::common::v1::{Fence, Reason};
use trefoil_proto::internal::v1::{
    CheckedFence, FenceMark, FenceMarks, FindMark, FoundMark, Refusal, TokenStanding, TouchFence,
    answer,
};

use super::context::{
    CommandContext, CommandResult, QueryContext, QueryOutcome, answered, done, refuse, refuse_with,
};
use crate::check;
use crate::key::{Key, Kind};
use crate::limits::FENCE_MARKS_MAX;
use crate::store::{Store, decode};

/// What becomes of a token that passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passes {
    AtMark,
    Beside,
    Raises,
}

/// Passes a command whose token is good, and raises the mark where it is a writer's.
pub(super) fn admit(
    context: &mut CommandContext<'_>,
    checked: &CheckedFence,
) -> Result<(), Refusal> {
    let fence = named(checked)?;
    let key = mark_key(fence);
    let mark = context.txn.get_message::<FenceMark>(key.bytes());
    let marks = || {
        context.txn.get_message::<FenceMarks>(marks_key().bytes()).unwrap_or_default().forgotten_at
    };
    if judge(fence, checked, mark, marks)? == Passes::Raises {
        raise(context, &key, mark, fence.token);
    }
    Ok(())
}

/// Lets a query pass. One that reads a value needs the mark of a writer to be there, so that an older holder's command
/// cannot follow; any other is only spared the older holders.
pub(super) fn admit_query(
    store: &impl Store,
    checked: &CheckedFence,
    reads_value: bool,
) -> Result<(), Refusal> {
    let fence = named(checked)?;
    let mark = store.get(mark_key(fence).bytes()).map(|mark| decode(&mark));
    let marks = store.get(marks_key().bytes());
    let marks = || marks.map_or(0, |marks| decode::<FenceMarks>(&marks).forgotten_at);
    match judge(fence, checked, mark, marks) {
        Ok(Passes::Raises) if reads_value => Err(not_validated()),
        Ok(_) => Ok(()),
        Err(refusal) if !reads_value && refusal.reason() == Reason::FenceNotValidated => Ok(()),
        Err(refusal) => Err(refusal),
    }
}

/// Nothing more: the fence of the command has been passed.
pub(super) fn touch_fence(_: &mut CommandContext<'_>, _: &TouchFence) -> CommandResult {
    Ok(done())
}

/// The mark of a lock.
pub(super) fn find_mark(
    context: &QueryContext<'_, impl Store>,
    request: &FindMark,
) -> QueryOutcome {
    let FindMark { namespace, lock } = request.clone();
    let fence = Fence { namespace, lock, token: 1 };
    if let Err(refusal) = check::whole_fence(&fence) {
        return answered(refusal);
    }
    let mark = context.store.get(mark_key(&fence).bytes());
    let token = mark.map_or(0, |mark| decode::<FenceMark>(&mark).token);
    answered(answer::Answer::FoundMark(FoundMark { token }))
}

/// What a token is refused with: the facts that its holder can act upon.
#[must_use]
pub fn fenced(fence: &Fence, mark: u64, holder_token: u64) -> Refusal {
    let message = if mark > 0 {
        "a newer holder of the lock has used the shard"
    } else {
        "nobody holds the lock under the token"
    };
    let mut refusal = refuse_with(
        Reason::Fenced,
        message,
        [
            ("lock_namespace", fence.namespace.clone()),
            ("lock", fence.lock.clone()),
            ("token", fence.token.to_string()),
        ],
    );
    for (name, token) in [("mark", mark), ("holder_token", holder_token)] {
        if token > 0 {
            refusal.metadata.insert(name.to_owned(), token.to_string());
        }
    }
    refusal
}

fn judge(
    fence: &Fence,
    checked: &CheckedFence,
    mark: Option<FenceMark>,
    forgotten_at: impl FnOnce() -> u64,
) -> Result<Passes, Refusal> {
    let mark = mark.map_or(0, |mark| mark.token);
    if fence.token < mark && !crate::mutant!(FenceIgnored) {
        return Err(fenced(fence, mark, 0));
    }
    if fence.token == mark {
        return Ok(Passes::AtMark);
    }
    let passes = match checked.standing() {
        TokenStanding::NotHeld => return Err(fenced(fence, 0, checked.holder_token)),
        TokenStanding::Unspecified => return Err(not_validated()),
        TokenStanding::Reader => Passes::Beside,
        TokenStanding::Writer => Passes::Raises,
    };
    if checked.as_of < forgotten_at() { Err(not_validated()) } else { Ok(passes) }
}

/// Sets the mark of a lock, and forgets the one that was raised longest ago where there are too many.
fn raise(context: &mut CommandContext<'_>, key: &Key, before: Option<FenceMark>, token: u64) {
    let mut marks = context.txn.get_message::<FenceMarks>(marks_key().bytes()).unwrap_or_default();
    match before {
        Some(before) => context.txn.delete(order_key(before.order)),
        None if marks.count < FENCE_MARKS_MAX => marks.count += 1,
        None => forget_oldest(context, &mut marks),
    }
    marks.last_order += 1;
    let mark = FenceMark { token, order: marks.last_order };
    context.txn.put_message(key.clone(), &mark);
    context.txn.put(order_key(mark.order), key.bytes().to_vec());
    context.txn.put_message(marks_key(), &marks);
}

fn forget_oldest(context: &mut CommandContext<'_>, marks: &mut FenceMarks) {
    let (start, end) = (order_key(0), order_key(u64::MAX));
    for (order, mark) in context.txn.scan(start.bytes(), end.bytes(), 1) {
        context.txn.delete(order);
        context.txn.delete(Bytes::clone(&mark));
        marks.forgotten_at = context.index;
    }
}

/// The fence of a command or query, whose content may be anything.
fn named(checked: &CheckedFence) -> Result<&Fence, Refusal> {
    let fence = checked.fence.as_ref().ok_or_else(|| check::invalid("fence.lock", "set"))?;
    check::whole_fence(fence)?;
    Ok(fence)
}

fn not_validated() -> Refusal {
    refuse(Reason::FenceNotValidated, "the shard does not know the fence's token")
}

fn mark_key(fence: &Fence) -> Key {
    Key::system(Kind::FenceMark).text(&fence.namespace).tail(fence.lock.as_bytes())
}

fn order_key(order: u64) -> Key {
    Key::system(Kind::FenceOrder).u64(order)
}

fn marks_key() -> Key {
    Key::system(Kind::FenceMarks)
}
