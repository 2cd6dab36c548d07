//! A shard's rules on scripted sockets and a clock that the tests advance.

mod ages;
mod costs;
mod elections;
mod leaving;
mod newcomers;
mod operators;
mod passes;
mod returns;
mod slow;
mod tokens;

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::connection::{ConnectionKey, NewConnection, Pass, Socket};
use super::redirect::OwnerDoubt;
use super::state::{ClosedConnection, ShardState};
use super::sweep::Sweeper;
use crate::clock::{Now, UnixMs};
use crate::config::ShardConfig;
use crate::ids::{AssessmentId, NodeId};
use crate::protocol::close::CloseReason;
use crate::protocol::session::Inbound;
use crate::stream::batch::Batch;
use crate::stream::testing::{BTC, events, malformed, number, texts, tick, topics};

// ---- the world ----------------------------------------------------------------------------------------------------

/// A socket that takes as many bytes as its script says.
#[derive(Clone, Default)]
struct Scripted(Rc<RefCell<Script>>);

#[derive(Default)]
struct Script {
    takes: usize,
    broken: bool,
    got: Vec<u8>,
    writes: usize,
    woken: usize,
}

impl Scripted {
    fn open() -> Self {
        let socket = Self::default();
        socket.0.borrow_mut().takes = usize::MAX;
        socket
    }

    fn takes(&self, bytes: usize) {
        self.0.borrow_mut().takes = bytes;
    }

    /// The texts since the last call. Fails if a frame is cut.
    fn texts(&self) -> Vec<String> {
        texts(&std::mem::take(&mut self.0.borrow_mut().got))
    }

    fn numbers(&self) -> Vec<u64> {
        self.texts().iter().filter(|text| text.contains("currentBalance")).map(|text| number(text)).collect()
    }

    fn writes(&self) -> usize {
        std::mem::take(&mut self.0.borrow_mut().writes)
    }

    fn take(&self, bytes: &[u8]) -> usize {
        let mut script = self.0.borrow_mut();
        let taken = bytes.len().min(script.takes);
        script.got.extend_from_slice(&bytes[..taken]);
        if script.takes != usize::MAX {
            script.takes -= taken;
        }
        taken
    }
}

impl Socket for Scripted {
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.0.borrow().broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let sent: usize = slices.iter().map(|slice| self.take(slice)).sum();
        if sent == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.0.borrow_mut().writes += 1;
        Ok(sent)
    }

    fn acknowledged_bytes(&self) -> u64 {
        0
    }

    fn wake(&self) {
        self.0.borrow_mut().woken += 1;
    }
}

struct World {
    state: ShardState<Scripted>,
    now: Now,
}

fn config() -> ShardConfig {
    ShardConfig {
        shards: 1,
        history: Duration::from_secs(300),
        history_bytes: 4 << 20,
        market_flush: Duration::from_millis(100),
        heartbeat: Duration::from_secs(30),
        silence: Duration::from_secs(60),
        connections_max: 1000,
        accepts_per_second: 1000,
        inbound_per_second: 20,
        message_bytes_max: 4096,
        handshake_timeout: Duration::from_secs(10),
        stall_timeout: Duration::from_secs(60),
        handover_per_second: 1000,
        place_anywhere: false,
    }
}

impl World {
    fn new() -> Self {
        Self::with(config())
    }

    fn with(config: ShardConfig) -> Self {
        let now = Now { instant: Instant::now(), unix: UnixMs(1_790_000_000_000) };
        let mut state = ShardState::new(config, NodeId("pod".into()));
        state.take(Batch { topics: topics(), ..Batch::default() }, now.instant);
        assert_eq!(state.flush_markets(1, now), Pass::Done);
        Self { state, now }
    }

    fn pass(&mut self, duration: Duration) {
        self.now = Now { instant: self.now.instant + duration, unix: self.now.unix.plus(duration) };
    }

    fn connect(&mut self, assessment: Option<&str>) -> (ConnectionKey, Scripted) {
        let socket = Scripted::open();
        let key = self.connect_to(&socket, assessment, None);
        (key, socket)
    }

    fn connect_to(&mut self, socket: &Scripted, assessment: Option<&str>, expires: Option<UnixMs>) -> ConnectionKey {
        self.enter(socket, assessment, None, expires)
    }

    /// A turn: takes in batches and sends all that is due.
    fn turn(&mut self, batches: impl IntoIterator<Item = Batch>) {
        for batch in batches {
            self.state.take(batch, self.now.instant);
        }
        while self.state.dispatch(3, self.now) == Pass::More {}
        while self.state.flush_markets(3, self.now) == Pass::More {}
        while self.state.recheck_ahead(3) == Pass::More {}
        while self.state.catch_up(3, &mut u64::MAX.clone(), self.now) == Pass::More {}
    }

    /// What a connection's own task does when it is woken.
    fn run_task(&mut self, key: ConnectionKey, socket: &Scripted) {
        self.state.write_blocked(key, self.now, |bytes| match socket.take(bytes) {
            0 => Poll::Pending,
            taken => Poll::Ready(Ok(taken)),
        });
    }

    fn sweep(&mut self, sweeper: &mut Sweeper) {
        while sweeper.sweep(&mut self.state, 3, self.now) == Pass::More {}
    }

    fn sent(&mut self) -> u64 {
        self.state.end_turn(self.now.instant).0.sent
    }
}

// ---- events -------------------------------------------------------------------------------------------------------

#[test]
fn one_event_is_one_write_and_ten_that_are_due_are_one_write_too() {
    let mut world = World::new();
    let (_, a) = world.connect(Some("a"));
    a.writes();
    world.turn([events(&[("a", 1)])]);
    assert_eq!((a.writes(), a.numbers()), (1, vec![1]));
    world.turn((2..12).map(|number| events(&[("a", number), ("b", 0)])));
    assert_eq!((a.writes(), a.numbers()), (1, (2..12).collect()));
    assert_eq!(world.sent(), 12, "connected and eleven events");
}

#[test]
fn events_taken_in_during_a_dispatch_join_the_write_of_the_remaining_subscribers() {
    let mut world = World::new();
    let clients: Vec<_> = (0..5).map(|_| world.connect(Some("a")).1).collect();
    let (_, b) = world.connect(Some("b"));
    clients.iter().chain([&b]).for_each(|client| assert_eq!(client.writes(), 1));
    world.state.take(events(&[("a", 1), ("b", 2)]), world.now.instant);
    assert_eq!(world.state.dispatch(2, world.now), Pass::More, "two of five are told");
    world.state.take(events(&[("a", 3)]), world.now.instant);
    assert_eq!(world.state.dispatch(1, world.now), Pass::More);
    world.turn([events(&[("a", 4), ("a", 5)])]);
    let writes: Vec<_> = clients.iter().map(Scripted::writes).collect();
    assert_eq!(writes, [1, 1, 2, 2, 2], "the last ones were told before more came");
    clients.iter().for_each(|client| assert_eq!(client.numbers(), [1, 3, 4, 5]));
    assert_eq!((b.writes(), b.numbers()), (1, vec![2]));
    world.turn([]);
    assert!(clients.iter().all(|client| client.writes() == 0));
}

#[test]
fn a_client_gets_the_events_of_its_assessment_and_a_market_client_gets_none() {
    let mut world = World::new();
    let (_, a) = world.connect(Some("a"));
    let (_, also_a) = world.connect(Some("a"));
    let (_, b) = world.connect(Some("b"));
    let (_, market) = world.connect(None);
    world.turn([events(&[("a", 1), ("b", 2), ("c", 3), ("a", 4)])]);
    assert_eq!(a.numbers(), [1, 4]);
    assert_eq!(also_a.numbers(), [1, 4]);
    assert_eq!(b.numbers(), [2]);
    let told = market.texts();
    assert!(told.len() == 1 && told[0].starts_with(r#"{"type":"connected""#), "{told:?}");
}

#[test]
fn connected_comes_first_then_the_board_then_events() {
    let mut world = World::new();
    world.turn([tick(BTC, 0, 1, 0, 100), events(&[("a", 1)])]);
    world.pass(Duration::from_millis(100));
    world.turn([]);
    let socket = Scripted::default();
    let key = world.connect_to(&socket, Some("a"), None);
    world.turn([events(&[("a", 2)])]);
    socket.takes(usize::MAX);
    world.run_task(key, &socket);
    let got = socket.texts();
    assert_eq!(got.len(), 3);
    assert!(
        got[0].contains("connected") && got[1].contains("market_price") && got[2].contains("pnl_update"),
        "{got:?}"
    );
}

#[test]
fn a_client_with_a_full_socket_catches_up_and_delays_no_other_client() {
    let mut world = World::new();
    let (slow_key, slow) = world.connect(Some("a"));
    let (_, fast) = world.connect(Some("a"));
    slow.takes(70);
    world.turn((1..6).map(|number| events(&[("a", number)])));
    world.turn([events(&[("a", 6)])]);
    assert_eq!(fast.numbers(), [1, 2, 3, 4, 5, 6]);
    assert!(slow.0.borrow().woken > 0, "its own task waits for it");
    world.run_task(slow_key, &slow);
    slow.takes(100);
    world.run_task(slow_key, &slow);
    slow.takes(usize::MAX);
    world.run_task(slow_key, &slow);
    assert_eq!(slow.numbers(), [1, 2, 3, 4, 5, 6]);
    world.turn([events(&[("a", 7)])]);
    assert_eq!(slow.numbers(), [7]);
}

#[test]
fn a_control_frame_never_splits_a_frame_that_is_half_written() {
    let mut world = World::new();
    let (key, socket) = world.connect(Some("a"));
    socket.texts();
    socket.takes(10);
    world.turn([events(&[("a", 1)])]);
    world.state.inbound(key, Inbound::ControlPing(b"first".as_slice().into()), world.now);
    world.state.inbound(key, Inbound::ControlPing(b"latest".as_slice().into()), world.now);
    world.state.inbound(key, Inbound::Ping, world.now);
    world.state.flush(key, world.now);
    socket.takes(usize::MAX);
    world.run_task(key, &socket);
    let got = socket.0.borrow().got.clone();
    assert!(got.windows(8).any(|part| part == b"\x8a\x06latest"), "the latest ping is answered");
    let texts = socket.texts();
    assert!(texts[0].contains("pnl_update") && texts[1].contains("pong"), "{texts:?}");
}

#[test]
fn frames_from_one_read_are_answered_in_one_write() {
    let mut world = World::new();
    let (key, socket) = world.connect(None);
    socket.texts();
    socket.writes();
    for number in 0..190u8 {
        world.state.inbound(key, Inbound::ControlPing([number].as_slice().into()), world.now);
    }
    world.state.inbound(key, Inbound::Ping, world.now);
    world.state.inbound(key, Inbound::BadMessage, world.now);
    assert_eq!(socket.writes(), 0);
    world.state.flush(key, world.now);
    assert_eq!(socket.writes(), 1);
    assert!(socket.0.borrow().got.starts_with(b"\x8a\x01\xbd"), "the newest ping is answered");
    assert_eq!(socket.texts().len(), 2, "pong and complaint");
}

#[test]
fn a_client_that_leaves_during_a_dispatch_makes_no_other_miss_an_event() {
    let mut world = World::new();
    let clients: Vec<_> = (0..10).map(|_| world.connect(Some("a"))).collect();
    world.state.take(events(&[("a", 1)]), world.now.instant);
    assert_eq!(world.state.dispatch(4, world.now), Pass::More);
    for leaver in [9, 0, 5] {
        let ended = world.state.detach(clients[leaver].0, CloseReason::ClientGone);
        assert_eq!(ended.map(|ended| ended.reason), Some(CloseReason::ClientGone));
    }
    world.turn([]);
    for stayer in [1, 2, 3, 4, 6, 7, 8] {
        assert_eq!(clients[stayer].1.numbers(), [1], "client {stayer}");
    }
}

#[test]
fn a_client_overtaken_by_the_window_is_closed_as_too_slow() {
    let mut world = World::new();
    let (key, socket) = world.connect(Some("a"));
    let mut sweeper = Sweeper::new(&config(), world.now.instant);
    socket.texts();
    socket.takes(0);
    world.turn([events(&[("a", 1)])]);
    world.pass(Duration::from_secs(1));
    let filler: Vec<_> = (0..60_000).map(|number| ("other", number)).collect();
    world.turn(filler.chunks(1000).map(events));
    world.sweep(&mut sweeper);
    socket.takes(usize::MAX);
    world.run_task(key, &socket);
    assert_eq!(world.state.ended(key), Some(CloseReason::TooSlow));
    assert!(socket.0.borrow().got.starts_with(&[0x88]), "nothing but a close frame");
}

#[test]
fn a_disconnected_client_is_detached() {
    let mut world = World::new();
    let (key, socket) = world.connect(Some("a"));
    socket.0.borrow_mut().broken = true;
    world.turn([events(&[("a", 1)])]);
    assert_eq!(world.state.ended(key), Some(CloseReason::ClientGone));
    let ended = world.state.detach(key, CloseReason::GoingAway);
    assert!(matches!(ended, Some(ClosedConnection { reason: CloseReason::ClientGone, close_sent: false, .. })));
    assert_eq!(world.state.detach(key, CloseReason::GoingAway), None);
}

// ---- markets ------------------------------------------------------------------------------------------------------

#[test]
fn the_first_price_after_a_quiet_interval_leaves_at_once_and_what_follows_within_it_is_conflated() {
    let mut world = World::new();
    let (_, socket) = world.connect(None);
    socket.texts();
    let mut send = |after_ms, price: u64| {
        world.pass(Duration::from_millis(after_ms));
        world.turn([tick(BTC, 0, price.cast_signed(), 0, price)]);
        socket.texts().iter().map(|text| number(text)).collect::<Vec<_>>()
    };
    assert_eq!(send(30, 1), [1], "the first one");
    assert_eq!([send(30, 2), send(30, 3), send(30, 4)].concat(), [0; 0]);
    assert_eq!(send(10, 5), [5], "the interval has passed");
    assert_eq!(send(100, 6), [6], "it was quiet");
    assert_eq!(send(50, 7), [0; 0]);
    world.pass(Duration::from_millis(50));
    assert_eq!(world.state.next_market_flush(world.now.instant), Some(world.now.instant));
    world.turn([]);
    assert_eq!(socket.texts().iter().map(|text| number(text)).collect::<Vec<_>>(), [7]);
}

#[test]
fn an_unflushed_market_reaches_a_new_client_and_the_others() {
    let mut world = World::new();
    world.turn([tick(BTC, 0, 1, 0, 99)]);
    let (_, early) = world.connect(None);
    early.texts();
    world.pass(Duration::from_millis(50));
    world.turn([tick(BTC, 0, 2, 0, 100)]);
    let (_, late) = world.connect(None);
    assert_eq!(late.texts().len(), 2, "connected, and the board");
    assert_eq!(early.texts().len(), 0, "it is not time for a flush");
    world.pass(Duration::from_millis(100));
    world.turn([]);
    assert_eq!((early.texts().len(), late.texts().len()), (1, 0));
}

// ---- time ---------------------------------------------------------------------------------------------------------

#[test]
fn heartbeats_come_each_interval_and_silence_is_closed() {
    let mut world = World::new();
    let mut sweeper = Sweeper::new(&config(), world.now.instant);
    let (talker, talks) = world.connect(None);
    let (silent, _) = world.connect(None);
    talks.texts();
    for _ in 0..60 {
        world.pass(Duration::from_secs(1));
        world.state.inbound(talker, Inbound::Pong, world.now);
        world.sweep(&mut sweeper);
    }
    let pings = talks.texts();
    assert_eq!(pings.len(), 2, "{pings:?}");
    assert!(pings[0].starts_with(r#"{"type":"ping","timestamp":"2026-"#));
    assert_eq!(world.state.ended(talker), None);
    assert_eq!(world.state.ended(silent), Some(CloseReason::Silent));
}

#[test]
fn after_a_pause_sockets_are_read_before_heartbeat_timeouts_apply() {
    let mut world = World::new();
    let mut sweeper = Sweeper::new(&config(), world.now.instant);
    let (key, _) = world.connect(None);
    world.pass(Duration::from_secs(300));
    world.sweep(&mut sweeper);
    assert_eq!(world.state.ended(key), None);
    world.pass(Duration::from_millis(1500));
    world.sweep(&mut sweeper);
    assert_eq!(world.state.ended(key), Some(CloseReason::Silent));
}

#[test]
fn a_token_that_runs_out_ends_its_connection() {
    let mut world = World::new();
    let mut sweeper = Sweeper::new(&config(), world.now.instant);
    let expires = world.now.unix.plus(Duration::from_secs(5));
    let key = world.connect_to(&Scripted::open(), None, Some(expires));
    for second in 1..=5 {
        world.pass(Duration::from_secs(1));
        world.sweep(&mut sweeper);
        assert_eq!(world.state.ended(key), (second == 5).then_some(CloseReason::TokenExpired));
    }
}

#[test]
fn a_wall_clock_step_does_not_move_token_expiry() {
    for hours in [-1, 1] {
        let mut world = World::new();
        let mut sweeper = Sweeper::new(&config(), world.now.instant);
        let expires = world.now.unix.plus(Duration::from_secs(5));
        let key = world.connect_to(&Scripted::open(), None, Some(expires));
        world.now.unix.0 = world.now.unix.0.checked_add_signed(hours * 3_600_000).unwrap();
        for second in 1..=5 {
            world.pass(Duration::from_secs(1));
            world.sweep(&mut sweeper);
            assert_eq!(world.state.ended(key), (second == 5).then_some(CloseReason::TokenExpired));
        }
    }
}

#[test]
fn a_stalled_socket_is_closed_and_then_aborted() {
    let mut world = World::new();
    let mut sweeper = Sweeper::new(&config(), world.now.instant);
    let (key, socket) = world.connect(Some("a"));
    socket.takes(10);
    world.turn([events(&[("a", 1)])]);
    for _ in 0..61 {
        world.pass(Duration::from_secs(1));
        world.state.inbound(key, Inbound::Pong, world.now);
        world.sweep(&mut sweeper);
    }
    assert_eq!(world.state.ended(key), None, "the close frame waits behind the half-written event");
    for _ in 0..3 {
        world.pass(Duration::from_secs(1));
        world.sweep(&mut sweeper);
    }
    assert_eq!(
        world.state.detach(key, CloseReason::ClientGone).map(|end| (end.reason, end.close_sent)),
        Some((CloseReason::TooSlow, false))
    );
}

// ---- what clients send --------------------------------------------------------------------------------------------

#[test]
fn bad_messages_are_answered_once_a_second_and_over_the_rate_the_connection_is_closed() {
    let mut world = World::new();
    let (key, socket) = world.connect(None);
    socket.texts();
    for _ in 0..40 {
        world.state.inbound(key, Inbound::BadMessage, world.now);
        world.state.flush(key, world.now);
    }
    assert_eq!(socket.texts().len(), 1);
    world.pass(Duration::from_secs(1));
    for _ in 0..20 {
        world.state.inbound(key, Inbound::BadMessage, world.now);
        world.state.flush(key, world.now);
    }
    assert_eq!(socket.texts().len(), 1);
    world.state.inbound(key, Inbound::Other, world.now);
    world.state.flush(key, world.now);
    assert_eq!(world.state.ended(key), Some(CloseReason::RateLimited));
    assert_eq!(world.state.end_turn(world.now.instant).0.received, 61);
}

// ---- random runs --------------------------------------------------------------------------------------------------

#[derive(Debug, Clone)]
enum Step {
    Events(Vec<u8>),
    Malformed(u8),
    Tick(bool),
    Takes(u8, usize),
    Task(u8),
    Ping(u8),
    /// This many sends of a turn, before the next step.
    PartOfTurn(usize),
    Turn,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => prop::collection::vec(0u8..3, 1..20).prop_map(Step::Events),
        1 => (0u8..3).prop_map(Step::Malformed),
        2 => any::<bool>().prop_map(Step::Tick),
        4 => (0u8..6, prop_oneof![Just(usize::MAX), 0usize..400]).prop_map(|(who, bytes)| Step::Takes(who, bytes)),
        4 => (0u8..6).prop_map(Step::Task),
        1 => (0u8..6).prop_map(Step::Ping),
        5 => (1usize..4).prop_map(Step::PartOfTurn),
        5 => Just(Step::Turn),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    /// Sockets take any number of bytes at any time. Each client reads whole frames, its own events in order, none
    /// twice, and in the end the latest price.
    #[test]
    fn every_client_gets_all_its_events_once_and_the_latest_price(steps in steps()) {
        let names = ["a", "b", "c"];
        let mut world = World::new();
        let clients: Vec<_> = (0..6).map(|index| world.connect(names.get(index / 2).copied())).collect();
        let mut expected = vec![Vec::new(); 3];
        let (mut next, mut price, mut latest) = (0, 0, None);
        for step in steps {
            world.pass(Duration::from_millis(20));
            match step {
                Step::Events(assessments) => {
                    let batch: Vec<_> = assessments.iter().map(|&who| { next += 1; (names[usize::from(who)], next) }).collect();
                    for (&who, &(_, number)) in assessments.iter().zip(&batch) { expected[usize::from(who)].push(number); }
                    world.state.take(events(&batch), world.now.instant);
                }
                Step::Malformed(who) => {
                    next += 1;
                    world.state.take(malformed(names[usize::from(who)], next), world.now.instant);
                }
                Step::Tick(is_new) => {
                    price += u64::from(is_new);
                    let offset = i64::try_from(price).unwrap();
                    world.state.take(tick(BTC, 0, offset, 0, price), world.now.instant);
                    latest = Some(price);
                }
                Step::Takes(who, bytes) => clients[usize::from(who)].1.takes(bytes),
                Step::Task(who) => { let (key, socket) = &clients[usize::from(who)]; world.run_task(*key, socket); }
                Step::Ping(who) => {
                    world.state.inbound(clients[usize::from(who)].0, Inbound::Ping, world.now);
                    world.state.flush(clients[usize::from(who)].0, world.now);
                }
                Step::PartOfTurn(budget) => { world.state.dispatch(budget, world.now); }
                Step::Turn => world.turn([]),
            }
        }
        world.pass(Duration::from_millis(200));
        world.turn([]);
        for (key, socket) in &clients {
            socket.takes(usize::MAX);
            world.run_task(*key, socket);
            prop_assert_eq!(world.state.ended(*key), None);
        }
        let mut sent = 0;
        prop_assert_eq!(world.state.history.held(), 0, "a frame is held for as long as it is half written");
        for (index, (_, socket)) in clients.iter().enumerate() {
            let texts = socket.texts();
            sent += texts.len() as u64;
            let of = |kind: &str| -> Vec<u64> { texts.iter().filter(|t| t.contains(kind)).map(|t| number(t)).collect() };
            prop_assert_eq!(&of("pnl_update"), &expected[index / 2]);
            let prices = of("market_price");
            prop_assert!(prices.is_sorted(), "{:?}", prices);
            prop_assert_eq!(prices.last().copied(), latest);
        }
        prop_assert_eq!(world.sent(), sent, "every text frame is counted once, when it is written whole");
    }
}
