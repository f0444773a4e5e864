//! The life of sessions: opened, renewed, closed or expired, and swept away in bounded steps.

use bytes::Bytes;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::{Drawn, Refusal, Session, SessionMetadata, answer};
use trefoil_proto::lock::v1 as api;

use super::super::context::{CommandContext, CommandOutcome, CommandResult, refuse};
use super::super::{namespace_copy, timers};
use super::keys::{LockKeys, number_of, timer_rest};
use super::{LockTxn, STEP_MAX, refuse_at, session_expired, take_text, text_of};
use crate::check;
use crate::key::Kind;
use crate::limits::{SESSIONS_PER_NAMESPACE_MAX, TERM_GRACE_MS};
use crate::store::prefix_end;

pub(in super::super) fn open_session(
    context: &mut CommandContext<'_>,
    request: &api::OpenSessionRequest,
) -> CommandResult {
    let drawn = context.drawn()?;
    let mut locks = LockTxn::checked(context, &request.namespace)?;
    namespace_copy::must_be_usable(locks.context, &request.namespace)?;
    let mut counters = locks.counters();
    let settings = counters.settings.unwrap_or_default();
    let fixed = ("SESSIONS_PER_NAMESPACE_MAX", SESSIONS_PER_NAMESPACE_MAX);
    refuse_at(counters.sessions, ("sessions_max", settings.sessions_max), fixed)?;
    let ttl_ms_max = settings.session_ttl_ms_max;
    if ttl_ms_max > 0 && request.ttl_ms > ttl_ms_max {
        return Err(check::invalid(
            "ttl_ms",
            format_args!("at most {ttl_ms_max} in this namespace"),
        ));
    }
    let id = locks.new_id(drawn)?;
    counters.sessions += 1;
    locks.put_counters(&counters);
    locks.context.output.locks.sessions += 1;
    let session = Session {
        ttl_ms: request.ttl_ms,
        owner: request.owner.clone(),
        renewed_at_ms: locks.context.now_ms,
        lock_delay_ms: match request.lock_delay_ms {
            0 => settings.lock_delay_ms_default,
            lock_delay_ms => lock_delay_ms,
        },
        ..Session::default()
    };
    if !request.metadata.is_empty() {
        let metadata = SessionMetadata { entries: request.metadata.clone() };
        locks.context.txn.put_message(locks.keys.metadata(id), &metadata);
    }
    let due_ms = locks.due_ms(&session);
    locks.watch(id, session, due_ms);
    Ok(CommandOutcome::Answer(answer::Answer::OpenSession(api::OpenSessionResponse {
        header: None,
        session_id: id,
        ttl_ms: request.ttl_ms,
        remaining_ms: request.ttl_ms,
    })))
}

/// What a remembered answer is now: what is left of the session.
pub(in super::super) fn what_is_left(
    context: &CommandContext<'_>,
    namespace: &str,
    response: &mut api::OpenSessionResponse,
) {
    let key = LockKeys { slot: context.slot, namespace }.session(response.session_id);
    let session = context.txn.get_message::<Session>(key.bytes());
    let living =
        session.filter(|session| is_living(session, context.now_ms, context.term_started_ms));
    response.remaining_ms = living.map_or(0, |session| remaining_ms(&session, context.now_ms));
}

pub(in super::super) fn keep_alive(
    context: &mut CommandContext<'_>,
    request: &api::KeepAliveRequest,
) -> CommandResult {
    let mut locks = LockTxn::checked(context, &request.namespace)?;
    let remaining_ms = locks.renew(request.session_id)?;
    Ok(CommandOutcome::Answer(answer::Answer::KeepAlive(api::KeepAliveResponse {
        header: None,
        remaining_ms,
    })))
}

pub(in super::super) fn close_session(
    context: &mut CommandContext<'_>,
    request: &api::CloseSessionRequest,
) -> CommandResult {
    let mut locks = LockTxn::checked(context, &request.namespace)?;
    let mut session = locks.living(request.session_id)?;
    // From here on nothing sees it as alive, so all that it held is released, whatever the sweep leaves for later.
    let released = u32::try_from(session.held).unwrap_or(u32::MAX);
    session.ended = true;
    locks.put_session(request.session_id, &session);
    locks.sweep(request.session_id);
    Ok(CommandOutcome::Answer(answer::Answer::CloseSession(api::CloseSessionResponse {
        header: None,
        released,
    })))
}

/// A session's timer: its time has come, or it was renewed, or there is something left to sweep.
pub(in super::super) fn session_due(context: &mut CommandContext<'_>, rest: &Bytes) {
    let mut rest = rest.clone();
    let (namespace, id) = (take_text(&mut rest), number_of(&rest));
    let mut locks = LockTxn::new(context, &namespace);
    if crate::mutant!(TimerDecides)
        && let Some(mut session) = locks.session(id)
    {
        session.ended = true;
        locks.put_session(id, &session);
    }
    if locks.is_over(id) {
        locks.sweep(id);
    } else if let Some(session) = locks.session(id) {
        let due_ms = locks.due_ms(&session);
        locks.watch(id, session, due_ms);
    }
}

impl LockTxn<'_, '_> {
    fn due_ms(&self, session: &Session) -> u64 {
        due_ms(session, self.context.term_started_ms)
    }

    fn is_living(&self, session: &Session) -> bool {
        is_living(session, self.context.now_ms, self.context.term_started_ms)
    }

    /// The id of a new session: what was drawn, in the 63 bits that every language has in an integer.
    fn new_id(&self, drawn: Drawn) -> Result<u64, Refusal> {
        let is_free = |id: &u64| *id > 0 && self.session(*id).is_none();
        if crate::mutant!(SessionsCount) {
            return Ok((1..).find(is_free).expect("there are fewer sessions"));
        }
        let mut drawn = [drawn.low, drawn.high].into_iter().map(|drawn| drawn & (u64::MAX >> 1));
        drawn.find(is_free).ok_or_else(|| {
            refuse(Reason::Overloaded, "the ids that were drawn for the session are taken")
        })
    }

    /// A session that lives.
    pub(super) fn living(&self, id: u64) -> Result<Session, Refusal> {
        self.session(id).filter(|session| self.is_living(session)).ok_or_else(session_expired)
    }

    /// Whether a session's life is over. Where its time has come this becomes final, so that the grace of a later
    /// term does not wake a session whose locks were given away.
    pub(super) fn is_over(&mut self, id: u64) -> bool {
        let Some(mut session) = self.session(id) else { return true };
        if !session.ended && !self.is_living(&session) {
            (session.ended, session.expired) = (true, true);
            self.context.output.counts.sessions_expired(1);
            self.put_session(id, &session);
        }
        session.ended
    }

    /// Renews a session that lives, as every command of its client does, and answers what remains in ms. One that
    /// was renewed within a quarter of its TTL is left as it is.
    pub(super) fn renew(&mut self, id: u64) -> Result<u64, Refusal> {
        if crate::mutant!(DeadRenewal) && self.session(id).is_none() {
            return Ok(1_000);
        }
        let mut session = self.living(id)?;
        let now_ms = self.context.now_ms;
        if now_ms.saturating_sub(session.renewed_at_ms) >= session.ttl_ms / 4 {
            session.renewed_at_ms = now_ms;
            self.put_session(id, &session);
        }
        Ok(remaining_ms(&session, now_ms))
    }

    /// Ends claims of an ended session, as many as this step may, and goes on with a timer until none is left.
    fn sweep(&mut self, id: u64) {
        let claims = self.keys.claims(id);
        for (key, _) in self.context.txn.scan(claims.bytes(), &prefix_end(claims.bytes()), STEP_MAX)
        {
            if self.left == 0 {
                break;
            }
            self.end_claim(id, &text_of(&key[claims.bytes().len()..]));
        }
        self.leave_barriers(id);
        let Some(session) = self.session(id) else { return };
        if session.claims > 0 || session.entered > 0 {
            let now_ms = self.context.now_ms;
            return self.watch(id, session, now_ms);
        }
        let key = self.keys.session(id);
        timers::clear(self.context, session.timer_at_ms, Kind::Session, timer_rest(&key));
        self.context.txn.delete(key);
        let metadata = self.keys.metadata(id);
        if self.context.txn.get(metadata.bytes()).is_some() {
            self.context.txn.delete(metadata);
        }
        let mut counters = self.counters();
        counters.sessions = counters.sessions.saturating_sub(1);
        self.put_counters(&counters);
        self.context.output.locks.sessions -= 1;
    }

    /// Moves the one timer of a session.
    fn watch(&mut self, id: u64, mut session: Session, at_ms: u64) {
        let key = self.keys.session(id);
        timers::clear(self.context, session.timer_at_ms, Kind::Session, timer_rest(&key));
        timers::set(self.context, at_ms, Kind::Session, timer_rest(&key));
        session.timer_at_ms = at_ms;
        self.put_session(id, &session);
    }
}

/// What is promised of a session that lives.
fn remaining_ms(session: &Session, now_ms: u64) -> u64 {
    session.renewed_at_ms.saturating_add(session.ttl_ms).saturating_sub(now_ms)
}

fn is_living(session: &Session, now_ms: u64, term_started_ms: u64) -> bool {
    !session.ended && now_ms < due_ms(session, term_started_ms)
}

/// When a session expires: never within the grace of a term, because its renewals may have had no leader.
pub(super) fn due_ms(session: &Session, term_started_ms: u64) -> u64 {
    let grace_ms = if crate::mutant!(NoGrace) { 0 } else { TERM_GRACE_MS };
    let grace_until_ms = term_started_ms.saturating_add(grace_ms);
    session.renewed_at_ms.saturating_add(session.ttl_ms).max(grace_until_ms)
}
