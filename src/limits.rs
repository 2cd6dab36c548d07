//! Every bound that is not a setting, with its unit and its reason, and the relations between them. Bounds that an
//! operator sets are in [`crate::config`].

use std::time::Duration;

/// The longest assessment id, in bytes (PROTOCOL 1).
pub const ASSESSMENT_ID_BYTES_MAX: usize = 128;

/// The longest market name, in bytes: it comes from a topic's name, and those have at most 249 characters (Kafka).
pub const MARKET_NAME_BYTES_MAX: usize = 249;

/// Markets on the board of one shard. A name over it is counted and passed over: a producer's mistake must not grow
/// what every new client is sent.
pub const MARKETS_MAX: usize = 10_000;

/// How far a tick's timestamp may be ahead of this pod's clock and still count as a time. Clocks that NTP keeps differ by
/// milliseconds, those of a virtual machine that was paused by a second or two; what is further ahead is a wrong unit or a
/// wrong clock, and must not hold its market's price until its time comes.
pub const TICK_AHEAD_MAX: Duration = Duration::from_secs(5);

/// The least record timestamp that can be a time in Unix ms: early in 1973, long before Kafka. Below it lie times in seconds
/// (until the year 5138), negative ones, and -1, which stands for none.
pub const TICK_TIMESTAMP_MS_MIN: i64 = 100_000_000_000;

/// Ticks on the board of one shard, in bytes, and not more than a quarter of its share of `HISTORY_BYTES`: each new client
/// is sent all of them, and they are held twice (each market's frame, and the image of all). Room for [`MARKETS_MAX`]
/// markets at 800 bytes each. A tick beyond it is counted and not shown.
pub const BOARD_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The share of a shard's history that its board's ticks may have besides, as a divisor.
pub const BOARD_HISTORY_DIVISOR: usize = 4;

/// A cursor, in characters (PROTOCOL 2). Over it, a message has none.
pub const CURSOR_CHARS_MAX: usize = 512;

/// Fields of one route's message: far more than a message wants, and as many as a record's values are looked up for
/// without an allocation.
pub const ROUTE_FIELDS_MAX: usize = 64;

/// The largest bound of a request's head with its last CRLF that `MAX_HEAD_BYTES` may set, in bytes: what servers in front
/// of a pod take at most, too. It is held for each head that is being read, and only as long.
pub const REQUEST_HEAD_BYTES_MAX: usize = 64 * 1024;

/// The PROXY protocol's header, in bytes: several times what proxies send, with TLS' names and all.
pub const PROXY_HEADER_BYTES_MAX: usize = 4 * 1024;

/// Headers in a request's head: as many as fit in practice, and a bound for the parser's table.
pub const REQUEST_HEADERS_MAX: usize = 100;

/// The payload of a WebSocket control frame, in bytes (RFC 6455 section 5.5).
pub const CONTROL_PAYLOAD_BYTES_MAX: usize = 125;

/// Leeway for `exp` and `nbf` (PROTOCOL 1).
pub const TOKEN_LEEWAY: Duration = Duration::from_secs(30);

/// Batches on their way from ingest to one shard. Enough to bridge a turn of a busy shard; small, since what waits here
/// is outside of the history's budget.
pub const BATCH_CHANNEL_DEPTH: usize = 64;

/// Bytes of batches on their way from ingest to one shard, over which the next one waits: a channel full of events of
/// 1 MiB would hold 64. At 500,000 records of 300 bytes a second it bridges 30 ms.
pub const BATCH_CHANNEL_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes of records in one batch to one shard, after which it is handed over even if ingest has more: small events
/// leave in batches of this size.
pub const BATCH_BYTES_MAX: usize = 512 * 1024;

/// Records in one batch to one shard.
pub const BATCH_RECORDS_MAX: usize = 4096;

/// Records that ingest takes from librdkafka in one call: few enough to stay in the processor's caches meanwhile.
pub const CONSUME_RECORDS_MAX: usize = 1024;

/// Records that ingest takes in one turn, while there are more. The first of them waits until the last is judged, at half
/// a microsecond each, unless its batch is full before: a wake of a shard costs as much as a hundred of them.
pub const TURN_RECORDS_MAX: usize = 4 * CONSUME_RECORDS_MAX;

/// Where records stream from several brokers, they are taken once in this time: it is what they may wait here, beyond the
/// pause between two questions to a broker (`ingest/kafka.rs`).
pub const BATCHING_DELAY: Duration = Duration::from_millis(1);

/// So many records at a turn are a flood, of which nothing need gather.
pub const BATCHING_RECORDS_MAX: usize = 64;

/// How long a topic may have more partitions before a shard hears of it, where `TOPIC_REFRESH_MS` is not far above its
/// default: what producers placed by the new number is younger.
pub const GROWTH_NOTICED_MAX: Duration = Duration::from_secs(30);

/// What a compressed batch may come to: librdkafka's own default for zstd (`receive.message.max.bytes`). A batch of one record
/// of the largest `MAX_EVENT_BYTES` is less.
pub const UNPACKED_BYTES_MAX: usize = 100_000_000;

/// Routes that a topic had before its last one and that a shard keeps, while its window may have records that were read by
/// them. Where the routes change more often, the oldest of these records become the messages of the next route.
pub const MAPPINGS_KEPT: usize = 16;

/// How often a shard that gets no records is told how far ingest has read: so old may a quiet client's cursor be. It
/// costs a small batch a shard.
pub const OFFSETS_SENT_EVERY: Duration = Duration::from_secs(1);

/// The longest that ingest waits for a record or for room in a shard's channel before it looks at the rest of its work.
pub const INGEST_WAIT: Duration = Duration::from_millis(100);

/// Topics that a pod can read at a time, those included that were read within the window and [`TOPIC_REST_LOOKS`]. Beyond it, new
/// ones are not read, which is logged as an error.
pub const TOPICS_MAX: usize = (1 << 16) - 1;

/// How long a topic that is read no more keeps its index, beyond the window, in looks at the topics: so much later may all
/// pods know of it, and the last of its records leave their windows. A shard that is further behind lets go of them.
pub const TOPIC_REST_LOOKS: u32 = 3;

/// Records at each partition's end that are read at the start, however old they are: cursors of a quiet topic, whose end
/// may be control records alone, must not expire for that.
pub const START_RECORDS_MIN: i64 = 100;

/// Offsets that are read again, at most, where a partition's log may have lost its end: so far back the place is looked for
/// where the new log parts from the one that was read. What a follower lacks when it is elected is what its leader wrote
/// within `replica.lag.time.max.ms`, as a rule.
pub const REREAD_OFFSETS_MAX: i64 = 10_000;

/// How long a large question to Kafka may take: all topics, or the offsets of a time, which a broker looks up in its
/// index, on a cold disk at worst.
pub const START_QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// The same once the pod reads: while a question is open, nobody notices that the brokers are gone.
pub const METADATA_TIMEOUT: Duration = Duration::from_secs(3);

/// How often the brokers are asked for a sign of life, and for the partitions' ends.
pub const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Partitions whose ends are asked for at a time: of 2,400, each second, the questions alone took some percent of a core.
pub const ENDS_ASKED_MAX: usize = 500;

/// The least time between two looks at the cluster's topics, whatever doubts the reader has of them.
pub const METADATA_REFRESH_MIN: Duration = Duration::from_millis(100);

/// How often a topic is looked at because its records lie where its partitioner would not have put them: there may be
/// more partitions, or its producers place by another rule, and then it is so with every record.
pub const MISPLACED_REFRESH_EVERY: Duration = Duration::from_secs(5);

/// So long a standstill of the ingest thread makes it look at the cluster's topics before it reads on. Its loop turns
/// each [`INGEST_WAIT`] at the latest, and a topic is not deleted, made anew and filled in less.
pub const PAUSE_DETECTED_MIN: Duration = Duration::from_millis(300);

/// The longest that reading waits for that look.
pub const METADATA_WAIT_MAX: Duration = Duration::from_secs(5);

/// How long a sign of life may take, and the question for the partitions' ends.
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(1_500);

/// How long brokers that took a question and did not answer still count as connected.
pub const PROBE_SILENCE_MAX: Duration = Duration::from_secs(6);

/// Clients of librdkafka that are being ended at a time. Each may keep its threads and connections until it has ended;
/// where so many hang at it, no client is replaced any more.
pub const CLIENTS_ENDING_MAX: usize = 8;

/// The longest pause between two replacements of the client that reads, where one after the other makes no progress: it
/// is most likely not the client's fault.
pub const CLIENT_REPLACEMENT_PAUSE_MAX: Duration = Duration::from_secs(60);

/// By so much may the clocks of those who write records differ from the brokers', where `min.compaction.lag.ms` decides what
/// compaction may have removed.
pub const COMPACTION_CLOCKS_MAX: Duration = Duration::from_secs(5);

/// Topics whose settings are asked for again with a look, by turns: it is not free for the broker.
pub const SETTINGS_ASKED_MAX: usize = 50;

/// So long does a partition stand behind an open transaction before it is told of: most are committed far sooner.
pub const OPEN_TRANSACTION_MIN: Duration = Duration::from_secs(5);

/// Topics that one line of the log names.
pub const TOPICS_NAMED_MAX: usize = 10;

/// Kinds of complaint about Kafka that are kept apart in the log; over it, new ones go unsaid for a while.
pub const LOG_KEYS_MAX: usize = 1024;

/// How often an unusable record is told of, a topic (PROTOCOL 3: each is counted).
pub const MALFORMED_LOG_EVERY: Duration = Duration::from_secs(1);

/// How often a tick whose timestamp can't be used is logged, a topic and reason: each is counted.
pub const TICK_LOG_EVERY: Duration = Duration::from_secs(1);

/// How often a shard tells of records that lie where they should not, and of cursors that are too long.
pub const FINDINGS_LOG_EVERY: Duration = Duration::from_secs(10);

/// How often the same complaint of librdkafka is told of: a broker that is down makes it repeat itself each second.
pub const KAFKA_LOG_EVERY: Duration = Duration::from_secs(30);

/// Sockets on their way from one shard to another. A shard that is so far behind refuses with 503.
pub const HANDOFF_CHANNEL_DEPTH: usize = 1024;

/// Operators' requests on their way to the control thread; over it, 503. It takes all of them each time that it turns.
pub const HTTP_CHANNEL_DEPTH: usize = HTTP_CONNECTIONS_MAX;

/// Request heads that one shard reads at a time, where the limit of open files leaves room for so many
/// (`config/parts.rs`): each holds a buffer and a descriptor. Further sockets wait in the kernel's queue.
pub const HANDSHAKES_MAX: usize = 4096;

/// Handshakes that one client address may have under way, where its connections are bounded and no more of them may be:
/// room for clients behind one address that come at the same time, and are told that there are too many of them.
pub const HANDSHAKES_PER_ADDRESS_MIN: u64 = 64;

/// How long a request is left alone where others wait for its place: more than a good one takes on a slow line, and more
/// than [`VIEW_REFRESH_WAIT_MAX`] and [`LINGER`].
pub const HANDSHAKE_GRACE: Duration = Duration::from_secs(3);

/// How long a socket that has sent nothing keeps its place where others wait for it. A client's request follows its
/// connection at once: this leaves time for a packet that is sent again.
pub const SILENT_SOCKET_GRACE: Duration = Duration::from_secs(1);

/// How often the pod tells that it can't accept, or can't watch what it accepted: what forbids it (no descriptor left, most
/// likely) lasts.
pub const ACCEPT_LOG_EVERY: Duration = Duration::from_secs(30);

/// The longest that a thread may go without a turn of its loop before `/health` says so.
pub const LOOP_STALL_MAX: Duration = Duration::from_secs(5);

/// The same for the thread that asks Kafka what there is: each question of a turn may wait for its time limit, and the
/// first turn has the most of them.
pub const WATCHER_STALL_MAX: Duration = Duration::from_secs(60);

/// How often each thread shows that it turns, where nothing else does.
pub const TURN_EVERY: Duration = Duration::from_secs(1);

/// How long a close handshake may take, and how long what a peer still sends is read and dropped before its socket is
/// closed, so that the last answer arrives and no reset destroys it.
pub const LINGER: Duration = Duration::from_secs(2);

/// Bytes that are read and dropped of what a peer still sends meanwhile. What comes beyond is left in its socket.
pub const LINGER_BYTES_MAX: usize = 1024 * 1024;

/// How often it is looked whether a peer has taken its last answer.
pub const LINGER_POLL_EVERY: Duration = Duration::from_millis(250);

/// What a shard's window may be over twice its budget while entries are not dispatched: so much a batch of a small
/// window's largest events costs, with their frames.
pub const UNDISPATCHED_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What a message has beyond its event's payload, and a record beside it: type, cursor, frame header; its id.
pub const EVENT_OVERHEAD_BYTES_MAX: usize = 16 * 1024;

/// A message that every client library takes by its defaults, in bytes: Python's `websockets` closes over it.
pub const MESSAGE_BYTES_COMMON: usize = 1024 * 1024;

/// How long the socket of a client that is being closed may take nothing while a frame that was begun goes before the close
/// frame. A socket takes half of [`UNSENT_BYTES_MAX`] at a time: a client that reads 7 kB/s gets all of it.
pub const CLOSE_STALL_MAX: Duration = Duration::from_secs(10);

/// Bytes that the kernel takes for one client beyond those that are on their way to it (TCP_NOTSENT_LOWAT). Left to
/// itself it takes megabytes and then says nothing until a third of them are gone: who reads slowly would seem to take
/// nothing, would cost that much, and would be sent prices that are as old as the rest of it.
pub const UNSENT_BYTES_MAX: u32 = 128 * 1024;

/// Bytes that one connection is sent in a turn before others have theirs.
pub const TURN_BYTES_MAX: usize = 256 * 1024;

/// Bytes that a shard sends in a turn to those who lag or catch up, all together: two milliseconds' work where frames are
/// made for each of them, and so long those who are up to date wait for it.
pub const CATCH_UP_BYTES_PER_TURN: u64 = 128 * 1024;

/// Bytes that one connection is sent at a time while it is not past its cursor: such frames are its own.
pub const CATCH_UP_FRAMES_BYTES_MAX: usize = 64 * 1024;

/// Steps along the window that a handshake has, and each turn of a connection, to find and frame what a client lacks: some
/// 10 ns each, and as much as the rest of a handshake. Where they do not lead to the end, the connection waits for its next
/// turn, as one does that has more due than a turn's share.
pub const STEPS_MAX: usize = 2048;

/// Steps that take as long as one send.
pub const STEPS_A_SEND: usize = 256;

/// Slices in one vectored write: Linux takes 1024 (`UIO_MAXIOV`); frames that lie side by side share one.
pub const WRITE_SLICES_MAX: usize = 64;

/// Slots of a cluster: many more than pods that one Redis and one Kafka serve, and a bound for a view that a stray field
/// in the hash must not grow.
pub const SLOTS_MAX: u32 = 10_000;

/// A pod's name, in bytes: a DNS name fits, and so does any pod's of Kubernetes.
pub const NODE_BYTES_MAX: usize = 253;

/// `PUBLIC_URL`, in bytes. It is in each redirect, and other pods ignore a slot with a longer one.
pub const PUBLIC_URL_BYTES_MAX: usize = 2048;

/// The value of a slot in Redis, in bytes: a name, a URL and some numbers, with each character escaped.
pub const SLOT_VALUE_BYTES_MAX: usize = 8 * 1024;

/// Fields of the hash that are no slots, up to which all fields are read: each second and pod, some 1 us of Redis for
/// each. Where there are more, the slots are asked for by number.
pub const FOREIGN_FIELDS_MAX: u32 = 1_000;

/// Announcements from Redis that wait while a call is under way. All of them together ask for one call, so those over
/// the bound lose nothing that the call would not see.
pub const ANNOUNCEMENTS_MAX: usize = 256;

/// How long the connection for announcements may be quiet before it is checked by a ping: one that is dead stays quiet.
pub const ANNOUNCEMENTS_QUIET_MAX: Duration = Duration::from_secs(5);

/// The oldest look at Redis by whose view a client is sent to another pod. A pod that sends away many costs Redis one
/// look in this time at most.
pub const VIEW_AGE_MAX: Duration = Duration::from_millis(100);

/// How long a client that is to be sent away waits for such a look: as long as a call to Redis may take. A Redis that
/// doesn't answer by then counts as down, and the last view is gone by.
pub const VIEW_REFRESH_WAIT_MAX: Duration = Duration::from_secs(2);

/// How long a client that was sent away by a view that is not proven counts as one that comes back. It follows a redirect at
/// once, where its target may take a [`VIEW_REFRESH_WAIT_MAX`] to send it back; or it finds nobody there, and pauses first: for 5 s
/// at most, where it keeps to PROTOCOL 4. One that takes longer costs a round more. Much longer must it not be: meanwhile
/// the assessment's other clients are served beside its owner, too.
pub const REDIRECT_RETURN_MAX: Duration = Duration::from_secs(8);

/// Redirects by such a view that one shard remembers, at some 60 bytes each, only then. More than a pod accepts in
/// [`REDIRECT_RETURN_MAX`] at the default `ACCEPTS_PER_SECOND`.
pub const RECENT_REDIRECTS_MAX: usize = 64 * 1024;

/// Operators' connections at a time; beyond it the oldest is closed. A probe takes milliseconds: so many must be opened
/// within them to keep one out, and none can by holding them.
pub const HTTP_CONNECTIONS_MAX: usize = 256;

/// How long an operator's request may take to come in. A probe sends it in one packet.
pub const HTTP_HEAD_MAX: Duration = Duration::from_secs(2);

/// How long its answer may take beyond that, until the last byte is read: a scrape of many topics over a slow line.
pub const HTTP_ANSWER_MAX: Duration = Duration::from_secs(8);

/// Log lines that wait to be written, in bytes; as many again may be in the writing. Beyond it lines are dropped and
/// counted: some two thousand lines, far more than a pod logs while its log is rotated.
pub const LOG_BUFFER_BYTES_MAX: usize = 256 * 1024;

/// How long the process's end waits for its last lines to be written. Whoever reads them takes milliseconds, or does not
/// read.
pub const LOG_FLUSH_MAX: Duration = Duration::from_millis(500);

/// How long the gateway's threads may take to end once all is over: more than a shard's [`LINGER`].
pub const THREADS_END_MAX: Duration = Duration::from_secs(5);

const _: () = assert!(THREADS_END_MAX.as_millis() > LINGER.as_millis());
const _: () = assert!(
    WATCHER_STALL_MAX.as_millis() > 4 * START_QUERY_TIMEOUT.as_millis() + 8 * PROBE_TIMEOUT.as_millis(),
    "the first turn's questions"
);
const _: () = assert!(HANDSHAKE_GRACE.as_millis() > LINGER.as_millis());
const _: () = assert!(HANDSHAKE_GRACE.as_millis() > VIEW_REFRESH_WAIT_MAX.as_millis());
const _: () = assert!(
    REDIRECT_RETURN_MAX.as_secs() > VIEW_REFRESH_WAIT_MAX.as_secs() + 5,
    "the longest pause of PROTOCOL 4, besides"
);
const _: () =
    assert!(RECENT_REDIRECTS_MAX as u64 >= REDIRECT_RETURN_MAX.as_secs() * 5_000, "the default ACCEPTS_PER_SECOND");
const _: () = assert!(SLOT_VALUE_BYTES_MAX > 2 * (NODE_BYTES_MAX + PUBLIC_URL_BYTES_MAX) + 512, "a pod reads its own");
const _: () = assert!(WRITE_SLICES_MAX <= 1024);
const _: () = assert!(PAUSE_DETECTED_MIN.as_millis() >= 3 * INGEST_WAIT.as_millis(), "a quiet loop is no standstill");
const _: () = assert!(BATCH_CHANNEL_BYTES_MAX >= 8 * BATCH_BYTES_MAX, "a busy shard's turn is bridged by some batches");
const _: () = assert!(BATCH_RECORDS_MAX >= TURN_RECORDS_MAX, "a turn's records fit into one batch");
const _: () = assert!(TOPICS_MAX < 1 << u16::BITS, "a TopicIndex has 16 bits, and one of them is no topic's");
