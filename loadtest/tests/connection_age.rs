//! Connections at their maximum age: their clients reconnect, and nothing is lost.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use loadtest::client::{Ask, Client, WITHIN, read_for};
use loadtest::events::{Kind, number_of, seen};
use loadtest::pods::{READY_WITHIN, World};

/// A client of an assessment that reconnects when its connection is closed, following redirects.
struct Follower {
    id: String,
    home: String,
    client: Client,
    cursor: Option<String>,
    numbers: Vec<u64>,
    connections: usize,
}

impl Follower {
    fn open(id: &str, home: String) -> Self {
        let client = Ask::to(&home).assessment(id).open();
        Self { id: id.to_owned(), home, client, cursor: None, numbers: Vec::new(), connections: 1 }
    }

    /// Once its connection has ended, collects its messages and opens the next one.
    fn reconnect(&mut self) {
        self.client.turn();
        if self.client.ended().is_none() {
            return;
        }
        self.collect();
        let (code, _) = self.client.close_frame().expect("a close frame");
        let last = self.client.messages().last().filter(|last| last.kind == "Redirect").map(|last| last.json());
        // The first pod that it tried may not be the owner.
        assert!(*code == 1012 || (*code == 1008 && last.is_some()), "closed with {code}");
        let url = last.map_or(self.home.clone(), |last| last["url"].as_str().expect("a redirect has a URL").to_owned());
        let ask = Ask::to(&url).assessment(&self.id);
        let cursor = self.cursor.as_ref().map(|cursor| format!("cursor={cursor}"));
        self.client = cursor.iter().fold(ask, |ask, cursor| ask.parameter(cursor)).open();
        self.connections += 1;
    }

    fn collect(&mut self) {
        assert_eq!(self.client.of_type("reset").count(), 0, "nothing is lost");
        self.numbers.extend(seen(&self.client).map(number_of));
        let mut cursors = self.client.messages().iter().rev();
        let last = cursors.find_map(|message| Some(message.json()["cursor"].as_str()?.to_owned()));
        self.cursor = last.or(self.cursor.take());
    }
}

/// Sends events to clients while each is closed several times. Returns the number of connections of each.
fn clients_lose_nothing_at_the_maximum_age(settings: &[(&str, &str)], pods: usize) -> Vec<usize> {
    const CLIENTS: usize = 12;
    let world = World::start();
    let pods: Vec<_> = (0..pods).map(|n| world.pod(&format!("pod-{n}")).set_all(settings).spawn()).collect();
    for pod in &pods {
        pod.ready();
    }
    if !settings.contains(&("PLACEMENT", "any")) {
        world.settled(&pods);
    }
    let ids: Vec<_> = (0..CLIENTS).map(|number| format!("aging-{number}")).collect();
    let homes = pods.iter().cycle().map(|pod| pod.url());
    let mut followers: Vec<_> = ids.iter().zip(homes).map(|(id, home)| Follower::open(id, home)).collect();
    let producer = world.producer();
    let mut sent = 0;
    let began = Instant::now();
    while followers.iter().any(|follower| follower.connections < 5) {
        assert!(began.elapsed() < READY_WITHIN, "each is closed several times");
        for id in &ids {
            producer.event(&Kind::BalanceUpdated.event(id, sent));
        }
        sent += 1;
        read_for(&mut [], Duration::from_millis(10));
        followers.iter_mut().for_each(Follower::reconnect);
    }
    producer.flush();
    let deadline = Instant::now() + WITHIN;
    let all: Vec<u64> = (0..sent).collect();
    for follower in &mut followers {
        let has_all = |follower: &Follower| follower.numbers.len() + seen(&follower.client).count() >= all.len();
        while !has_all(follower) {
            assert!(Instant::now() < deadline, "{} has all events", follower.id);
            follower.reconnect();
        }
        follower.collect();
        assert_eq!(follower.numbers, all, "{}: in order, none lost, none duplicated", follower.id);
    }
    let closed: BTreeMap<String, f64> =
        pods.iter().flat_map(|pod| pod.metrics().by("shardgate_connections_closed_total", "reason")).collect();
    assert!(closed.get("too_old").is_some_and(|count| *count > 0.0), "{closed:?}");
    followers.iter().map(|follower| follower.connections).collect()
}

#[test]
fn clients_of_a_fleet_reconnect_at_the_maximum_age_and_lose_nothing() {
    let connections = clients_lose_nothing_at_the_maximum_age(&[("MAX_CONNECTION_AGE_MS", "1000")], 2);
    println!("connections {connections:?}");
}

#[test]
fn with_placement_any_clients_reconnect_at_the_maximum_age_and_lose_nothing() {
    let settings = [("MAX_CONNECTION_AGE_MS", "1000"), ("PLACEMENT", "any")];
    let connections = clients_lose_nothing_at_the_maximum_age(&settings, 1);
    println!("connections {connections:?}");
}
