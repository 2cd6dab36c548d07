//! Every limit that is not a setting, with its unit and its reason, and the relations between limits. Limits that an
//! operator sets are in [`crate::config`].

use std::time::Duration;

/// The longest assessment id, in bytes (PROTOCOL 1).
pub(crate) const ASSESSMENT_ID_BYTES_MAX: usize = 128;

/// The longest market name, in bytes: it comes from a topic's name, and those have at most 249 characters (Kafka).
pub(crate) const MARKET_NAME_BYTES_MAX: usize = 249;

/// Markets on the board of one shard. Ticks of further markets are counted and ignored: a producer's mistake must not
/// grow what every new client is sent.
pub(crate) const MARKETS_MAX: usize = 10_000;

/// The largest lead of a tick's timestamp over this pod's clock. NTP keeps clocks within milliseconds; a virtual
/// machine that was paused is off by a second or two. A larger lead means a wrong unit or a wrong clock, and must not
/// pin the market's price until that time comes.
pub(crate) const TICK_AHEAD_MAX: Duration = Duration::from_secs(5);

/// The smallest record timestamp that counts as Unix milliseconds: early 1973, long before Kafka. Smaller values are
/// seconds, negative, or -1 for none.
pub(crate) const TICK_TIMESTAMP_MS_MIN: i64 = 100_000_000_000;

/// Bytes of ticks on one shard's board, and at most a quarter of its share of `HISTORY_BYTES`. Every new client is sent
/// all of them, and each is held twice (the market's frame and the image). Enough for [`MARKETS_MAX`] markets of 800
/// bytes. A tick over the limit is counted and not shown.
pub const BOARD_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Divides a shard's history budget: the board may use one part in this many on top of it.
pub(crate) const BOARD_HISTORY_DIVISOR: usize = 4;

/// A cursor, in characters (PROTOCOL 2). A message whose cursor would be longer carries one that can't be resumed from.
pub const CURSOR_CHARS_MAX: usize = 512;

/// Fields of one route's message. More than any message needs, and few enough to look up without an allocation.
pub(crate) const ROUTE_FIELDS_MAX: usize = 64;

/// The largest `MAX_HEAD_BYTES`, in bytes, last CRLF included: as much as servers in front of a pod accept. It is
/// allocated for each head, only while that is read.
pub(crate) const REQUEST_HEAD_BYTES_MAX: usize = 64 * 1024;

/// The PROXY protocol's header, in bytes: several times what proxies send, TLS names included.
pub const PROXY_HEADER_BYTES_MAX: usize = 4 * 1024;

/// Headers in a request's head: more than clients send, and a bound for the parser's table.
pub(crate) const REQUEST_HEADERS_MAX: usize = 100;

/// The payload of a WebSocket control frame, in bytes (RFC 6455 section 5.5).
pub const CONTROL_PAYLOAD_BYTES_MAX: usize = 125;

/// Leeway for `exp` and `nbf` (PROTOCOL 1).
pub(crate) const TOKEN_LEEWAY: Duration = Duration::from_secs(30);

/// Most revocations that are kept. Each takes about 150 bytes.
pub(crate) const REVOCATIONS_MAX: usize = 100_000;

/// How long a revocation holds unless the operator says, in seconds.
pub(crate) const REVOCATION_SECONDS_DEFAULT: u64 = 24 * 60 * 60;

/// How long it may hold, in seconds.
pub(crate) const REVOCATION_SECONDS_MAX: u64 = 366 * 24 * 60 * 60;

/// Revocations that are read from Redis in one step.
pub(crate) const REVOCATIONS_A_STEP: usize = 1_000;

/// Requests to revoke that wait for Redis.
pub(crate) const REVOKE_CHANNEL_DEPTH: usize = 64;

/// How long before its token expires a client is told (PROTOCOL 2).
pub(crate) const TOKEN_EXPIRING_BEFORE: Duration = Duration::from_secs(60);

/// Checks of tokens by public keys that wait for their thread. Further ones are refused for now.
pub(crate) const TOKEN_CHECKS_MAX: usize = 1024;

/// Tokens of one issuer that wait for a newer key set.
pub(crate) const TOKENS_HELD_BACK_MAX: usize = 256;

/// How often an unknown `kid` causes a read of the key set (PROTOCOL 6).
pub(crate) const UNKNOWN_KEY_EVERY: Duration = Duration::from_secs(30);

/// Longest pause between two reads of a key set that failed.
pub(crate) const KEY_SET_RETRY_MAX: Duration = Duration::from_secs(30);

/// Longest time that a read of a key set takes.
pub(crate) const KEY_SET_READ_MAX: Duration = Duration::from_secs(5);

/// Longest key set, in bytes.
pub(crate) const KEY_SET_BYTES_MAX: usize = 1024 * 1024;

/// How long a pod waits for a token for Kafka's brokers. librdkafka asks again ten seconds after a failure.
pub(crate) const BROKER_TOKEN_WAIT_MAX: Duration = Duration::from_secs(5);

/// Longest answer with a token for Kafka's brokers, in bytes.
pub(crate) const BROKER_TOKEN_BYTES_MAX: usize = 64 * 1024;

/// Batches on their way from ingest to one shard. Enough to bridge a turn of a busy shard; small, because what waits
/// here is outside of the history's budget.
pub(crate) const BATCH_CHANNEL_DEPTH: usize = 64;

/// Bytes of batches on their way from ingest to one shard. Over this, the next batch waits: a channel full of events of
/// 1 MiB would hold 64. At 500,000 records of 300 bytes a second it bridges 30 ms.
pub(crate) const BATCH_CHANNEL_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes of records in one batch to one shard, after which it is handed over even if ingest has more. Small events
/// leave in batches of this size.
pub(crate) const BATCH_BYTES_MAX: usize = 512 * 1024;

/// Records in one batch to one shard.
pub(crate) const BATCH_RECORDS_MAX: usize = 4096;

/// Records that ingest takes from librdkafka in one call: few enough to stay in the processor's caches until they are
/// processed.
pub(crate) const CONSUME_RECORDS_MAX: usize = 1024;

/// Records that ingest takes in one turn. The first of them waits until the last is processed, half a microsecond each,
/// unless its batch fills up earlier. Waking a shard costs as much as a hundred records.
pub(crate) const TURN_RECORDS_MAX: usize = 4 * CONSUME_RECORDS_MAX;

/// The longest time for which a fetch is held back so that records gather. A record of a stream waits at most this long,
/// in addition to the time that a busy shard takes.
pub(crate) const BATCHING_DELAY_MAX: Duration = Duration::from_millis(4);

/// How long it may take until a shard learns of new partitions, with `TOPIC_REFRESH_MS` near its default. Records
/// placed by the new partition count are younger than this.
pub(crate) const GROWTH_NOTICED_MAX: Duration = Duration::from_secs(30);

/// Bytes of a decompressed batch, unless a record of `MAX_EVENT_BYTES` needs more.
pub(crate) const UNPACKED_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Records of a compressed batch. The smallest has seven bytes, and librdkafka makes a message of 330 bytes of each, as
/// measured: this many take 42 MiB.
pub(crate) const UNPACKED_RECORDS_MAX: usize = 1 << 17;

/// Batches of the largest size in a partition's part of a fetch response: all of them are in memory at once.
pub(crate) const UNPACKED_BATCHES_MAX: usize = 2;

/// Earlier routes of a topic that a shard keeps while its window may hold records that were read by them. If the routes
/// change more often, the oldest of these records become messages of the next route.
pub(crate) const MAPPINGS_KEPT: usize = 16;

/// How often an idle shard is sent ingest's read offsets. A quiet client's cursor is at most this old. Costs one small
/// batch per shard.
pub(crate) const OFFSETS_SENT_EVERY: Duration = Duration::from_secs(1);

/// The longest wait for a record, or for room in a shard's channel, before ingest does its other work.
pub(crate) const INGEST_WAIT: Duration = Duration::from_millis(100);

/// Topics that a pod can read at a time, including those that it read within the window and [`TOPIC_REST_REFRESHES`].
/// Beyond this, new topics are not read, which is logged as an error.
pub(crate) const TOPICS_MAX: usize = (1 << 16) - 1;

/// Metadata refreshes, after the window's time, until the index of a topic that is no longer read is reused. By then
/// all pods know of its end, and its last records have left their windows. A shard that is further behind evicts them.
pub(crate) const TOPIC_REST_REFRESHES: u32 = 3;

/// Records that are read from the end of each partition at start, however old. The end of a quiet topic may consist of
/// control records, which must not expire its cursors.
pub(crate) const START_RECORDS_MIN: i64 = 100;

/// Offsets that are read again at most after a suspected truncation, to find where the new log diverges. A newly
/// elected leader usually lacks what its predecessor wrote within `replica.lag.time.max.ms`.
pub(crate) const REREAD_OFFSETS_MAX: i64 = 10_000;

/// Time limit of the start-up queries to Kafka: all topics, and offsets by timestamp, which a broker may have to look
/// up on a cold disk.
pub(crate) const START_QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long `shardgate check` waits for Kafka: it connects, and may have to authenticate.
pub(crate) const CHECK_MAX: Duration = Duration::from_secs(5);

/// Time limit of the same queries once the pod reads. While one is open, lost brokers go unnoticed.
pub(crate) const METADATA_TIMEOUT: Duration = Duration::from_secs(3);

/// How often the brokers are probed, and queried for the partitions' ends.
pub(crate) const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Partitions per end-offset query. Querying 2,400 partitions every second cost several percent of a core.
pub(crate) const ENDS_ASKED_MAX: usize = 500;

/// The shortest time between two metadata refreshes, however many the reader requests.
pub(crate) const METADATA_REFRESH_MIN: Duration = Duration::from_millis(100);

/// How often misplaced records trigger a metadata refresh of their topic. Either the topic has more partitions, or its
/// producers use another partitioner, and then every record is misplaced.
pub(crate) const MISPLACED_REFRESH_EVERY: Duration = Duration::from_secs(5);

/// A gap of this length between two turns of the ingest thread counts as a pause of the process; topics are then
/// refreshed before reading continues. The loop turns at least every [`INGEST_WAIT`], and deleting, recreating and
/// filling a topic takes longer than this.
pub(crate) const PAUSE_DETECTED_MIN: Duration = Duration::from_millis(300);

/// The longest that reading waits for that refresh.
pub(crate) const METADATA_WAIT_MAX: Duration = Duration::from_secs(5);

/// Time limit of a probe, and of a query for the partitions' ends.
pub(crate) const PROBE_TIMEOUT: Duration = Duration::from_millis(1_500);

/// How long brokers that accept a query and do not answer still count as connected.
pub(crate) const PROBE_SILENCE_MAX: Duration = Duration::from_secs(6);

/// librdkafka clients that may be shutting down at the same time. Each may keep its threads and connections until then;
/// at the limit no client is replaced.
pub(crate) const CLIENTS_ENDING_MAX: usize = 8;

/// The longest pause between two replacements of the consumer, if one after the other makes no progress: most likely
/// the client is not the cause.
pub(crate) const CLIENT_REPLACEMENT_PAUSE_MAX: Duration = Duration::from_secs(60);

/// The largest difference between the clocks of producers and of brokers. It matters where `min.compaction.lag.ms`
/// decides what compaction may have removed.
pub(crate) const COMPACTION_CLOCKS_MAX: Duration = Duration::from_secs(5);

/// Topics whose settings are queried again with a metadata refresh, in turn: a query has a cost for the broker.
pub(crate) const SETTINGS_ASKED_MAX: usize = 50;

/// A partition must have waited this long behind an open transaction before it is reported; most transactions commit
/// much sooner.
pub(crate) const OPEN_TRANSACTION_MIN: Duration = Duration::from_secs(5);

/// Topics that one log line names.
pub(crate) const TOPICS_NAMED_MAX: usize = 10;

/// Partitions that `/ready` names of those that can't be read; all are counted.
pub(crate) const MISSING_NAMED_MAX: usize = 16;

/// Kinds of throttled log lines that are tracked; over this, new kinds are suppressed for a while.
pub(crate) const LOG_KEYS_MAX: usize = 1024;

/// How often an unusable record is logged per topic. Each is counted (PROTOCOL 3).
pub(crate) const MALFORMED_LOG_EVERY: Duration = Duration::from_secs(1);

/// How often a tick with an invalid timestamp is logged, per topic and reason. Each is counted.
pub(crate) const TICK_LOG_EVERY: Duration = Duration::from_secs(1);

/// How often a shard logs misplaced records, and cursors that are too long.
pub(crate) const FINDINGS_LOG_EVERY: Duration = Duration::from_secs(10);

/// How often the same line of librdkafka is logged: while a broker is down, it repeats itself each second.
pub(crate) const KAFKA_LOG_EVERY: Duration = Duration::from_secs(30);

/// Sockets on their way from one shard to another. A shard that is further behind refuses with 503.
pub(crate) const HANDOFF_CHANNEL_DEPTH: usize = 1024;

/// Operators' requests on their way to the control thread; over it, 503. Each turn of that thread takes all of them.
pub(crate) const HTTP_CHANNEL_DEPTH: usize = HTTP_CONNECTIONS_MAX;

/// Requests of operators on their way to one shard, which handles them one after another. Over it, 503.
pub(crate) const SHARD_REQUESTS_MAX: usize = 16;

/// How long an operator waits for the shards: several turns of a busy shard with hundreds of thousands of connections.
pub(crate) const SHARD_ANSWER_MAX: Duration = Duration::from_secs(2);

/// Request heads that one shard reads at a time, if the limit of open files leaves room for this many
/// (`config/parts.rs`). Each holds a buffer and a descriptor. Further sockets wait in the kernel's queue.
pub(crate) const HANDSHAKES_MAX: usize = 4096;

/// Concurrent handshakes of one client address if its connections are limited and the limit itself is lower. Leaves
/// room for clients that arrive together behind one address and have to be refused.
pub(crate) const HANDSHAKES_PER_ADDRESS_MIN: u64 = 64;

/// At the handshake limit, a handshake younger than this is not closed. Longer than a good request takes on a slow
/// line, and longer than [`VIEW_REFRESH_WAIT_MAX`] and [`LINGER`].
pub(crate) const HANDSHAKE_GRACE: Duration = Duration::from_secs(3);

/// At the handshake limit, a socket that has sent nothing is closed after this time. A client's request follows its
/// connection at once; this allows for one retransmission.
pub(crate) const SILENT_SOCKET_GRACE: Duration = Duration::from_secs(1);

/// How often a failure to accept or to register a socket is logged. The cause, usually a lack of descriptors, lasts.
pub(crate) const ACCEPT_LOG_EVERY: Duration = Duration::from_secs(30);

/// A thread whose loop has not turned for this long makes `/health` fail.
pub(crate) const LOOP_STALL_MAX: Duration = Duration::from_secs(5);

/// The same for the thread that queries Kafka: each query of a turn may take its time limit, and the first turn has the
/// most queries.
pub(crate) const WATCHER_STALL_MAX: Duration = Duration::from_secs(60);

/// How often each thread turns its loop, at least.
pub(crate) const TURN_EVERY: Duration = Duration::from_secs(1);

/// How long a close handshake may take, and how long input from a closing peer is read and discarded so that the last
/// answer arrives before the socket is closed.
pub(crate) const LINGER: Duration = Duration::from_secs(2);

/// Bytes of further input that are read and discarded during that time. More is left in the socket.
pub(crate) const LINGER_BYTES_MAX: usize = 1024 * 1024;

/// How often the socket of a closing client is checked for unacknowledged bytes.
pub(crate) const LINGER_POLL_EVERY: Duration = Duration::from_millis(250);

/// Bytes by which a shard's window may exceed twice its budget while it holds undispatched entries: one batch of the
/// largest events of a small window, with their frames.
pub(crate) const UNDISPATCHED_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Bytes of a message beyond its event's payload (type, cursor, frame header), and of a record beside it (its id).
pub(crate) const EVENT_OVERHEAD_BYTES_MAX: usize = 16 * 1024;

/// The largest message that every client library accepts by default, in bytes: Python's `websockets` closes on larger
/// ones.
pub(crate) const MESSAGE_BYTES_COMMON: usize = 1024 * 1024;

/// How long the socket of a closing client may accept nothing while a frame that was begun precedes the close frame. A
/// socket accepts half of [`UNSENT_BYTES_MAX`] at a time, so a client that reads 7 kB/s gets all of it.
pub(crate) const CLOSE_STALL_MAX: Duration = Duration::from_secs(10);

/// Bytes that the kernel buffers per client beyond those in flight (TCP_NOTSENT_LOWAT). By default it buffers megabytes
/// and reports the socket writable only after a third has drained: a slow reader would look stalled, cost that memory,
/// and receive old prices.
pub(crate) const UNSENT_BYTES_MAX: u32 = 128 * 1024;

/// Bytes that one connection is sent in a turn before other connections get theirs.
pub(crate) const TURN_BYTES_MAX: usize = 256 * 1024;

/// Bytes that a shard sends per turn to all clients that lag or catch up. Two milliseconds of work if frames are made
/// per client, which up-to-date clients have to wait for.
pub(crate) const CATCH_UP_BYTES_PER_TURN: u64 = 128 * 1024;

/// Bytes of frames made for one connection at a time while it catches up with its cursor. No other connection shares
/// them.
pub(crate) const CATCH_UP_FRAMES_BYTES_MAX: usize = 64 * 1024;

/// Steps along the window to find and frame the events that a client lacks, per handshake and per turn of a connection:
/// about 10 ns each, together as much as the rest of a handshake. If more are needed, the connection continues in its
/// next turn.
pub(crate) const STEPS_MAX: usize = 2048;

/// Number of steps that take as long as one send.
pub(crate) const STEPS_A_SEND: usize = 256;

/// Connections that a pass visits in the time of one send: each visit costs one or two cache misses.
pub(crate) const VISITS_A_SEND: usize = 16;

/// Slices in one vectored write: Linux accepts 1024 (`UIO_MAXIOV`); adjacent frames share one.
pub(crate) const WRITE_SLICES_MAX: usize = 64;

/// Slots of a cluster. More than the pods that one Redis and one Kafka can serve, and a bound for the view against
/// foreign fields in the hash.
pub const SLOTS_MAX: u32 = 10_000;

/// A pod's name, in bytes: enough for a DNS name, and for any pod of Kubernetes.
pub(crate) const NODE_BYTES_MAX: usize = 253;

/// `PUBLIC_URL`, in bytes. It is in each redirect, and other pods ignore a slot with a longer one.
pub(crate) const PUBLIC_URL_BYTES_MAX: usize = 2048;

/// The value of a slot in Redis, in bytes: a name, a URL and some numbers, with every character escaped.
pub const SLOT_VALUE_BYTES_MAX: usize = 8 * 1024;

/// Foreign fields of the slots hash up to which all fields are read, at about 1 us of Redis time each, per second and
/// pod. Beyond it, slots are read by number.
pub const FOREIGN_FIELDS_MAX: u32 = 1_000;

/// Announcements queued during a call. They all lead to one call, so dropping some loses nothing.
pub(crate) const ANNOUNCEMENTS_MAX: usize = 256;

/// How long the announcement connection may be silent before it is checked by a ping.
pub(crate) const ANNOUNCEMENTS_QUIET_MAX: Duration = Duration::from_secs(5);

/// The maximum age of a view by which clients are redirected. A pod that redirects many clients calls Redis at most
/// once in this time.
pub(crate) const VIEW_AGE_MAX: Duration = Duration::from_millis(100);

/// How long a redirect waits for a fresh view: the time limit of a call to Redis. A Redis that does not answer within
/// it counts as down, and the last known view is used.
pub(crate) const VIEW_REFRESH_WAIT_MAX: Duration = Duration::from_secs(2);

/// A client that reconnects within this time after a redirect by an unconfirmed view counts as returned. It follows the
/// redirect at once, and its target may hold it for a [`VIEW_REFRESH_WAIT_MAX`]; or it finds no pod and pauses for up
/// to 5 s (PROTOCOL 4). A slower client takes another round. It must not be much longer: until then the assessment's
/// other clients are also served beside its owner.
pub(crate) const REDIRECT_RETURN_MAX: Duration = Duration::from_secs(8);

/// Pause between two looks at another pod that answers (PROTOCOL 7, "A pod that is gone").
pub(crate) const PEER_LOOK_EVERY: Duration = Duration::from_millis(500);

/// Pause before a look is repeated that failed.
pub(crate) const PEER_LOOK_RETRY: Duration = Duration::from_millis(100);

/// How long a look may take (PROTOCOL 7).
pub(crate) const PEER_LOOK_MAX: Duration = Duration::from_millis(300);

/// Looks per second at all other pods together: with more than 50 of them, each is looked at less often.
pub(crate) const PEER_LOOKS_PER_SECOND_MAX: u32 = 100;

/// Redirects that one shard remembers, and as many by unconfirmed views, about 60 bytes each. More than a pod accepts in
/// [`REDIRECT_RETURN_MAX`] at the default `ACCEPTS_PER_SECOND`.
pub(crate) const RECENT_REDIRECTS_MAX: usize = 64 * 1024;

/// Concurrent connections to operators' pages; at the limit the oldest is closed. A probe takes milliseconds, so
/// holding connections cannot keep one out.
pub(crate) const HTTP_CONNECTIONS_MAX: usize = 256;

/// How long an operator's request may take to arrive. A probe sends it in one packet.
pub(crate) const HTTP_HEAD_MAX: Duration = Duration::from_secs(2);

/// How long the answer may take after that, until its last byte is read: a scrape of many topics over a slow line.
pub(crate) const HTTP_ANSWER_MAX: Duration = Duration::from_secs(8);

/// An operator's token, in bytes: too long to be guessed, if it is random.
pub(crate) const ADMIN_TOKEN_BYTES_MIN: usize = 16;

/// Tokens in `ADMIN_TOKEN`: each request is compared with all of them.
pub(crate) const ADMIN_TOKENS_MAX: usize = 64;

/// The name of an operator's token, in bytes: it is in each line about a request.
pub(crate) const ADMIN_TOKEN_NAME_BYTES_MAX: usize = 64;

/// The body of an operator's request, in bytes, and a message between pods about it: a user's name and a few words.
pub(crate) const ADMIN_BODY_BYTES_MAX: usize = 4 * 1024;

/// Messages of other pods' operators that wait until the shards have done what earlier ones ask. Over it, they are
/// dropped and logged.
pub(crate) const FLEET_MESSAGES_MAX: usize = 64;

/// How long an operator waits until Redis has taken a message to all pods: the time limit of a call, which may be under
/// way, and of the message.
pub(crate) const PUBLICATION_MAX: Duration = Duration::from_secs(4);

/// Requests of operators that are answered at a time. More get 503: they share the thread with probes.
pub(crate) const ADMIN_REQUESTS_MAX: usize = 8;

/// Rows of an answer to an operator if the request does not say, and at most: about 200 bytes each.
pub(crate) const ADMIN_ROWS_DEFAULT: usize = 100;
pub(crate) const ADMIN_ROWS_MAX: usize = 1_000;

/// How often a wrong operator's token is logged.
pub(crate) const ADMIN_REFUSED_LOG_EVERY: Duration = Duration::from_secs(1);

/// Bytes of log lines waiting to be written; as many again may be in the current write. Lines over the limit are
/// dropped and counted: about two thousand lines, far more than a pod logs during a log rotation.
pub(crate) const LOG_BUFFER_BYTES_MAX: usize = 256 * 1024;

/// How long a level of the log holds that a signal has set: long enough to see a fault again, and short enough to be
/// forgotten.
pub(crate) const SIGNALLED_LEVEL_FOR: Duration = Duration::from_secs(600);

/// The longest time for which an operator may set a level of the log, in seconds; without a time it holds until the
/// process ends.
pub(crate) const LEVEL_SECONDS_MAX: u64 = 7 * 24 * 3600;

/// How long process exit waits for the last log lines. A reader takes milliseconds, or does not read at all.
pub(crate) const LOG_FLUSH_MAX: Duration = Duration::from_millis(500);

/// How long the gateway's threads may take to end after the drain: more than a shard's [`LINGER`].
pub(crate) const THREADS_END_MAX: Duration = Duration::from_secs(5);

const _: () = assert!(
    HTTP_ANSWER_MAX.as_secs() > PUBLICATION_MAX.as_secs() + SHARD_ANSWER_MAX.as_secs(),
    "an operator's answer is not cut off"
);
const _: () = assert!(SHARD_REQUESTS_MAX > 2 * ADMIN_REQUESTS_MAX - 1, "operators of this pod and of others");
const _: () = assert!(THREADS_END_MAX.as_millis() > LINGER.as_millis());
const _: () = assert!(
    WATCHER_STALL_MAX.as_millis() > 4 * START_QUERY_TIMEOUT.as_millis() + 8 * PROBE_TIMEOUT.as_millis(),
    "the queries of the first turn"
);
const _: () = assert!(HANDSHAKE_GRACE.as_millis() > LINGER.as_millis());
const _: () = assert!(HANDSHAKE_GRACE.as_millis() > VIEW_REFRESH_WAIT_MAX.as_millis());
const _: () = assert!(
    REDIRECT_RETURN_MAX.as_secs() > VIEW_REFRESH_WAIT_MAX.as_secs() + 5,
    "plus the longest pause of PROTOCOL 4"
);
const _: () =
    assert!(RECENT_REDIRECTS_MAX as u64 >= REDIRECT_RETURN_MAX.as_secs() * 5_000, "the default ACCEPTS_PER_SECOND");
const _: () =
    assert!(SLOT_VALUE_BYTES_MAX > 2 * (NODE_BYTES_MAX + PUBLIC_URL_BYTES_MAX) + 512, "a pod can read its own value");
const _: () = assert!(WRITE_SLICES_MAX <= 1024);
const _: () = assert!(UNPACKED_BATCHES_MAX >= 1, "a batch within the bounds is accepted once it is the first");
const _: () = assert!(PAUSE_DETECTED_MIN.as_millis() >= 3 * INGEST_WAIT.as_millis(), "a quiet loop is no pause");
const _: () = assert!(BATCH_CHANNEL_BYTES_MAX >= 8 * BATCH_BYTES_MAX, "several batches bridge a busy shard's turn");
const _: () = assert!(BATCH_RECORDS_MAX >= TURN_RECORDS_MAX, "a turn's records fit into one batch");
const _: () = assert!(TOPICS_MAX < 1 << u16::BITS, "a TopicIndex has 16 bits, and one value stands for no topic");
