//! The place of a call in line, for who waits and wants to know.

use trefoil_proto::internal::v1::{Claim, FindPlace, Place, Refusal, Wait, answer};
use trefoil_proto::lock::v1::LockMode;

use super::super::{QueryOutcome, answered};
use super::view::View;
use super::{check_name, mode_of, stripped};
use crate::limits::WAITERS_COUNTED_MAX;
use crate::store::{Store, decode};

/// Counts the waiters before a call, up to a bound, whether their sessions live or not.
pub(in super::super) fn find_place(
    view: &View<'_, impl Store>,
    request: &FindPlace,
) -> QueryOutcome {
    match count(view, request) {
        Ok(found) => answered(answer::Answer::Place(found.unwrap_or_default())),
        Err(refusal) => answered(refusal),
    }
}

fn count(view: &View<'_, impl Store>, request: &FindPlace) -> Result<Option<Place>, Refusal> {
    view.checked()?;
    check_name("name", &request.name)?;
    let mode = mode_of(request.mode, Some(LockMode::Exclusive))?;
    let id = stripped(request.waiter.as_ref());
    let same = |wait: &Wait| {
        let wants_same = wait.wants.iter().any(|want| want.mode() == mode);
        wait.request_id == id && !wait.converts && (id.is_some() || wants_same)
    };
    let claim = view.place.claim(request.session_id, &request.name);
    let claim = view.store.get(claim.bytes()).map(|claim| decode::<Claim>(&claim));
    let found = claim.unwrap_or_default().ordinals.into_iter().find(|ordinal| {
        let key = view.place.wait(request.session_id, *ordinal);
        view.store.get(key.bytes()).is_some_and(|wait| same(&decode(&wait)))
    });
    let Some(ordinal) = found else { return Ok(None) };
    let first = view.place.waiters(&request.name);
    let own = view.place.waiter(&request.name, ordinal, false);
    let before = view.store.scan(first.bytes(), own.bytes(), WAITERS_COUNTED_MAX + 1).len();
    Ok(Some(Place {
        waits: true,
        ahead: before.min(WAITERS_COUNTED_MAX) as u64,
        or_more: before > WAITERS_COUNTED_MAX,
    }))
}
