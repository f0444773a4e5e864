// Written by trefoil-codegen from the options in proto/.
operations! {
    OpenGate: trefoil_proto::lock::v1::OpenGateRequest => trefoil_proto::lock::v1::OpenGateResponse {
        |request, _| RoutingKey::locks(&request.namespace),
        |_| Lane::Calls,
        id = request_id,
    }
    AwaitGate: trefoil_proto::lock::v1::AwaitGateRequest => trefoil_proto::lock::v1::AwaitGateResponse {
        |request, _| RoutingKey::locks(&request.namespace),
        |request| unless_at_once(request.wait_ms),
        wait = wait_ms,
    }
    GetGate: trefoil_proto::lock::v1::GetGateRequest => trefoil_proto::lock::v1::GetGateResponse {
        |request, _| RoutingKey::locks(&request.namespace),
        |_| Lane::Calls,
    }
}
