//! Namespaces: decided by the meta shard, then told to every other shard before the call answers.
//!
//! Telling goes on when the caller is gone. Should this node die on the way, the shards differ until the namespace is
//! changed again: `in_force` shows it.

use std::sync::Arc;

use tokio::task::JoinSet;

use trefoil_core::slot::{self, SYSTEM_SLOT};
use trefoil_core::{META_SHARD, ShardId};
use trefoil_proto::cluster::v1 as cluster;
use trefoil_proto::common::v1::{Reason, ResponseHeader};
use trefoil_proto::internal::v1::answer::Answer;
use trefoil_proto::internal::v1::command::Operation as Command;
use trefoil_proto::internal::v1::query::Query;
use trefoil_proto::internal::v1::{
    Access, ConfigureNamespace, ConfigureNamespacePolicy, FindNamespace, NamespaceHere,
    NamespaceStep, Refusal,
};

use super::{
    Api, CallContext, Context, Decided, Shards, expect_answer, other_answer, partly, refusal,
};

/// Times that a namespace gets a newer version because shards had seen newer ones.
const STEPS_MAX: usize = 8;

impl<S: Shards> Api<S> {
    pub(super) async fn create_namespace(
        self: &Arc<Self>,
        context: &Context,
        mut request: cluster::CreateNamespaceRequest,
    ) -> Result<cluster::CreateNamespaceResponse, Refusal> {
        let id = request.request_id.take();
        let command = Command::CreateNamespace(request);
        let mut created: cluster::CreateNamespaceResponse = expect_answer!(
            self.command(SYSTEM_SLOT, id, command, &context.ask).await?,
            CreateNamespace
        )?;
        let decided = created.namespace.ok_or_else(other_answer)?;
        let told = self.tell_shards(context, decided).await;
        created.namespace = Some(told.map_err(|why| partly(&why))?);
        Ok(created)
    }

    pub(super) async fn update_namespace(
        self: &Arc<Self>,
        context: &Context,
        mut request: cluster::UpdateNamespaceRequest,
    ) -> Result<cluster::UpdateNamespaceResponse, Refusal> {
        let id = request.request_id.take();
        let command = Command::UpdateNamespace(request);
        let (header, decided) = self.change(id, command, &context.ask).await?;
        let told = self.tell_shards(context, decided).await;
        let namespace = Some(told.map_err(|why| partly(&why))?);
        Ok(cluster::UpdateNamespaceResponse { header: Some(header), namespace })
    }

    /// Removes a namespace: first the shard of its locks is asked, which may refuse.
    pub(super) async fn delete_namespace(
        self: &Arc<Self>,
        context: &Context,
        mut request: cluster::DeleteNamespaceRequest,
    ) -> Result<cluster::DeleteNamespaceResponse, Refusal> {
        let id = request.request_id.take();
        let command = Command::DeleteNamespace(request);
        let (header, decided) = self.change(id, command, &context.ask).await?;
        let (api, access) = (Arc::clone(self), Arc::clone(&context.ask.access));
        let removed = tokio::spawn(async move { api.remove(&access, decided).await });
        removed.await.map_err(|_| ended_early())??;
        Ok(cluster::DeleteNamespaceResponse { header: Some(header) })
    }

    pub(super) async fn get_namespace(
        self: &Arc<Self>,
        context: &Context,
        request: cluster::GetNamespaceRequest,
    ) -> Result<cluster::GetNamespaceResponse, Refusal> {
        let name = request.name.clone();
        let mut got: cluster::GetNamespaceResponse = expect_answer!(
            self.query(SYSTEM_SLOT, Query::GetNamespace(request), &context.ask).await?,
            GetNamespace
        )?;
        let here = self.find_everywhere(&name, &context.ask).await?;
        let version = got.namespace.as_ref().map_or(0, |namespace| namespace.version);
        got.in_force = here.iter().all(|here| here.version == version);
        if let (Some(usage), Some(at)) =
            (&mut got.usage, here.iter().find_map(|here| here.usage.as_ref()))
        {
            (usage.sessions, usage.locks, usage.waits) = (at.sessions, at.locks, at.waits);
        }
        Ok(got)
    }

    pub(super) async fn get_namespace_policy(
        self: &Arc<Self>,
        context: &Context,
        request: cluster::GetNamespacePolicyRequest,
    ) -> Result<cluster::GetNamespacePolicyResponse, Refusal> {
        let mut got: cluster::GetNamespacePolicyResponse = expect_answer!(
            self.query(SYSTEM_SLOT, Query::GetNamespacePolicy(request), &context.ask).await?,
            GetNamespacePolicy
        )?;
        let here = self.find_everywhere("", &context.ask).await?;
        got.in_force = here.iter().all(|here| here.policy_version == got.version);
        Ok(got)
    }

    pub(super) async fn set_namespace_policy(
        self: &Arc<Self>,
        context: &Context,
        mut request: cluster::SetNamespacePolicyRequest,
    ) -> Result<cluster::SetNamespacePolicyResponse, Refusal> {
        let id = request.request_id.take();
        let command = Command::SetNamespacePolicy(request);
        let set: cluster::SetNamespacePolicyResponse = expect_answer!(
            self.command(SYSTEM_SLOT, id, command, &context.ask).await?,
            SetNamespacePolicy
        )?;
        let (version, unknown) = (set.version, set.unknown);
        let (api, access) = (Arc::clone(self), Arc::clone(&context.ask.access));
        let told = tokio::spawn(async move {
            let configure = ConfigureNamespacePolicy { version, unknown };
            let shards = (1..=api.shards.shards()).map(|shard| (shard, api.any_slot(shard)));
            let command = Command::ConfigureNamespacePolicy(configure);
            api.configure(&access, shards.collect(), &command).await
        });
        told.await.map_err(|_| ended_early())?.map_err(|why| partly(&why))?;
        Ok(set)
    }

    /// A command that gives a namespace another version.
    async fn change(
        &self,
        id: Option<trefoil_proto::common::v1::RequestId>,
        command: Command,
        ask: &CallContext,
    ) -> Result<(ResponseHeader, cluster::Namespace), Refusal> {
        let Decided { header, answer } = self.command(SYSTEM_SLOT, id, command, ask).await?;
        let Answer::UpdateNamespace(changed) = answer else { return Err(other_answer()) };
        Ok((header, changed.namespace.ok_or_else(other_answer)?))
    }

    /// Tells all shards of a declared namespace, even when the caller goes away; says what is in force then.
    async fn tell_shards(
        self: &Arc<Self>,
        context: &Context,
        decided: cluster::Namespace,
    ) -> Result<cluster::Namespace, Refusal> {
        if decided.version == 0 {
            // The default one, of which nothing was ever said.
            return Ok(decided);
        }
        let (api, access) = (Arc::clone(self), Arc::clone(&context.ask.access));
        let told = tokio::spawn(async move { api.tell_all(&access, decided).await });
        told.await.map_err(|_| ended_early())?
    }

    async fn tell_all(
        self: &Arc<Self>,
        access: &Arc<Access>,
        mut decided: cluster::Namespace,
    ) -> Result<cluster::Namespace, Refusal> {
        for _ in 0..STEPS_MAX {
            let command = configure(&decided, true);
            let known = self.configure(access, self.places(&decided.name), &command).await?;
            if known.iter().all(|version| *version >= decided.version) {
                return Ok(decided);
            }
            // A shard has seen the removal of another namespace that was decided later.
            decided = self.renew(access, &decided).await?;
        }
        Err(refusal(Reason::Overloaded, "other namespaces are removed all the time"))
    }

    async fn remove(
        self: &Arc<Self>,
        access: &Arc<Access>,
        decided: cluster::Namespace,
    ) -> Result<(), Refusal> {
        let command = configure(&decided, false);
        let mut places = self.places(&decided.name);
        let first = vec![places.remove(0)];
        for places in [first, places] {
            match self.configure(access, places, &command).await {
                Ok(known) if known.iter().all(|version| *version == 0) => {}
                Ok(_) => {
                    let message = "the namespace was changed while it was being removed";
                    return Err(refusal(Reason::NamespaceChanged, message));
                }
                Err(refused) if refused.reason() == Reason::NamespaceInUse => {
                    let kept = self.renew(access, &decided).await.map_err(|why| partly(&why))?;
                    self.tell_all(access, kept).await.map_err(|why| partly(&why))?;
                    return Err(refused);
                }
                Err(refused) => return Err(partly(&refused)),
            }
        }
        self.forget(access, &decided).await.map_err(|why| partly(&why))
    }

    /// The last step of a removal.
    async fn forget(
        &self,
        access: &Arc<Access>,
        decided: &cluster::Namespace,
    ) -> Result<(), Refusal> {
        match self.repeat(SYSTEM_SLOT, step(decided, true), access).await {
            // An attempt before this one was applied, and nobody saw it.
            Err(refused) if refused.reason() == Reason::UnknownNamespace => Ok(()),
            ended => ended.map(drop),
        }
    }

    /// A newer version of a namespace.
    async fn renew(
        &self,
        access: &Arc<Access>,
        decided: &cluster::Namespace,
    ) -> Result<cluster::Namespace, Refusal> {
        match self.repeat(SYSTEM_SLOT, step(decided, false), access).await? {
            Answer::UpdateNamespace(changed) => changed.namespace.ok_or_else(other_answer),
            _ => Err(other_answer()),
        }
    }

    /// Has a command applied on shards, all at once; says the version that each has then.
    async fn configure(
        self: &Arc<Self>,
        access: &Arc<Access>,
        places: Vec<(ShardId, u16)>,
        command: &Command,
    ) -> Result<Vec<u64>, Refusal> {
        let mut told = JoinSet::new();
        for (_, slot) in places {
            let (api, access, command) = (Arc::clone(self), Arc::clone(access), command.clone());
            told.spawn(async move { api.repeat(slot, command, &access).await });
        }
        let mut known = Vec::new();
        while let Some(answer) = told.join_next().await {
            match answer.map_err(|_| ended_early())?? {
                Answer::NamespaceConfigured(configured) => known.push(configured.version),
                _ => return Err(other_answer()),
            }
        }
        Ok(known)
    }

    /// What every data shard knows of a namespace and of the policy.
    async fn find_everywhere(
        self: &Arc<Self>,
        namespace: &str,
        ask: &CallContext,
    ) -> Result<Vec<NamespaceHere>, Refusal> {
        let mut asked = JoinSet::new();
        for (_, slot) in self.places(namespace) {
            let (api, ask) = (Arc::clone(self), ask.clone());
            let find = Query::FindNamespace(FindNamespace { namespace: namespace.to_owned() });
            asked.spawn(async move { api.query(slot, find, &ask).await });
        }
        let mut found = Vec::new();
        while let Some(answer) = asked.join_next().await {
            match answer.map_err(|_| ended_early())??.answer {
                Answer::NamespaceHere(here) => found.push(here),
                _ => return Err(other_answer()),
            }
        }
        Ok(found)
    }

    /// Every data shard, with a slot by which it knows that it is asked: that of the namespace's locks first.
    fn places(&self, namespace: &str) -> Vec<(ShardId, u16)> {
        let home = slot::of_locks(namespace);
        let first = self.shard(home);
        let others = (1..=self.shards.shards()).filter(|shard| *shard != first);
        let others = others.map(|shard| (shard, self.any_slot(shard)));
        [(first, home)].into_iter().chain(others).collect()
    }

    fn any_slot(&self, shard: ShardId) -> u16 {
        debug_assert!(shard != META_SHARD, "the meta shard has a slot of its own");
        slot::first_of(shard, self.shards.shards())
    }
}

fn configure(decided: &cluster::Namespace, declared: bool) -> Command {
    Command::ConfigureNamespace(ConfigureNamespace {
        namespace: decided.name.clone(),
        version: decided.version,
        settings: declared.then(|| decided.settings.unwrap_or_default()),
    })
}

fn step(decided: &cluster::Namespace, remove: bool) -> Command {
    let (namespace, version) = (decided.name.clone(), decided.version);
    Command::NamespaceStep(NamespaceStep { namespace, version, remove })
}

/// The runtime is about to end.
fn ended_early() -> Refusal {
    refusal(Reason::MaybeApplied, "the node ended before every shard was told")
}
