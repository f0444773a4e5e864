//! A counter in the cache under one lock, by clients that are stopped while they hold it and under leaders that are killed:
//! with fences no increment is lost; without them some are, or the test would show nothing.
//!
//! The clients are processes of their own: this test binary again, told by a variable that it is one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use tokio::time::{Instant, sleep};
use trefoil_client::{Client, Error, Reason, Session};

use crate::support::{Cluster, TREFOIL, clean, pid, run as run_command};

const CLIENTS: usize = 16;
const LOCK: &str = "counter";
const KEY: &str = "counter";
const TTL: Duration = Duration::from_millis(500);
/// How long a holder is stopped: its lock is another's well before it goes on.
const STOP: Duration = Duration::from_millis(1_500);
/// Increments under one grant at most.
const TURN: u32 = 5;
/// Between a client's read and its write.
const WINDOW: Duration = Duration::from_millis(6);
const NOTHING: &str = "-";

/// What one run does.
struct Plan {
    /// The test that is run again as a client.
    test: &'static str,
    fenced: bool,
    /// Increments of all clients together at least: they go on until all faults were.
    increments: u32,
    stops: usize,
    kills: usize,
    patience: Duration,
}

/// What became of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The client died or the run ended before it was known.
    Open,
    Acknowledged,
    Refused,
    Maybe,
}

/// One try of a client: what it read, and how its write ended.
#[derive(Clone, Debug)]
struct Try {
    /// Name of the write that it read.
    after: String,
    end: End,
}

#[tokio::test]
async fn a_fenced_counter_is_exact_while_holders_stand_still_and_leaders_die() {
    let plan = Plan {
        test: "fences::a_fenced_counter_is_exact_while_holders_stand_still_and_leaders_die",
        fenced: true,
        increments: 1_600,
        stops: 8,
        kills: 2,
        patience: Duration::from_secs(180),
    };
    exact(plan).await;
}

#[tokio::test]
#[ignore = "takes minutes: run it by its name"]
async fn ten_thousand_increments_are_exact() {
    let plan = Plan {
        test: "fences::ten_thousand_increments_are_exact",
        fenced: true,
        increments: 10_000,
        stops: 60,
        kills: 6,
        patience: Duration::from_secs(1_200),
    };
    exact(plan).await;
}

#[tokio::test]
async fn the_same_counter_without_fences_loses_increments() {
    let plan = Plan {
        test: "fences::the_same_counter_without_fences_loses_increments",
        fenced: false,
        increments: 640,
        stops: 6,
        kills: 0,
        patience: Duration::from_secs(180),
    };
    let Some((tries, count, last)) = run(plan).await else { return };
    let kept = chain(&tries, &last);
    let lost = acknowledged(&tries).filter(|name| !kept.contains(*name)).count();
    eprintln!("without fences: {lost} acknowledged increments are lost; the counter is {count}");
    assert!(lost > 0, "the test is too weak: it would pass without fences");
}

#[tokio::test]
async fn the_command_line_shows_fences() {
    let cluster = Cluster::start().await;
    let acquire = |name: &str| {
        let (code, said, error) = run_command(&cluster, &["-o", "json", "lock", "acquire", name]);
        assert_eq!(code, 0, "{error}");
        let said = serde_json::from_str::<serde_json::Value>(&said).unwrap();
        let number = |field: &str| said[field].as_u64().unwrap().to_string();
        (said["session_id"].as_str().unwrap().to_owned(), number("fencing_token"))
    };
    let done = |arguments: &[&str]| {
        let (code, said, error) = run_command(&cluster, arguments);
        assert_eq!(code, 0, "{arguments:?}: {error}");
        said
    };
    let fenced = |arguments: &[&str]| {
        let (code, _, error) = run_command(&cluster, arguments);
        assert!(code == 1 && error.contains("FENCED"), "{arguments:?}: {code} {error}");
        let (lock, token) = arguments.last().unwrap().split_once(':').unwrap();
        let named = format!("lock {lock:?}");
        let shown = format!("token {token:?}");
        assert!(error.contains(&named) && error.contains(&shown), "{error}");
    };
    let (session, old) = acquire("job");
    let old = format!("job:{old}");
    done(&["cache", "put", "k", "v", "--fence", &old]);
    done(&["queue", "enqueue", "q", "m", "--key", "k", "--fence", &old]);
    done(&["lock", "release", "job", "--session", &session]);
    let (_, new) = acquire("job");
    let new = format!("job:{new}");
    done(&["cache", "get", "k", "--fence", &new]);
    done(&["queue", "enqueue", "q", "m", "--key", "k", "--fence", &new]);
    fenced(&["cache", "put", "k", "w", "--fence", &old]);
    fenced(&["cache", "get", "k", "--fence", &old]);
    fenced(&["cache", "delete", "k", "--fence", &old]);
    fenced(&["queue", "enqueue", "q", "m", "--key", "k", "--fence", &old]);
    fenced(&["queue", "dequeue", "q", "--fence", &old]);
    let taken = done(&["-o", "json", "queue", "dequeue", "q", "--fence", &new]);
    let taken = serde_json::from_str::<serde_json::Value>(&taken).unwrap();
    let lease = taken["deliveries"][0]["lease_id"].as_str().unwrap();
    fenced(&["queue", "ack", "q", lease, "--fence", &old]);
    done(&["queue", "ack", "q", lease, "--fence", &new]);
    // Under `lock run` the token is known.
    let put = format!("{TREFOIL} cache put other v --fence run");
    done(&["lock", "run", "run", "--", "sh", "-c", &put]);
    let put = format!("{TREFOIL} cache put other w --fence with");
    done(&["lock", "run", "run", "--with", "with", "--", "sh", "-c", &put]);
    let (code, _, error) = run_command(&cluster, &["cache", "get", "k", "--fence", "job"]);
    assert!(code == 64 && error.contains("LOCK:TOKEN"), "{code} {error}");
}

async fn exact(plan: Plan) {
    let (increments, stops) = (plan.increments, plan.stops);
    let Some((tries, count, last)) = run(plan).await else { return };
    let kept = chain(&tries, &last);
    let acked = acknowledged(&tries).collect::<BTreeSet<_>>();
    let ended = |end| tries.values().filter(|one| one.end == end).count();
    eprintln!(
        "with fences: {} acknowledged, {} refused, {} not seen; the counter is {count}",
        acked.len(),
        ended(End::Refused),
        ended(End::Maybe)
    );
    assert!(acked.len() as u64 >= u64::from(increments));
    // A leader that dies meanwhile may keep a stopped holder's session alive.
    assert!(2 * ended(End::Refused) >= stops, "who was stopped was late, or nothing was shown");
    for name in &acked {
        assert!(kept.contains(*name), "{name} was acknowledged and is lost");
    }
    for name in &kept {
        let end = tries[*name].end;
        assert!(
            matches!(end, End::Acknowledged | End::Maybe),
            "{name} took effect, and ended {end:?}"
        );
    }
    assert_eq!(kept.len() as u64, count, "each increment is counted once");
}

fn acknowledged(tries: &BTreeMap<String, Try>) -> impl Iterator<Item = &str> {
    let acked = tries.iter().filter(|(_, one)| one.end == End::Acknowledged);
    acked.map(|(name, _)| name.as_str())
}

/// The writes that the last one stands on, each having read the one before it, and the last itself.
fn chain<'a>(tries: &'a BTreeMap<String, Try>, last: &'a str) -> BTreeSet<&'a str> {
    let mut kept = BTreeSet::new();
    let mut name = last;
    while name != NOTHING {
        assert!(kept.insert(name), "a write stands on itself");
        name = &tries[name].after;
    }
    kept
}

/// Runs the clients to their end: all tries, the counter, and the name of the last write. Nothing in a client.
async fn run(plan: Plan) -> Option<(BTreeMap<String, Try>, u64, String)> {
    if let Ok(number) = std::env::var("COUNTER_CLIENT") {
        Worker::of_environment(number).work().await;
        return None;
    }
    let mut cluster = Cluster::start().await;
    let mut clients = Clients::start(&cluster, &plan);
    let client = cluster.client().await;
    let began = Instant::now();
    let (mut stops, mut kills) = (0, 0);
    while clients.any_runs() {
        assert!(began.elapsed() < plan.patience, "not within {:?}", plan.patience);
        sleep(Duration::from_millis(300)).await;
        if stops < plan.stops
            && let Some(holder) = holder(&client).await
            && clients.stop_between_read_and_write(holder).await
        {
            stops += 1;
        }
        if kills < plan.kills && stops * plan.kills > kills * plan.stops + plan.stops / 2 {
            kills += 1;
            let leader = cluster.busiest().await;
            cluster.nodes[leader].kill();
            sleep(Duration::from_secs(1)).await;
            cluster.nodes[leader].start();
        }
        if (stops, kills) == (plan.stops, plan.kills) {
            File::create(over(cluster.dir())).unwrap();
        }
    }
    eprintln!("{stops} holders stopped, {kills} leaders killed, {:?}", began.elapsed());
    let entry = client.cache().get(KEY).await.unwrap().expect("it was counted");
    let (count, last) = parse(entry.value.as_text().unwrap());
    Some((clients.tries(), count, last))
}

/// The file that says that there are no more faults to come: until then clients go on.
fn over(dir: &Path) -> PathBuf {
    dir.join("faults-are-over")
}

/// The number of the client that holds the lock.
async fn holder(client: &Client) -> Option<usize> {
    let lock = client.locks().describe(LOCK).await.ok()?;
    lock.holders.first()?.owner.parse().ok()
}

fn parse(value: &str) -> (u64, String) {
    let (count, name) = value.split_once(' ').expect("a count and a name");
    (count.parse().expect("a count"), name.to_owned())
}

/// The processes.
struct Clients {
    running: Vec<Child>,
    logs: Vec<PathBuf>,
}

impl Clients {
    fn start(cluster: &Cluster, plan: &Plan) -> Self {
        let log = |n: usize| cluster.dir().join(format!("client-{n}"));
        let quota = plan.increments.div_ceil(u32::try_from(CLIENTS).unwrap());
        let start = |n: usize| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            clean(&mut command)
                .args(["--exact", plan.test, "--include-ignored", "--nocapture"])
                .env("COUNTER_CLIENT", n.to_string())
                .env("COUNTER_ENDPOINTS", cluster.endpoint_list())
                .env("COUNTER_FENCED", plan.fenced.to_string())
                .env("COUNTER_QUOTA", quota.to_string())
                .env("COUNTER_LOG", log(n))
                .env("COUNTER_OVER", over(cluster.dir()))
                .stdin(Stdio::null())
                .stdout(Stdio::null());
            command.spawn().unwrap()
        };
        Self { running: (0..CLIENTS).map(start).collect(), logs: (0..CLIENTS).map(log).collect() }
    }

    fn any_runs(&mut self) -> bool {
        let mut any = false;
        for client in &mut self.running {
            match client.try_wait().unwrap() {
                Some(status) => assert!(status.success(), "a client failed"),
                None => any = true,
            }
        }
        any
    }

    /// Stops a client for a while when it has read and not yet sent its write; false where it is not caught so.
    async fn stop_between_read_and_write(&self, client: usize) -> bool {
        let id = pid(self.running[client].id());
        for _ in 0..20 {
            kill_process(id, Signal::STOP).unwrap();
            // Until all its threads stand still.
            sleep(Duration::from_millis(2)).await;
            if is_between(&self.logs[client]) {
                sleep(STOP).await;
                kill_process(id, Signal::CONT).unwrap();
                return true;
            }
            kill_process(id, Signal::CONT).unwrap();
            sleep(WINDOW).await;
        }
        false
    }

    fn tries(&self) -> BTreeMap<String, Try> {
        let mut tries = BTreeMap::new();
        for log in &self.logs {
            read(log, &mut tries);
        }
        tries
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        for client in &mut self.running {
            client.kill().ok();
            client.wait().ok();
        }
    }
}

/// Whether a client has read and not yet sent its write.
fn is_between(log: &Path) -> bool {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().next_back().is_some_and(|line| line.starts_with("try "))
}

fn read(log: &Path, tries: &mut BTreeMap<String, Try>) {
    for line in fs::read_to_string(log).unwrap().lines() {
        let (word, rest) = line.split_once(' ').expect("a word and a name");
        let end = match word {
            "try" => {
                let (name, after) = rest.split_once(' ').expect("two names");
                let one = Try { after: after.to_owned(), end: End::Open };
                assert!(tries.insert(name.to_owned(), one).is_none(), "{name} is tried once");
                continue;
            }
            "sent" => continue,
            "acknowledged" => End::Acknowledged,
            "refused" => End::Refused,
            _ => End::Maybe,
        };
        tries.get_mut(rest).expect("it was tried").end = end;
    }
}

/// One client, in a process of its own.
struct Worker {
    number: String,
    endpoints: Vec<String>,
    fenced: bool,
    quota: u32,
    log: File,
    over: PathBuf,
    tries: u32,
    done: u32,
}

impl Worker {
    fn of_environment(number: String) -> Self {
        let variable = |name: &str| std::env::var(format!("COUNTER_{name}")).unwrap();
        Self {
            number,
            endpoints: variable("ENDPOINTS").split(',').map(str::to_owned).collect(),
            fenced: variable("FENCED").parse().unwrap(),
            quota: variable("QUOTA").parse().unwrap(),
            log: File::options().create(true).append(true).open(variable("LOG")).unwrap(),
            over: variable("OVER").into(),
            tries: 0,
            done: 0,
        }
    }

    fn goes_on(&self) -> bool {
        self.done < self.quota || !self.over.exists()
    }

    async fn work(mut self) {
        let client = Client::builder(self.endpoints.clone()).build().unwrap();
        while self.goes_on() {
            let session = client.session(TTL).owner(self.number.clone()).await;
            let Ok(session) = session else { continue };
            while self.goes_on() && self.turn(&client, &session).await.is_ok() {}
            session.close().await.ok();
        }
    }

    /// Some increments under one grant; an error where the session is of no more use.
    async fn turn(&mut self, client: &Client, session: &Session) -> Result<(), Error> {
        let lock = session.lock(LOCK).wait(Duration::from_secs(10));
        let Some(guard) = lock.acquire().await? else { return Ok(()) };
        let cache = client.cache();
        let cache = if self.fenced { cache.with_fence(&guard) } else { cache };
        for _ in 0..TURN {
            if !self.goes_on() {
                break;
            }
            let before = cache.get(KEY).await?;
            let (count, after) = before.map_or_else(
                || (0, NOTHING.to_owned()),
                |entry| parse(entry.value.as_text().unwrap()),
            );
            self.tries += 1;
            let name = format!("{}:{}", self.number, self.tries);
            writeln!(self.log, "try {name} {after}").unwrap();
            // It does not look whether it still holds the lock: that could change right after.
            sleep(WINDOW).await;
            writeln!(self.log, "sent {name}").unwrap();
            let end = cache.put(KEY, format!("{} {name}", count + 1)).await;
            let word = match &end {
                Ok(_) => "acknowledged",
                Err(error) if error.has_no_side_effects() => "refused",
                Err(_) => "maybe",
            };
            writeln!(self.log, "{word} {name}").unwrap();
            if let Err(Error::Refused { reason: Reason::Fenced, metadata, .. }) = &end {
                assert_eq!(metadata["token"], guard.token().to_string());
            }
            end?;
            self.done += 1;
        }
        guard.release().await
    }
}
