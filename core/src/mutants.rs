//! Known bugs of other systems, and broken rules of our own, to be put back one at a time: whoever tests must find
//! each of them.
//!
//! Only with the feature `mutants`; without it [`crate::mutant!`] is `false` and nothing of this is compiled. A mutant
//! is on for the thread that asked for it. Bugs of the shell (disks, files) are carried out by the simulator's shell.

use std::cell::Cell;

macro_rules! list {
    ($($name:ident $text:literal: $meaning:literal;)*) => {
        /// One known bug.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutant {
            $(#[doc = $meaning] $name,)*
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name on the command line.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What it does wrong.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning,)* }
            }
        }
    };
}

list! {
    EarlyReply "early-reply": "A follower answers before its disk has the entries (etcd #14370, NATS #7564).";
    EarlyPersist "early-persist": "A replica counts its own entries before they are synced.";
    LostVote "lost-vote": "A vote that comes without entries is not written (NodeDB #161).";
    HalfVote "half-vote": "The term is written without the vote (hashicorp/raft #661).";
    AppliedIsCommit "applied-is-commit": "A restart takes the commit index for the applied one (horizontal-scaling-convex #145).";
    ReadContext "read-context": "The context of a round of reads is used again (etcd #20418).";
    ReadWithoutRound "read-without-round": "A read is answered at the commit index without a round of heartbeats (tikv #9239).";
    ReadOldTerm "read-old-term": "A new leader reads before an entry of its own term is committed (etcd #7331).";
    LeaseRead "lease-read": "Reads trust the leader's clock (tikv #964, Redis-Raft #19).";
    NoGrace "no-grace": "A new leader ends sessions at once (etcd #15247, #12528).";
    TimerDecides "timer-decides": "A session ends when its timer fires, renewed or not.";
    DeadWaiter "dead-waiter": "A lock is granted to a waiter whose session is over (etcd #11456, #9921).";
    DeadRenewal "dead-renewal": "A session that is over is renewed (etcd PR #20616).";
    TokenFromLock "token-from-lock": "Fencing tokens are counted in the lock, which goes away with its last holder.";
    AnyoneReleases "anyone-releases": "A release does not look who holds the lock.";
    ReaderOvertakes "reader-overtakes": "A reader gets a lock past a writer who waits for it.";
    PartialGrant "partial-grant": "One of several locks is granted before the others are free.";
    CircleOfTwo "circle-of-two": "Only deadlocks of two sessions are found.";
    CircleImagined "circle-imagined": "Readers count as in each other's way where a deadlock is looked for.";
    PermitsOvertake "permits-overtake": "A call that wants few permits gets them past one that waits for more.";
    ConvertLetsGo "convert-lets-go": "A conversion lets the lock go and takes it again, and whoever waits gets it in between.";
    UpdateBesideUpdate "update-beside-update": "Two sessions hold a lock in mode UPDATE.";
    DelayForgotten "delay-forgotten": "An expired holder keeps nobody out, lock delay or not.";
    CancelLeavesGrant "cancel-leaves-grant": "A caller that hung up keeps the lock that it got meanwhile.";
    AnyOperation "any-operation": "A request id that is used again for another operation is given the answer of the first.";
    ForgottenRetry "forgotten-retry": "A retry of a forgotten client is executed, whatever its first try may have done.";
    RetryPosition "retry-position": "A retry is told where it stands itself, not where its first try was decided.";
    LateCancel "late-cancel": "A cancel of an earlier attempt releases a lock that its client goes on with.";
    AnyAnonymousCall "any-anonymous-call": "A cancel without request id takes whichever anonymous call of its session it finds.";
    EndedGrantRemembered "ended-grant-remembered": "The retry of an Acquire is told of a grant that is over.";
    ForwardedGrantTrusted "forwarded-grant-trusted": "A grant counts as received by a forwarder that died or hangs.";
    LostCallerForgotten "lost-caller-forgotten": "A wait is granted after its caller was lost and before the log says so, and nobody takes it back.";
    LeaderStays "leader-stays": "What a leader proclaimed stays when its lock is gone.";
    LateParty "late-party": "A place at a barrier counts when its wait is over.";
    FenceIgnored "fence-ignored": "A token that was held when it was validated passes whatever mark there is.";
    NoDedup "no-dedup": "A retry is executed again (thesis 6.3).";
    WindowNotFrozen "window-not-frozen": "What is remembered of requests is not written when the state is frozen.";
    WindowLost "window-lost": "What is remembered of requests is not written when it goes from memory.";
    WindowFrozenEarly "window-frozen-early": "What is remembered of requests is written as it was before the last entry.";
    DedupOnlyHere "dedup-only-here": "Remembered answers are not part of a snapshot (thesis 6.3).";
    BlindRetry "blind-retry": "A node tries a command without a request id again although its end was not seen.";
    CancelledRetried "cancelled-retried": "A node goes on trying a call whose caller hung up.";
    UnseenHidden "unseen-hidden": "A node tells that its last try was refused, and not that the end of an earlier one was not seen.";
    LostTooEarly "lost-too-early": "A leader that steps down calls what it proposed lost.";
    OldLeaseSettles "old-lease-settles": "Any lease of a message settles it (RabbitMQ PR #4305).";
    AckedComesBack "acked-comes-back": "The lease of an acknowledged message goes on and brings it back (RabbitMQ #12366).";
    OrphanedLease "orphaned-lease": "A lease has no timer, so its message never comes back (RabbitMQ #15473).";
    WholeLeaseAgain "whole-lease-again": "A retried Dequeue is told the whole of its leases, and of those that are over.";
    LeasesCount "leases-count": "Leases of a message are numbered from 1, so that one settles messages of other queues.";
    SessionsCount "sessions-count": "Sessions are numbered from 1, so that anybody finds one.";
    EarlyLeaseEnd "early-lease-end": "A lease ends when somebody looks, not at its deadline.";
    LocalState "local-state": "What a node has in memory decides what it applies (RabbitMQ #14136, etcd #14571).";
    VersionFromItem "version-from-item": "Cache versions are counted in the item, which goes away when it is deleted.";
    CutToApplied "cut-to-applied": "The log is cut to what is applied, not to the checkpoint (Redis-Raft #43).";
    KeptSuffix "kept-suffix": "An installed snapshot leaves the old entries in memory (Redis-Raft #14).";
    StepInstalling "step-installing": "A replica takes messages while it installs a snapshot.";
    SilentSnapshot "silent-snapshot": "The end of a snapshot stream is not reported to raft.";
    TornVotes "torn-votes": "A node that lost the end of its log votes at once.";
    DamagedLeads "damaged-leads": "A replica whose state is damaged serves on.";
    DamageForgotten "damage-forgotten": "Damage is not recorded: a restart believes the state again.";
    DigestIgnored "digest-ignored": "Digests of states are not compared.";
    OlderCopyAccepted "older-copy-accepted": "A node with an older copy of its data directory is taken for the one that went on.";
    FormedWithoutAll "formed-without-all": "A majority of empty directories forms a cluster.";
    WallClock "wall-clock": "Log time follows the wall clock at every change of leader.";
    ForgottenTime "forgotten-time": "A new leader stamps before it knows the last stamp.";
    DueReadAnswered "due-read-answered": "A read calls a value gone by the leader's clock, which the next leader may not.";
    NoPreVote "no-pre-vote": "A node that was cut off deposes the leader when it is back (Cloudflare 2020).";
    NoCheckQuorum "no-check-quorum": "A leader that hears nobody goes on leading (Cloudflare 2020, etcd #8243).";
    DeadDiskLeads "dead-disk-leads": "A leader whose disk hangs keeps its shard.";
    FullLeads "full-leads": "A leader without room keeps its shard and refuses writes that others have room for.";
    NarrowLeads "narrow-leads": "A leader whose entries do not arrive in time keeps its shard.";
    AppliedIndexFirst "applied-index-first": "A checkpoint names a later index than its records have (etcd #13766).";
    NoSync "no-sync": "Writes to the log are not synced (NATS #7564).";
    NoDirectorySync "no-directory-sync": "The entry of a new log file is not synced (etcd #6368).";
    RottenIsTorn "rotten-is-torn": "The log is cut at the first bad record, acknowledged or not (NATS #7549).";
    TornRefused "torn-refused": "A torn tail keeps a node from starting (etcd #14098).";
    CutOnly "cut-only": "Installing a snapshot cuts the log and leaves a conflicting end.";
    GapOnFull "gap-on-full": "On a full disk a batch is dropped and the next is written.";
    TailTrusted "tail-trusted": "A restart trusts what the last process wrote and did not sync.";
    UnverifiedBlock "unverified-block": "Blocks of a state file are believed without a look at their checksums.";
}

thread_local! {
    static ON: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Puts a bug back on this thread, or takes it out.
pub fn put(mutant: Option<Mutant>) {
    ON.set(mutant);
}

/// Whether a bug is there now; [`crate::mutant!`] asks.
#[must_use]
pub fn is(mutant: Mutant) -> bool {
    ON.get() == Some(mutant)
}

/// The mutant of a name.
#[must_use]
pub fn named(name: &str) -> Option<Mutant> {
    Mutant::ALL.iter().copied().find(|mutant| mutant.name() == name)
}
