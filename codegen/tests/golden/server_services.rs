// Written by trefoil-codegen from the options in proto/.
/// The service of the cluster that must be on for an RPC; none where it is always on.
#[must_use]
pub(super) fn service(method: Method) -> Option<Service> {
    match method {
        Method::OpenGate |
        Method::AwaitGate |
        Method::GetGate |
        Method::WatchGates => Some(Service::Lock),
        Method::HealthCheck |
        Method::HealthWatch |
        Method::Reflection |
        Method::ReflectionAlpha => None,
    }
}
