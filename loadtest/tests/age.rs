//! Connections that are as old as they may get: their clients connect anew, and nothing is lost meanwhile.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use loadtest::client::{Ask, Client, WITHIN, read_for};
use loadtest::events::{Kind, number_of, seen};
use loadtest::pods::{READY_WITHIN, World};

/// A client of an assessment that connects anew where it is told to.
struct Follower {
    id: String,
    home: String,
    client: Client,
    cursor: Option<String>,
    numbers: Vec<u64>,
    lives: usize,
}

impl Follower {
    fn open(id: &str, home: String) -> Self {
        let client = Ask::to(&home).assessment(id).open();
        Self { id: id.to_owned(), home, client, cursor: None, numbers: Vec::new(), lives: 1 }
    }

    /// Takes in what came, once its connection has ended, and opens the next one.
    fn go_on(&mut self) {
        self.client.turn();
        if self.client.ended().is_none() {
            return;
        }
        self.take();
        let (code, _) = self.client.close_frame().expect("it is told");
        let last = self.client.messages().last().filter(|last| last.kind == "Redirect").map(|last| last.json());
        // The first pod that it asked may have been another's.
        assert!(*code == 1012 || (*code == 1008 && last.is_some()), "closed with {code}");
        let url = last.map_or(self.home.clone(), |last| last["url"].as_str().expect("a redirect has a URL").to_owned());
        let ask = Ask::to(&url).assessment(&self.id);
        let cursor = self.cursor.as_ref().map(|cursor| format!("cursor={cursor}"));
        self.client = cursor.iter().fold(ask, |ask, cursor| ask.parameter(cursor)).open();
        self.lives += 1;
    }

    fn take(&mut self) {
        assert_eq!(self.client.of_type("reset").count(), 0, "nothing is lost");
        self.numbers.extend(seen(&self.client).map(number_of));
        let cursors = self.client.messages().iter().rev();
        let last = cursors.filter_map(|message| Some(message.json()["cursor"].as_str()?.to_owned())).next();
        self.cursor = last.or(self.cursor.take());
    }
}

/// Sends events to clients while each is sent away some times; returns how many lives each had.
fn events_flow_while_clients_are_sent_away(settings: &[(&str, &str)], pods: usize) -> Vec<usize> {
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
    while followers.iter().any(|follower| follower.lives < 5) {
        assert!(began.elapsed() < READY_WITHIN, "each is sent away");
        for id in &ids {
            producer.event(&Kind::BalanceUpdated.event(id, sent));
        }
        sent += 1;
        read_for(&mut [], Duration::from_millis(10));
        followers.iter_mut().for_each(Follower::go_on);
    }
    producer.flush();
    let deadline = Instant::now() + WITHIN;
    let all: Vec<u64> = (0..sent).collect();
    for follower in &mut followers {
        let has_all = |follower: &Follower| follower.numbers.len() + seen(&follower.client).count() >= all.len();
        while !has_all(follower) {
            assert!(Instant::now() < deadline, "{} has all", follower.id);
            follower.go_on();
        }
        follower.take();
        assert_eq!(follower.numbers, all, "{}: in order, none lost, none twice", follower.id);
    }
    let closed: BTreeMap<String, f64> =
        pods.iter().flat_map(|pod| pod.metrics().by("shardgate_connections_closed_total", "reason")).collect();
    assert!(closed.get("too_old").is_some_and(|count| *count > 0.0), "{closed:?}");
    followers.iter().map(|follower| follower.lives).collect()
}

#[test]
fn clients_of_a_fleet_connect_anew_at_their_connections_age_and_lose_nothing() {
    let lives = events_flow_while_clients_are_sent_away(&[("MAX_CONNECTION_AGE_MS", "1000")], 2);
    println!("lives {lives:?}");
}

#[test]
fn clients_of_pods_without_an_address_connect_anew_where_they_were_and_lose_nothing() {
    let settings = [("MAX_CONNECTION_AGE_MS", "1000"), ("PLACEMENT", "any")];
    let lives = events_flow_while_clients_are_sent_away(&settings, 1);
    println!("lives {lives:?}");
}
