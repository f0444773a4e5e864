//! How many calls may be in flight: refused before any work rather than late, and never at the cost of what ends work.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use trefoil_core::limits as l;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::Refusal;

use trefoil_proto::common::v1::AdmissionClass;

/// The places of one node.
#[derive(Debug)]
pub struct Admission {
    work: Places,
    reserved: Places,
    waiting: Places,
    streams: Places,
    renewals: Places,
}

type Places = Arc<Semaphore>;

/// The places of one connection for what stays long: what is short, renews or ends a wait always finds streams.
#[derive(Clone, Debug)]
pub struct Connection {
    waits: Places,
    renewals: Places,
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub struct AdmissionPermit {
    _places: [Option<OwnedSemaphorePermit>; 2],
    /// The connection of a call that may come to wait.
    connection: Option<Connection>,
    class: AdmissionClass,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            work: places(l::CLIENT_CALLS_MAX),
            reserved: places(l::CLIENT_CALLS_RESERVED),
            waiting: places(l::CLIENT_WAITING_MAX),
            streams: places(l::CLIENT_STREAMS_MAX),
            renewals: places(l::CLIENT_RENEWALS_RESERVED),
        }
    }
}

impl Default for Connection {
    fn default() -> Self {
        Self {
            waits: places(l::CONNECTION_WAITS_MAX),
            renewals: places(l::CONNECTION_RENEWALS_MAX),
        }
    }
}

impl Admission {
    /// A place for a call that begins, on a connection of its own or, in a pipelined stream, on none.
    ///
    /// # Errors
    /// OVERLOADED: nothing happened.
    pub fn admit(
        &self,
        class: AdmissionClass,
        connection: Option<&Connection>,
    ) -> Result<AdmissionPermit, Refusal> {
        let place = match class {
            AdmissionClass::Unspecified | AdmissionClass::Ordinary | AdmissionClass::Waiting => {
                take(&self.work)?
            }
            AdmissionClass::Reserved => take(&self.work).or_else(|_| take(&self.reserved))?,
            AdmissionClass::Stream => take(&self.streams)?,
            AdmissionClass::Renewal => take(&self.streams).or_else(|_| take(&self.renewals))?,
        };
        let own = match (class, connection) {
            (AdmissionClass::Stream, Some(connection)) => Some(connection.wait()?),
            (AdmissionClass::Renewal, Some(connection)) => Some(connection.renew()?),
            _ => None,
        };
        // A stream has its place on the connection, whatever waits in it.
        let connection = connection.filter(|_| own.is_none()).cloned();
        Ok(AdmissionPermit { _places: [Some(place), own], connection, class })
    }

    /// A place for a call that is about to wait, instead of its place among the working ones.
    ///
    /// # Errors
    /// OVERLOADED: nothing happened.
    pub fn wait(&self, admitted: &AdmissionPermit) -> Result<AdmissionPermit, Refusal> {
        let class = admitted.class;
        // Who leaves a barrier waits, too, and ends what others wait for.
        let ends_waits = class == AdmissionClass::Reserved;
        let own = admitted.connection.as_ref().map(|connection| match connection.wait() {
            Err(_) if ends_waits => connection.renew(),
            place => place,
        });
        let place = match take(&self.waiting) {
            Err(_) if ends_waits => take(&self.reserved),
            place => place,
        };
        Ok(AdmissionPermit { _places: [Some(place?), own.transpose()?], connection: None, class })
    }
}

impl Connection {
    fn wait(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        take_of(&self.waits, || {
            format!(
                "this connection has {} calls that wait and streams, as many as it may \
                 (CONNECTION_WAITS_MAX): use a further connection or a pipelined stream",
                l::CONNECTION_WAITS_MAX
            )
        })
    }

    fn renew(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        take_of(&self.renewals, || {
            format!(
                "this connection has {} streams that renew a session and calls that leave a barrier, as \
                 many as it may (CONNECTION_RENEWALS_MAX): use a further connection",
                l::CONNECTION_RENEWALS_MAX
            )
        })
    }
}

fn places(count: usize) -> Places {
    Arc::new(Semaphore::new(count))
}

fn take(places: &Places) -> Result<OwnedSemaphorePermit, Refusal> {
    take_of(places, || "the node has too many calls in flight".to_owned())
}

fn take_of(places: &Places, message: impl Fn() -> String) -> Result<OwnedSemaphorePermit, Refusal> {
    Arc::clone(places).try_acquire_owned().map_err(|_| overloaded(&message()))
}

/// Too much to do.
pub(crate) fn overloaded(message: &str) -> Refusal {
    Refusal { reason: Reason::Overloaded.into(), message: message.to_owned(), ..Refusal::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(
        count: usize,
        take: impl Fn() -> Result<AdmissionPermit, Refusal>,
    ) -> Vec<AdmissionPermit> {
        let held = (0..count).map(|_| take().unwrap()).collect();
        assert_eq!(take().unwrap_err().reason(), Reason::Overloaded);
        held
    }

    #[test]
    fn what_ends_work_has_places_of_its_own() {
        let admission = Admission::default();
        let admit = |load| admission.admit(load, None);
        let work = fill(l::CLIENT_CALLS_MAX, || admit(AdmissionClass::Ordinary));
        let priority = fill(l::CLIENT_CALLS_RESERVED, || admit(AdmissionClass::Reserved));
        let waiting = fill(l::CLIENT_WAITING_MAX, || admission.wait(&work[0]));
        let streams = fill(l::CLIENT_STREAMS_MAX, || admit(AdmissionClass::Stream));
        admit(AdmissionClass::Renewal).unwrap();
        drop((work, priority, waiting, streams));
        admit(AdmissionClass::Ordinary).unwrap();
    }

    #[test]
    fn waits_of_a_connection_leave_places_for_what_is_short_or_renews() {
        let (admission, connection) = (Admission::default(), Connection::default());
        let admit = |load| admission.admit(load, Some(&connection));
        let call = admit(AdmissionClass::Ordinary).unwrap();
        let half = (0..l::CONNECTION_WAITS_MAX / 2).map(|_| admit(AdmissionClass::Stream).unwrap());
        let streams = half.collect::<Vec<_>>();
        let waits = fill(l::CONNECTION_WAITS_MAX / 2, || admission.wait(&call));
        let why = admit(AdmissionClass::Stream).unwrap_err().message;
        assert!(why.contains("CONNECTION_WAITS_MAX"), "{why}");
        let renewals = fill(l::CONNECTION_RENEWALS_MAX, || admit(AdmissionClass::Renewal));
        let held = streams.len() + waits.len() + renewals.len();
        assert!(held + 1_000 < l::CONNECTION_STREAMS_MAX as usize, "{held} streams stay");
        admit(AdmissionClass::Ordinary).unwrap();
        admit(AdmissionClass::Reserved).unwrap();
        admission.wait(&admission.admit(AdmissionClass::Ordinary, None).unwrap()).unwrap();
        drop(waits);
        admission.wait(&call).unwrap();
    }
}
