//! Redirects: rolling restarts, pods with different views for a moment, a Redis that does not answer, and pods that
//! can't be addressed.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use loadtest::client::{Ask, Client, WITHIN, read_for, read_until};
use loadtest::events::{MARKETS, assert_saw, event, seen, tick};
use loadtest::http::HttpResponse;
use loadtest::pods::{Pod, READY_WITHIN, World};
use loadtest::process::{Signal, eventually};
use loadtest::redis_proxy::RedisProxy;
use shardgate::ids::{AssessmentHash, NodeId};
use shardgate::routing::placement::{self, View};

// ---- clients that follow redirects ----------------------------------------------------------------------------------

/// Sixty clients that follow redirects at once. Without a redirect, a client tries the pods in turn.
struct Followers {
    clients: Vec<Client>,
    states: Vec<FollowerState>,
    urls: Vec<String>,
}

struct FollowerState {
    id: String,
    /// The last cursor received.
    cursor: Option<String>,
    redirects: usize,
    /// Start of its current disconnection, if any.
    away: Option<Instant>,
    longest_away: Duration,
    attempts: usize,
}

impl FollowerState {
    /// Reads its messages, and reconnects if its connection has ended.
    fn turn_client(&mut self, client: &mut Client, urls: &[String]) {
        // Messages that arrived together with the response cause no further event.
        client.turn();
        if let (Some(away), Some(_)) = (self.away, client.of_type("connected").next()) {
            self.longest_away = self.longest_away.max(away.elapsed());
            self.away = None;
        }
        let Some(ended) = client.ended() else { return };
        let last =
            client.messages().iter().rev().find_map(|message| Some(message.json()["cursor"].as_str()?.to_owned()));
        self.cursor = last.or(self.cursor.take());
        self.away.get_or_insert(ended);
        let mut redirect = client.messages().last().filter(|last| last.kind == "Redirect").map(|last| {
            let code = client.close_frame().map(|(code, _)| *code);
            assert!(matches!(code, Some(1008 | 1012)), "a redirect is followed by its close frame: {code:?}");
            last.json()["url"].as_str().expect("a redirect has a URL").to_owned()
        });
        self.redirects += usize::from(redirect.is_some());
        // The target of the redirect may be gone. Then any other pod is tried.
        *client = eventually(&format!("{} finds a pod", self.id), WITHIN, || {
            let url = redirect.take().unwrap_or_else(|| {
                self.attempts += 1;
                urls[self.attempts % urls.len()].clone()
            });
            let ask = Ask::to(&url).assessment(&self.id);
            let cursor = self.cursor.as_ref().map(|cursor| format!("cursor={cursor}"));
            cursor.iter().fold(ask, |ask, cursor| ask.parameter(cursor)).attempt()
        });
    }
}

impl Followers {
    fn open(pods: &[Pod]) -> Self {
        let urls: Vec<_> = pods.iter().map(Pod::url).collect();
        let state = |number| {
            let id = format!("follower-{number}");
            FollowerState {
                id,
                cursor: None,
                redirects: 0,
                away: Some(Instant::now()),
                longest_away: Duration::ZERO,
                attempts: 0,
            }
        };
        let states: Vec<_> = (0..60).map(state).collect();
        let clients =
            states.iter().zip(urls.iter().cycle()).map(|(state, url)| Ask::to(url).assessment(&state.id).open());
        let mut followers = Self { clients: clients.collect(), states, urls };
        followers.until("all are served", || true);
        assert!(followers.states.iter().all(|state| state.redirects <= 1), "the first pod knows the owner");
        followers.take_tally();
        followers
    }

    fn turn(&mut self) {
        read_for(&mut self.clients, Duration::from_millis(2));
        for (state, client) in self.states.iter_mut().zip(&mut self.clients) {
            state.turn_client(client, &self.urls);
        }
    }

    /// Runs until the condition holds and every client is connected.
    fn until(&mut self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + READY_WITHIN;
        while !(holds() && self.states.iter().all(|state| state.away.is_none())) {
            assert!(Instant::now() < deadline, "{what}: not within {READY_WITHIN:?}");
            self.turn();
        }
    }

    fn run_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.turn();
        }
    }

    /// Number of clients by number of redirects since the last call, and the longest disconnection.
    fn take_tally(&mut self) -> (BTreeMap<usize, usize>, Duration) {
        let mut tally = BTreeMap::new();
        let mut longest = Duration::ZERO;
        for state in &mut self.states {
            *tally.entry(std::mem::take(&mut state.redirects)).or_default() += 1;
            longest = longest.max(std::mem::take(&mut state.longest_away));
        }
        (tally, longest)
    }
}

#[test]
fn in_a_rolling_restart_each_client_moves_once_away_and_once_back() {
    let world = World::start();
    let settings = [("LEASE_TTL_MS", "10000"), ("DRAIN_DELAY_MS", "300"), ("DRAIN_MS", "1000")];
    let mut pods = Vec::from(world.three_pods(&settings));
    let mut followers = Followers::open(&pods);
    let mut all = Vec::new();
    for _ in 0..pods.len() {
        let mut leaving = pods.remove(0);
        leaving.signal(Signal::Term);
        followers.until("the pod exits", || leaving.exited().is_some());
        let back = leaving.plan().spawn();
        followers.until("it is back", || world.redis.live().len() == 3);
        followers.until("it is ready", || back.try_get("/ready").is_some_and(|answer| answer.status == 200));
        // Time for all clients to return to their owner.
        followers.run_for(Duration::from_secs(1));
        let (tally, longest) = followers.take_tally();
        println!("{} restarted: clients by redirects {tally:?}, disconnected for at most {longest:?}", back.name());
        pods.push(back);
        assert!(tally.keys().all(|redirects| *redirects <= 3), "in one restart: {tally:?}");
        assert!(tally.get(&0).is_some_and(|stayed| *stayed >= 20), "clients of other pods stay: {tally:?}");
        assert!(longest < Duration::from_secs(2), "a client was away for {longest:?}");
        all.push(tally);
    }
    let redirects: usize = all.iter().flatten().map(|(redirects, clients)| redirects * clients).sum();
    assert!(redirects <= 60 * 3, "each pod's clients move away and back: {all:?}");
}

// ---- pods that disagree -------------------------------------------------------------------------------------------

/// The current view in Redis.
fn view(world: &World) -> View {
    let slots = world.redis.slots();
    let count = slots.last_key_value().map_or(0, |(number, _)| number + 1);
    let pod = |number| {
        let slot = slots.get(&number)?;
        Some(placement::Pod { node: NodeId(slot.node.as_str().into()), url: slot.url.as_str().into() })
    };
    View { version: 0, slots: (0..count).map(pod).collect() }
}

fn owner<'a>(view: &'a View, id: &str) -> &'a str {
    let slot = view.owner(AssessmentHash::of(id)).expect("a slot is live");
    &view.pod(slot).expect("its slot is live").node.0
}

#[test]
fn a_pod_with_a_stale_view_redirects_no_client_back() {
    let world = World::without_topics();
    let proxy = RedisProxy::to(world.redis.port());
    // It polls once per second, so requests can come before it polls.
    let lease = [("LEASE_TTL_MS", "30000"), ("DRAIN_DELAY_MS", "0"), ("DRAIN_MS", "100")];
    let stale = world.pod("stale").set_all(&lease).set("REDIS_PORT", &proxy.port().to_string()).start();
    let pods = [stale, world.pod("other").set_all(&lease).start()];
    world.settled(&pods);
    proxy.drop_announcements();
    let [stale, other] = &pods;
    let mut before = view(&world);
    for _ in 0..3 {
        let mut third = world.pod("third").set_all(&lease).spawn();
        eventually("the third has a slot", READY_WITHIN, || (world.redis.live().len() == 3).then_some(()));
        let with = view(&world);
        let (slot, _) = with.live().find(|(_, pod)| &*pod.node.0 == "third").expect("the third has a slot");
        let after = with.without(slot);
        let owners = |id: &String| [&before, &with, &after].map(|view| owner(view, id));
        let ids = (0..).map(|number| format!("id-{number}"));
        let ids: Vec<_> = ids.filter(|id| owners(id) == ["other", "third", "other"]).take(5).collect();
        for id in &ids {
            assert_eq!(stale.owner_of(id), third.url(), "its stale view names {}", other.url());
        }
        third.ready();
        third.signal(Signal::Term);
        eventually("the third has left", READY_WITHIN, || (world.redis.live().len() == 2).then_some(()));
        // It may use its last view for a tenth of a second.
        let redirects_to_other = || (stale.owner_of(&ids[0]) == other.url()).then_some(());
        eventually("the pod refreshes its view before it redirects", Duration::from_millis(250), redirects_to_other);
        assert!(ids.iter().all(|id| stale.owner_of(id) == other.url()));
        assert!(third.wait_exit(WITHIN).success());
        before = after;
    }
}

#[test]
fn no_client_bounces_while_pods_join_and_leave_and_one_view_lags() {
    let world = World::without_topics();
    let proxy = RedisProxy::to(world.redis.port());
    let settings = [("LEASE_TTL_MS", "30000"), ("DRAIN_DELAY_MS", "300"), ("DRAIN_MS", "500")];
    let late = world.pod("late").set_all(&settings).set("REDIS_PORT", &proxy.port().to_string()).start();
    let pods = [late, world.pod("other").set_all(&settings).start()];
    world.settled(&pods);
    let mut followers = Followers::open(&pods);
    proxy.drop_announcements();
    proxy.delay(Duration::from_millis(250));
    for _ in 0..3 {
        let mut third = world.pod("third").set_all(&settings).spawn();
        followers.until("the third has a slot", || world.redis.live().len() == 3);
        followers.run_for(Duration::from_millis(2_500));
        third.signal(Signal::Term);
        followers.until("the third has ended", || third.exited().is_some());
        followers.run_for(Duration::from_millis(1_500));
        let (tally, longest) = followers.take_tally();
        println!("a pod joined and left: clients by redirects {tally:?}, disconnected for at most {longest:?}");
        assert!(tally.keys().all(|redirects| *redirects <= 3), "{tally:?}");
        assert!(tally.iter().any(|(redirects, clients)| *redirects >= 2 && *clients >= 5), "some moved: {tally:?}");
    }
}

// ---- a pod that leaves while Redis is down ------------------------------------------------------------------------

impl Followers {
    /// Whether every client is connected to its owner by this view.
    fn are_at_their_owners(&self, view: &View) -> bool {
        let node = |client: &Client| client.of_type("connected").next().map(|message| message.json()["node"].clone());
        let mut all = self.states.iter().zip(&self.clients);
        all.all(|(state, client)| node(client).is_some_and(|node| node == owner(view, &state.id)))
    }
}

#[test]
fn clients_of_a_pod_that_leaves_without_redis_are_served_elsewhere_and_return_afterwards() {
    let mut world = World::without_topics();
    let mut pods = Vec::from(world.three_pods(&[("DRAIN_DELAY_MS", "300"), ("DRAIN_MS", "1500")]));
    let mut followers = Followers::open(&pods);
    let before = view(&world);
    let theirs = followers.states.iter().filter(|state| owner(&before, &state.id) == "pod-1").count();
    assert!(theirs >= 10);
    world.redis.kill();
    for pod in &pods {
        let shows = || (pod.get("/ready").json()["redis"] == "disconnected").then_some(());
        eventually("the outage is reported", WITHIN, shows);
    }
    let mut leaving = pods.remove(1);
    leaving.signal(Signal::Term);
    followers.until("the pod exits", || leaving.exited().is_some());
    followers.until("all are served", || true);
    // Time for further redirects, if there were any.
    followers.run_for(Duration::from_secs(2));
    let (tally, longest) = followers.take_tally();
    println!("a pod left without Redis: clients by redirects {tally:?}, disconnected for at most {longest:?}");
    let once = BTreeMap::from([(0, 60 - theirs), (1, theirs)]);
    assert_eq!(tally, once, "the pod's clients move once and are not redirected back");
    assert!(longest < Duration::from_secs(2), "a client was away for {longest:?}");

    // Clients that connect after its exit are redirected to it in vain, once.
    let (slot, _) = before.live().find(|(_, pod)| &*pod.node.0 == "pod-1").expect("pod-1 had a slot");
    let after = before.without(slot);
    let owners = |id: &String| [&before, &after].map(|view| owner(view, id));
    let ids = (0..).map(|number| format!("late-{number}")).filter(|id| owners(id) == ["pod-1", "pod-2"]).take(5);
    let come = |id: String| {
        assert_eq!(pods[0].owner_of(&id), leaving.url(), "the last view is in force");
        let mut late = pods[0].client(&id);
        assert_eq!(late.expect_type("connected").json()["node"], "pod-0", "a client that returns is served");
        late
    };
    let mut late: Vec<_> = ids.map(come).collect();

    world.redis.start_again();
    read_until(&mut late, "they move to their owner", READY_WITHIN, |late| {
        late.iter().all(|client| client.ended().is_some())
    });
    for client in &late {
        assert_eq!(client.close_frame().map(|(code, _)| *code), Some(1012));
        let last = client.messages().last().expect("a message").json();
        assert_eq!(last["url"], pods[1].url(), "to their owner, not to the pod that has exited");
    }
    followers.until("all are at their owners", || true);
    assert!(followers.are_at_their_owners(&after));
    let (tally, _) = followers.take_tally();
    assert!(tally.keys().all(|redirects| *redirects <= 1), "they move only to their owner: {tally:?}");
}

// ---- cost of view refreshes -----------------------------------------------------------------------------------------

#[test]
fn a_thousand_redirects_cost_ten_redis_calls_a_second() {
    let world = World::without_topics();
    let pods = world.three_pods(&[("LEASE_TTL_MS", "30000")]);
    let view = view(&world);
    let ids = (0..).map(|number| format!("id-{number}")).filter(|id| owner(&view, id) != "pod-0");
    let asks: Vec<_> = ids.take(50).map(|id| pods[0].ask().assessment(&id)).collect();
    let (calls, began) = (world.redis.scripts_run(), Instant::now());
    let mut redirected = 0;
    while began.elapsed() < Duration::from_secs(3) {
        let mut clients: Vec<_> = asks.iter().map(Ask::open).collect();
        read_until(&mut clients, "all are redirected", WITHIN, |clients| {
            clients.iter().all(|client| client.ended().is_some())
        });
        assert!(clients.iter().all(|client| client.messages()[0].kind == "Redirect"));
        redirected += clients.len();
    }
    let (calls_made, took) = (world.redis.scripts_run() - calls, began.elapsed().as_secs_f64());
    println!("{redirected} redirects and {calls_made} calls to Redis in {took:.1} s");
    // Ten per second, and three pods poll once per second.
    let most = (13.0 * took).ceil() as u64 + 3;
    assert!(
        calls_made <= most && redirected as u64 > calls_made * 5,
        "{calls_made} calls for {redirected} redirects in {took} s"
    );
    assert!(calls_made as f64 >= 5.0 * took, "the view is refreshed at this rate of redirects");
}

#[test]
fn a_hung_redis_delays_redirects_once_and_no_other_client() {
    let world = World::without_topics();
    let proxy = RedisProxy::to(world.redis.port());
    let first = world.pod("first").set("REDIS_PORT", &proxy.port().to_string()).start();
    let pods = [first, world.pod("second").start()];
    world.settled(&pods);
    let view = view(&world);
    let mut ids = (0..).map(|number| format!("id-{number}"));
    let mut id_of = |pod: &str| ids.find(|id| owner(&view, id) == pod).unwrap();
    let (own, others, another) = (id_of("first"), id_of("second"), id_of("second"));
    // Its last view becomes older than its limit.
    read_for(&mut [], Duration::from_millis(150));
    proxy.pause();

    let attempts = Instant::now();
    let ask = pods[0].ask().assessment(&others);
    let mut stream = ask.connect();
    stream.write_all(ask.head().as_bytes()).unwrap();
    let waiting = thread::spawn(move || (HttpResponse::read(&mut stream).expect("an answer").status, Instant::now()));
    let mut served = 0;
    while !waiting.is_finished() {
        let began = Instant::now();
        assert_eq!(pods[0].owner_of(&own), pods[0].url());
        assert!(began.elapsed() < Duration::from_millis(500), "clients of this pod don't wait");
        served += 1;
    }
    let (status, answered) = waiting.join().unwrap();
    let waited = answered - attempts;
    println!("the redirected client waited {waited:?}; {served} clients were served meanwhile");
    assert_eq!(status, 101);
    // A call may take two fifths of a lease.
    assert!((1_000..2_200).contains(&waited.as_millis()), "{waited:?}");

    let began = Instant::now();
    assert_eq!(pods[0].owner_of(&another), pods[1].url(), "by the last view");
    assert_eq!(pods[0].owner_of(&another), pods[0].url(), "a client that returns is served");
    assert!(began.elapsed() < Duration::from_millis(500), "with Redis known to be down, no client waits for it");
}

// ---- pods that can't be addressed ---------------------------------------------------------------------------------

#[test]
fn with_placement_any_clients_stay_and_a_drain_sends_no_redirect() {
    let world = World::start();
    let plan =
        |name: &str| world.pod(name).set("PLACEMENT", "any").set("DRAIN_DELAY_MS", "1000").set("DRAIN_MS", "300");
    let mut pods = vec![plan("pod-0").start(), plan("pod-1").start()];
    let ids: Vec<_> = (0..20).map(|number| format!("a-{number}")).collect();
    let mut clients: Vec<_> = pods.iter().flat_map(|pod| ids.iter().map(|id| pod.client(id))).collect();
    pods.push(plan("pod-2").start());
    let producer = world.producer();
    for number in 0..10 {
        ids.iter().for_each(|id| producer.event(&event(id, number)));
    }
    MARKETS.iter().for_each(|market| producer.event(&tick(market, 0)));
    read_until(&mut clients, "all is delivered", WITHIN, |clients| {
        clients.iter().all(|client| seen(client).count() == 10)
    });
    for (client, id) in clients.iter().zip(ids.iter().cycle()) {
        assert_saw(client, id, 0..10);
    }
    // Every pod processes all records, also without a client.
    let records = (ids.len() * 10 + MARKETS.len()) as f64;
    for pod in &pods {
        pod.await_metric("websocket_kafka_messages_processed_total", records);
        assert_eq!(pod.metrics().sum("websocket_kafka_messages_skipped_total"), 0.0);
    }

    // The third pod's slot changes the view of the first two, but no client is redirected.
    read_for(&mut clients, Duration::from_millis(500));
    assert!(clients.iter().all(|client| client.ended().is_none()), "all clients stay");

    let (theirs, others) = clients.split_at_mut(ids.len());
    pods[0].signal(Signal::Term);
    eventually("the pod drains", WITHIN, || (pods[0].get("/ready").json()["draining"] == true).then_some(()));
    let refused = pods[0].ask().assessment(&ids[0]).try_open().expect_err("a draining pod accepts no client");
    assert_eq!(refused.status, 503);
    assert!(refused.header("retry-after").is_some());
    read_until(theirs, "all are closed", WITHIN, |clients| clients.iter().all(|client| client.ended().is_some()));
    for client in theirs {
        assert_eq!(client.close_frame().map(|(code, _)| *code), Some(1001));
        assert_eq!(client.of_type("Redirect").count(), 0, "its URL is of no use to clients");
    }
    read_for(others, Duration::from_millis(100));
    assert!(others.iter().all(|client| client.ended().is_none()));
    assert!(pods[0].wait_exit(WITHIN).success());
}
