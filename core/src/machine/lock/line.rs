//! The place of a call in line, for who waits and wants to know.

use trefoil_proto::internal::v1::{Claim, FindPlace, Place, Refusal, answer};

use super::super::context::{QueryContext, QueryOutcome, answered};
use super::call::wanted;
use super::call::wants_of;
use super::stripped;
use super::view::View;
use crate::check;
use crate::limits::WAITERS_COUNTED_MAX;
use crate::store::Store;

/// Counts the waiters before a call, up to a bound, whether their sessions live or not.
pub(in super::super) fn find_place(
    context: &QueryContext<'_, impl Store>,
    request: &FindPlace,
) -> QueryOutcome {
    let view = &View::of(context, &request.namespace);
    match count(view, request) {
        Ok(found) => answered(answer::Answer::Place(found)),
        Err(refusal) => answered(refusal),
    }
}

fn count(view: &View<'_, impl Store>, request: &FindPlace) -> Result<Place, Refusal> {
    view.checked()?;
    let wants = wants_of(&request.name, 0, &request.locks)?;
    let call = stripped(check::call_name(request.call.as_ref())?);
    let (session_id, first) = (request.session_id, &wants[0].name);
    let claim = view.get::<Claim>(view.keys.claim(session_id, first).bytes()).unwrap_or_default();
    let mut waits = claim.ordinals.into_iter().map(|at| (at, view.wait(session_id, at)));
    let found = waits.find(|(_, wait)| wait.call.as_ref() == Some(&call));
    let Some((ordinal, wait)) = found else {
        return Ok(Place { name: first.clone(), ..Place::default() });
    };
    let places = wanted(&wait.wants).map(|want| {
        let first = view.keys.waiters(&want.name);
        let own = view.keys.waiter(&want.name, ordinal, false);
        let before = view.store.scan(first.bytes(), own.bytes(), WAITERS_COUNTED_MAX + 1).len();
        Place {
            waits: true,
            ahead: before.min(WAITERS_COUNTED_MAX) as u64,
            or_more: before > WAITERS_COUNTED_MAX,
            name: want.name.clone(),
        }
    });
    // Of several lines the one that it has to stand in for longest.
    Ok(places.max_by_key(|place| (place.ahead, place.or_more)).unwrap_or_default())
}
