//! The cost of a delivery in allocations and system calls. Times are for the benches.

use std::cell::Cell;
use std::rc::Rc;

use allocation_counter::measure;

use super::*;
use crate::limits::TURN_BYTES_MAX;
use crate::shard::client_identity::ClientIdentity;

/// A socket that takes everything and keeps nothing, so that all allocations are the shard's.
#[derive(Clone, Default)]
struct Sink {
    calls: Rc<Cell<u64>>,
    is_full: Rc<Cell<bool>>,
}

impl Socket for Sink {
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.calls.set(self.calls.get() + 1);
        if self.is_full.get() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(slices.iter().map(|slice| slice.len()).sum())
    }

    fn acknowledged_bytes(&self) -> u64 {
        0
    }

    fn wake(&self) {}
}

/// A shard whose clients share one sink, and its count of calls.
struct CountedShard {
    state: ShardState<Sink>,
    sink: Sink,
    now: Now,
    number: u64,
}

const SUBSCRIBERS: u64 = 100;

impl CountedShard {
    /// With this many clients of each assessment.
    fn with_subscribers(assessments: &[(&str, u64)]) -> Self {
        let now = Now { instant: Instant::now(), unix: UnixMs(1_790_000_000_000) };
        let mut shard =
            Self { state: ShardState::new(config(), NodeId("pod".into())), sink: Sink::default(), now, number: 0 };
        shard.state.take(Batch { topics: topics(), ..Batch::default() }, now.instant);
        for &(id, count) in assessments {
            (0..count).for_each(|_| shard.connect(id));
        }
        shard.calls();
        shard
    }

    fn connect(&mut self, id: &str) {
        let new_connection = NewConnection {
            socket: self.sink.clone(),
            assessment: Some(AssessmentId::parse(id).unwrap()),
            cursor: None,
            client: ClientIdentity::of_user("", None),
            owner_doubt: OwnerDoubt::None,
            accept: Vec::new(),
            id: "".into(),
        };
        let key = self.state.attach(new_connection, self.now);
        self.state.flush(key, self.now);
    }

    /// A batch with one event for each of these assessments.
    fn events(&mut self, ids: &[&str]) -> Batch {
        let ids: Vec<_> = ids.iter().zip(self.number..).map(|(&id, number)| (id, number)).collect();
        self.number += ids.len() as u64;
        events(&ids)
    }

    fn take(&mut self, batch: Batch) {
        self.state.take(batch, self.now.instant);
    }

    fn dispatch(&mut self) {
        while self.state.dispatch(usize::MAX, self.now) == Pass::More {}
        while self.state.catch_up(usize::MAX, &mut u64::MAX.clone(), self.now) == Pass::More {}
    }

    fn turn(&mut self, batch: Batch) {
        self.take(batch);
        self.dispatch();
        self.state.end_turn(self.now.instant);
    }

    /// System calls since the last call of this.
    fn calls(&self) -> u64 {
        self.sink.calls.take()
    }
}

#[test]
fn a_delivery_is_one_system_call_and_no_allocation() {
    let mut shard = CountedShard::with_subscribers(&[("a", SUBSCRIBERS), ("b", SUBSCRIBERS)]);
    for _ in 0..100 {
        let batch = shard.events(&["a", "unsubscribed"]);
        shard.take(batch);
        let spent = measure(|| shard.dispatch());
        assert_eq!((shard.calls(), spent.count_total), (SUBSCRIBERS, 0));
    }
    // With two assessments, each subscriber gets the events of its own.
    let batch = shard.events(&["a", "b"]);
    shard.take(batch);
    assert_eq!(measure(|| shard.dispatch()).count_total, 0);
    assert_eq!(shard.calls(), 2 * SUBSCRIBERS);
}

#[test]
fn all_events_due_to_a_client_leave_in_one_system_call() {
    let mut shard = CountedShard::with_subscribers(&[("a", SUBSCRIBERS)]);
    let batch = shard.events(&["a"; 10]);
    shard.take(batch);
    assert_eq!(measure(|| shard.dispatch()).count_total, 0);
    assert_eq!(shard.calls(), SUBSCRIBERS);
    // Also if they came in ten batches.
    for _ in 0..10 {
        let batch = shard.events(&["a"]);
        shard.take(batch);
    }
    shard.dispatch();
    assert_eq!(shard.calls(), SUBSCRIBERS);
}

#[test]
fn a_full_socket_is_tried_once() {
    let mut shard = CountedShard::with_subscribers(&[("a", SUBSCRIBERS)]);
    shard.sink.is_full.set(true);
    for turn in 0..10 {
        let batch = shard.events(&["a"]);
        shard.take(batch);
        let spent = measure(|| shard.dispatch());
        assert_eq!((shard.calls(), spent.count_total), (if turn == 0 { SUBSCRIBERS } else { 0 }, 0));
    }
}

#[test]
fn an_event_costs_a_fraction_of_an_allocation_and_no_system_call_without_subscribers() {
    let mut shard = CountedShard::with_subscribers(&[("a", SUBSCRIBERS)]);
    for (id, calls) in [("a", SUBSCRIBERS), ("unsubscribed", 0)] {
        // One event a batch, as on a quiet pod.
        let spent = (0..1_000).map(|_| {
            let batch = shard.events(&[id]);
            measure(|| shard.turn(batch)).count_total
        });
        let spent: u64 = spent.sum();
        assert_eq!(shard.calls(), 1_000 * calls);
        assert!(spent <= 100, "{spent} allocations for 1,000 events of {id}");
    }
}

#[test]
fn with_a_full_history_a_turn_frees_what_it_allocates() {
    /// Turns that fill the history of 4 MiB with entries and frames.
    const ROUND: u64 = 10_000;
    let mut shard = CountedShard::with_subscribers(&[("a", 10), ("b", 10)]);
    let mut round = || {
        // Batches included: the history takes them over.
        let turn = |_| {
            measure(|| {
                let batch = shard.events(&["a", "b", "unsubscribed"]);
                shard.turn(batch);
            })
        };
        (0..ROUND).map(turn).map(|spent| spent.bytes_current).sum::<i64>()
    };
    // The number of open segments may differ by one at a round's end.
    let filling: Vec<_> = (0..3).map(|_| round()).collect();
    let rounds: Vec<_> = (0..5).map(|_| round()).collect();
    assert!(filling[0] >= 3 << 20, "the first round fills the history: {filling:?}");
    assert!(rounds.iter().all(|net| net.abs() <= 256 << 10), "{rounds:?}");
    assert!(rounds.iter().sum::<i64>() <= 256 << 10, "no growth over the rounds: {rounds:?}");
}

const _: () = assert!(TURN_BYTES_MAX > 10 * 1024, "ten events are within a turn");

#[test]
fn the_fields_read_per_event_share_the_first_cache_lines() {
    use super::super::connection::Connection;
    use super::super::writer::Writer;
    const LINE: usize = 64;
    let hot = std::mem::offset_of!(Connection<Writer>, board_seen);
    let all = size_of::<Connection<Writer>>();
    assert!(hot <= 3 * LINE, "{hot} bytes of {all}");
}
