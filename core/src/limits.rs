//! Every bound of the system, with its unit in its name. `docs/limits.md` is generated from this table.

/// A row of the table, for the documentation.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Name of the constant.
    pub name: &'static str,
    /// Its value.
    pub value: u64,
    /// What it bounds.
    pub meaning: &'static str,
}

macro_rules! limits {
    ($($name:ident: $type:ty = $value:expr, $meaning:literal;)*) => {
        $(#[doc = $meaning] pub const $name: $type = $value;)*
        /// Every limit, in the order of this file.
        pub const ALL: &[Limit] = &[$(Limit {
            name: stringify!($name),
            value: {
                #[allow(clippy::cast_lossless, trivial_numeric_casts, reason = "one expression for every integer type")]
                { $name as u64 }
            },
            meaning: $meaning,
        }),*];
    };
}

limits! {
    NAME_BYTES_MAX: usize = 255, "Bytes of a namespace, queue, lock or owner name.";
    KEY_BYTES_MAX: usize = 1 << 10, "Bytes of a cache key or a message key.";
    VALUE_BYTES_MAX: usize = 1 << 20, "Bytes of a value.";
    HEADERS_BYTES_MAX: usize = 8 << 10, "Bytes of all header names and values of a message.";
    BATCH_ITEMS_MAX: usize = 1_000, "Messages of an Enqueue or a Dequeue.";
    BATCH_BYTES_MAX: usize = 1 << 20, "Bytes of all messages of an Enqueue; a single message may reach its own limit.";
    REQUEST_BYTES_MAX: usize = trefoil_proto::REQUEST_BYTES_MAX, "Bytes of a request (1.5 MiB).";
    FRAME_BYTES_MAX: usize = trefoil_proto::FRAME_BYTES_MAX, "Bytes of a pipelined frame, before its last call.";
    FRAME_READ_BYTES_MAX: usize = 16 << 20, "Bytes of a pipelined frame that is read: a call in it that is beyond REQUEST_BYTES_MAX is refused alone; a larger frame ends its stream.";
    CLIENT_BYTES_MAX: usize = 64, "Bytes of the client name in a request id.";
    PART_CLIENT_BYTES_MAX: usize = 72, "Bytes of the client name that the server derives for a part of a request.";

    SESSION_TTL_MS_MIN: u64 = 100, "Shortest session TTL in ms.";
    SESSION_TTL_MS_MAX: u64 = 86_400_000, "Longest session TTL in ms (a day).";
    SESSION_METADATA_ENTRIES_MAX: usize = 16, "Entries of a session's metadata.";
    SESSION_METADATA_KEY_BYTES_MAX: usize = 64, "Bytes of a key of a session's metadata.";
    SESSION_METADATA_VALUE_BYTES_MAX: usize = 255, "Bytes of a value of a session's metadata.";
    SESSION_METADATA_BYTES_MAX: usize = 2 << 10, "Bytes of all keys and values of a session's metadata.";
    WAIT_MS_MAX: u64 = 86_400_000, "Longest wait of Acquire and Dequeue in ms (a day).";
    LOCK_DELAY_MS_MAX: u64 = 60_000, "Longest lock delay in ms (a minute).";
    LEASE_MS_MIN: u64 = 100, "Shortest queue lease in ms.";
    LEASE_MS_MAX: u64 = 43_200_000, "Longest queue lease in ms (12 hours).";
    LEASE_MS_DEFAULT: u64 = 30_000, "Queue lease when the request names none, in ms.";
    CACHE_TTL_MS_MAX: u64 = 31_536_000_000, "Longest cache TTL in ms (a year).";

    PARTITIONS_MAX: u32 = 1_024, "Partitions of a queue.";
    PARTITIONS_DEFAULT: u32 = 8, "Partitions of a queue that was created without a number.";
    SHARDS_MAX: u32 = trefoil_proto::slot::SHARDS_MAX, "Data shards of a cluster.";
    MEMBERS_MAX: usize = 9, "Members of a cluster.";
    NAMESPACES_MAX: u64 = 10_000, "Declared namespaces of a cluster.";
    NAMESPACE_QUEUES_MAX: u64 = 1_000, "The largest limit of its own that a namespace may have for its queues.";
    SESSIONS_PER_NAMESPACE_MAX: u64 = 200_000, "Open sessions of a namespace.";
    LOCKS_PER_NAMESPACE_MAX: u64 = 1_000_000, "Locks of a namespace that are held or waited for.";
    WAITS_PER_NAMESPACE_MAX: u64 = 200_000, "Calls that wait for the locks of a namespace.";
    WAITERS_PER_LOCK_MAX: u64 = 20_000, "Calls that wait for one lock.";
    LOCKS_PER_SESSION_MAX: u64 = 10_000, "Locks that a session holds or waits for.";
    ACQUIRES_PER_CLAIM_MAX: usize = 16, "Calls of one session that wait for the same lock.";
    RELEASE_REQUESTS_MAX: usize = 1_000, "Holders that one RequestRelease asks.";
    WAITERS_COUNTED_MAX: usize = 1_000, "Waiters that are counted to tell a call its place in line.";
    LOCKS_PER_ACQUIRE_MAX: usize = 8, "Locks that one Acquire asks for, all or none: few enough that all that one grant or one cancel of them ends fits a command.";
    DEADLOCK_STEPS_MAX: usize = 1_000, "Waits, waiters and holders that the search for a deadlock looks at; a request whose search ends there waits, for its wait_ms at most.";
    DEADLOCK_EDGES_MAX: usize = 16, "Sessions of a deadlock that are named; its length counts all.";
    DEADLOCKS_KEPT_MAX: u64 = 100, "Deadlocks of a namespace that are remembered.";
    PROCLAIMED_BYTES_MAX: usize = 64 << 10, "Bytes of the value that a leader proclaims.";
    PROCLAIMED_BYTES_PER_NAMESPACE_MAX: u64 = 64 << 20, "Bytes of the values of all leaders and campaigns of a namespace.";
    SEMAPHORE_PERMITS_MAX: u64 = 1_000_000, "Permits of a semaphore.";
    LATCH_COUNT_MAX: u64 = u32::MAX as u64, "What a latch counts down from.";
    LATCHES_PER_NAMESPACE_MAX: u64 = 100_000, "Latches of a namespace.";
    BARRIER_PARTIES_MAX: u32 = 1_000, "Sessions that enter a barrier together.";
    BARRIERS_PER_NAMESPACE_MAX: u64 = 100_000, "Barriers of a namespace that somebody has entered.";
    BARRIERS_PER_SESSION_MAX: u64 = 100, "Barriers that a session is in.";
    PAGE_ITEMS_MAX: u32 = 1_000, "Locks, sessions, holders or waiters in one answer.";
    PAGE_ITEMS_DEFAULT: u32 = 100, "Items of a page when the request names no size.";

    FENCE_MARKS_MAX: u64 = 16_384, "Locks whose fencing marks a shard keeps; the mark that was raised longest ago is forgotten, and its lock's next token validated again.";
    FENCES_KNOWN_MAX: usize = 16_384, "Fencing tokens that a node remembers to have been validated, each shard counted.";

    REQUESTS_OPEN_MAX: u32 = 4_096, "Unacknowledged request ids of a client on a shard.";
    REQUEST_WINDOWS_BYTES_MAX: usize = 4 << 20, "Bytes of a shard's memory for what is remembered of requests; beyond them it is in the state alone until its client asks again.";
    ANSWER_RESIDENT_BYTES_MAX: usize = 256, "Bytes of a remembered answer that is kept in memory; a larger one is in the state alone.";
    REQUEST_CLIENT_IDLE_MS: u64 = 3_600_000, "Log time after which the answers of an idle client are forgotten, in ms.";
    TERM_GRACE_MS: u64 = 2_000, "Log time from the start of a term within which no session expires, in ms.";
    WAITER_CLAIM_MS: u64 = 2_400, "Log time within which a waiting Acquire must be sent again after its caller or the leader was lost, in ms; until then its lock waits for it.";
    TIMERS_PER_ENTRY_MAX: usize = 1_000, "Timers that fire in one entry.";
    TIMER_KEYS_PER_ENTRY_MAX: usize = 10_000, "Keys that the timers of one entry write before the others are left to the next entry.";
    KEYS_PER_COMMAND_MAX: usize = 1_280, "Keys that one command writes; larger work goes on in later entries.";
    DELIVERIES_MAX: usize = 250, "Deliveries of a Dequeue from one shard.";
    ANSWERS_FORGOTTEN_MAX: usize = 250, "Answers that one command forgets because its client has acknowledged them.";
    WALL_ADVANCE_MS_MAX: u64 = 3_600_000, "Log time added at most from the wall clock when every replica has restarted, in ms.";

    ENTRY_BYTES_MAX: usize = 1 << 20, "Bytes of commands gathered into one entry; a single command may be larger.";
    ENTRY_COMMANDS_MAX: usize = 1_024, "Commands gathered into one entry.";
    PROPOSALS_BYTES_MAX: usize = 32 << 20, "Bytes of commands of a shard that wait to be proposed.";
    PROPOSALS_MAX: usize = 16_384, "Commands of a shard that wait to be proposed.";
    READS_MAX: usize = 65_536, "Reads of a shard that wait.";
    UNCOMMITTED_BYTES_MAX: u64 = 64 << 20, "Bytes of a shard's entries that are proposed and not committed.";
    APPLY_LAG_BYTES_MAX: u64 = 64 << 20, "Bytes of entries that may wait for the applier before a shard takes no more.";
    LOG_CACHE_BYTES: usize = 16 << 20, "Bytes of recent entries of a shard kept in memory.";
    CHECKPOINT_LOG_BYTES: u64 = 64 << 20, "Bytes of log since the last checkpoint that ask for the next.";
    CHECKPOINT_OVERLAY_BYTES: u64 = 32 << 20, "Bytes of changed state in memory that ask for a checkpoint.";
    SCRUB_BYTES_PER_SECOND: u64 = 4 << 20, "Bytes of state files a second that a node reads to see whether the disk still has them.";
    SCRUB_PART_BYTES: u64 = 2 << 20, "Bytes of a state file that are read in one go for that.";
    SCRUB_PERIOD_MS: u64 = 86_400_000, "Time from the start of one such look at all state files of a node to that of the next, at least, in ms (a day).";
    OVERLAY_BYTES_MAX: u64 = 128 << 20, "Bytes of changed state in memory at which a shard takes no more writes until a checkpoint is done.";
    CHECKPOINT_AGE_MS: u64 = 300_000, "Age of a checkpoint that asks for the next, in ms.";
    LOG_BYTES_PER_SHARD_MAX: u64 = 256 << 20, "Bytes of log that a slow follower may hold back before it needs a snapshot; less where many shards share the log.";
    LOG_PURGE_BYTES: u64 = 512 << 20, "Bytes of the log files of a node above which old ones are removed; all shards together stay below it.";
    PEER_FRAME_BYTES_MAX: usize = 256 << 10, "Bytes of a peer frame, before its last message.";
    PEER_MESSAGE_BYTES_MAX: usize = 4 << 20, "Bytes of one message on the peer port.";
    SNAPSHOT_CHUNK_BYTES: usize = 256 << 10, "Bytes of a snapshot chunk, before its last record.";
    DIRECTORY_LINES_MAX: usize = 65_536, "Cache lines of a shard whose holders the leader remembers.";
    CALLS_MAX: usize = 65_536, "Calls in flight on a node.";
    CALLS_WAITING_MAX: usize = 49_152, "Calls in flight on a node that wait for a lock, a message, a latch or a barrier, those for which other nodes ask counted.";
    CALLS_RESERVED: usize = 4_096, "Calls in flight kept for what keeps sessions alive or frees things.";
    CALLS_BYTES_MAX: usize = 256 << 20, "Bytes of the calls in flight on a node.";
    CALLS_BYTES_RESERVED: usize = 8 << 20, "Bytes of calls in flight kept for what keeps sessions alive or frees things.";
    INBOX_MAX: usize = 65_536, "Calls and peer messages that wait for the thread that owns the replicas.";
    PEER_INBOX_BYTES_MAX: usize = 64 << 20, "Bytes of peer messages that wait for the thread that owns the replicas.";
    PEER_QUEUE_MAX: usize = 8_192, "Raft messages that wait to be sent to one peer.";
    PEER_QUEUE_BYTES_MAX: usize = 64 << 20, "Bytes of Raft messages that wait to be sent to one peer.";
    PEER_CONNECTIONS_MAX: usize = 64, "Connections to the peer port.";
    PEER_HEADERS_BYTES_MAX: u32 = 8 << 10, "Bytes of the headers of a request on the peer port.";
    FORWARD_CALLS_MAX: usize = 40_960, "Calls in flight that one node has forwarded to another.";
    FORWARD_WAITING_MAX: usize = 32_768, "Of these, those that wait for a lock, a message, a latch or a barrier.";
    FORWARD_CALLS_RESERVED: usize = 4_096, "Of these, places kept for what keeps sessions alive or frees things.";
    FORWARD_REPLY_BYTES_MAX: usize = 64 << 20, "Bytes of replies that wait to be sent to a node that forwarded calls.";
    SNAPSHOT_STREAMS_MAX: usize = 2, "Snapshots that a node sends, and that it receives, at a time.";
    DIGEST_ENTRIES: u64 = 100, "Entries of a shard between two indexes at which the states of its replicas are compared, at least.";
    DIGEST_AGE_MS: u64 = 600_000, "Time between the two in ms, at least (10 minutes).";
    DIGEST_BYTES_PER_SECOND: u64 = 16 << 20, "Bytes of state that a node reads in a second to compute digests.";
    STATE_RETRY_MS: u64 = 5_000, "Pause between two states that a replica with a damaged one is sent, in ms.";
    CHECKPOINT_BYTES_PER_SECOND: u64 = 64 << 20, "Bytes of a checkpoint that are written in a second, so that the log can sync beside it.";
    SNAPSHOT_BYTES_PER_SECOND: u64 = 64 << 20, "Bytes of snapshots that a node sends in a second.";
    POLLS_MAX: usize = 65_536, "Long polls of a shard that wait at its leader, and as many calls that wait for latches and barriers.";
    POLL_PLACES_MAX: usize = 1 << 20, "Partitions for which the long polls of a shard wait, each poll counted.";

    CLIENT_CALLS_MAX: usize = 16_384, "Calls of clients that a node works on at a time, beside those that wait.";
    CLIENT_CALLS_RESERVED: usize = 4_096, "Further ones for health, keep-alive, ack and release.";
    CLIENT_WAITING_MAX: usize = 32_768, "Calls of clients that wait for a lock or a message on a node.";
    CLIENT_STREAMS_MAX: usize = 16_384, "Streams of a node: pipelined, watches, those of sessions and of calls that wait for a lock, health watches, reflection.";
    CLIENT_RENEWALS_RESERVED: usize = 16_384, "Further ones for streams that renew a session.";
    WATCH_WINDOW_BYTES: usize = 128 << 20, "Bytes of recent events that a node keeps for watchers, of all shards together.";
    WATCH_WINDOW_EVENTS_MAX: usize = 262_144, "Recent events of a shard that a node keeps for watchers.";
    WATCH_EVENTS_MAX: usize = 1_000, "Events in one response of a watch.";
    WATCH_BATCH_BYTES: usize = 256 << 10, "Bytes of events in one response of a watch, before its last event.";
    WATCH_SCAN_MAX: usize = 16_384, "Events that a watch looks through at a time.";
    WATCH_PROGRESS_MS: u64 = 5_000, "Silence after which a watch tells its position, in ms.";
    PLACE_PAUSE_MS: u64 = 500, "Time between two looks at the place of a call in line at the least, in ms.";
    PLACE_PAUSE_PER_WAITER_MS: u64 = 10, "Further time for each call that stands before it, in ms.";
    JEOPARDY_MS: u64 = 1_000, "Time without an answer to a renewal after which a session stream tells jeopardy, in ms.";
    WATCH_LEADERLESS_MS: u64 = 3_000, "Time without a leader of its shard after which a watch ends, in ms.";
    CLIENT_CLEAN_UPS_MAX: usize = 16_384, "Clean-ups after callers who are gone that a node works on at a time.";
    STREAM_CALLS_MAX: usize = 4_096, "Calls in flight of one pipelined stream, beside those that wait.";
    STREAM_WAITING_MAX: usize = 16_384, "Calls of one pipelined stream that wait for a lock or a message.";
    STREAM_REPLIES_MAX: usize = 1_024, "Replies of one pipelined stream that wait for their frame.";
    ANSWER_MARGIN_MS: u64 = 100, "Time before its deadline in which a call is answered at the latest, in ms; a quarter of the time of a short one.";
    LEADERLESS_MS: u64 = 2_400, "Time without a known leader of a shard after which its calls are answered NO_QUORUM at once, in ms.";
    FORWARD_ALIVE_MS: u64 = 100, "Pause between two signs of life to a node that waits for the answer to a forwarded call, in ms; without one within an election timeout it gives this node up.";
    REPLACED_LEADER_MS: u64 = 300, "Time that a leader which was replaced has to say what became of a forwarded call, in ms.";
    CALL_PAUSE_MS_MIN: u64 = 10, "First pause of a node between two tries of a call, in ms; each is twice as long as the one before it, less up to a half by chance.";
    CALL_PAUSE_MS_MAX: u64 = 200, "Longest pause between two tries of a call, in ms.";
    HAND_OVER_MS: u64 = 600, "Time for other nodes to take over what a node leads before it takes no more calls when it stops, in ms.";
    STOP_ANSWER_MS: u64 = 300, "Time after that for calls under way to be answered by their leaders, in ms.";
    CALL_TIMEOUT_MS: u64 = 10_000, "Time that a call has on a node, beside what it wants to wait, in ms.";
    CATALOGUES_MAX: usize = 16_384, "Queues that a node remembers.";
    CONNECTION_STREAMS_MAX: u32 = 4_096, "HTTP/2 streams of one connection at a time; each call has one until it is answered.";
    CONNECTION_WAITS_MAX: usize = 2_048, "Calls of one connection that wait for a lock or a message, and streams beside those that renew a session.";
    CONNECTION_RENEWALS_MAX: usize = 1_024, "Streams of one connection that renew a session, and further calls that wait to leave a barrier.";
    CONNECTION_HEADER_BYTES_MAX: u32 = 16 << 10, "Bytes of the headers of one HTTP/2 request.";
    CONNECTION_WINDOW_BYTES: u32 = 4 << 20, "Bytes that a client may send ahead on one connection.";
    STREAM_WINDOW_BYTES: u32 = 2 << 20, "Bytes that a client may send ahead on one HTTP/2 stream.";
    STREAM_SEND_BUFFER_BYTES: usize = 1 << 20, "Bytes of answers that wait for one stream's client to read.";
    HTTP2_FRAME_BYTES: u32 = 64 << 10, "Bytes of one HTTP/2 frame.";
    HTTP2_PENDING_RESETS_MAX: usize = CONNECTION_STREAMS_MAX as usize, "HTTP/2 streams that a client resets before they are taken up: as many as it may have at once; more end the connection.";
    HTTP2_LOCAL_RESETS_MAX: usize = CONNECTION_STREAMS_MAX as usize, "HTTP/2 streams reset by the node for a client's faults in the life of a connection: a client may open as many at once beyond its limit before it knows of that; more end the connection.";
    HTTP1_BUFFER_BYTES: usize = 64 << 10, "Bytes of the head of an HTTP/1.1 request.";
    HEADER_TIMEOUT_MS: u64 = 10_000, "Time for a connection to say its protocol, and for an HTTP/1.1 request's head, in ms.";
    PING_INTERVAL_MS: u64 = 20_000, "Silence after which a client is asked whether it is there, in ms.";
    PING_TIMEOUT_MS: u64 = 10_000, "Time for it to answer, in ms.";
    PAGE_CONNECTIONS_MAX: u64 = 256, "Connections to --metrics-listen.";
    DRAIN_TIMEOUT_MS: u64 = 5_000, "Time for open requests to end when the node stops, in ms.";
    RESERVE_BYTES: u64 = 32 << 20, "Bytes of the disk that a node holds back for acks, releases and deletes on a full one.";
    STATE_RECLAIM_BYTES_MIN: u64 = 64 << 20, "Bytes of a state file below which it is never written anew.";
    STATE_RECLAIM_FACTOR: u64 = 4, "A state file that is this many times as large as what it holds is written anew by the next checkpoint.";
    STATE_CACHE_BYTES: usize = 256 << 20, "Memory for pages of all state files of a node.";

    TICK_MS: u64 = 50, "Raft's tick in ms.";
    HEARTBEAT_TICKS: usize = 2, "Ticks between two heartbeats (100 ms).";
    ELECTION_TICKS_MIN: usize = 12, "Ticks before an election at the earliest (600 ms).";
    ELECTION_TICKS_MAX: usize = 24, "Ticks before an election at the latest, exclusive (1,200 ms).";
    LEADER_BALANCE_MS: u64 = 10_000, "Pause between two attempts to give a shard back to its preferred leader, in ms.";
    PEER_SILENCE_MS: u64 = 10_000, "Silence after which a peer no longer holds back the log, in ms.";
}

const _: () = {
    assert!(
        VALUE_BYTES_MAX + KEY_BYTES_MAX + HEADERS_BYTES_MAX + 4 * NAME_BYTES_MAX
            < REQUEST_BYTES_MAX,
        "one item fits a request"
    );
    assert!(BATCH_BYTES_MAX < REQUEST_BYTES_MAX, "a full batch fits a request");
    assert!(
        FRAME_BYTES_MAX + REQUEST_BYTES_MAX < FRAME_READ_BYTES_MAX,
        "a full frame with its last call is read"
    );
    assert!(
        BATCH_ITEMS_MAX + ANSWERS_FORGOTTEN_MAX + 24 <= KEYS_PER_COMMAND_MAX,
        "a full batch, what remembers it and the mark of its fence fit a command"
    );
    assert!(
        RELEASE_REQUESTS_MAX + ANSWERS_FORGOTTEN_MAX + 16 <= KEYS_PER_COMMAND_MAX,
        "the holders that are asked and the answer that is remembered fit a command"
    );
    assert!(
        4 * DELIVERIES_MAX + ANSWERS_FORGOTTEN_MAX + 24 <= KEYS_PER_COMMAND_MAX,
        "the deliveries of a command, each with its records Ready, Lease, Partition and its timer, and the mark of a fence fit it"
    );
    assert!(
        REQUEST_BYTES_MAX + ENTRY_BYTES_MAX < PEER_MESSAGE_BYTES_MAX,
        "the largest entry fits a peer message"
    );
    assert!(
        PAGE_ITEMS_MAX as usize * (SESSION_METADATA_BYTES_MAX + NAME_BYTES_MAX + 256)
            < PEER_MESSAGE_BYTES_MAX,
        "a page of sessions fits a peer message"
    );
    assert!(
        LOG_CACHE_BYTES as u64 <= UNCOMMITTED_BYTES_MAX,
        "what is not committed may fill the cache"
    );
    assert!(
        CHECKPOINT_OVERLAY_BYTES < OVERLAY_BYTES_MAX,
        "a checkpoint starts before writers wait"
    );
    assert!(
        CHECKPOINT_LOG_BYTES < LOG_BYTES_PER_SHARD_MAX,
        "a checkpoint comes before the log is full"
    );
    assert!(
        ELECTION_TICKS_MIN < ELECTION_TICKS_MAX && HEARTBEAT_TICKS * 3 <= ELECTION_TICKS_MIN,
        "a lost heartbeat starts no election"
    );
    assert!(
        CALLS_RESERVED < CALLS_MAX && CALLS_BYTES_RESERVED < CALLS_BYTES_MAX,
        "most room is for every call"
    );
    assert!(
        CALLS_WAITING_MAX + CALLS_RESERVED < CALLS_MAX
            && FORWARD_WAITING_MAX + FORWARD_CALLS_RESERVED < FORWARD_CALLS_MAX
            && CONNECTION_WAITS_MAX + CONNECTION_RENEWALS_MAX < CONNECTION_STREAMS_MAX as usize,
        "calls that wait leave room for those that end their wait"
    );
    assert!(
        PEER_MESSAGE_BYTES_MAX < PEER_QUEUE_BYTES_MAX
            && PEER_MESSAGE_BYTES_MAX < PEER_INBOX_BYTES_MAX,
        "the largest message finds room"
    );
    assert!(PEER_MESSAGE_BYTES_MAX < FORWARD_REPLY_BYTES_MAX, "the largest reply finds room");
    assert!(TERM_GRACE_MS >= 1_200, "a grace outlasts an election");
    assert!(LEADERLESS_MS >= 2 * 1_200, "an election that fails once is waited for");
    assert!(HAND_OVER_MS + STOP_ANSWER_MS < 1_000, "a node that stops answers within a second");
    assert!(WAITER_CLAIM_MS >= 2 * 1_200, "a caller finds the new leader in time");
};
