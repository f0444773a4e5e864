//! Scripts of queues, and what a script cannot say in few lines: batches at their limits.

#[path = "support/arguments.rs"]
mod arguments;
#[path = "support/books.rs"]
mod books;
mod support;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use arguments::Args;
use goldenscript::Context;
use support::{Harness, WALL_MS, checked_fence, command, request_id, show_answer};
use trefoil_core::key::{Key, Kind};
use trefoil_core::lease::LeaseId;
use trefoil_core::limits::{
    BATCH_BYTES_MAX, BATCH_ITEMS_MAX, PARTITIONS_MAX, TIMERS_PER_ENTRY_MAX, VALUE_BYTES_MAX,
};
use trefoil_core::machine::{Applied, Outcome, QueryOutcome};
use trefoil_core::slot::{SYSTEM_SLOT, of_partition};
use trefoil_core::store::decode;
use trefoil_proto::common::v1::{Reason, Value, value};
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{
    AckLease, Answer, AwaitReady, Command, DequeueFrom, EnqueueTo, FindQueue, Lease, OpenPartition,
    ReturnLeases, answer, query,
};
use trefoil_proto::queue::v1::{CreateQueueRequest, Delivery, DequeueResponse, Message};

test_each_file::test_each_path! { in "./core/tests/scripts/queue" as scripts => run_script }

fn run_script(path: &Path) {
    let leases = Leases::default();
    goldenscript::run(&mut Runner { meta: Harness::new(0), data: Harness::new(1), leases }, path)
        .expect("a script that reads");
}

/// Every lease that was granted. Scripts name them by partition, sequence and a number that counts the leases of the message
/// from 1; a lease that was never granted has a secret of its own.
#[derive(Default)]
struct Leases(BTreeMap<(u64, u32, u64), Vec<u64>>);

impl Leases {
    fn name(&mut self, id: LeaseId) -> String {
        let LeaseId { queue_id, partition, sequence, secret } = id;
        let known = self.0.entry((queue_id, partition, sequence)).or_default();
        let place = known.iter().position(|known| *known == secret).unwrap_or_else(|| {
            known.push(secret);
            known.len() - 1
        });
        format!("{partition}-{sequence}-{}", place + 1)
    }

    fn find(&self, queue_id: u64, name: &str) -> Result<AckLease, Box<dyn Error>> {
        let parts = name.split('-').map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        let [partition, sequence, number] = parts[..] else { return Err("no lease".into()) };
        let partition = u32::try_from(partition)?;
        let known = self.0.get(&(queue_id, partition, sequence)).map_or(&[][..], Vec::as_slice);
        let place = usize::try_from(number)?.checked_sub(1);
        let secret = place.and_then(|place| known.get(place)).copied().unwrap_or(0xbad);
        Ok(AckLease { queue_id, partition, sequence, secret })
    }
}

/// The catalogue and one data shard, which holds every partition.
struct Runner {
    meta: Harness,
    data: Harness,
    leases: Leases,
}

impl Args<'_> {
    fn rest<T: std::str::FromStr<Err: Error + 'static>>(
        &mut self,
    ) -> Result<Vec<T>, Box<dyn Error>> {
        let rest = std::iter::from_fn(|| self.0.next_pos());
        rest.map(|text| text.parse().map_err(Into::into)).collect()
    }

    /// Leases of one queue, to be given to another where `of` says which queue they are of.
    fn leases(&mut self, known: &Leases, queue_id: u64) -> Result<Vec<AckLease>, Box<dyn Error>> {
        let of = self.key("of", queue_id)?;
        let names = self.rest::<String>()?;
        let lease = |name: &String| Ok(AckLease { queue_id, ..known.find(of, name)? });
        names.iter().map(lease).collect()
    }

    fn messages(&mut self) -> Result<Vec<Message>, Box<dyn Error>> {
        let key = self.key("key", String::new())?;
        let values = self.rest::<String>()?;
        let mut headers = BTreeMap::new();
        while let Some((name, value)) = self.0.next_key() {
            headers.insert(name.to_owned(), value.to_owned());
        }
        let message = |text: &String| Message {
            key: key.clone(),
            value: text_value(text),
            headers: headers.clone(),
        };
        Ok(values.iter().map(message).collect())
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
        let output = match command.name.as_str() {
            "create" | "find" => self.catalogue(&command.name, &mut args)?,
            "await" => self.poll(&mut args)?,
            "cancel" => {
                self.data.machine.cancel(args.next()?);
                String::new()
            }
            "advance" => show(&self.data.advance(args.next()?), &mut self.leases),
            "term" => {
                let ended = self.data.machine.step_down();
                let begun = show(&self.data.new_term(), &mut self.leases);
                format!("polls that end with it: {ended:?}\n{begun}")
            }
            "reopen" => {
                self.data.reopen();
                String::new()
            }
            "backlog" => format!("{}\n", self.data.machine.progress().queue_backlog),
            "records" => format!(
                "meta\n{}data\n{}",
                books::dump(&self.meta.store),
                books::dump(&self.data.store)
            ),
            name @ ("asks" | "tried" | "recalled") => {
                self.data.request_line(name, &args.rest()?).ok_or("numbers")?
            }
            _ => self.partition(&command.name, &mut args)?,
        };
        args.0.reject_next()?;
        Ok(output)
    }

    fn end_command(
        &mut self,
        _: &goldenscript::Command,
        _: &Context,
    ) -> Result<String, Box<dyn Error>> {
        assert_eq!(
            books::check_queues(&self.data.store),
            self.data.machine.progress().queue_backlog
        );
        Ok(String::new())
    }
}

impl Runner {
    fn catalogue(&mut self, name: &str, args: &mut Args<'_>) -> Result<String, Box<dyn Error>> {
        let namespace = args.key("namespace", "default".to_owned())?;
        let slot = args.key("slot", SYSTEM_SLOT)?;
        let queue = args.next::<String>()?;
        if name == "find" {
            let (_, found) =
                self.meta.query(slot, 1, query::Query::FindQueue(FindQueue { namespace, queue }));
            return Ok(show_query(&found));
        }
        let partitions = args.key("partitions", 2)?;
        let fence = args.0.take_key("fence").map(checked_fence);
        let request =
            CreateQueueRequest { namespace, queue, partitions, request_id: None, fence: None };
        let command = command(slot, 1, None, Operation::CreateQueue(request));
        Ok(apply(&mut self.meta, &mut self.leases, Command { fence, ..command }))
    }

    fn partition(&mut self, name: &str, args: &mut Args<'_>) -> Result<String, Box<dyn Error>> {
        let queue_id = args.key("queue", 1)?;
        let catalogue_version = args.key("version", 1)?;
        let id = args.0.take_key("id").map(request_id);
        let slot = args.0.take_key("slot").map(str::parse).transpose()?;
        let fence = args.0.take_key("fence").map(checked_fence);
        let (partition, operation) = match name {
            "open" => {
                let partition = args.next()?;
                (
                    partition,
                    Operation::OpenPartition(OpenPartition {
                        queue_id,
                        partition,
                        catalogue_version,
                    }),
                )
            }
            "enqueue" => {
                let partition = args.next()?;
                let messages = args.messages()?;
                (
                    partition,
                    Operation::EnqueueTo(EnqueueTo {
                        queue_id,
                        partition,
                        catalogue_version,
                        messages,
                    }),
                )
            }
            "dequeue" => {
                let (max_messages, lease_ms) = (args.key("max", 1)?, args.key("lease", 1_000)?);
                let partitions = args.rest()?;
                let first = partitions.first().copied().unwrap_or_default();
                let request =
                    DequeueFrom { queue_id, partitions, max_messages, lease_ms, catalogue_version };
                (first, Operation::DequeueFrom(request))
            }
            "ack" => {
                let lease = args.leases(&self.leases, queue_id)?.pop().ok_or("no lease")?;
                (lease.partition, Operation::AckLease(lease))
            }
            "return" => {
                let leases = args.leases(&self.leases, queue_id)?;
                let first = leases.first().ok_or("no lease")?.partition;
                (first, Operation::ReturnLeases(ReturnLeases { queue_id, leases }))
            }
            _ => return Err(format!("no command {name}").into()),
        };
        let slot = slot.unwrap_or_else(|| of_partition(queue_id, partition, 1));
        Ok(apply(
            &mut self.data,
            &mut self.leases,
            Command { fence, ..command(slot, 1, id, operation) },
        ))
    }

    fn poll(&mut self, args: &mut Args<'_>) -> Result<String, Box<dyn Error>> {
        let (queue_id, wait) = (args.key("queue", 1)?, args.key("wait", true)?);
        let partitions = args.rest()?;
        let slot = of_partition(queue_id, 0, 1);
        let request = AwaitReady { queue_id, partitions, wait };
        let (call, outcome) = self.data.query(slot, 1, query::Query::AwaitReady(request));
        Ok(format!("poll {call} {}", show_query(&outcome)))
    }
}

/// Applies one command; a refused one must change nothing.
fn apply(harness: &mut Harness, leases: &mut Leases, command: Command) -> String {
    let before = books::without_progress(&harness.store);
    let remembers = command.request_id.is_some();
    let applied = harness.apply(vec![command]);
    if !remembers && refusal(&applied.outcomes[0]).is_some() {
        assert_eq!(
            before,
            books::without_progress(&harness.store),
            "a refused command changes nothing"
        );
    }
    show(&applied, leases)
}

fn refusal(outcome: &Outcome) -> Option<Reason> {
    match outcome {
        Outcome::Answered(Answer { answer: Some(answer::Answer::Refusal(refusal)) }) => {
            Some(refusal.reason())
        }
        _ => None,
    }
}

fn dequeued(outcome: &Outcome) -> Option<&DequeueResponse> {
    match outcome {
        Outcome::Answered(Answer { answer: Some(answer::Answer::Dequeue(response)) }) => {
            Some(response)
        }
        _ => None,
    }
}

fn deliveries(outcome: &Outcome) -> Option<&[Delivery]> {
    dequeued(outcome).map(|response| &response.deliveries[..])
}

/// All that an entry said: deliveries one line each, then polls, then what was counted.
fn show(applied: &Applied, leases: &mut Leases) -> String {
    let mut text = String::new();
    for outcome in &applied.outcomes {
        match (dequeued(outcome), outcome) {
            (Some(response), _) => {
                let deliveries = response.deliveries.iter();
                text.extend(deliveries.map(|delivery| show_delivery(delivery, leases)));
                if response.leases_over > 0 {
                    writeln!(text, "leases that are over: {}", response.leases_over)
                        .expect("text grows");
                } else if response.deliveries.is_empty() {
                    text.push_str("nothing to deliver\n");
                }
            }
            (None, Outcome::Answered(answer)) => {
                writeln!(text, "{}", show_answer(answer)).expect("text grows")
            }
            (None, Outcome::Waiting(_)) => unreachable!("queues leave no waiter behind"),
        }
    }
    for (call, answer) in &applied.polls {
        writeln!(text, "poll {call} {}", show_answer(answer)).expect("text grows");
    }
    if applied.counts.leases_expired > 0 {
        writeln!(text, "leases that ran out: {}", applied.counts.leases_expired)
            .expect("text grows");
    }
    text
}

fn show_delivery(delivery: &Delivery, leases: &mut Leases) -> String {
    let Some(value::Kind::Text(text)) =
        delivery.value.as_ref().and_then(|value| value.kind.as_ref())
    else {
        panic!("scripts enqueue text")
    };
    let lease = leases.name(delivery.lease_id.parse().expect("a lease id"));
    let mut line = format!("{text}: message {} lease {lease}", delivery.message_id);
    write!(line, " delivery {} for {} ms", delivery.delivery_count, delivery.lease_ms)
        .expect("text grows");
    write!(line, ", enqueued at {}", delivery.enqueued_at_ms).expect("text grows");
    if !delivery.key.is_empty() {
        write!(line, ", key {}", delivery.key).expect("text grows");
    }
    delivery
        .headers
        .iter()
        .for_each(|(name, value)| write!(line, ", {name}={value}").expect("text grows"));
    line + "\n"
}

fn show_query(outcome: &QueryOutcome) -> String {
    match outcome {
        QueryOutcome::Answered(answer) => format!("{}\n", show_answer(answer)),
        QueryOutcome::Due(ms) => format!("due at {ms}\n"),
        QueryOutcome::Parked => "waits\n".to_owned(),
    }
}

fn text_value(text: &str) -> Option<Value> {
    Some(Value { kind: Some(value::Kind::Text(text.to_owned())) })
}

/// A shard with one open partition and messages of these sizes.
fn with_messages(sizes: &[usize]) -> Harness {
    let mut harness = Harness::new(1);
    let open = OpenPartition { queue_id: 1, partition: 0, catalogue_version: 1 };
    send(&mut harness, Operation::OpenPartition(open));
    for sizes in sizes.chunks(BATCH_ITEMS_MAX) {
        let message =
            |size: &usize| Message { value: text_value(&"x".repeat(*size)), ..Message::default() };
        assert_eq!(
            refusal(&send(&mut harness, enqueue(sizes.iter().map(message).collect()))),
            None
        );
    }
    harness
}

fn send(harness: &mut Harness, operation: Operation) -> Outcome {
    let applied = harness.apply(vec![command(of_partition(1, 0, 1), 1, None, operation)]);
    assert_eq!(books::check_queues(&harness.store), applied.queue_backlog);
    applied.outcomes[0].clone()
}

fn enqueue(messages: Vec<Message>) -> Operation {
    Operation::EnqueueTo(EnqueueTo { queue_id: 1, partition: 0, catalogue_version: 1, messages })
}

fn dequeue(partitions: Vec<u32>, max_messages: u32) -> Operation {
    Operation::DequeueFrom(DequeueFrom {
        queue_id: 1,
        partitions,
        max_messages,
        lease_ms: 100,
        catalogue_version: 1,
    })
}

/// Settles a message by the lease that it has, or by one that it never had.
fn ack(harness: &Harness, sequence: u64) -> Operation {
    let key = Key::new(of_partition(1, 0, 1), Kind::Lease).u64(1).u32(0).u64(sequence);
    let lease = harness.store.records.get(key.bytes()).map(|value| decode::<Lease>(value));
    let secret = lease.unwrap_or_default().secret;
    Operation::AckLease(AckLease { queue_id: 1, partition: 0, sequence, secret })
}

fn taken(harness: &mut Harness, max_messages: u32) -> usize {
    deliveries(&send(harness, dequeue(vec![0], max_messages))).expect("a dequeue is answered").len()
}

#[test]
fn a_dequeue_touches_at_most_a_thousand_keys() {
    let mut harness = with_messages(&[1; 600]);
    let sizes =
        std::iter::from_fn(|| Some(taken(&mut harness, u32::MAX))).take_while(|taken| *taken > 0);
    assert_eq!(sizes.collect::<Vec<_>>(), [250, 250, 100]);
}

#[test]
fn a_dequeue_takes_one_mebibyte_and_at_least_one_message() {
    let mut harness = with_messages(&[
        VALUE_BYTES_MAX,
        VALUE_BYTES_MAX,
        BATCH_BYTES_MAX / 2,
        BATCH_BYTES_MAX / 4,
        1,
    ]);
    assert_eq!(
        [taken(&mut harness, 10), taken(&mut harness, 10), taken(&mut harness, 10)],
        [1, 1, 3]
    );
}

#[test]
fn a_full_batch_keeps_the_order_of_partitions() {
    let mut harness = with_messages(&[VALUE_BYTES_MAX, VALUE_BYTES_MAX]);
    let open = OpenPartition { queue_id: 1, partition: 1, catalogue_version: 1 };
    harness.apply(vec![command(of_partition(1, 1, 1), 1, None, Operation::OpenPartition(open))]);
    let messages = vec![Message { value: text_value("small"), ..Message::default() }];
    let small = EnqueueTo { queue_id: 1, partition: 1, catalogue_version: 1, messages };
    harness.apply(vec![command(of_partition(1, 1, 1), 1, None, Operation::EnqueueTo(small))]);
    let outcome = send(&mut harness, dequeue(vec![0, 1], 10));
    let ids = deliveries(&outcome)
        .unwrap()
        .iter()
        .map(|delivery| &delivery.message_id[..])
        .collect::<Vec<_>>();
    assert_eq!(ids, ["1-0-1"], "what is full does not look for something smaller further on");
}

#[test]
fn a_message_tells_log_time_and_wall_time_of_its_entry() {
    let mut harness = with_messages(&[1]);
    let stored_ms = harness.now_ms;
    harness.now_ms += 5_000;
    let outcome = send(&mut harness, dequeue(vec![0], 1));
    let delivery = &deliveries(&outcome).unwrap()[0];
    assert_eq!(delivery.enqueued_at_ms, stored_ms);
    assert_eq!(delivery.enqueued_at_unix_ms, WALL_MS + stored_ms);
}

#[test]
fn a_deadline_counts_before_its_timer_fires() {
    let count = TIMERS_PER_ENTRY_MAX + 10;
    let mut harness = with_messages(&vec![1; count]);
    while taken(&mut harness, 1_000) > 0 {}
    let last = u64::try_from(count).unwrap();

    harness.now_ms += 100;
    let ack = ack(&harness, last);
    let fired = send(&mut harness, ack.clone());
    assert_eq!(
        refusal(&fired),
        Some(Reason::StaleLease),
        "its timer has not fired, and yet the lease ran out"
    );
    assert_eq!(refusal(&send(&mut harness, ack)), Some(Reason::StaleLease), "now it has");
    assert_eq!(harness.machine.progress().queue_backlog, last);
}

#[test]
fn more_than_a_batch_is_refused() {
    let mut harness = with_messages(&[]);
    let messages =
        vec![Message { value: text_value("x"), ..Message::default() }; BATCH_ITEMS_MAX + 1];
    assert_eq!(refusal(&send(&mut harness, enqueue(messages))), Some(Reason::InvalidField));

    let partitions = (0..=PARTITIONS_MAX).collect::<Vec<_>>();
    assert_eq!(
        refusal(&send(&mut harness, dequeue(partitions.clone(), 1))),
        Some(Reason::InvalidField)
    );
    let request = AwaitReady { queue_id: 1, partitions, wait: true };
    let (_, outcome) = harness.query(0, 1, query::Query::AwaitReady(request));
    let QueryOutcome::Answered(answer) = outcome else { panic!("it may not wait") };
    assert_eq!(refusal(&Outcome::Answered(answer)), Some(Reason::InvalidField));

    let lease = AckLease { queue_id: 1, partition: 0, sequence: 1, secret: 1 };
    let leases = Operation::ReturnLeases(ReturnLeases {
        queue_id: 1,
        leases: vec![lease; BATCH_ITEMS_MAX + 1],
    });
    assert_eq!(refusal(&send(&mut harness, leases)), Some(Reason::InvalidField));
}

#[test]
fn partitions_of_another_shard_are_refused() {
    let mut harness = with_messages(&[1]);
    harness.open(1, 2);
    let partitions = (0..8).collect::<Vec<_>>();
    let shard = |partition: &u32| trefoil_core::slot::shard(of_partition(1, *partition, 2), 2);
    let (own, others) =
        partitions.iter().copied().partition::<Vec<_>, _>(|partition| shard(partition) == 1);
    assert!(!own.is_empty() && !others.is_empty());
    let slot = of_partition(1, own[0], 2);
    let mut ask = |operation| {
        let applied = harness.apply(vec![command(slot, 1, None, operation)]);
        refusal(&applied.outcomes[0])
    };
    assert_eq!(ask(dequeue(own.clone(), 1)), None);
    assert_eq!(ask(dequeue(partitions, 1)), Some(Reason::StaleMap));
    let lease = AckLease { queue_id: 1, partition: others[0], sequence: 1, secret: 1 };
    assert_eq!(ask(Operation::AckLease(lease)), Some(Reason::StaleMap));
    assert_eq!(
        ask(Operation::ReturnLeases(ReturnLeases { queue_id: 1, leases: vec![lease] })),
        Some(Reason::StaleMap)
    );

    let request = AwaitReady { queue_id: 1, partitions: others, wait: true };
    let (_, outcome) = harness.query(slot, 1, query::Query::AwaitReady(request));
    let QueryOutcome::Answered(answer) = outcome else { panic!("it may not wait") };
    assert_eq!(refusal(&Outcome::Answered(answer)), Some(Reason::StaleMap));
}

#[test]
fn a_lease_of_any_length_is_no_overflow() {
    let mut harness = with_messages(&[1, 1]);
    let request = |lease_ms| DequeueFrom {
        queue_id: 1,
        partitions: vec![0],
        max_messages: 1,
        lease_ms,
        catalogue_version: 1,
    };
    assert_eq!(refusal(&send(&mut harness, Operation::DequeueFrom(request(u64::MAX)))), None);
    assert_eq!(refusal(&send(&mut harness, Operation::DequeueFrom(request(0)))), None);
    for (sequence, refused) in [(1, None), (2, Some(Reason::StaleLease))] {
        let ack = ack(&harness, sequence);
        assert_eq!(refusal(&send(&mut harness, ack)), refused);
    }
}
