//! Grants that a forwarder is to pass on. A forwarder may be dead or hang, and then its caller never hears of the grant: so
//! the leader asks first (an offer), and answers with the grant when the forwarder says that the caller is still there. What
//! nobody asks for in time was told to nobody, and is taken back.
//!
//! An acknowledgement after the answer could not decide that: where it is lost, a holder who was told of the grant and one who
//! was not look the same.

use std::collections::{BTreeMap, BTreeSet};

use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{Answer, CancelAcquire, Command};

use super::effect::{Effect, Reply};
use super::replies::{NOBODY, refusal, refuse};
use crate::limits::WAITER_CLAIM_MS;
use crate::slot::{self, MAP_EPOCH};
use crate::{CallId, NodeId, Now, Position};

/// The offers of a shard.
#[derive(Debug, Default)]
pub(super) struct Offers {
    open: BTreeMap<CallId, Offer>,
    /// What nobody asked for, and when it is taken back, in boot ms.
    unwanted: Vec<(u64, CancelAcquire)>,
}

#[derive(Debug)]
struct Offer {
    position: Position,
    answer: Answer,
    take_back: CancelAcquire,
    /// Until when the forwarder may ask for it, in boot ms.
    until_ms: u64,
}

impl Offers {
    /// Offers a grant; there is nobody to offer it to where the caller went away before.
    pub(super) fn make(
        &mut self,
        call: CallId,
        position: Position,
        answer: Answer,
        take_back: CancelAcquire,
        now: Now,
    ) -> Option<Effect> {
        // A try after this one has claimed the grant again.
        let take_back = CancelAcquire { as_of: position.index, ..take_back };
        let until_ms = now.boot_ms.saturating_add(WAITER_CLAIM_MS);
        let offer = Offer { position, answer, take_back, until_ms };
        if call == NOBODY {
            self.refuse(offer, now);
            return None;
        }
        self.open.insert(call, offer);
        Some(Effect::Offer(call))
    }

    /// The forwarder says that the caller is there: from now on the grant is its.
    pub(super) fn claim(&mut self, call: CallId) -> Option<Effect> {
        let Offer { position, answer, .. } = self.open.remove(&call)?;
        Some(Effect::Reply(call, Reply::Answered(position, answer)))
    }

    /// These calls ended at their forwarders, or their forwarders did.
    pub(super) fn cancel(&mut self, cancelled: &BTreeSet<CallId>, now: Now) {
        if self.open.is_empty() {
            return;
        }
        for call in cancelled {
            if let Some(offer) = self.open.remove(call) {
                self.refuse(offer, now);
            }
        }
    }

    /// Who has a request id may come back by another way for as long as the offer would have stood. A call that was named
    /// by its forwarder cannot.
    fn refuse(&mut self, offer: Offer, now: Now) {
        let call = offer.take_back.call.as_ref();
        let comes_back = call.is_some_and(|call| call.request_id.is_some());
        let at_ms = if comes_back { offer.until_ms } else { now.boot_ms };
        self.unwanted.push((at_ms, offer.take_back));
    }

    /// Ends the offers whose time is up, and takes back what is due.
    pub(super) fn expire(&mut self, agent: NodeId, now: Now, effects: &mut Vec<Effect>) {
        let late = self.open.extract_if(.., |_, offer| offer.until_ms <= now.boot_ms);
        for (call, offer) in late {
            let text = "the node in between did not ask for the grant in time";
            effects.push(refuse(call, refusal(Reason::MaybeApplied, text)));
            self.unwanted.push((now.boot_ms, offer.take_back));
        }
        for (_, cancel) in self.unwanted.extract_if(.., |(at_ms, _)| *at_ms <= now.boot_ms) {
            let command = Command {
                slot: slot::of_locks(&cancel.namespace).into(),
                map_epoch: MAP_EPOCH,
                agent,
                operation: Some(Operation::CancelAcquire(cancel)),
                ..Command::default()
            };
            effects.push(Effect::TakeBack(Box::new(command)));
        }
    }

    /// This replica no longer leads: nothing that it offered will be given. The calls are returned; what they would have
    /// got is taken back unless they get it from the next leader.
    pub(super) fn step_down(&mut self) -> Vec<CallId> {
        let open = std::mem::take(&mut self.open);
        let (calls, offers): (Vec<_>, Vec<_>) = open.into_iter().unzip();
        self.unwanted.extend(offers.into_iter().map(|offer| (offer.until_ms, offer.take_back)));
        calls
    }
}
