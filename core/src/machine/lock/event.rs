//! What happens to locks, as those who watch are told.

use trefoil_proto::internal::v1::{Done, Hold, Session, Wait, answer};
use trefoil_proto::lock::v1::{LockEvent, LockEventKind, WatchLocksRequest};

use super::super::context::{QueryContext, QueryOutcome, answered};
use super::super::{Body, Event};
use super::LockTxn;
use super::call::wanted;

/// Where a watch begins: the position of the answer is all that it says.
pub(in super::super) fn watch_locks<S>(
    _: &QueryContext<'_, S>,
    _: &WatchLocksRequest,
) -> QueryOutcome {
    answered(answer::Answer::Done(Done {}))
}

impl LockTxn<'_, '_> {
    /// A grant begins, changes or ends.
    pub(super) fn tell_grant(
        &mut self,
        kind: LockEventKind,
        name: &str,
        session_id: u64,
        hold: &Hold,
    ) {
        self.tell(LockEvent {
            kind: kind.into(),
            name: name.to_owned(),
            session_id,
            mode: hold.mode,
            fencing_token: hold.token,
            permits: hold.permits,
            ..LockEvent::default()
        });
    }

    /// A wait begins, or ends with nothing, in the order of each lock where it stands.
    pub(super) fn tell_wait(&mut self, kind: LockEventKind, wait: &Wait) {
        for want in wanted(&wait.wants) {
            self.tell(LockEvent {
                kind: kind.into(),
                name: want.name.clone(),
                session_id: wait.session_id,
                mode: want.mode,
                converts: wait.converts,
                permits: want.permits,
                ..LockEvent::default()
            });
        }
    }

    fn tell(&mut self, event: LockEvent) {
        let session = self.session(event.session_id).unwrap_or_default();
        self.tell_of(&session, event);
    }

    /// Something happens to a lock of this session.
    pub(super) fn tell_of(&mut self, session: &Session, event: LockEvent) {
        let event = LockEvent { owner: session.owner.clone(), ..event };
        let namespace = self.keys.namespace.to_owned();
        self.context.output.events.push(Event { namespace, body: Body::Lock(event) });
    }
}
