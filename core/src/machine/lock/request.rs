//! RequestRelease: somebody asks those who hold a lock to let it go. The grant remembers it, so that a holder who was away is told.

use trefoil_proto::internal::v1::{
    Claim, FindReleaseRequests, Holder, Refusal, ReleaseRequests, answer,
};
use trefoil_proto::lock::v1::{self as api, LockEvent, LockEventKind};

use super::super::context::{
    CommandContext, CommandOutcome, CommandResult, QueryContext, QueryOutcome, answered,
};
use super::keys::number_of;
use super::view::View;
use super::{LockTxn, check_name, text_of};
use crate::check;
use crate::limits::{NAME_BYTES_MAX, PAGE_ITEMS_MAX, RELEASE_REQUESTS_MAX};
use crate::store::{Store, decode, prefix_end};

/// Asks holders whose sessions live. Each costs one key, its claim.
pub(in super::super) fn request_release(
    context: &mut CommandContext<'_>,
    request: &api::RequestReleaseRequest,
) -> CommandResult {
    let mut locks = LockTxn::checked(context, &request.namespace)?;
    check_name("name", &request.name)?;
    check::text("requester", &request.requester, 0, NAME_BYTES_MAX)?;
    check::text("reason", &request.reason, 0, NAME_BYTES_MAX)?;
    let mut asked = 0;
    for session_id in locks.holders_named(&request.name, request.fencing_token) {
        asked += u32::from(locks.ask(request, session_id));
    }
    if asked == 0 {
        return Err(locks.nobody_holds(&request.name));
    }
    let response = api::RequestReleaseResponse { header: None, asked };
    Ok(CommandOutcome::Answer(answer::Answer::RequestRelease(response)))
}

impl LockTxn<'_, '_> {
    /// Sessions that hold a lock, with this token where it is not 0: the one in mode UPDATE or EXCLUSIVE first.
    fn holders_named(&self, name: &str, token: u64) -> Vec<u64> {
        let lock = self.lock(name);
        let alone = lock.session_id != 0 && (token == 0 || token == lock.token);
        let mut holders = Vec::from_iter(alone.then_some(lock.session_id));
        let first = self.keys.holder(name, token);
        let end = prefix_end(self.keys.holders(name).bytes());
        let most = if token == 0 { RELEASE_REQUESTS_MAX - holders.len() } else { 1 };
        let shared = self.context.txn.scan(first.bytes(), &end, most);
        let shared = shared.iter().filter(|(key, _)| token == 0 || number_of(key) == token);
        holders.extend(shared.map(|(_, holder)| decode::<Holder>(holder).session_id));
        holders
    }

    fn ask(&mut self, request: &api::RequestReleaseRequest, session_id: u64) -> bool {
        let (index, log_time_ms) = (self.context.index, self.context.now_ms);
        let Ok(session) = self.living(session_id) else { return false };
        let mut claim = self.claim(session_id, &request.name);
        let Some(hold) = &mut claim.hold else { return false };
        let (mode, fencing_token) = (hold.mode, hold.token);
        hold.release_request = Some(api::ReleaseAsked {
            name: request.name.clone(),
            fencing_token,
            mode,
            requester: request.requester.clone(),
            reason: request.reason.clone(),
            index,
            log_time_ms,
        });
        self.context.txn.put_message(self.keys.claim(session_id, &request.name), &claim);
        self.tell_of(
            &session,
            LockEvent {
                kind: LockEventKind::ReleaseRequested.into(),
                name: request.name.clone(),
                session_id,
                mode,
                fencing_token,
                requester: request.requester.clone(),
                reason: request.reason.clone(),
                ..LockEvent::default()
            },
        );
        true
    }
}

/// What a session was asked to release, among some of its locks.
pub(in super::super) fn find_release_requests(
    context: &QueryContext<'_, impl Store>,
    request: &FindReleaseRequests,
) -> QueryOutcome {
    let view = &View::of(context, &request.namespace);
    match find(view, request) {
        Ok(found) => answered(answer::Answer::ReleaseRequests(found)),
        Err(refusal) => answered(refusal),
    }
}

fn find(
    view: &View<'_, impl Store>,
    request: &FindReleaseRequests,
) -> Result<ReleaseRequests, Refusal> {
    view.checked()?;
    check::text("after", &request.after, 0, NAME_BYTES_MAX)?;
    view.session(request.session_id).ok_or_else(super::session_expired)?;
    let claims = view.keys.claims(request.session_id);
    let mut start = view.keys.claim(request.session_id, &request.after).bytes().to_vec();
    if !request.after.is_empty() {
        start.push(0);
    }
    let most = PAGE_ITEMS_MAX as usize;
    let found = view.store.scan(&start, &prefix_end(claims.bytes()), most);
    let after = match found.last() {
        Some((key, _)) if found.len() == most => text_of(&key[claims.bytes().len()..]),
        _ => String::new(),
    };
    let requests =
        found.iter().filter_map(|(_, claim)| decode::<Claim>(claim).hold?.release_request);
    Ok(ReleaseRequests { requests: requests.collect(), after })
}
