//! Who watches locks knows from events alone who holds and who waits: kept beside the state, and compared with it.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::BTreeMap;

use trefoil_core::machine::{Applied, Body};
use trefoil_proto::lock::v1::{LockEvent, LockEventKind as Kind, LockMode};

use trefoil_core::machine::invariants::LockState;

/// Namespace, lock, session.
type Place = (String, String, u64);

/// What a watcher from the beginning knows.
#[derive(Debug, Default)]
pub struct Watcher {
    held: BTreeMap<Place, (LockMode, u64)>,
    /// The modes that calls wait for, and whether they convert.
    waits: BTreeMap<Place, Vec<(LockMode, bool)>>,
}

impl Watcher {
    pub fn see(&mut self, applied: &Applied) {
        for event in &applied.events {
            let Body::Lock(lock) = &event.body;
            self.happened(&event.namespace, lock);
        }
    }

    fn happened(&mut self, namespace: &str, event: &LockEvent) {
        let place = (namespace.to_owned(), event.name.clone(), event.session_id);
        let (mode, converts) = (event.mode(), event.converts);
        match event.kind() {
            Kind::Waiting => self.waits.entry(place).or_default().push((mode, converts)),
            Kind::WaitEnded => {
                let waits = self.waits.entry(place).or_default();
                let at = waits.iter().position(|wait| *wait == (mode, converts));
                waits.remove(at.expect("what ends has begun"));
            }
            Kind::Acquired | Kind::Converted => {
                let waits = self.waits.entry(place.clone()).or_default();
                waits.retain(|(wanted, converts)| *converts && *wanted > mode);
                let before = self.held.insert(place, (mode, event.fencing_token));
                assert_eq!(before.is_some(), event.kind() == Kind::Converted, "{event:?}");
            }
            Kind::Released | Kind::Expired | Kind::Forced => {
                let ended = self.held.remove(&place);
                assert_eq!(ended, Some((mode, event.fencing_token)), "{event:?}");
            }
            Kind::ReleaseRequested => {
                assert_eq!(self.held.get(&place), Some(&(mode, event.fencing_token)), "{event:?}");
            }
            Kind::Proclaimed => {
                assert_eq!(self.held.get(&place), Some(&(mode, event.fencing_token)), "{event:?}");
            }
            Kind::Unspecified => panic!("an event is of a kind"),
        }
        self.waits.retain(|_, waits| !waits.is_empty());
    }

    /// Compares what it knows with the records.
    pub fn check(&self, state: &LockState) {
        let mut held = BTreeMap::new();
        for ((namespace, session, name), claim) in &state.claims {
            if let Some(hold) = &claim.hold {
                let place = (namespace.clone(), name.clone(), *session);
                held.insert(place, (hold.mode(), hold.token));
            }
        }
        assert_eq!(self.held, held, "who watches knows who holds");
        let mut waits = BTreeMap::<_, Vec<_>>::new();
        for ((namespace, session, _), wait) in &state.waits {
            for want in wait.wants.iter().filter(|want| !want.held) {
                let place = (namespace.clone(), want.name.clone(), *session);
                waits.entry(place).or_default().push((want.mode(), wait.converts));
            }
        }
        // An event does not say which of a session's equal waits has ended, so their order is not known.
        let mut known = self.waits.clone();
        known.values_mut().chain(waits.values_mut()).for_each(|waits| waits.sort_unstable());
        assert_eq!(known, waits, "who watches knows who waits");
    }
}

/// One event in one line.
pub fn show(event: &LockEvent) -> String {
    let LockEvent { name, session_id, fencing_token, .. } = event;
    let kind = event.kind().as_str_name().trim_start_matches("LOCK_EVENT_KIND_").to_lowercase();
    let mode = event.mode().as_str_name().trim_start_matches("LOCK_MODE_").to_lowercase();
    let owner = if event.owner.is_empty() { String::new() } else { format!(" ({})", event.owner) };
    let mode = if event.permits == 0 { mode } else { event.permits.to_string() };
    let converts = if event.converts { " converts" } else { "" };
    let token = if *fencing_token == 0 { String::new() } else { format!(" token {fencing_token}") };
    let asks = match (event.requester.as_str(), event.reason.as_str()) {
        ("", "") => String::new(),
        (requester, reason) => format!(" by {requester}: {reason}"),
    };
    format!("{kind} {name}: session {session_id}{owner} {mode}{converts}{token}{asks}")
}
