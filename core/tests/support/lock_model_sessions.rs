//! Sessions of the model, and what it remembers of request ids.

use trefoil_proto::common::v1::{Reason, RequestId};
use trefoil_proto::lock::v1 as api;
use trefoil_proto::reason::RefusalEffect;

use super::{
    Answer, Command, Grant, Holder, Id, Model, Operation, Outcome, Ruling, Seat, Session, Settled,
    Wait, name_of, wants,
};

impl Model {
    pub(super) fn open(&mut self, request: &api::OpenSessionRequest) -> Outcome {
        let last = self.last_session.entry(request.namespace.clone()).or_default();
        *last += 1;
        let session = Session {
            ttl_ms: request.ttl_ms,
            renewed_at_ms: self.now_ms,
            lock_delay_ms: request.lock_delay_ms,
        };
        self.sessions.insert((request.namespace.clone(), *last), session);
        Outcome::Answer(Answer::Session(*last))
    }

    pub(super) fn renew(
        &mut self,
        namespace: &str,
        id: u64,
    ) -> Result<u64, (Reason, Option<Grant>)> {
        let session = self
            .sessions
            .get_mut(&(namespace.to_owned(), id))
            .ok_or((Reason::SessionExpired, None))?;
        if self.now_ms - session.renewed_at_ms >= session.ttl_ms / 4 {
            session.renewed_at_ms = self.now_ms;
        }
        Ok(session.renewed_at_ms + session.ttl_ms - self.now_ms)
    }

    pub(super) fn close(&mut self, namespace: &str, id: u64) -> Ruling {
        self.sessions.remove(&(namespace.to_owned(), id)).ok_or((Reason::SessionExpired, None))?;
        let released_before = self.counts.locks_released;
        self.forget_session(namespace, id);
        self.grant_waiters();
        let released = self.counts.locks_released - released_before;
        Ok(Outcome::Answer(Answer::Closed(u32::try_from(released).expect("few locks"))))
    }

    /// A session is gone: it waits no more and holds nothing.
    pub(super) fn forget_session(&mut self, namespace: &str, session: u64) {
        let is_its = |wait: &&Wait| (wait.namespace(), wait.session) == (namespace, session);
        for wait in self.waits.values().filter(is_its).cloned().collect::<Vec<_>>() {
            self.leave(&wait);
            self.settle(Some(wait.seat), &wait.id, Answer::Refused(Reason::SessionExpired, None));
        }
        for name in self.locks_of(namespace) {
            if self.lock(&name).has(session) {
                self.vacate(&name, session);
            }
        }
    }

    pub(super) fn settle(&mut self, seat: Option<Seat>, id: &Id, answer: Answer) {
        self.remember_settled(id, &answer);
        self.settled.push(Settled { seat, id: id.clone(), answer });
    }

    pub(super) fn remember_settled(&mut self, id: &Id, answer: &Answer) {
        let Some((client, sequence)) = id else { return };
        let answers = self.clients.get_mut(client).map(|client| &mut client.answers);
        if let Some(kept) = answers.and_then(|answers| answers.get_mut(sequence)) {
            kept.0 = Some(answer.clone());
        }
    }

    pub(super) fn remember(&mut self, id: &RequestId, outcome: &Outcome) {
        let answer = match outcome {
            Outcome::Answer(Answer::Refused(reason, _))
                if reason.row().effect != RefusalEffect::NoTry =>
            {
                return;
            }
            Outcome::Answer(answer) => Some(answer.clone()),
            Outcome::Waits(_) => None,
        };
        let client = self.clients.entry(id.client.clone()).or_default();
        client.floor = client.floor.max(id.first_unacknowledged);
        client.answers = client.answers.split_off(&client.floor);
        let attempt = client.answers.get(&id.sequence).map_or(0, |kept| kept.1).max(id.attempt);
        client.answers.insert(id.sequence, (answer, attempt));
    }

    /// A retry is answered as before as long as that is true.
    pub(super) fn recheck(&mut self, command: &Command, answer: Answer) -> Ruling {
        let id = name_of(command.request_id.as_ref(), &command.drawn);
        let living = |namespace: &str, session: u64| {
            let living = self.sessions.contains_key(&(namespace.to_owned(), session));
            if living { Ok(()) } else { Err((Reason::SessionExpired, None)) }
        };
        match (command.operation.as_ref().expect("a command has an operation"), &answer) {
            (Operation::Acquire(request), Answer::Granted(_) | Answer::GrantedAll(_)) => {
                let session = request.session_id;
                living(&request.namespace, session)?;
                let wants =
                    wants(&request.namespace, &request.name, request.mode(), &request.locks);
                let index = self.index;
                let mut lasts = true;
                for want in &wants {
                    let holder = self.lock(&want.name).holder(session);
                    let is_same = |holder: &Holder| match &answer {
                        Answer::Granted(grant) => {
                            holder.grant == *grant || holder.former == Some(*grant)
                        }
                        _ => true,
                    };
                    lasts &= holder.is_some_and(|holder| {
                        holder.relying.iter().any(|(other, _)| *other == id)
                            || holder.is_kept && is_same(holder)
                    });
                }
                if !lasts {
                    self.cancel_grant(session, &wants, &id, |_| true);
                    let holder = wants.iter().find_map(|want| self.holder(&want.name));
                    return Ok(Outcome::Answer(Answer::Held(holder)));
                }
                for want in &wants {
                    let holder = self.lock(&want.name).holder(session).expect("it lasts");
                    let known = holder.relying.iter_mut().find(|(other, _)| *other == id);
                    known.into_iter().for_each(|known| known.1 = index);
                }
            }
            (Operation::Convert(request), Answer::Converted(grant)) => {
                living(&request.namespace, request.session_id)?;
                let name = (request.namespace.clone(), request.name.clone());
                let holder = self.lock(&name).holder(request.session_id);
                let is_same =
                    |holder: &Holder| holder.grant == *grant || holder.former == Some(*grant);
                if !holder.is_some_and(|holder| is_same(holder)) {
                    return Err((Reason::NotHolder, self.holder(&name)));
                }
            }
            _ => {}
        }
        Ok(Outcome::Answer(answer))
    }
}
