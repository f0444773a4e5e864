//! The cache.

use trefoil_core::slot;
use trefoil_proto::cache::v1 as cache;
use trefoil_proto::internal::v1::Refusal;
use trefoil_proto::internal::v1::command::Operation as Command;

use super::{Api, Context, Shards, expect_answer};

impl<S: Shards> Api<S> {
    pub(super) async fn put(
        &self,
        context: &Context,
        mut request: cache::PutRequest,
    ) -> Result<cache::PutResponse, Refusal> {
        let slot = slot::of_cache(&request.namespace, &request.key);
        let id = request.request_id.take();
        expect_answer!(self.fenced(slot, id, Command::Put(request), context).await?, Put)
    }

    pub(super) async fn get(
        &self,
        context: &Context,
        request: cache::GetRequest,
    ) -> Result<cache::GetResponse, Refusal> {
        let slot = slot::of_cache(&request.namespace, &request.key);
        let response = self.fenced_get(slot, request, context).await?;
        let counter =
            if response.hit { &self.metrics.cache_hits } else { &self.metrics.cache_misses };
        counter.inc();
        Ok(response)
    }

    pub(super) async fn delete(
        &self,
        context: &Context,
        mut request: cache::DeleteRequest,
    ) -> Result<cache::DeleteResponse, Refusal> {
        let slot = slot::of_cache(&request.namespace, &request.key);
        let id = request.request_id.take();
        expect_answer!(self.fenced(slot, id, Command::Delete(request), context).await?, Delete)
    }
}
