//! Scripts of namespaces: what the meta shard decides, and what becomes of it on the shard of sessions, locks and values.

#[path = "support/arguments.rs"]
mod arguments;
mod support;

use std::error::Error;
use std::path::Path;

use arguments::Args;
use goldenscript::Context;
use support::{Harness, command, given_token, request_id, show_answer, shown_token};
use trefoil_core::machine::{Applied, Outcome, QueryOutcome};
use trefoil_core::slot::{SYSTEM_SLOT, of_cache, of_locks};
use trefoil_proto::cache::v1::PutRequest;
use trefoil_proto::cluster::v1::{
    self as api, NamespaceSettings, QueueCreation, UnknownNamespaces,
};
use trefoil_proto::common::v1::{Value, value};
use trefoil_proto::internal::v1::command::Operation as O;
use trefoil_proto::internal::v1::query::Query as Q;
use trefoil_proto::internal::v1::{
    Answer, ConfigureNamespace, ConfigureNamespacePolicy, FindNamespace, FindQueue, NamespaceStep,
    answer,
};
use trefoil_proto::lock::v1::{AcquireRequest, CloseSessionRequest, OpenSessionRequest};
use trefoil_proto::queue::v1::CreateQueueRequest;

test_each_file::test_each_path! { in "./core/tests/scripts/namespace" as scripts => run_script }

fn run_script(path: &Path) {
    goldenscript::run(&mut Runner { meta: Harness::new(0), data: Harness::new(1) }, path)
        .expect("a script that reads");
}

struct Runner {
    meta: Harness,
    data: Harness,
}

impl Args<'_> {
    fn settings(&mut self) -> Result<NamespaceSettings, Box<dyn Error>> {
        Ok(NamespaceSettings {
            sessions_max: self.key("sessions", 0)?,
            locks_max: self.key("locks", 0)?,
            waits_max: self.key("waits", 0)?,
            queues_max: self.key("queues", 0)?,
            session_ttl_ms_max: self.key("ttl_max", 0)?,
            lock_delay_ms_default: self.key("delay", 0)?,
            queue_creation: self.key("creation", QueueCreation::Unspecified.into())?,
        })
    }
}

impl goldenscript::Runner for Runner {
    type Command = goldenscript::Command;

    fn run(
        &mut self,
        command: &goldenscript::Command,
        _context: &Context,
    ) -> Result<String, Box<dyn Error>> {
        let mut args = Args(command.consume_args());
        let name = command.name.as_str();
        let output = match name {
            "create" | "update" | "delete" | "step" | "policy" | "queue" => {
                self.decide(name, &mut args)?
            }
            "tell" | "tell_policy" => self.tell(name, &mut args)?,
            "get" | "list" | "get_policy" | "find_queue" => {
                let query = decided(name, &mut args)?;
                shown(&self.meta.query(SYSTEM_SLOT, 1, query).1)
            }
            "here" => {
                let namespace: String = args.next()?;
                let slot = of_locks(&namespace);
                shown(&self.data.query(slot, 1, Q::FindNamespace(FindNamespace { namespace })).1)
            }
            "advance" => show(&self.data.advance(args.next()?)),
            "reopen" => {
                self.meta.reopen();
                self.data.reopen();
                String::new()
            }
            _ => self.use_it(name, &mut args)?,
        };
        args.0.reject_next()?;
        Ok(output)
    }
}

impl Runner {
    /// A command of the meta shard.
    fn decide(&mut self, name: &str, args: &mut Args<'_>) -> Result<String, Box<dyn Error>> {
        let id = args.key("id", String::new())?;
        let expected_version = args.key("expected", 0)?;
        let operation = match name {
            "create" => O::CreateNamespace(api::CreateNamespaceRequest {
                settings: Some(args.settings()?),
                name: args.next()?,
                request_id: None,
            }),
            "update" => O::UpdateNamespace(api::UpdateNamespaceRequest {
                settings: Some(args.settings()?),
                name: args.next()?,
                expected_version,
                request_id: None,
            }),
            "delete" => O::DeleteNamespace(api::DeleteNamespaceRequest {
                name: args.next()?,
                expected_version,
                request_id: None,
            }),
            "step" => O::NamespaceStep(NamespaceStep {
                version: args.key("version", 0)?,
                remove: args.key("remove", false)?,
                namespace: args.next()?,
            }),
            "policy" => O::SetNamespacePolicy(api::SetNamespacePolicyRequest {
                unknown: policy_of(&args.next::<String>()?).into(),
                expected_version,
                request_id: None,
            }),
            _ => O::CreateQueue(CreateQueueRequest {
                namespace: args.next()?,
                queue: args.next()?,
                partitions: 1,
                request_id: None,
                fence: None,
            }),
        };
        let id = (!id.is_empty()).then(|| request_id(&id));
        Ok(show(&self.meta.apply(vec![command(SYSTEM_SLOT, 1, id, operation)])))
    }

    /// Tells the data shard what the meta shard says now, or as an older version.
    fn tell(&mut self, name: &str, args: &mut Args<'_>) -> Result<String, Box<dyn Error>> {
        let older = args.key("version", 0)?;
        let asked = decided(if name == "tell" { "get" } else { "get_policy" }, args)?;
        let QueryOutcome::Answered(said) = self.meta.query(SYSTEM_SLOT, 1, asked).1 else {
            return Err("the meta shard answers at once".into());
        };
        let (slot, operation) = match said.answer.expect("an answer says something") {
            answer::Answer::GetNamespace(api::GetNamespaceResponse { namespace, .. }) => {
                let it = namespace.expect("it is shown");
                let elsewhere = args.key("elsewhere", false)?;
                let slot = of_locks(&it.name);
                let settings = it.settings.filter(|_| !it.deleting);
                let version = if older > 0 { older } else { it.version };
                let configure = ConfigureNamespace { namespace: it.name, version, settings };
                (slot ^ u16::from(elsewhere), O::ConfigureNamespace(configure))
            }
            answer::Answer::GetNamespacePolicy(policy) => {
                let version = if older > 0 { older } else { policy.version };
                let configure = ConfigureNamespacePolicy { version, unknown: policy.unknown };
                (1, O::ConfigureNamespacePolicy(configure))
            }
            answer::Answer::Refusal(refusal) => return Ok(show_answer(&refusal.into()) + "\n"),
            other => return Err(format!("not an answer to that: {other:?}").into()),
        };
        Ok(show(&self.data.apply(vec![command(slot, 1, None, operation)])))
    }

    /// What clients do in a namespace.
    fn use_it(&mut self, name: &str, args: &mut Args<'_>) -> Result<String, Box<dyn Error>> {
        let namespace: String = args.next()?;
        let slot = of_locks(&namespace);
        let (slot, operation) = match name {
            "open" => {
                let (ttl_ms, lock_delay_ms) = (args.key("ttl", 60_000)?, args.key("delay", 0)?);
                let open =
                    OpenSessionRequest { namespace, ttl_ms, lock_delay_ms, ..Default::default() };
                (slot, O::OpenSession(open))
            }
            "close" => {
                let session_id = args.next()?;
                (
                    slot,
                    O::CloseSession(CloseSessionRequest {
                        namespace,
                        session_id,
                        request_id: None,
                    }),
                )
            }
            "acquire" => {
                let (session_id, wait_ms) = (args.next()?, args.key("wait", 0)?);
                let name: String = args.next()?;
                let acquire =
                    AcquireRequest { namespace, session_id, name, wait_ms, ..Default::default() };
                (slot, O::Acquire(acquire))
            }
            "put" => {
                let key: String = args.next()?;
                let value = Some(Value { kind: Some(value::Kind::Text("v".to_owned())) });
                let slot = of_cache(&namespace, &key);
                (slot, O::Put(PutRequest { namespace, key, value, ..Default::default() }))
            }
            other => return Err(format!("{other} is no command").into()),
        };
        Ok(show(&self.data.apply(vec![command(slot, 1, None, operation)])))
    }
}

/// A question to the meta shard.
fn decided(name: &str, args: &mut Args<'_>) -> Result<Q, Box<dyn Error>> {
    Ok(match name {
        "get" => Q::GetNamespace(api::GetNamespaceRequest { name: args.next()? }),
        "list" => Q::ListNamespaces(api::ListNamespacesRequest {
            prefix: args.key("prefix", String::new())?,
            page_size: args.key("size", 10)?,
            page_token: given_token(&args.key("after", String::new())?),
        }),
        "find_queue" => Q::FindQueue(FindQueue { namespace: args.next()?, queue: args.next()? }),
        _ => Q::GetNamespacePolicy(api::GetNamespacePolicyRequest {}),
    })
}

fn policy_of(word: &str) -> UnknownNamespaces {
    UnknownNamespaces::from_str_name(&format!("UNKNOWN_NAMESPACES_{}", word.to_uppercase()))
        .unwrap_or_default()
}

fn shown(outcome: &QueryOutcome) -> String {
    match outcome {
        QueryOutcome::Answered(answer) => one(answer),
        other => panic!("nobody waits for {other:?}"),
    }
}

fn show(applied: &Applied) -> String {
    let line = |outcome: &Outcome| match outcome {
        Outcome::Answered(answer) => one(answer),
        Outcome::Waiting(_) => "waits\n".to_owned(),
    };
    applied.outcomes.iter().map(line).collect()
}

fn one(answer: &Answer) -> String {
    use answer::Answer as A;
    let line = match answer.answer.as_ref().expect("an answer says something") {
        A::CreateNamespace(r) => {
            format!("{}{}", of(r.namespace.as_ref()), if r.created { "" } else { ", known before" })
        }
        A::UpdateNamespace(r) => of(r.namespace.as_ref()),
        A::GetNamespace(r) => {
            let usage = r.usage.expect("it is shown");
            format!("{}, queues {}", of(r.namespace.as_ref()), usage.queues)
        }
        A::ListNamespaces(r) => {
            let lines = r.namespaces.iter().map(|it| of(Some(it)) + "\n").collect::<String>();
            format!("{lines}next: {:?}", shown_token(&r.next_page_token))
        }
        A::SetNamespacePolicy(r) => format!("{}, version {}", r.unknown().as_str_name(), r.version),
        A::GetNamespacePolicy(r) => format!("{}, version {}", r.unknown().as_str_name(), r.version),
        A::NamespaceConfigured(r) => format!("the shard has version {}", r.version),
        A::NamespaceHere(r) => {
            let usage = r.usage.expect("this shard has the locks");
            format!(
                "version {}, policy {}, sessions {}, locks {}, waits {}",
                r.version, r.policy_version, usage.sessions, usage.locks, usage.waits
            )
        }
        _ => show_answer(answer),
    };
    line + "\n"
}

/// A namespace, and of its settings those that are set.
fn of(namespace: Option<&api::Namespace>) -> String {
    let it = namespace.expect("it is shown");
    let settings = it.settings.expect("settings are shown");
    let numbers = [
        ("sessions", settings.sessions_max),
        ("locks", settings.locks_max),
        ("waits", settings.waits_max),
        ("queues", settings.queues_max),
        ("ttl", settings.session_ttl_ms_max),
        ("delay", settings.lock_delay_ms_default),
        ("creation", u64::try_from(settings.queue_creation).expect("a small number")),
    ];
    let set = numbers.iter().filter(|(_, number)| *number > 0);
    let set = set.map(|(name, number)| format!(" {name}={number}")).collect::<String>();
    let deleting = if it.deleting { ", being removed" } else { "" };
    format!("{} version {}{set}{deleting}", it.name, it.version)
}
