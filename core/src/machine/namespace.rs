//! Namespaces at the meta shard: which are declared, with which limits and policies, and what becomes of others.
//!
//! The meta shard decides and gives each decision a version; the others learn of it in their own logs, by
//! [`super::namespace_copy`]. Versions rise over all namespaces, so that a late decision about one that is gone, or was
//! declared again, is known as such.

use trefoil_proto::cluster::v1::{self as api, NamespaceSettings, UnknownNamespaces};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::{
    NamespaceCounters, NamespaceRecord, NamespaceStep, Refusal, answer,
};

use super::context::{
    CommandContext, CommandOutcome, CommandResult, QueryContext, QueryOutcome, answered, done,
    refuse, refuse_with,
};
use super::progress::NamespaceChanges;
use crate::check::{self, DEFAULT_NAMESPACE};
use crate::key::{Key, Kind};
use crate::limits::{NAME_BYTES_MAX, NAMESPACE_QUEUES_MAX, NAMESPACES_MAX, PAGE_ITEMS_MAX};
use crate::page::ListId;
use crate::slot::SYSTEM_SLOT;
use crate::store::{Store, Txn, decode, prefix_end};

/// Declares a namespace; the same settings again are no error.
pub(super) fn create_namespace(
    context: &mut CommandContext<'_>,
    request: &api::CreateNamespaceRequest,
) -> CommandResult {
    check_place(context.slot, &request.name)?;
    let settings = checked(request.settings)?;
    let name = &request.name;
    if let Some(known) = find(&context.txn, name) {
        if known.settings == Some(settings) && !known.deleting {
            return Ok(created(shown(name, &known), false));
        }
        let facts = [("version", known.version.to_string())];
        let message = "the namespace is declared with other settings, or is being removed";
        return Err(refuse_with(Reason::NamespaceExists, message, facts));
    }
    let record = save(context, name, settings, false)?;
    Ok(created(shown(name, &record), true))
}

/// Replaces the settings of a namespace, and takes back a removal that was begun.
pub(super) fn update_namespace(
    context: &mut CommandContext<'_>,
    request: &api::UpdateNamespaceRequest,
) -> CommandResult {
    check_place(context.slot, &request.name)?;
    let settings = checked(request.settings)?;
    let known = find(&context.txn, &request.name).ok_or_else(unknown)?;
    expect(request.expected_version, known.version)?;
    let record = save(context, &request.name, settings, false)?;
    Ok(changed(&request.name, &record))
}

/// Begins to remove a namespace: from here on it gets no new queue.
pub(super) fn delete_namespace(
    context: &mut CommandContext<'_>,
    request: &api::DeleteNamespaceRequest,
) -> CommandResult {
    check_place(context.slot, &request.name)?;
    check::deletable(&request.name)?;
    let known = find(&context.txn, &request.name).ok_or_else(unknown)?;
    expect(request.expected_version, known.version)?;
    let queues = count_queues(&context.txn, &request.name, NAMESPACE_QUEUES_MAX);
    if queues > 0 {
        let facts = [("queues", queues.to_string())];
        return Err(refuse_with(Reason::NamespaceInUse, "the namespace has queues", facts));
    }
    let record = save(context, &request.name, known.settings.unwrap_or_default(), true)?;
    Ok(changed(&request.name, &record))
}

/// Goes on with a namespace after the other shards were told.
pub(super) fn namespace_step(
    context: &mut CommandContext<'_>,
    request: &NamespaceStep,
) -> CommandResult {
    check_place(context.slot, &request.namespace)?;
    let known = find(&context.txn, &request.namespace).ok_or_else(unknown)?;
    expect(request.version, known.version)?;
    if !request.remove {
        let settings = known.settings.unwrap_or_default();
        let record = save(context, &request.namespace, settings, false)?;
        return Ok(changed(&request.namespace, &record));
    }
    if !known.deleting {
        return Err(refuse(Reason::Internal, "only a namespace that is being removed goes"));
    }
    context.txn.delete(record_key(&request.namespace));
    let mut counters = counters(&context.txn);
    counters.namespaces = counters.namespaces.saturating_sub(1);
    put_counters(context, &counters);
    Ok(done())
}

/// Says what becomes of namespaces that were not declared.
pub(super) fn set_namespace_policy(
    context: &mut CommandContext<'_>,
    request: &api::SetNamespacePolicyRequest,
) -> CommandResult {
    check_place(context.slot, DEFAULT_NAMESPACE)?;
    let unknown = check::unknown_namespaces(request.unknown)?;
    expect(request.expected_version, context.namespaces.policy_version)?;
    let version = context.namespaces.policy_version + 1;
    context.output.namespaces =
        NamespaceChanges { policy: Some((version, unknown)), removed_version: 0 };
    Ok(CommandOutcome::Answer(answer::Answer::SetNamespacePolicy(
        api::SetNamespacePolicyResponse { header: None, unknown: unknown.into(), version },
    )))
}

/// A declared namespace and its queues; what else it holds lies on another shard.
pub(super) fn get_namespace(
    context: &QueryContext<'_, impl Store>,
    request: &api::GetNamespaceRequest,
) -> QueryOutcome {
    let QueryContext { store, slot, .. } = *context;
    if let Err(refusal) = check_place(slot, &request.name) {
        return answered(refusal);
    }
    let key = record_key(&request.name);
    let record = store.get(key.bytes()).map(|record| decode::<NamespaceRecord>(&record));
    let Some(record) = record.or_else(|| default_of(&request.name)) else {
        return answered(unknown());
    };
    let queues = count_queues_in(store, &request.name, NAMESPACE_QUEUES_MAX + 1);
    answered(answer::Answer::GetNamespace(api::GetNamespaceResponse {
        header: None,
        namespace: Some(shown(&request.name, &record)),
        usage: Some(api::NamespaceUsage { queues, ..api::NamespaceUsage::default() }),
        in_force: false,
    }))
}

/// Declared namespaces by their names.
pub(super) fn list_namespaces(
    context: &QueryContext<'_, impl Store>,
    request: &api::ListNamespacesRequest,
) -> QueryOutcome {
    let QueryContext { store, slot, .. } = *context;
    let checked = check_place(slot, DEFAULT_NAMESPACE)
        .and_then(|()| check::text("prefix", &request.prefix, 0, NAME_BYTES_MAX))
        .and_then(|()| {
            check::number("page_size", request.page_size.into(), 1, PAGE_ITEMS_MAX.into())
        });
    let (head, prefix) = (record_key(""), record_key(&request.prefix));
    let list = ListId::of(prefix.bytes());
    let after = match checked.and_then(|()| list.after(&request.page_token)) {
        Ok(after) => after,
        Err(refusal) => return answered(refusal),
    };
    let mut start = prefix.bytes().to_vec();
    if let Some(last) = after {
        start = start.max([record_key(last).bytes(), &[0]].concat());
    }
    let size = request.page_size as usize;
    let found = store.scan(&start, &prefix_end(prefix.bytes()), size);
    let name = |key: &[u8]| String::from_utf8_lossy(&key[head.bytes().len()..]).into_owned();
    let next_page_token = match found.last() {
        Some((key, _)) if found.len() == size => list.token(&name(key)),
        _ => String::new(),
    };
    let namespaces = found.iter().map(|(key, value)| shown(&name(key), &decode(value)));
    answered(answer::Answer::ListNamespaces(api::ListNamespacesResponse {
        header: None,
        namespaces: namespaces.collect(),
        next_page_token,
    }))
}

/// What becomes of namespaces that were not declared.
pub(super) fn get_namespace_policy(
    context: &QueryContext<'_, impl Store>,
    _: &api::GetNamespacePolicyRequest,
) -> QueryOutcome {
    let QueryContext { slot, progress, .. } = *context;
    if let Err(refusal) = check_place(slot, DEFAULT_NAMESPACE) {
        return answered(refusal);
    }
    let unknown = match progress.unknown_namespaces() {
        UnknownNamespaces::Unspecified => UnknownNamespaces::Created,
        unknown => unknown,
    };
    answered(answer::Answer::GetNamespacePolicy(api::GetNamespacePolicyResponse {
        header: None,
        unknown: unknown.into(),
        version: progress.namespace_policy_version,
        in_force: false,
    }))
}

/// Whether a namespace may have a queue more.
pub(super) fn admit_queue(context: &CommandContext<'_>, namespace: &str) -> Result<(), Refusal> {
    let record = find(&context.txn, namespace);
    let is_usable = record.as_ref().map_or(!context.namespaces.must_be_known, |it| !it.deleting);
    if !is_usable {
        return Err(unknown());
    }
    let most = record.and_then(|record| record.settings).map_or(0, |it| it.queues_max);
    if most > 0 && count_queues(&context.txn, namespace, most) >= most {
        let message = format!("queues_max of {most} is reached in this namespace");
        let facts = [("limit", "queues_max".to_owned())];
        return Err(refuse_with(Reason::LimitReached, message, facts));
    }
    Ok(())
}

/// Whether the first use of a queue creates it: what its namespace says; nothing where the node decides.
pub(super) fn queue_creation(store: &impl Store, namespace: &str) -> Option<&'static str> {
    let record = store.get(record_key(namespace).bytes())?;
    match decode::<NamespaceRecord>(&record).settings?.queue_creation() {
        api::QueueCreation::Unspecified => None,
        api::QueueCreation::Allowed => Some("allowed"),
        api::QueueCreation::Refused => Some("refused"),
    }
}

pub(super) fn unknown() -> Refusal {
    refuse(Reason::UnknownNamespace, "the namespace is not declared")
}

/// Queues of a namespace, counted up to so many.
fn count_queues(txn: &Txn<'_>, namespace: &str, most: u64) -> u64 {
    let (start, end) = queues_of(namespace);
    txn.scan(&start, &end, usize::try_from(most).unwrap_or(usize::MAX)).len() as u64
}

/// The same outside of a command.
fn count_queues_in(store: &impl Store, namespace: &str, most: u64) -> u64 {
    let (start, end) = queues_of(namespace);
    store.scan(&start, &end, usize::try_from(most).unwrap_or(usize::MAX)).len() as u64
}

fn queues_of(namespace: &str) -> (Vec<u8>, Vec<u8>) {
    let prefix = Key::system(Kind::Catalogue).text(namespace);
    (prefix.bytes().to_vec(), prefix_end(prefix.bytes()))
}

fn check_place(slot: u16, namespace: &str) -> Result<(), Refusal> {
    if slot != SYSTEM_SLOT {
        let message = "namespaces are declared in the system slot of the meta shard";
        return Err(refuse(Reason::StaleMap, message));
    }
    check::text("name", namespace, 1, NAME_BYTES_MAX)
}

fn checked(settings: Option<NamespaceSettings>) -> Result<NamespaceSettings, Refusal> {
    let settings = settings.unwrap_or_default();
    check::namespace_settings(&settings).map(|()| settings)
}

fn expect(expected: u64, present: u64) -> Result<(), Refusal> {
    if expected == 0 || expected == present {
        return Ok(());
    }
    let facts = [("version", present.to_string())];
    Err(refuse_with(Reason::NamespaceChanged, "it has another version by now", facts))
}

fn record_key(namespace: &str) -> Key {
    Key::system(Kind::Namespace).tail(namespace.as_bytes())
}

/// A declared namespace; the default one always is.
fn find(txn: &Txn<'_>, namespace: &str) -> Option<NamespaceRecord> {
    txn.get_message(record_key(namespace).bytes()).or_else(|| default_of(namespace))
}

fn default_of(namespace: &str) -> Option<NamespaceRecord> {
    let record = NamespaceRecord {
        settings: Some(NamespaceSettings::default()),
        version: 0,
        deleting: false,
    };
    (namespace == DEFAULT_NAMESPACE).then_some(record)
}

fn counters(txn: &Txn<'_>) -> NamespaceCounters {
    txn.get_message(Key::system(Kind::NamespaceCounters).bytes()).unwrap_or_default()
}

fn put_counters(context: &mut CommandContext<'_>, counters: &NamespaceCounters) {
    context.txn.put_message(Key::system(Kind::NamespaceCounters), counters);
}

/// Writes a namespace under a new version.
fn save(
    context: &mut CommandContext<'_>,
    namespace: &str,
    settings: NamespaceSettings,
    deleting: bool,
) -> Result<NamespaceRecord, Refusal> {
    let key = record_key(namespace);
    let mut counters = counters(&context.txn);
    if context.txn.get(key.bytes()).is_none() {
        if counters.namespaces >= NAMESPACES_MAX {
            let message = format!("NAMESPACES_MAX of {NAMESPACES_MAX} is reached");
            let facts = [("limit", "NAMESPACES_MAX".to_owned())];
            return Err(refuse_with(Reason::LimitReached, message, facts));
        }
        counters.namespaces += 1;
    }
    counters.last_version += 1;
    put_counters(context, &counters);
    let record =
        NamespaceRecord { settings: Some(settings), version: counters.last_version, deleting };
    context.txn.put_message(key, &record);
    Ok(record)
}

fn shown(name: &str, record: &NamespaceRecord) -> api::Namespace {
    let NamespaceRecord { settings, version, deleting } = *record;
    api::Namespace { name: name.to_owned(), settings, version, deleting }
}

fn created(namespace: api::Namespace, created: bool) -> CommandOutcome {
    CommandOutcome::Answer(answer::Answer::CreateNamespace(api::CreateNamespaceResponse {
        header: None,
        namespace: Some(namespace),
        created,
    }))
}

fn changed(name: &str, record: &NamespaceRecord) -> CommandOutcome {
    CommandOutcome::Answer(answer::Answer::UpdateNamespace(api::UpdateNamespaceResponse {
        header: None,
        namespace: Some(shown(name, record)),
    }))
}
