//! Several locks at once, for `trefoil lock acquire` and `trefoil lock run`.

use std::convert::Infallible;
use std::time::Duration;

use clap::{Args, ValueEnum as _};
use serde::Serialize;
use tokio::time::sleep;
use trefoil_client::proto::lock::v1::DescribeLockResponse;
use trefoil_client::{Client, Error, Guard, Guards, Session, WaitPlace};

use crate::args::{ClientArgs, duration, entry};
use crate::exit::CommandFailure;
use crate::mode::{Mode, mode_name};
use crate::output::{self, CommandOutput};
use crate::session::{Signals, Waited, wait_under};

/// Nobody waits longer without a word.
const TELL_AFTER: Duration = Duration::from_secs(1);

/// What is wanted, whatever becomes of it.
#[derive(Debug, Args)]
pub(crate) struct WishArgs {
    /// The lock, 1 to 255 bytes.
    pub(crate) name: String,
    /// Another lock to acquire together with it, all or none, in a mode of its own or that of --mode; may be given up to 7 times.
    #[arg(long, env = "TREFOIL_LOCK_WITH", value_name = "NAME[:MODE]", value_parser = with)]
    pub(crate) with: Vec<With>,
    /// Together with whom.
    #[arg(
        long,
        env = "TREFOIL_LOCK_MODE",
        value_name = "MODE",
        value_enum,
        default_value = "exclusive"
    )]
    pub(crate) mode: Mode,
    /// For how long nobody gets it after it was lost, at most 60s.
    #[arg(long, env = "TREFOIL_LOCK_DELAY", value_name = "TIME", default_value = "0s", value_parser = duration)]
    pub(crate) lock_delay: Duration,
    /// Say on standard error how many stand before this call while it waits.
    #[arg(long, env = "TREFOIL_LOCK_PROGRESS")]
    pub(crate) progress: bool,
    /// A fact about this session for operators; may be given up to 16 times.
    #[arg(
        long,
        env = "TREFOIL_LOCK_METADATA",
        value_name = "KEY=VALUE",
        value_delimiter = ',',
        value_parser = entry
    )]
    pub(crate) metadata: Vec<(String, String)>,
}

/// One lock, or several, and how long to wait for them.
pub(crate) struct WantedLocks {
    pub(crate) name: String,
    pub(crate) mode: Mode,
    pub(crate) with: Vec<With>,
    pub(crate) wait: Duration,
}

/// Another lock to acquire together with one.
#[derive(Clone, Debug)]
pub(crate) struct With {
    name: String,
    /// None is that of the first lock.
    mode: Option<Mode>,
}

/// A lock, with a mode behind its last colon. What stands there and is none belongs to the name.
pub(crate) fn with(text: &str) -> Result<With, String> {
    let (name, mode) = match text.rsplit_once(':') {
        Some((name, mode)) => (name, Mode::from_str(mode, false).ok()),
        None => (text, None),
    };
    let name = if mode.is_some() { name } else { text };
    if name.is_empty() {
        Err("NAME or NAME:MODE is wanted".to_owned())
    } else {
        Ok(With { name: name.to_owned(), mode })
    }
}

/// The session that a command holds its locks under.
pub(crate) struct SessionSettings {
    pub(crate) ttl: Duration,
    pub(crate) owner: String,
    pub(crate) lock_delay: Duration,
    pub(crate) metadata: Vec<(String, String)>,
}

impl WantedLocks {
    /// Each lock and its mode.
    fn locks(&self) -> impl Iterator<Item = (&str, Mode)> {
        let others =
            self.with.iter().map(|with| (with.name.as_str(), with.mode.unwrap_or(self.mode)));
        std::iter::once((self.name.as_str(), self.mode)).chain(others)
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        self.locks().map(|(name, _)| name).collect()
    }

    /// Opens a session and acquires all, or none, until a signal comes.
    pub(crate) async fn acquire_under(
        &self,
        holder: SessionSettings,
        args: &ClientArgs,
        signals: &mut Signals,
        progress: bool,
    ) -> Result<Waited<Guards>, CommandFailure> {
        let SessionSettings { ttl, owner, lock_delay, metadata } = holder;
        let open = |client: &Client| {
            let open = client.session(ttl).owner(owner).lock_delay(lock_delay);
            metadata.into_iter().fold(open, |open, (key, value)| open.metadata(key, value))
        };
        let acquire = async |client: &Client, session: &Session| {
            self.acquire(client, session, progress).await
        };
        wait_under(args, signals, open, acquire).await
    }

    /// Acquires all, or none, and says after a second for whom it waits.
    async fn acquire(
        &self,
        client: &Client,
        session: &Session,
        progress: bool,
    ) -> Result<Option<Guards>, CommandFailure> {
        tokio::select! {
            guards = self.guards(session, progress) => Ok(guards?),
            never = self.tell_holders(client) => match never {},
        }
    }

    async fn guards(&self, session: &Session, progress: bool) -> Result<Option<Guards>, Error> {
        if self.with.is_empty() {
            let lock = session.lock(self.name.as_str()).mode(self.mode.into()).wait(self.wait);
            let guard =
                if progress { lock.acquire_telling(tell).await } else { lock.acquire().await };
            return Ok(guard?.map(Guards::from));
        }
        let empty = session.locks(Vec::<String>::new()).wait(self.wait);
        let set = self.locks().fold(empty, |set, (name, mode)| set.and(name, mode.into()));
        if progress { set.acquire_telling(tell).await } else { set.acquire().await }
    }

    async fn tell_holders(&self, client: &Client) -> Infallible {
        sleep(TELL_AFTER).await;
        for name in self.names() {
            // Who waits hears of what is wrong from the call itself.
            if let Ok(lock) = client.locks().describe(name).await {
                output::note(&format!("trefoil: waiting for {name}, {}", standing(&lock)));
            }
        }
        std::future::pending().await
    }

    /// What the command got, or did not.
    pub(crate) fn report(&self, got: Option<(&Session, &Guards)>) -> LockSetAcquireOutput {
        let one = |(lock, mode): (&str, Mode)| {
            let guard = got.and_then(|(_, guards)| guards.get(lock));
            AcquiredLockRow {
                lock: lock.to_owned(),
                mode: mode_name(guard.map_or_else(|| mode.into(), Guard::mode)),
                fencing_token: guard.map(Guard::token),
            }
        };
        LockSetAcquireOutput {
            acquired: got.is_some(),
            session_id: got.map(|(session, _)| session.id()),
            held_for_ms: got.map(|(_, guards)| guards.remaining().as_millis()),
            locks: self.locks().map(one).collect(),
        }
    }
}

/// Says how many stand before a call.
fn tell(place: WaitPlace) {
    let more = if place.or_more { " or more" } else { "" };
    output::note(&format!("trefoil: waiting, {}{more} before this call", place.ahead));
}

/// Who has a lock that somebody waits for.
fn standing(lock: &DescribeLockResponse) -> String {
    let Some(holder) = lock.holders.first() else {
        return match lock.delayed_ms {
            0 => format!("which {} calls wait for", lock.waiter_count),
            ms => format!("which nobody gets for {ms} ms: its holder expired"),
        };
    };
    let owner = if holder.owner.is_empty() { "a holder without a name" } else { &holder.owner };
    let more = match lock.holder_count {
        0 | 1 => String::new(),
        holders => format!(" and {} more", holders - 1),
    };
    let since = Duration::from_millis(holder.held_ms).as_secs();
    format!("held by {owner} (session {}) for {since} s{more}", holder.session_id)
}

#[derive(Serialize)]
pub(crate) struct LockSetAcquireOutput {
    acquired: bool,
    #[serde(serialize_with = "output::some_id")]
    session_id: Option<u64>,
    held_for_ms: Option<u128>,
    locks: Vec<AcquiredLockRow>,
}

#[derive(Serialize)]
struct AcquiredLockRow {
    lock: String,
    mode: &'static str,
    fencing_token: Option<u64>,
}

impl CommandOutput for LockSetAcquireOutput {
    fn text(&self) -> String {
        let (Some(session), Some(ms)) = (self.session_id, self.held_for_ms) else {
            let names = self.locks.iter().map(|one| one.lock.as_str()).collect::<Vec<_>>();
            return format!("{} are not all free", names.join(", "));
        };
        let head =
            output::fields([("session", session.to_string()), ("held for", format!("{ms} ms"))]);
        let rows = self.locks.iter().map(|one| {
            let token = one.fencing_token.unwrap_or_default();
            vec![one.lock.clone(), one.mode.to_owned(), token.to_string()]
        });
        format!("{head}\n\n{}", output::table(&["LOCK", "MODE", "FENCING TOKEN"], &[2], rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_stands_behind_the_last_colon() {
        let parsed = |text: &str| {
            with(text).map(|with| (with.name, with.mode.map(|mode| mode_name(mode.into()))))
        };
        assert_eq!(parsed("b"), Ok(("b".to_owned(), None)));
        assert_eq!(parsed("b:shared"), Ok(("b".to_owned(), Some("shared"))));
        assert_eq!(parsed("b:1"), Ok(("b:1".to_owned(), None)));
        assert_eq!(parsed("b:update:exclusive"), Ok(("b:update".to_owned(), Some("exclusive"))));
        assert!(parsed("").is_err() && parsed(":shared").is_err());
    }
}
