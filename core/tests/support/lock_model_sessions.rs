//! Sessions of the model, and what it remembers of request ids.

use trefoil_proto::common::v1::{Reason, RequestId};
use trefoil_proto::lock::v1 as api;
use trefoil_proto::reason::Retry;

use super::{Answer, Grant, Id, Model, Outcome, Ruling, Seat, Session, Settled, Wait};

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
        self.hand_on();
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
                if *reason == Reason::RequestForgotten || reason.row().retry == Retry::Freely =>
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
}
