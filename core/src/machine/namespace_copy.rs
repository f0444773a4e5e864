//! Namespaces at a data shard: what the meta shard has decided, as far as this shard has been told.

use trefoil_proto::cluster::v1::NamespaceUsage;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::{
    ConfigureNamespace, ConfigureNamespacePolicy, FindNamespace, LockNamespace,
    NamespaceConfigured, NamespaceCopy, NamespaceHere, Refusal, answer,
};

use super::context::{
    CommandContext, CommandOutcome, CommandResult, QueryContext, QueryOutcome, answered, refuse,
    refuse_with,
};
use super::namespace;
use crate::check::{self, DEFAULT_NAMESPACE};
use crate::key::{Key, Kind};
use crate::limits::NAME_BYTES_MAX;
use crate::slot::{SYSTEM_SLOT, of_locks};
use crate::store::{Store, decode};

/// Learns of a namespace, or that it is gone. The shard of its locks refuses the latter while there is something left.
pub(super) fn configure_namespace(
    context: &mut CommandContext<'_>,
    request: &ConfigureNamespace,
) -> CommandResult {
    check_place(context.slot, &request.namespace)?;
    let key = copy_key(&request.namespace);
    let known =
        context.txn.get_message::<NamespaceCopy>(key.bytes()).map_or(0, |copy| copy.version);
    let version = request.version;
    // News of a namespace that is older than a removal, and unknown, may be of the one that was removed.
    let removed = context.namespaces.removed_version;
    let is_of_the_dead = known == 0 && request.settings.is_some() && version <= removed;
    let is_late = version <= known || is_of_the_dead;
    if is_late {
        return Ok(configured(known));
    }
    if context.slot == of_locks(&request.namespace) {
        configure_locks(context, request)?;
    }
    if request.settings.is_some() {
        context.txn.put_message(key, &NamespaceCopy { version });
        return Ok(configured(version));
    }
    context.txn.delete(key);
    context.output.namespaces.removed_version = version;
    Ok(configured(0))
}

/// The counters of sessions and locks know the limits, so that these are there where they are needed.
fn configure_locks(
    context: &mut CommandContext<'_>,
    request: &ConfigureNamespace,
) -> Result<(), Refusal> {
    if let Some(settings) = &request.settings {
        check::namespace_settings(settings)?;
    }
    let key = lock_key(&request.namespace);
    let mut counters = context.txn.get_message::<LockNamespace>(key.bytes()).unwrap_or_default();
    if request.settings.is_none() && counters.sessions + counters.locks + counters.waits > 0 {
        let facts = [
            ("sessions", counters.sessions.to_string()),
            ("locks", counters.locks.to_string()),
            ("waits", counters.waits.to_string()),
        ];
        let message = "the namespace has sessions or locks";
        return Err(refuse_with(Reason::NamespaceInUse, message, facts));
    }
    counters.settings = request.settings;
    if counters == LockNamespace::default() {
        context.txn.delete(key);
    } else {
        // Its numbers must not come again.
        context.txn.put_message(key, &counters);
    }
    Ok(())
}

/// Learns of the policy.
pub(super) fn configure_namespace_policy(
    context: &mut CommandContext<'_>,
    request: &ConfigureNamespacePolicy,
) -> CommandResult {
    check_place(context.slot, DEFAULT_NAMESPACE)?;
    let unknown = check::unknown_namespaces(request.unknown)?;
    if request.version > context.namespaces.policy_version {
        context.output.namespaces.policy = Some((request.version, unknown));
    }
    Ok(configured(request.version.max(context.namespaces.policy_version)))
}

/// Refuses a namespace that is not declared, where it must be.
pub(super) fn must_be_usable(context: &CommandContext<'_>, name: &str) -> Result<(), Refusal> {
    let may_be_used = !context.namespaces.must_be_known
        || name == DEFAULT_NAMESPACE
        || context.txn.get(copy_key(name).bytes()).is_some();
    if may_be_used { Ok(()) } else { Err(namespace::unknown()) }
}

/// What this shard knows, and on the shard of its locks what the namespace holds.
pub(super) fn find_namespace(
    context: &QueryContext<'_, impl Store>,
    request: &FindNamespace,
) -> QueryOutcome {
    let QueryContext { store, slot, progress, .. } = *context;
    if let Err(refusal) = check::text("namespace", &request.namespace, 0, NAME_BYTES_MAX) {
        return answered(refusal);
    }
    let copy = store.get(copy_key(&request.namespace).bytes());
    let usage = (slot == of_locks(&request.namespace)).then(|| {
        let counters = store.get(lock_key(&request.namespace).bytes());
        let counters =
            counters.map(|counters| decode::<LockNamespace>(&counters)).unwrap_or_default();
        let LockNamespace { sessions, locks, waits, .. } = counters;
        NamespaceUsage { sessions, locks, waits, queues: 0 }
    });
    answered(answer::Answer::NamespaceHere(NamespaceHere {
        version: copy.map_or(0, |copy| decode::<NamespaceCopy>(&copy).version),
        policy_version: progress.namespace_policy_version,
        usage,
    }))
}

fn check_place(slot: u16, namespace: &str) -> Result<(), Refusal> {
    if slot == SYSTEM_SLOT {
        return Err(refuse(Reason::StaleMap, "the meta shard decides itself about namespaces"));
    }
    check::text("namespace", namespace, 1, NAME_BYTES_MAX)
}

fn copy_key(namespace: &str) -> Key {
    Key::system(Kind::NamespaceCopy).tail(namespace.as_bytes())
}

fn lock_key(namespace: &str) -> Key {
    Key::new(of_locks(namespace), Kind::LockNamespace).tail(namespace.as_bytes())
}

fn configured(version: u64) -> CommandOutcome {
    CommandOutcome::Answer(answer::Answer::NamespaceConfigured(NamespaceConfigured { version }))
}
