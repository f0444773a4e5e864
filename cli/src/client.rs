//! The client that commands use.

use trefoil_client::{Client, Error, Page};

use crate::args::ClientArgs;
use crate::exit::CommandFailure;

/// Connects as the flags say.
pub(crate) async fn connect(args: &ClientArgs) -> Result<Client, CommandFailure> {
    let builder = Client::builder(args.endpoints.iter().cloned());
    Ok(builder.namespace(args.namespace.as_str()).timeout(args.timeout).connect().await?)
}

/// Every item of a list as a row, whatever the number of pages.
pub(crate) async fn all_rows<T, R: From<T>>(
    list: impl AsyncFn(Option<String>) -> Result<Page<T>, Error>,
) -> Result<Vec<R>, CommandFailure> {
    let (mut rows, mut page) = (Vec::new(), None);
    loop {
        let listed = list(page).await?;
        rows.extend(listed.items.into_iter().map(R::from));
        page = listed.next;
        if page.is_none() {
            return Ok(rows);
        }
    }
}
