//! The client that commands use.

use trefoil_client::Client;

use crate::args::ClientArgs;
use crate::exit::CommandFailure;

/// Connects as the flags say.
pub(crate) async fn connect(args: &ClientArgs) -> Result<Client, CommandFailure> {
    let builder = Client::builder(args.endpoints.iter().cloned());
    Ok(builder.namespace(args.namespace.as_str()).timeout(args.timeout).connect().await?)
}
