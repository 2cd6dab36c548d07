//! A real redis-server on 127.0.0.1 that can be killed, paused, emptied and restarted, and access to the pods' slots in
//! it (PROTOCOL 7).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use redis::Commands as _;
use serde::Deserialize;

use crate::process::{Process, Signal, TempDir, eventually, free_port, tool};
use crate::wall_clock::WallClock;

const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A Redis. It is killed on drop. Its data is only in memory, so it restarts empty.
pub struct Redis {
    port: u16,
    dir: TempDir,
    process: Option<Process>,
    clock: Option<WallClock>,
    settings: Vec<String>,
}

/// Receives messages of Redis channels.
pub struct ChannelListener {
    messages: mpsc::Receiver<(String, String)>,
}

impl ChannelListener {
    /// Waits for a message on a channel, and skips others.
    ///
    /// # Panics
    /// If it does not come `within` the time.
    #[track_caller]
    pub fn expect(&self, channel: &str, message: &str, within: Duration) {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.messages.recv_timeout(left) {
                Ok(received) if received == (channel.to_owned(), message.to_owned()) => return,
                Ok(_) => {}
                Err(error) => panic!("{message:?} on {channel}: not within {within:?} ({error})"),
            }
        }
    }
}

/// The value of a slot.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Slot {
    /// The pod's name.
    pub node: String,
    /// Unique id of this run of the pod.
    pub instance: serde_json::Value,
    /// The pod's `PUBLIC_URL`.
    pub url: String,
    /// End of its lease, by Redis' clock.
    pub expires_at_ms: u64,
}

impl Redis {
    /// Starts a Redis and waits until it answers.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a Redis with these arguments on top of the kit's and waits until it answers.
    #[must_use]
    pub fn start_with(settings: &[&str]) -> Self {
        let port = free_port(Ipv4Addr::LOCALHOST);
        let settings = settings.iter().map(ToString::to_string).collect();
        let mut redis = Self { port, dir: TempDir::new("redis"), process: None, clock: None, settings };
        redis.start_again();
        redis
    }

    /// Starts a Redis with its own wall clock and waits until it answers.
    #[must_use]
    pub fn start_with_clock() -> Self {
        let port = free_port(Ipv4Addr::LOCALHOST);
        let mut redis = Self {
            port,
            dir: TempDir::new("redis"),
            process: None,
            clock: Some(WallClock::new()),
            settings: Vec::new(),
        };
        redis.start_again();
        redis
    }

    /// Sets the offset of its clock from real time.
    ///
    /// # Panics
    /// If it was not started with its own clock.
    pub fn set_clock(&self, seconds: i64) {
        self.clock.as_ref().expect("Redis was started with a clock").set(seconds);
    }

    /// Restarts it after [`Self::kill`], empty, on the same port.
    ///
    /// # Panics
    /// If it is up.
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "Redis is down");
        let mut command = Command::new(tool("redis-server", "redis-server"));
        command.arg("--port").arg(self.port.to_string()).arg("--dir").arg(self.dir.path());
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]).args(&self.settings);
        if let Some(clock) = &self.clock {
            clock.apply_to(&mut command);
        }
        let process = Process::start("redis-server", command, &self.dir.path().join("log"));
        let pong = || redis::cmd("PING").query::<String>(&mut self.connect()?).ok();
        eventually("Redis answers", ANSWER_WITHIN, pong);
        self.process = Some(process);
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Kills it. Its data is lost.
    ///
    /// # Panics
    /// If it is down.
    pub fn kill(&mut self) {
        self.process.take().expect("Redis is up").kill();
    }

    /// Pauses it: connections stay open, but nothing answers.
    ///
    /// # Panics
    /// If it is down.
    pub fn pause(&self) {
        self.process.as_ref().expect("Redis is up").signal(Signal::Stop);
    }

    /// Resumes it after [`Self::pause`].
    ///
    /// # Panics
    /// If it is down.
    pub fn resume(&self) {
        self.process.as_ref().expect("Redis is up").signal(Signal::Cont);
    }

    /// Deletes all keys.
    ///
    /// # Panics
    /// If it doesn't answer.
    pub fn flush(&self) {
        redis::cmd("FLUSHALL").exec(&mut self.connection()).expect("Redis answers");
    }

    /// The slots under the default prefix, by number.
    #[must_use]
    pub fn slots(&self) -> BTreeMap<u32, Slot> {
        self.slots_of("websocket")
    }

    /// The slots under a prefix, by number, including those whose lease has expired.
    ///
    /// # Panics
    /// If Redis does not answer, or a slot's value is not as in PROTOCOL 7.
    #[must_use]
    pub fn slots_of(&self, prefix: &str) -> BTreeMap<u32, Slot> {
        let fields: BTreeMap<String, String> =
            self.connection().hgetall(format!("{prefix}:slots")).expect("Redis answers");
        let slots = fields.into_iter().filter_map(|(field, value)| {
            // Fields that are not numbers are the pods' own data.
            let number = field.parse().ok()?;
            let slot = serde_json::from_str(&value).unwrap_or_else(|error| panic!("slot {field}: {error}: {value}"));
            Some((number, slot))
        });
        slots.collect()
    }

    /// The slots with a valid lease, as pod names by number.
    #[must_use]
    pub fn live(&self) -> BTreeMap<u32, String> {
        let now = self.now_ms();
        let live = self.slots().into_iter().filter(|(_, slot)| slot.expires_at_ms > now);
        live.map(|(number, slot)| (number, slot.node)).collect()
    }

    /// Sets a field of a hash, as another program could.
    ///
    /// # Panics
    /// If it doesn't answer.
    pub fn set_field(&self, key: &str, field: &[u8], value: &[u8]) {
        redis::cmd("HSET").arg(key).arg(field).arg(value).exec(&mut self.connection()).expect("Redis answers");
    }

    /// Adds this many fields that are not slots to a hash.
    ///
    /// # Panics
    /// If it doesn't answer.
    pub fn add_fields(&self, key: &str, count: u32) {
        let script = "for n = 1, ARGV[1] do redis.call('HSET', KEYS[1], 'foreign-' .. n, '{}') end";
        redis::cmd("EVAL").arg(script).arg(1).arg(key).arg(count).exec(&mut self.connection()).expect("Redis answers");
    }

    /// All keys.
    ///
    /// # Panics
    /// If it doesn't answer.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.connection().keys("*").expect("Redis answers")
    }

    /// Redis' own clock, in Unix milliseconds.
    ///
    /// # Panics
    /// If it doesn't answer.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        let (seconds, micros): (u64, u64) = redis::cmd("TIME").query(&mut self.connection()).expect("Redis answers");
        seconds * 1000 + micros / 1000
    }

    /// Number of scripts that the pods have run since its start.
    ///
    /// # Panics
    /// If it doesn't answer.
    #[must_use]
    pub fn scripts_run(&self) -> u64 {
        let stats: String =
            redis::cmd("INFO").arg("commandstats").query(&mut self.connection()).expect("Redis answers");
        let of = |command: &str| {
            let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
            line.and_then(|line| line.split(',').next()?.parse::<u64>().ok()).unwrap_or(0)
        };
        of("evalsha") + of("eval")
    }

    /// Makes it a read-only replica of another Redis.
    ///
    /// # Panics
    /// If it does not answer, or does not replicate the other.
    pub fn follow(&self, other: &Self) {
        let mut command = redis::cmd("REPLICAOF");
        command.arg("127.0.0.1").arg(other.port).exec(&mut self.connection()).expect("Redis answers");
        eventually("the replica has synchronized", ANSWER_WITHIN, || {
            let info: String = redis::cmd("INFO").arg("replication").query(&mut self.connection()).ok()?;
            info.contains("master_link_status:up").then_some(())
        });
    }

    /// Makes a replica a primary.
    ///
    /// # Panics
    /// If it doesn't answer.
    pub fn lead(&self) {
        redis::cmd("REPLICAOF").arg("NO").arg("ONE").exec(&mut self.connection()).expect("Redis answers");
    }

    /// Subscribes to channels.
    ///
    /// # Panics
    /// If it doesn't answer.
    #[must_use]
    pub fn listen(&self, channels: &[&str]) -> ChannelListener {
        let mut connection = self.connection();
        let channels: Vec<_> = channels.iter().map(ToString::to_string).collect();
        let (subscribed, is_subscribed) = mpsc::channel();
        let (received, messages) = mpsc::channel();
        // It ends when Redis does, or when the listener is dropped.
        thread::spawn(move || {
            let mut pubsub = connection.as_pubsub();
            let result: Result<(), redis::RedisError> = channels.iter().try_for_each(|name| pubsub.subscribe(name));
            let _ = subscribed.send(result);
            while let Ok(message) = pubsub.get_message() {
                let text = message.get_payload().expect("payloads are text");
                if received.send((message.get_channel_name().to_owned(), text)).is_err() {
                    break;
                }
            }
        });
        is_subscribed.recv().expect("the thread answers").expect("Redis answers");
        ChannelListener { messages }
    }

    fn connect(&self) -> Option<redis::Connection> {
        let client = redis::Client::open(("127.0.0.1", self.port)).ok()?;
        client.get_connection_with_timeout(Duration::from_secs(1)).ok()
    }

    /// A new connection.
    ///
    /// # Panics
    /// If it accepts none.
    #[must_use]
    pub fn connection(&self) -> redis::Connection {
        eventually("Redis takes a connection", ANSWER_WITHIN, || self.connect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_redis_restarts_empty_and_a_paused_one_does_not_answer() {
        let mut redis = Redis::start();
        let slot = r#"{"node":"a","instance":"1","url":"ws://a/ws","expiresAtMs":99999999999999,"more":1}"#;
        let _: () = redis.connection().hset("websocket:slots", "0", slot).unwrap();
        let _: () = redis.connection().hset("websocket:slots", "version", "7").unwrap();
        assert_eq!(redis.live(), BTreeMap::from([(0, "a".to_owned())]));
        assert_eq!(redis.keys(), ["websocket:slots"]);

        let listener = redis.listen(&["websocket:node:join"]);
        let _: () = redis.connection().publish("websocket:node:join", "a").unwrap();
        listener.expect("websocket:node:join", "a", ANSWER_WITHIN);

        redis.pause();
        assert!(redis.connect().is_none());
        redis.resume();
        redis.flush();
        assert!(redis.keys().is_empty());

        let _: () = redis.connection().set("kept", "no").unwrap();
        redis.kill();
        assert!(redis.connect().is_none());
        redis.start_again();
        assert!(redis.keys().is_empty());
    }
}
