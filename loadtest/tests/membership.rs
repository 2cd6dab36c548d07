//! Slots and leases: Redis killed, emptied and paused under connected clients, pods that are paused, restarted under
//! their name, or not alone under it. Nobody is moved without need, and all is as before after.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use loadtest::client::{Client, WITHIN, read_for, read_until};
use loadtest::events::{assert_saw, event, seen};
use loadtest::pods::{Pod, READY_WITHIN, World};
use loadtest::process::{Signal, always, eventually};
use loadtest::redis::Redis;
use loadtest::redis_proxy::RedisProxy;

/// Each pod's lease.
const LEASE: Duration = Duration::from_millis(1500);
const LEASE_SETTING: &[(&str, &str)] = &[("LEASE_TTL_MS", "1500")];

/// Three pods, each with clients, and what they were owed so far.
struct Fleet {
    ids: Vec<String>,
    clients: Vec<Client>,
    owners: Vec<String>,
    slots: BTreeMap<u32, String>,
    numbers: u64,
}

impl Fleet {
    fn open(world: &World, pods: &[Pod]) -> Self {
        let ids: Vec<_> = (0..60).map(|number| format!("assessment-{number}")).collect();
        let owners: Vec<_> = ids.iter().map(|id| pods[0].owner_of(id)).collect();
        let client = |(id, owner): (&String, &String)| {
            pods.iter().find(|pod| pod.url() == *owner).expect("an owner is one of the pods").client(id)
        };
        let clients = ids.iter().zip(&owners).map(client).collect();
        Self { ids, clients, owners, slots: world.redis.live(), numbers: 0 }
    }

    /// An event for each arrives, and nothing that came before was lost.
    fn is_served(&mut self, world: &World) {
        let producer = world.producer();
        for id in &self.ids {
            producer.event(&event(id, self.numbers));
        }
        producer.flush();
        self.numbers += 1;
        let expected = usize::try_from(self.numbers).unwrap();
        read_until(&mut self.clients, "each has its event", WITHIN, |clients| {
            clients.iter().all(|client| seen(client).count() == expected || client.ended().is_some())
        });
        self.is_not_moved();
        for (client, id) in self.clients.iter().zip(&self.ids) {
            assert_saw(client, id, 0..self.numbers);
        }
    }

    /// Waits, while the clients answer their pings.
    fn until(&mut self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + WITHIN;
        while !holds() {
            assert!(Instant::now() < deadline, "{what}: not within {WITHIN:?}");
            read_for(&mut self.clients, Duration::from_millis(20));
        }
    }

    fn is_not_moved(&self) {
        let moved: Vec<_> = self.clients.iter().filter_map(Client::close_frame).collect();
        assert!(moved.is_empty(), "{} were moved: {:?}", moved.len(), moved[0]);
        assert!(self.clients.iter().all(|client| client.ended().is_none()), "none was cut");
    }

    /// New clients are sent where the old ones are.
    fn is_owned_as_before(&self, pods: &[Pod]) {
        for (id, owner) in self.ids.iter().zip(&self.owners).take(12) {
            for pod in pods {
                assert_eq!(pod.owner_of(id), *owner, "{id}, says {}", pod.name());
            }
        }
    }

    /// The slots are held by the same pods, and all are ready.
    fn is_as_before(&mut self, world: &World, pods: &[Pod]) {
        pods.iter().for_each(Pod::ready);
        eventually("the slots are as before", WITHIN, || (world.redis.live() == self.slots).then_some(()));
        // A view that came back wrong would move clients within a look or two at it.
        read_for(&mut self.clients, LEASE * 2);
        assert_eq!(world.redis.live(), self.slots);
        self.is_owned_as_before(pods);
        self.is_served(world);
    }
}

#[test]
fn a_redis_restarted_empty_moves_no_client() {
    let mut world = World::start();
    let pods = world.three_pods(LEASE_SETTING);
    let mut fleet = Fleet::open(&world, &pods);
    world.redis.kill();
    for pod in &pods {
        eventually("it shows", Duration::from_secs(6), || {
            (pod.get("/ready").json()["redis"] == "disconnected").then_some(())
        });
    }
    read_for(&mut fleet.clients, LEASE * 2);
    fleet.is_owned_as_before(&pods);
    fleet.is_served(&world);
    world.redis.start_again();
    fleet.is_as_before(&world, &pods);
}

#[test]
fn a_flushed_redis_moves_no_client() {
    let world = World::start();
    let pods = world.three_pods(LEASE_SETTING);
    let mut fleet = Fleet::open(&world, &pods);
    world.redis.flush();
    fleet.is_served(&world);
    fleet.is_as_before(&world, &pods);
}

#[test]
fn a_pod_that_leaves_a_redis_that_has_forgotten_it_is_nobodys_owner_at_once() {
    let world = World::start();
    // A lease so long that nothing here waits for its end.
    let settings = [("LEASE_TTL_MS", "60000"), ("DRAIN_DELAY_MS", "60000")];
    let pods = world.three_pods(&settings);
    let ids: Vec<_> = (0..60).map(|number| format!("assessment-{number}")).collect();
    let leaves = pods[0].url();
    assert!(ids.iter().any(|id| pods[1].owner_of(id) == leaves));
    world.redis.flush();
    // It says goodbye before it, or another, has looked at Redis again; or else as ever.
    pods[0].signal(Signal::Term);
    eventually("nobody is sent to it", WITHIN, || ids.iter().all(|id| pods[1].owner_of(id) != leaves).then_some(()));
    // Once the others are back they are who is known.
    eventually("the others hold their slots again", WITHIN, || (world.redis.live().len() == 2).then_some(()));
    assert!(ids.iter().all(|id| pods[2].owner_of(id) != leaves));
}

#[test]
fn a_redis_that_is_paused_beyond_the_lease_moves_nobody() {
    let world = World::start();
    let pods = world.three_pods(LEASE_SETTING);
    let mut fleet = Fleet::open(&world, &pods);
    world.redis.pause();
    read_for(&mut fleet.clients, LEASE * 3);
    fleet.is_owned_as_before(&pods);
    fleet.is_served(&world);
    world.redis.resume();
    fleet.is_as_before(&world, &pods);
}

#[test]
fn a_pod_that_was_paused_beyond_its_lease_claims_anew_and_judges_nobody_for_its_own_silence() {
    let world = World::start();
    let settings = [LEASE_SETTING, &[("HEARTBEAT_INTERVAL", "500"), ("CONNECTION_TIMEOUT", "4000")]].concat();
    let pods = world.three_pods(&settings);
    let mut fleet = Fleet::open(&world, &pods);
    let theirs: Vec<_> = (0..fleet.ids.len()).filter(|place| fleet.owners[*place] == pods[0].url()).collect();
    pods[0].signal(Signal::Stop);
    fleet.until("its lease runs out", || world.redis.live().len() == 2);
    let id = fleet.ids[theirs[0]].clone();
    fleet.until("its assessments come up elsewhere", || pods[1].owner_of(&id) != pods[0].url());
    read_for(&mut fleet.clients, Duration::from_millis(4500));
    // They are alive, as their pod could read if it ran.
    theirs.iter().for_each(|place| fleet.clients[*place].send(r#"{"type":"pong"}"#));

    pods[0].signal(Signal::Cont);
    let slots = fleet.slots.clone();
    fleet.until("it claims anew", || world.redis.live() == slots);
    fleet.until("its assessments come home", || pods[1].owner_of(&id) == pods[0].url());
    read_for(&mut fleet.clients, Duration::from_secs(1));
    for client in &fleet.clients {
        let code = client.close_frame().map(|(code, _)| *code);
        assert_ne!(code, Some(4408), "the silence was the pod's");
    }
    for (place, client) in fleet.clients.iter().enumerate() {
        assert!(theirs.contains(&place) || client.ended().is_none(), "others are not moved");
    }
    fleet.is_owned_as_before(&pods);
}

#[test]
fn a_pod_that_is_started_again_under_its_name_has_its_slot_at_once() {
    let world = World::start();
    // A lease that does not run out within the test.
    let mut pods = world.three_pods(&[("LEASE_TTL_MS", "60000")]);
    let slots = world.redis.live();
    let instance = |world: &World| {
        let slots = world.redis.slots();
        slots.into_values().find(|slot| slot.node == "pod-1").expect("pod-1 has a slot").instance
    };
    let before = instance(&world);
    pods[1].kill();
    let restarted = pods[1].plan().start();
    eventually("another run of it has the slot", WITHIN, || (instance(&world) != before).then_some(()));
    assert_eq!(world.redis.live(), slots, "the same slots");
    let [pod_0, _, pod_2] = &pods;
    let id = (0..).map(|n| format!("id-{n}")).find(|id| pod_0.owner_of(id) == restarted.url()).unwrap();
    assert_eq!(pod_2.owner_of(&id), restarted.url());
    assert_eq!(restarted.owner_of(&id), restarted.url());
}

#[test]
fn of_two_pods_with_one_name_the_newer_gets_the_slot_and_the_older_logs_an_error() {
    let world = World::without_topics();
    let older = world.pod("twin").start();
    let slots = world.redis.live();
    let (number, _) = slots.first_key_value().expect("it has a slot");
    let newer = world.pod("twin").start();
    eventually("the newer has the slot", WITHIN, || {
        (world.redis.slots().get(number)?.url == newer.url()).then_some(())
    });
    eventually("the older claims another", WITHIN, || {
        world.redis.slots().iter().any(|(other, slot)| other != number && slot.url == older.url()).then_some(())
    });
    let errors = || older.log().lines().filter(|line| line.contains("ERROR")).count();
    eventually("the older says so", WITHIN, || (errors() >= 1).then_some(()));
    world.settled(&[older, newer]);
}

#[test]
fn redis_holds_one_hash_and_changes_are_announced() {
    let world = World::without_topics();
    let listener = world.redis.listen(&["gate:node:join", "gate:node:leave"]);
    let mut pods = ["one", "two"].map(|name| {
        world.pod(name).set("REDIS_KEY_PREFIX", "gate").set("DRAIN_DELAY_MS", "0").set("DRAIN_MS", "100").start()
    });
    listener.expect("gate:node:join", "one", WITHIN);
    listener.expect("gate:node:join", "two", WITHIN);
    assert_eq!(world.redis.keys(), ["gate:slots"]);
    let slots = world.redis.slots_of("gate");
    assert_eq!(slots.keys().copied().collect::<Vec<_>>(), [0, 1]);
    for slot in slots.values() {
        let pod = pods.iter().find(|pod| pod.name() == slot.node).expect("a pod of ours");
        assert_eq!(slot.url, pod.url());
        assert!(slot.expires_at_ms > world.redis.now_ms());
    }
    pods[0].signal(Signal::Term);
    listener.expect("gate:node:leave", "one", Duration::from_secs(2));
    assert!(pods[0].wait_exit(WITHIN).success());
    // The lowest free number is taken again.
    let third = world.pod("three").set("REDIS_KEY_PREFIX", "gate").start();
    assert_eq!(world.redis.slots_of("gate")[&0].url, third.url());
}

#[test]
fn a_lease_is_renewed_in_time() {
    let world = World::without_topics();
    let _pod = world.pod("pod-0").set_all(LEASE_SETTING).start();
    let started = Instant::now();
    while started.elapsed() < LEASE * 3 {
        let slots = world.redis.slots();
        let slot = slots.values().next().expect("it keeps its slot");
        assert!(slot.expires_at_ms > world.redis.now_ms(), "its lease ran out");
    }
}

#[test]
fn with_the_shortest_lease_no_outage_moves_anybody() {
    let mut world = World::start();
    let pods = world.three_pods(&[("LEASE_TTL_MS", "1000")]);
    let mut fleet = Fleet::open(&world, &pods);
    // So long that they try less and less often.
    world.redis.kill();
    read_for(&mut fleet.clients, Duration::from_secs(4));
    world.redis.start_again();
    fleet.is_as_before(&world, &pods);
    world.redis.pause();
    read_for(&mut fleet.clients, Duration::from_secs(4));
    world.redis.resume();
    fleet.is_as_before(&world, &pods);
}

/// Three pods, each with a way to Redis of its own.
fn linked(world: &World, settings: &[(&str, &str)]) -> (Vec<RedisProxy>, Vec<Pod>) {
    let links: Vec<_> = (0..3).map(|_| RedisProxy::to(world.redis.port())).collect();
    let pod = |(number, link): (usize, &RedisProxy)| {
        world.pod(&format!("pod-{number}")).set_all(settings).set("REDIS_PORT", &link.port().to_string()).spawn()
    };
    let pods: Vec<_> = links.iter().enumerate().map(pod).collect();
    pods.iter().for_each(Pod::ready);
    world.settled(&pods);
    (links, pods)
}

#[test]
fn a_pod_that_starts_just_after_an_outage_takes_nothing_from_those_who_have_yet_to_come_back() {
    let world = World::start();
    let (links, pods) = linked(&world, LEASE_SETTING);
    let before = world.redis.slots();
    links.iter().for_each(RedisProxy::pause);
    eventually("their leases run out", WITHIN, || world.redis.live().is_empty().then_some(()));
    let fresh = world.pod("fresh").set_all(LEASE_SETTING).start();
    let holders = || -> Vec<_> { world.redis.slots().into_values().map(|slot| (slot.node, slot.instance)).collect() };
    let theirs: Vec<_> = before.values().map(|slot| (slot.node.clone(), slot.instance.clone())).collect();
    assert_eq!(holders()[..3], theirs, "it can't know that they are not dead");
    assert_eq!(world.redis.live().into_iter().collect::<Vec<_>>(), [(3, "fresh".to_owned())]);

    links.iter().for_each(RedisProxy::resume);
    eventually("all are there", WITHIN, || (world.redis.live().len() == 4).then_some(()));
    assert_eq!(holders()[..3], theirs, "each where it was");
    // Of one that doesn't come back it is known a lease later.
    drop(pods);
    eventually("the dead are gone", LEASE * 2 + Duration::from_secs(2), || {
        (world.redis.slots().len() == 1).then_some(())
    });
    assert_eq!(world.redis.live().len(), 1);
    fresh.ready();
}

#[test]
fn a_slow_redis_is_one_that_is_reached_and_who_dies_is_missed_all_the_same() {
    let world = World::start();
    let (links, mut pods) = linked(&world, &[("LEASE_TTL_MS", "3000")]);
    let slots = world.redis.live();
    links.iter().for_each(|link| link.delay(Duration::from_millis(1000)));
    // Each call takes a third of the lease.
    always("all have their slots", Duration::from_secs(6), || {
        world.redis.live() == slots && pods.iter().all(|pod| pod.get("/ready").status == 200)
    });
    let calls = |pod: &Pod| pod.metrics().sum("shardgate_redis_calls_failed_total");
    assert!(pods.iter().all(|pod| calls(pod) == 0.0));
    let mut dead = pods.remove(1);
    dead.kill();
    eventually("its slot is vacant", Duration::from_secs(3 + 2), || (world.redis.slots().len() == 2).then_some(()));
    for pod in &pods {
        eventually("it is sent nobody any more", WITHIN, || {
            let ids = (0..32).map(|number| format!("id-{number}"));
            ids.into_iter().all(|id| pod.owner_of(&id) != dead.url()).then_some(())
        });
    }
}

#[test]
fn a_replica_that_takes_no_changes_is_no_redis_to_a_pod_until_it_leads() {
    let world = World::start();
    let pods = world.three_pods(LEASE_SETTING);
    let mut fleet = Fleet::open(&world, &pods);
    let other = Redis::start();
    // What it had is gone with that: it has what the other has.
    world.redis.follow(&other);
    let new = world.pod("new").set_all(LEASE_SETTING).spawn();
    eventually("it listens", READY_WITHIN, || new.try_get("/health"));
    let all: Vec<_> = pods.iter().chain([&new]).collect();
    for pod in &all {
        eventually("it shows", WITHIN, || (pod.get("/ready").json()["redis"] == "disconnected").then_some(()));
    }
    always("it is not taken for one", Duration::from_secs(6), || {
        all.iter().all(|pod| pod.get("/ready").json()["redis"] == "disconnected")
    });
    read_for(&mut fleet.clients, Duration::from_millis(100));
    fleet.is_owned_as_before(&pods);
    fleet.is_served(&world);
    let told = new.log().lines().filter(|line| line.contains("Redis unreachable")).count();
    assert_eq!(told, 1, "once, and not again and again");
    assert!(new.log().contains("read only replica"), "and it says why");
    drop(new);
    world.redis.lead();
    fleet.is_as_before(&world, &pods);
}

/// Three pods whose Redis has a clock of its own, and their clients.
fn world_with_clock() -> (World, Vec<Pod>, Fleet) {
    let world = World::with_redis(Redis::start_with_clock());
    let pods = Vec::from(world.three_pods(LEASE_SETTING));
    let fleet = Fleet::open(&world, &pods);
    (world, pods, fleet)
}

#[test]
fn a_redis_whose_clock_steps_moves_nobody() {
    let (world, pods, mut fleet) = world_with_clock();
    // By more and by less than a lease, and all at once by an hour.
    for seconds in [3_600, 3_601, 3_605, 3_604, 3_600, 0, -3_600, 86_400, 0] {
        world.redis.set_clock(seconds);
        read_for(&mut fleet.clients, LEASE);
        fleet.is_not_moved();
        assert!(pods.iter().all(|pod| pod.get("/ready").status == 200), "they reach it");
    }
    fleet.is_as_before(&world, &pods);
    let told = pods[0].log().lines().filter(|line| line.contains("the clock of Redis stepped")).count();
    assert!((1..=2).contains(&told), "{told} lines");
}

#[test]
fn a_pod_that_died_before_a_backward_clock_step_expires_within_two_leases() {
    for seconds in [-3_600, -2] {
        let (world, mut pods, mut fleet) = world_with_clock();
        let mut dead = pods.remove(1);
        dead.kill();
        world.redis.set_clock(seconds);
        let began = Instant::now();
        fleet.until("its slot is vacant", || world.redis.slots().len() == 2);
        // The lease that it had, one by the step at most, and a look.
        assert!(began.elapsed() < LEASE * 2 + Duration::from_secs(1), "{:?}", began.elapsed());
        for pod in &pods {
            fleet.until("nobody is sent to it", || (0..32).all(|n| pod.owner_of(&format!("id-{n}")) != dead.url()));
        }
    }
}
