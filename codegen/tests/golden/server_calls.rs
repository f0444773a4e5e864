// Written by trefoil-codegen from the options in proto/.
/// What a unary call of an operation ends with.
#[allow(clippy::too_many_lines, reason = "an arm for each operation")]
pub(crate) async fn unary(
    channel: &Channel,
    operation: Operation,
) -> Result<Outcome, tonic::Status> {
    Ok(match operation {
        Operation::OpenGate(request) => {
            let mut client = trefoil_proto::lock::v1::gate_service_client::GateServiceClient::new(channel.clone());
            Outcome::OpenGate(client.open_gate(request).await?.into_inner())
        }
        Operation::AwaitGate(request) => {
            let mut client = trefoil_proto::lock::v1::gate_service_client::GateServiceClient::new(channel.clone());
            Outcome::AwaitGate(client.await_gate(request).await?.into_inner())
        }
        Operation::GetGate(request) => {
            let mut client = trefoil_proto::lock::v1::gate_service_client::GateServiceClient::new(channel.clone());
            Outcome::GetGate(client.get_gate(request).await?.into_inner())
        }
    })
}
