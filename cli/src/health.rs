//! `trefoil health`: asks nodes whether they serve, for container health checks.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::args::ClientArgs;
use crate::exit::CommandFailure;
use crate::output::{self, CommandOutput, Format};

/// What to ask for.
#[derive(Debug, Args)]
pub(crate) struct HealthArgs {
    /// A service by its full name, such as trefoil.lock.v1.LockService, or `liveness` for the process alone; left out,
    /// the node as a whole.
    #[arg(long, env = "TREFOIL_HEALTH_SERVICE", value_name = "NAME", default_value = "")]
    service: String,
}

#[derive(Serialize)]
struct HealthOutput {
    nodes: Vec<NodeHealthRow>,
}

#[derive(Serialize)]
struct NodeHealthRow {
    endpoint: String,
    serving: bool,
    /// SERVING, NOT_SERVING, or why there is no answer.
    status: String,
}

pub(crate) async fn run(
    args: &HealthArgs,
    client: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let mut nodes = Vec::new();
    for endpoint in &client.endpoints {
        let asked = tokio::time::timeout(client.timeout, check(endpoint, &args.service)).await;
        let status = asked
            .unwrap_or_else(|_| Err(format!("no answer within {} ms", client.timeout.as_millis())));
        let serving = status == Ok(ServingStatus::Serving);
        let status = status.map_or_else(|cause| cause, |status| status.as_str_name().to_owned());
        nodes.push(NodeHealthRow { endpoint: endpoint.clone(), serving, status });
    }
    let all = nodes.iter().all(|node| node.serving);
    output::print(format, &HealthOutput { nodes })?;
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What a node says of a service; "" is the node.
pub(crate) async fn check(endpoint: &str, service: &str) -> Result<ServingStatus, String> {
    let channel = Endpoint::from_shared(endpoint.to_owned()).map_err(|error| error.to_string())?;
    let channel = channel.connect().await.map_err(|_| "cannot be reached".to_owned())?;
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel).check(request).await;
    Ok(answer.map_err(|status| status.message().to_owned())?.into_inner().status())
}

impl CommandOutput for HealthOutput {
    fn text(&self) -> String {
        let rows = self.nodes.iter().map(|node| vec![node.endpoint.clone(), node.status.clone()]);
        output::table(&["ENDPOINT", "STATUS"], &[], rows)
    }
}
