//! Connections listed and closed for operators.

use crossbeam_channel::{Receiver, Sender, bounded};
use tokio::sync::oneshot;

use super::*;
use crate::exchange::{ConnectionFilter, ConnectionRow, ShardRequest};
use crate::shard::client_identity::ClientIdentity;
use crate::shard::operator_requests::OperatorRequests;

struct Operated {
    world: World,
    requests: Sender<ShardRequest>,
    inbox: Receiver<ShardRequest>,
    operator_requests: OperatorRequests,
}

fn of_user(user: &str) -> ConnectionFilter {
    ConnectionFilter { user: Some(user.into()), ..ConnectionFilter::default() }
}

fn of_assessment(id: &str) -> ConnectionFilter {
    ConnectionFilter { assessment: Some(AssessmentId::parse(id).unwrap()), ..ConnectionFilter::default() }
}

impl Operated {
    fn new() -> Self {
        let (requests, inbox) = bounded(4);
        Self { world: World::new(), requests, inbox, operator_requests: OperatorRequests::default() }
    }

    fn open(&mut self, number: u64, user: &str, assessment: Option<&str>) -> (ConnectionKey, Scripted) {
        let socket = Scripted::open();
        let new_connection = NewConnection {
            socket: socket.clone(),
            assessment: assessment.map(|id| AssessmentId::parse(id).unwrap()),
            cursor: None,
            owner_doubt: OwnerDoubt::None,
            accept: Vec::new(),
            id: "c".into(),
            client: ClientIdentity::numbered(number, user, None),
        };
        let key = self.world.state.attach(new_connection, self.world.now);
        self.world.state.flush(key, self.world.now);
        (key, socket)
    }

    /// Turns until the shard has nothing to do for operators; returns how many there were.
    fn run(&mut self) -> usize {
        let mut turns = 0;
        while !self.inbox.is_empty() || self.operator_requests.next(self.world.now.instant).is_some() {
            self.operator_requests.advance(&self.inbox, &mut self.world.state, self.world.now);
            turns += 1;
        }
        turns
    }

    fn list(&mut self, filter: ConnectionFilter, after: u64, limit: usize) -> Vec<ConnectionRow> {
        let (answer, mut rows) = oneshot::channel();
        self.requests.send(ShardRequest::List { filter, after, limit, answer }).unwrap();
        self.run();
        rows.try_recv().unwrap()
    }

    fn numbers(&mut self, filter: ConnectionFilter, after: u64, limit: usize) -> Vec<u64> {
        self.list(filter, after, limit).iter().map(|row| row.number).collect()
    }

    fn disconnect(&mut self, filter: ConnectionFilter, reconnect: bool) -> u64 {
        let (answer, mut closed) = oneshot::channel();
        self.requests.send(ShardRequest::Disconnect { filter, reconnect, answer }).unwrap();
        self.run();
        closed.try_recv().unwrap()
    }
}

#[test]
fn connections_are_listed_from_the_oldest_on_in_pages() {
    let mut shard = Operated::new();
    let all: Vec<_> = (1..=9).map(|number| shard.open(number, "u", None).0).collect();
    // The list of all connections is in another order now.
    shard.world.state.detach(all[0], CloseReason::ClientGone);
    assert_eq!(shard.numbers(ConnectionFilter::default(), 0, 3), [2, 3, 4]);
    assert_eq!(shard.numbers(ConnectionFilter::default(), 4, 3), [5, 6, 7]);
    assert_eq!(shard.numbers(ConnectionFilter::default(), 7, 3), [8, 9]);
    assert_eq!(shard.numbers(ConnectionFilter::default(), 9, 3), [0; 0]);
}

#[test]
fn a_row_says_whose_a_connection_is_and_how_far_it_lags() {
    let mut shard = Operated::new();
    shard.open(1, "ada", Some("a"));
    let (_, slow) = shard.open(2, "bob", Some("a"));
    shard.open(3, "bob", None);
    slow.takes(0);
    shard.world.turn((1..4).map(|number| events(&[("a", number)])));
    shard.world.pass(Duration::from_secs(2));
    let of_a = shard.list(of_assessment("a"), 0, 10);
    let told: Vec<_> = of_a.iter().map(|row| (&*row.user, row.assessment.as_deref(), row.lag_events)).collect();
    assert_eq!(told, [("ada", Some("a"), 0), ("bob", Some("a"), 3)]);
    assert_eq!((of_a[0].blocked_for, of_a[1].blocked_for), (None, Some(Duration::from_secs(2))));
    assert_eq!(of_a[0].address, IpAddr::V4(Ipv4Addr::LOCALHOST));
    assert_eq!(shard.numbers(of_user("bob"), 0, 10), [2, 3]);
    assert_eq!(shard.numbers(of_user("eve"), 0, 10), [0; 0]);
    let both = ConnectionFilter { user: Some("bob".into()), ..of_assessment("a") };
    assert_eq!(shard.numbers(both, 0, 10), [2]);
}

#[test]
fn connections_are_closed_by_user_assessment_and_number() {
    let mut shard = Operated::new();
    let keys: Vec<_> = [("ada", Some("a")), ("bob", Some("a")), ("bob", None), ("eve", None), ("ada", Some("b"))]
        .into_iter()
        .zip(1..)
        .map(|((user, assessment), number)| shard.open(number, user, assessment).0)
        .collect();
    let number_4 = ConnectionFilter { number: Some(4), ..ConnectionFilter::default() };
    assert_eq!(shard.disconnect(of_user("bob"), false), 2);
    assert_eq!(shard.disconnect(of_user("bob"), false), 0, "they are closing");
    assert_eq!(shard.disconnect(of_assessment("a"), true), 1);
    assert_eq!(shard.disconnect(number_4, true), 1);
    let ended: Vec<_> = keys.iter().map(|key| shard.world.state.ended(*key)).collect();
    let (recalled, disconnected) = (Some(CloseReason::Recalled), Some(CloseReason::Disconnected));
    assert_eq!(ended, [recalled, disconnected, disconnected, recalled, None]);
}

#[test]
fn a_pass_over_many_connections_takes_several_turns() {
    let mut shard = Operated::new();
    let all: Vec<_> = (1..=5_000).map(|number| shard.open(number, "u", None)).collect();
    let (answer, mut rows) = oneshot::channel();
    let list = ShardRequest::List { filter: of_user("u"), after: 0, limit: 6_000, answer };
    shard.requests.send(list).unwrap();
    let (answer, mut closed) = oneshot::channel();
    shard.requests.send(ShardRequest::Disconnect { filter: of_user("u"), reconnect: false, answer }).unwrap();
    // Connections that end meanwhile are in no answer, and those that take their places are in it once.
    shard.operator_requests.advance(&shard.inbox, &mut shard.world.state, shard.world.now);
    for (key, _) in &all[..10] {
        shard.world.state.detach(*key, CloseReason::ClientGone);
    }
    let turns = shard.run();
    assert!(turns > 20, "{turns} turns");
    let rows = rows.try_recv().unwrap();
    assert!(rows.iter().map(|row| row.number).eq(11..=5_000), "{} rows", rows.len());
    assert_eq!(closed.try_recv(), Ok(4_990));

    let (answer, given_up) = oneshot::channel();
    drop(given_up);
    shard.requests.send(ShardRequest::List { filter: of_user("u"), after: 0, limit: 1_000, answer }).unwrap();
    assert!(shard.run() <= 1, "no caller waits for the list");
}
