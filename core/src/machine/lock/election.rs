//! Elections: a lock whose holder proclaims a value. The value of a campaign waits beside its wait, and goes with it:
//! the entry that grants the lock proclaims it.

use prost::Message as _;
use trefoil_proto::common::v1::Value;
use trefoil_proto::internal::v1::{Hold, Proclaimed, Refusal, Wait, answer};
use trefoil_proto::lock::v1::{self as api, LockEventKind, LockMode};

use super::super::context::{
    CommandContext, CommandOutcome, CommandResult, QueryContext, QueryOutcome,
};
use super::acquire::acquire;
use super::keys::number_of;
use super::view::{View, end};
use super::{LockTxn, check_name, convert_needed, limit_reached};
use crate::check;
use crate::key::Key;
use crate::limits::PROCLAIMED_BYTES_PER_NAMESPACE_MAX;
use crate::store::Store;

/// Acquires the lock, and proclaims the value as soon as that has succeeded.
pub(in super::super) fn campaign(
    context: &mut CommandContext<'_>,
    request: &api::CampaignRequest,
) -> CommandResult {
    check::proclaimed(request.value.as_ref())?;
    let call = api::AcquireRequest {
        namespace: request.namespace.clone(),
        session_id: request.session_id,
        name: request.name.clone(),
        wait_ms: request.wait_ms,
        mode: LockMode::Exclusive.into(),
        lock_delay_ms: request.lock_delay_ms,
        ..api::AcquireRequest::default()
    };
    let outcome = acquire(context, &call)?;
    let mut locks = LockTxn::new(context, &request.namespace);
    match &outcome {
        CommandOutcome::Wait(waiter) => {
            let ordinal = number_of(&waiter.0);
            if let Some(wait) = locks.wait(request.session_id, ordinal) {
                locks.stand(ordinal, wait, request.value.clone())?;
            } else if locks.holds_alone(request.session_id, &request.name) {
                // The lock waited for this session and went to it at once.
                locks.lead(request.session_id, &request.name, request.value.clone())?;
            }
        }
        CommandOutcome::Answer(answer::Answer::Acquire(response)) if response.acquired => {
            locks.lead(request.session_id, &request.name, request.value.clone())?;
        }
        CommandOutcome::Answer(_) => {}
    }
    Ok(outcome)
}

/// Whoever holds the lock alone may say something else, or something for the first time.
pub(in super::super) fn proclaim(
    context: &mut CommandContext<'_>,
    request: &api::ProclaimRequest,
) -> CommandResult {
    let mut locks = LockTxn::checked(context, &request.namespace)?;
    check_name("name", &request.name)?;
    check::proclaimed(request.value.as_ref())?;
    locks.renew(request.session_id)?;
    locks.must_be_lock(&request.name)?;
    let hold = locks.claim(request.session_id, &request.name).hold;
    let Some(hold) = hold.filter(|hold| hold.token == request.fencing_token) else {
        return Err(locks.not_holder(&request.name));
    };
    if hold.mode() != LockMode::Exclusive {
        return Err(convert_needed(&hold));
    }
    locks.lead(request.session_id, &request.name, request.value.clone())?;
    Ok(CommandOutcome::Answer(answer::Answer::Proclaim(api::ProclaimResponse { header: None })))
}

pub(in super::super) fn leader(
    context: &QueryContext<'_, impl Store>,
    request: &api::LeaderRequest,
) -> QueryOutcome {
    let view = &View::of(context, &request.namespace);
    end(view.checked().and_then(|()| {
        check_name("name", &request.name)?;
        let session_id = view.lock(&request.name).session_id;
        let key = view.keys.leader(session_id, &request.name);
        let leader = view.get::<Proclaimed>(key.bytes()).and_then(|proclaimed| {
            let holder = view.holder(&request.name, session_id)?;
            Some(api::Leadership {
                session_id,
                owner: holder.owner,
                value: proclaimed.value,
                fencing_token: holder.fencing_token,
                leading_ms: view.since(proclaimed.since_ms),
            })
        });
        Ok(answer::Answer::Leader(api::LeaderResponse { header: None, leader }))
    }))
}

impl LockTxn<'_, '_> {
    /// A wait is a campaign from now on. Where it is one already, the value of the newest call counts.
    fn stand(&mut self, ordinal: u64, wait: Wait, value: Option<Value>) -> Result<(), Refusal> {
        let session_id = wait.session_id;
        let proclaimed = Proclaimed { value, since_ms: 0 };
        self.set_proclaimed(self.keys.candidate(session_id, ordinal), Some(&proclaimed));
        let key = self.keys.wait(session_id, ordinal);
        self.context.txn.put_message(key, &Wait { campaigns: true, ..wait });
        self.may_proclaim()
    }

    fn holds_alone(&self, session_id: u64, name: &str) -> bool {
        let hold = self.claim(session_id, name).hold;
        hold.is_some_and(|hold| hold.mode() == LockMode::Exclusive)
    }

    /// The holder in mode EXCLUSIVE proclaims a value.
    fn lead(&mut self, session_id: u64, name: &str, value: Option<Value>) -> Result<(), Refusal> {
        self.set_leader(session_id, name, value);
        self.may_proclaim()
    }

    fn set_leader(&mut self, session_id: u64, name: &str, value: Option<Value>) {
        let key = self.keys.leader(session_id, name);
        let before = self.get::<Proclaimed>(&key);
        if before.is_none() {
            self.context.output.counts.leaders_elected(1);
            self.change_claim(session_id, name, |claim| {
                claim.hold.as_mut().expect("a leader holds its lock").leads = true;
            });
        }
        let since_ms = before.map_or(self.context.now_ms, |before| before.since_ms);
        self.set_proclaimed(key, Some(&Proclaimed { value, since_ms }));
        let hold = self.claim(session_id, name).hold.expect("a leader holds its lock");
        self.tell_grant(LockEventKind::Proclaimed, name, session_id, &hold);
    }

    /// The grant that a session's waits end with makes it the leader, where one of them that takes it is a campaign.
    pub(super) fn succeed(&mut self, name: &str, mode: LockMode, waits: &[(u64, Wait, bool)]) {
        let campaigns = waits.iter().filter(|(_, wait, takes)| *takes && wait.campaigns);
        let Some((ordinal, wait, _)) = campaigns.max_by_key(|(ordinal, ..)| *ordinal) else {
            return;
        };
        if mode == LockMode::Exclusive {
            let candidate = self.get::<Proclaimed>(&self.keys.candidate(wait.session_id, *ordinal));
            let candidate = candidate.expect("a campaign has its value");
            self.set_leader(wait.session_id, name, candidate.value);
        }
    }

    /// A grant is no leadership any more.
    pub(super) fn abdicate(&mut self, name: &str, session_id: u64, hold: &mut Hold) {
        if std::mem::take(&mut hold.leads) && !crate::mutant!(LeaderStays) {
            self.set_proclaimed(self.keys.leader(session_id, name), None);
        }
    }

    /// A wait has ended.
    pub(super) fn withdraw(&mut self, ordinal: u64, wait: &Wait) {
        if wait.campaigns {
            self.set_proclaimed(self.keys.candidate(wait.session_id, ordinal), None);
        }
    }

    /// Sets or removes a value, and counts its bytes.
    fn set_proclaimed(&mut self, key: Key, proclaimed: Option<&Proclaimed>) {
        let before = self.context.txn.get(key.bytes()).map_or(0, |value| value.len() as u64);
        let after = proclaimed.map_or(0, |proclaimed| proclaimed.encoded_len() as u64);
        let mut counters = self.counters();
        counters.proclaimed_bytes = (counters.proclaimed_bytes + after).saturating_sub(before);
        self.put_counters(&counters);
        match proclaimed {
            Some(proclaimed) => self.context.txn.put_message(key, proclaimed),
            None => self.context.txn.delete(key),
        }
    }

    /// Refuses a value that brought the namespace beyond its bytes.
    fn may_proclaim(&self) -> Result<(), Refusal> {
        let most = PROCLAIMED_BYTES_PER_NAMESPACE_MAX;
        if self.counters().proclaimed_bytes <= most {
            return Ok(());
        }
        Err(limit_reached("PROCLAIMED_BYTES_PER_NAMESPACE_MAX", most))
    }
}
