//! The cache.

use trefoil_core::slot;
use trefoil_proto::cache::v1 as cache;
use trefoil_proto::internal::v1::Refusal;

use super::{Api, Context, Shards};

impl<S: Shards> Api<S> {
    pub(super) async fn get(
        &self,
        context: &Context,
        request: cache::GetRequest,
    ) -> Result<cache::GetResponse, Refusal> {
        let slot = slot::of_cache(&request.namespace, &request.key);
        let response = self.fenced_get(slot, request, context).await?;
        let counter = if response.hit {
            &self.metrics.own.cache_hits
        } else {
            &self.metrics.own.cache_misses
        };
        counter.inc();
        Ok(response)
    }
}
