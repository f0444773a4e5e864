//! What many commands take from the command line.

use std::time::Duration;

use clap::Args;

use trefoil_client::{Cache, Client, Fence, OpenSession, Queue};

/// How commands reach a cluster.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Client options")]
pub(crate) struct ClientArgs {
    /// Nodes to ask, separated by commas; one that answers is enough.
    #[arg(
        long,
        global = true,
        env = "TREFOIL_ENDPOINTS",
        value_name = "URLS",
        value_delimiter = ','
    )]
    #[arg(default_value = "http://127.0.0.1:7001", value_parser = endpoint)]
    pub(crate) endpoints: Vec<String>,
    /// Namespace of locks, queues and keys.
    #[arg(
        long,
        global = true,
        env = "TREFOIL_NAMESPACE",
        value_name = "NAME",
        default_value = "default"
    )]
    pub(crate) namespace: String,
    /// Time for each call with all its retries, a wait apart: a number with ms, s, m or h.
    #[arg(long, global = true, env = "TREFOIL_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub(crate) timeout: Duration,
}

/// How a command waits for what it then leaves held under a session of its own.
#[derive(Debug, Args)]
pub(crate) struct HoldArgs {
    /// How long it stays held, 100 ms to 24 h.
    #[arg(long, env = "TREFOIL_LOCK_TTL", value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub(crate) ttl: Duration,
    /// How long to wait for it.
    #[arg(long, env = "TREFOIL_LOCK_WAIT", value_name = "TIME", default_value = "0s", value_parser = duration)]
    pub(crate) wait: Duration,
    /// Who this is, for operators; left out, the command.
    #[arg(long, env = "TREFOIL_LOCK_OWNER", value_name = "NAME")]
    owner: Option<String>,
}

impl HoldArgs {
    /// Who it is when a command runs it.
    pub(crate) fn owner(self, command: &str) -> String {
        self.owner.unwrap_or_else(|| command.to_owned())
    }

    /// The session of a command.
    pub(crate) fn open(self, client: &Client, command: &str) -> OpenSession {
        client.session(self.ttl).owner(self.owner(command))
    }
}

/// Under which grant of a lock a command acts.
#[derive(Clone, Debug, Args)]
pub(crate) struct FenceArgs {
    /// Lock and fencing token of a grant: refused once a newer holder has used the same data. A lock that `trefoil lock run`
    /// holds round this command needs no token: it is in TREFOIL_LOCKS.
    #[arg(long, env = "TREFOIL_FENCE", value_name = "LOCK:TOKEN", value_parser = fence)]
    fence: Option<Fence>,
}

impl FenceArgs {
    pub(crate) fn cache(&self, cache: Cache) -> Cache {
        match &self.fence {
            Some(fence) => cache.with_fence(fence.clone()),
            None => cache,
        }
    }

    pub(crate) fn queue(&self, queue: Queue) -> Queue {
        match &self.fence {
            Some(fence) => queue.with_fence(fence.clone()),
            None => queue,
        }
    }
}

/// A lock of `trefoil lock run`, whatever its name has in it; else a lock with a token behind its last colon.
fn fence(text: &str) -> Result<Fence, String> {
    fence_of(text, &std::env::var("TREFOIL_LOCKS").unwrap_or_default())
}

/// `held` has a line for each lock, with its token behind the last colon.
fn fence_of(text: &str, held: &str) -> Result<Fence, String> {
    let lock_and_token = |text: &str| {
        let (lock, token) = text.rsplit_once(':')?;
        Some((lock.to_owned(), token.parse::<u64>().ok()?))
    };
    let held = held.lines().filter_map(lock_and_token).collect::<Vec<_>>();
    let of_run = held.iter().find(|(lock, _)| lock == text).cloned();
    let (lock, token) = of_run.or_else(|| lock_and_token(text)).ok_or_else(|| {
        let names = held.iter().map(|(lock, _)| format!("{lock:?}")).collect::<Vec<_>>();
        let held = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        format!("{text:?} must be LOCK:TOKEN, or a lock that `trefoil lock run` holds here: {held}")
    })?;
    Ok(Fence::new("", lock, token))
}

/// A time such as 250ms, 10s, 5m or 1h.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} must be a whole number followed by ms, s, m or h");
    let unit = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let number = text[..unit].parse::<u64>().map_err(|_| wrong())?;
    let factor = match &text[unit..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).map(Duration::from_millis).ok_or_else(wrong)
}

/// A key and a value with = between them.
pub(crate) fn entry(text: &str) -> Result<(String, String), String> {
    let entry = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let (key, value) = entry.ok_or_else(|| format!("{text:?} must be KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// A URL; the scheme may be left out.
fn endpoint(text: &str) -> Result<String, String> {
    trefoil_client::endpoint_url(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in
            ["", "5", "s", "-1s", "1.5s", "1d", "99999999999999999999h", "18446744073709551615h"]
        {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn entries_have_a_key() {
        assert_eq!(entry("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(entry("a="), Ok(("a".to_owned(), String::new())));
        assert!(entry("=b").is_err() && entry("a").is_err());
    }

    #[test]
    fn a_fence_is_of_a_lock_that_is_held_here_or_has_its_token() {
        let held = "job:9\na:b:8\nx:7:6";
        for (text, lock, token) in [
            ("job", "job", 9),
            ("a:b", "a:b", 8),
            // The name of a lock, and not another lock with a token.
            ("x:7", "x:7", 6),
            ("job:7", "job", 7),
            ("other:b:5", "other:b", 5),
        ] {
            assert_eq!(fence_of(text, held), Ok(Fence::new("", lock, token)), "{text}");
        }
        for wrong in ["jo", "b", "", "a:c"] {
            let why = fence_of(wrong, held).unwrap_err();
            assert!(why.contains(r#""job", "a:b", "x:7""#), "{why}");
        }
        assert!(fence_of("job", "").unwrap_err().ends_with("here: none"));
    }

    #[test]
    fn endpoints_may_leave_out_the_scheme() {
        assert_eq!(endpoint("localhost:7001").as_deref(), Ok("http://localhost:7001"));
        assert_eq!(endpoint("http://[::1]:7001").as_deref(), Ok("http://[::1]:7001"));
        for wrong in ["", "https://h:1", "http://", "h:1/path", "http://127.0.0.1:99999"] {
            assert!(endpoint(wrong).is_err(), "{wrong}");
        }
    }
}
