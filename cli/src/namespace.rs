//! `trefoil namespace`: declares namespaces with limits and policies, shows and removes them.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use trefoil_client::proto::cluster::v1::{
    self, NamespaceSettings, NamespaceUsage, QueueCreation, UnknownNamespaces,
};

use crate::args::{ClientArgs, duration};
use crate::client::{all_rows, connect};
use crate::exit::CommandFailure;
use crate::output::{self, CommandOutput, Format};

/// What to do with namespaces.
#[derive(Debug, Subcommand)]
pub(crate) enum NamespaceCommand {
    /// Declare a namespace; the same settings again are no error.
    Create {
        /// The namespace, 1 to 255 bytes.
        name: String,
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Change some settings of a namespace, and leave the others.
    Update {
        /// The namespace.
        name: String,
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Show a namespace and what it holds.
    Get {
        /// The namespace.
        name: String,
    },
    /// List the declared namespaces.
    List {
        /// Only those whose names begin with this.
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Remove a namespace that has no sessions, locks and queues; cached values stay until their TTL.
    Delete {
        /// The namespace.
        name: String,
    },
    /// Show, or say, what becomes of namespaces that were not declared.
    Policy {
        /// Left out, it is shown.
        #[arg(value_enum)]
        unknown: Option<Unknown>,
    },
}

/// What becomes of namespaces that were not declared.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Unknown {
    /// They work from their first use on.
    Created,
    /// Sessions, queues and cached values in them are refused.
    Refused,
}

/// Whether the first message for a queue creates it.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Creation {
    /// As --auto-create-queues of the node says.
    Node,
    /// It does.
    Allowed,
    /// It does not.
    Refused,
}

/// Settings of a namespace.
#[derive(Debug, Args)]
pub(crate) struct SettingsArgs {
    /// Open sessions at most; 0 for as many as the cluster allows.
    #[arg(long, env = "TREFOIL_NAMESPACE_SESSIONS_MAX", value_name = "NUMBER")]
    sessions_max: Option<u64>,
    /// Locks that are held or waited for at most; 0 for as many as the cluster allows.
    #[arg(long, env = "TREFOIL_NAMESPACE_LOCKS_MAX", value_name = "NUMBER")]
    locks_max: Option<u64>,
    /// Calls that wait for locks at most; 0 for as many as the cluster allows.
    #[arg(long, env = "TREFOIL_NAMESPACE_WAITS_MAX", value_name = "NUMBER")]
    waits_max: Option<u64>,
    /// Queues at most, up to 1000; 0 for no limit.
    #[arg(long, env = "TREFOIL_NAMESPACE_QUEUES_MAX", value_name = "NUMBER")]
    queues_max: Option<u64>,
    /// Longest TTL of new sessions; 0s for a day.
    #[arg(long, env = "TREFOIL_NAMESPACE_SESSION_TTL_MAX", value_name = "TIME", value_parser = duration)]
    session_ttl_max: Option<Duration>,
    /// Lock delay of new sessions that ask for none, at most 60s.
    #[arg(long, env = "TREFOIL_NAMESPACE_LOCK_DELAY", value_name = "TIME", value_parser = duration)]
    lock_delay: Option<Duration>,
    /// Whether the first message for a queue creates it.
    #[arg(long, env = "TREFOIL_NAMESPACE_QUEUE_CREATION", value_name = "WHAT", value_enum)]
    queue_creation: Option<Creation>,
}

impl SettingsArgs {
    /// These, over others.
    fn over(&self, mut settings: NamespaceSettings) -> NamespaceSettings {
        let ms = |time: &Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        for (field, said) in [
            (&mut settings.sessions_max, self.sessions_max),
            (&mut settings.locks_max, self.locks_max),
            (&mut settings.waits_max, self.waits_max),
            (&mut settings.queues_max, self.queues_max),
            (&mut settings.session_ttl_ms_max, self.session_ttl_max.as_ref().map(ms)),
            (&mut settings.lock_delay_ms_default, self.lock_delay.as_ref().map(ms)),
        ] {
            *field = said.unwrap_or(*field);
        }
        if let Some(creation) = self.queue_creation {
            settings.set_queue_creation(match creation {
                Creation::Node => QueueCreation::Unspecified,
                Creation::Allowed => QueueCreation::Allowed,
                Creation::Refused => QueueCreation::Refused,
            });
        }
        settings
    }
}

pub(crate) async fn run(
    command: NamespaceCommand,
    args: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let namespaces = connect(args).await?.namespaces();
    match command {
        NamespaceCommand::Create { name, settings } => {
            let settings = settings.over(NamespaceSettings::default());
            let created = namespaces.create(name, settings).await?;
            output::print(format, &NamespaceRow::from(created.namespace.unwrap_or_default()))?;
        }
        NamespaceCommand::Update { name, settings } => {
            let known = namespaces.get(name.as_str()).await?.namespace.unwrap_or_default();
            let settings = settings.over(known.settings.unwrap_or_default());
            let updated = namespaces.update(name, settings, known.version).await?;
            output::print(format, &NamespaceRow::from(updated))?;
        }
        NamespaceCommand::Get { name } => {
            let got = namespaces.get(name).await?;
            let usage = got.usage.map(NamespaceUsageRow::from);
            let namespace = NamespaceRow::from(got.namespace.unwrap_or_default());
            output::print(
                format,
                &NamespaceGetOutput { in_force: got.in_force, namespace, usage },
            )?;
        }
        NamespaceCommand::List { prefix } => {
            let found = all_rows(|page| namespaces.list(prefix.as_str(), page)).await?;
            output::print(format, &NamespaceListOutput { namespaces: found })?;
        }
        NamespaceCommand::Delete { name } => {
            namespaces.delete(name.as_str(), 0).await?;
            output::print(format, &NamespaceDeleteOutput { name, deleted: true })?;
        }
        NamespaceCommand::Policy { unknown } => {
            if let Some(unknown) = unknown {
                let unknown = match unknown {
                    Unknown::Created => UnknownNamespaces::Created,
                    Unknown::Refused => UnknownNamespaces::Refused,
                };
                namespaces.set_policy(unknown, 0).await?;
            }
            let policy = namespaces.policy().await?;
            let unknown = match policy.unknown() {
                UnknownNamespaces::Refused => "refused",
                UnknownNamespaces::Created | UnknownNamespaces::Unspecified => "created",
            };
            let (version, in_force) = (policy.version, policy.in_force);
            output::print(format, &NamespacePolicyOutput { unknown, version, in_force })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct NamespaceRow {
    name: String,
    version: u64,
    deleting: bool,
    sessions_max: u64,
    locks_max: u64,
    waits_max: u64,
    queues_max: u64,
    session_ttl_ms_max: u64,
    lock_delay_ms_default: u64,
    queue_creation: &'static str,
}

#[derive(Serialize)]
struct NamespaceUsageRow {
    sessions: u64,
    locks: u64,
    waits: u64,
    queues: u64,
}

#[derive(Serialize)]
struct NamespaceGetOutput {
    namespace: NamespaceRow,
    usage: Option<NamespaceUsageRow>,
    in_force: bool,
}

#[derive(Serialize)]
struct NamespaceListOutput {
    namespaces: Vec<NamespaceRow>,
}

#[derive(Serialize)]
struct NamespaceDeleteOutput {
    name: String,
    deleted: bool,
}

#[derive(Serialize)]
struct NamespacePolicyOutput {
    unknown: &'static str,
    version: u64,
    in_force: bool,
}

impl From<v1::Namespace> for NamespaceRow {
    fn from(namespace: v1::Namespace) -> Self {
        let v1::Namespace { name, settings, version, deleting } = namespace;
        let settings = settings.unwrap_or_default();
        Self {
            name,
            version,
            deleting,
            sessions_max: settings.sessions_max,
            locks_max: settings.locks_max,
            waits_max: settings.waits_max,
            queues_max: settings.queues_max,
            session_ttl_ms_max: settings.session_ttl_ms_max,
            lock_delay_ms_default: settings.lock_delay_ms_default,
            queue_creation: match settings.queue_creation() {
                QueueCreation::Unspecified => "node",
                QueueCreation::Allowed => "allowed",
                QueueCreation::Refused => "refused",
            },
        }
    }
}

impl From<NamespaceUsage> for NamespaceUsageRow {
    fn from(usage: NamespaceUsage) -> Self {
        let NamespaceUsage { sessions, locks, waits, queues } = usage;
        Self { sessions, locks, waits, queues }
    }
}

impl CommandOutput for NamespaceRow {
    fn text(&self) -> String {
        output::fields([
            ("namespace", self.name.clone()),
            ("version", self.version.to_string()),
            ("sessions", limit(self.sessions_max)),
            ("locks", limit(self.locks_max)),
            ("waits", limit(self.waits_max)),
            ("queues", limit(self.queues_max)),
            ("longest ttl", ms(self.session_ttl_ms_max)),
            ("lock delay", ms(self.lock_delay_ms_default)),
            ("first use of a queue", self.queue_creation.to_owned()),
            ("being removed", self.deleting.to_string()),
        ])
    }
}

impl CommandOutput for NamespaceGetOutput {
    fn text(&self) -> String {
        let head = self.namespace.text();
        let Some(NamespaceUsageRow { sessions, locks, waits, queues }) = &self.usage else {
            return head;
        };
        let usage = output::fields([
            ("sessions now", sessions.to_string()),
            ("locks now", locks.to_string()),
            ("waits now", waits.to_string()),
            ("queues now", queues.to_string()),
            ("known to every shard", self.in_force.to_string()),
        ]);
        format!("{head}\n{usage}")
    }
}

impl CommandOutput for NamespaceListOutput {
    fn text(&self) -> String {
        let rows = self.namespaces.iter().map(|of| {
            vec![
                of.name.clone(),
                of.version.to_string(),
                limit(of.sessions_max),
                limit(of.locks_max),
                limit(of.waits_max),
                limit(of.queues_max),
                ms(of.session_ttl_ms_max),
                ms(of.lock_delay_ms_default),
                of.queue_creation.to_owned(),
            ]
        });
        let header = [
            "NAMESPACE",
            "VERSION",
            "SESSIONS",
            "LOCKS",
            "WAITS",
            "QUEUES",
            "LONGEST TTL",
            "LOCK DELAY",
            "QUEUE CREATION",
        ];
        output::table(&header, &[1, 2, 3, 4, 5, 6, 7], rows)
    }
}

impl CommandOutput for NamespaceDeleteOutput {
    fn text(&self) -> String {
        format!("{} removed", self.name)
    }
}

impl CommandOutput for NamespacePolicyOutput {
    fn text(&self) -> String {
        output::fields([
            ("undeclared namespaces are", self.unknown.to_owned()),
            ("version", self.version.to_string()),
            ("known to every shard", self.in_force.to_string()),
        ])
    }
}

/// A limit; nothing where there is none of its own.
fn limit(most: u64) -> String {
    if most == 0 { "-".to_owned() } else { most.to_string() }
}

fn ms(ms: u64) -> String {
    if ms == 0 { "-".to_owned() } else { format!("{ms} ms") }
}
