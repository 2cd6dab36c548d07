//! Slots and leases: Redis is killed, emptied and paused under connected clients; pods are paused, restarted under
//! their name, or share it. No client is moved without need, and afterwards everything is as before.

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

/// Three pods with their clients and the events sent to them.
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

    /// Sends an event to each client and checks that it arrives and that no earlier one was lost.
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

    /// Waits while the clients answer pings.
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
        assert!(self.clients.iter().all(|client| client.ended().is_none()), "no connection was aborted");
    }

    /// New clients are redirected to the same owners.
    fn is_owned_as_before(&self, pods: &[Pod]) {
        for (id, owner) in self.ids.iter().zip(&self.owners).take(12) {
            for pod in pods {
                assert_eq!(pod.owner_of(id), *owner, "{id}, according to {}", pod.name());
            }
        }
    }

    /// Checks that the same pods hold the slots and that all are ready.
    fn is_as_before(&mut self, world: &World, pods: &[Pod]) {
        pods.iter().for_each(Pod::ready);
        eventually("the slots are as before", WITHIN, || (world.redis.live() == self.slots).then_some(()));
        // A wrong view would move clients after one or two polls.
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
        eventually("the outage is reported", Duration::from_secs(6), || {
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
fn a_leaving_pod_owns_nothing_at_once_even_after_a_flush_of_redis() {
    let world = World::start();
    // A lease that does not expire during the test.
    let settings = [("LEASE_TTL_MS", "60000"), ("DRAIN_DELAY_MS", "60000")];
    let pods = world.three_pods(&settings);
    let ids: Vec<_> = (0..60).map(|number| format!("assessment-{number}")).collect();
    let leaves = pods[0].url();
    assert!(ids.iter().any(|id| pods[1].owner_of(id) == leaves));
    world.redis.flush();
    // It leaves before any pod has polled Redis again, or after that.
    pods[0].signal(Signal::Term);
    eventually("no client is redirected to it", WITHIN, || {
        ids.iter().all(|id| pods[1].owner_of(id) != leaves).then_some(())
    });
    // Then the other pods have claimed their slots again.
    eventually("the others hold their slots again", WITHIN, || (world.redis.live().len() == 2).then_some(()));
    assert!(ids.iter().all(|id| pods[2].owner_of(id) != leaves));
}

#[test]
fn a_redis_paused_for_longer_than_the_lease_moves_no_client() {
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
fn a_pod_paused_beyond_its_lease_claims_a_slot_again_and_does_not_time_out_its_clients() {
    let world = World::start();
    let settings = [LEASE_SETTING, &[("HEARTBEAT_INTERVAL", "500"), ("CONNECTION_TIMEOUT", "4000")]].concat();
    let pods = world.three_pods(&settings);
    let mut fleet = Fleet::open(&world, &pods);
    let theirs: Vec<_> = (0..fleet.ids.len()).filter(|index| fleet.owners[*index] == pods[0].url()).collect();
    pods[0].signal(Signal::Stop);
    fleet.until("its lease expires", || world.redis.live().len() == 2);
    let id = fleet.ids[theirs[0]].clone();
    fleet.until("its assessments move to other pods", || pods[1].owner_of(&id) != pods[0].url());
    read_for(&mut fleet.clients, Duration::from_millis(4500));
    // The clients are alive, but their paused pod can't read that.
    theirs.iter().for_each(|index| fleet.clients[*index].send(r#"{"type":"pong"}"#));

    pods[0].signal(Signal::Cont);
    let slots = fleet.slots.clone();
    fleet.until("it claims its slot again", || world.redis.live() == slots);
    fleet.until("its assessments return", || pods[1].owner_of(&id) == pods[0].url());
    read_for(&mut fleet.clients, Duration::from_secs(1));
    for client in &fleet.clients {
        let code = client.close_frame().map(|(code, _)| *code);
        assert_ne!(code, Some(4408), "the pod was silent, not the clients");
    }
    for (index, client) in fleet.clients.iter().enumerate() {
        assert!(theirs.contains(&index) || client.ended().is_none(), "others are not moved");
    }
    fleet.is_owned_as_before(&pods);
}

#[test]
fn a_pod_restarted_under_its_name_has_its_slot_at_once() {
    let world = World::start();
    // A lease that does not expire during the test.
    let mut pods = world.three_pods(&[("LEASE_TTL_MS", "60000")]);
    let slots = world.redis.live();
    let instance = |world: &World| {
        let slots = world.redis.slots();
        slots.into_values().find(|slot| slot.node == "pod-1").expect("pod-1 has a slot").instance
    };
    let before = instance(&world);
    pods[1].kill();
    let restarted = pods[1].plan().start();
    eventually("the new instance has the slot", WITHIN, || (instance(&world) != before).then_some(()));
    assert_eq!(world.redis.live(), slots, "the same slots");
    let [pod_0, _, pod_2] = &pods;
    let id = (0..).map(|n| format!("id-{n}")).find(|id| pod_0.owner_of(id) == restarted.url()).unwrap();
    assert_eq!(pod_2.owner_of(&id), restarted.url());
    assert_eq!(restarted.owner_of(&id), restarted.url());
}

#[test]
fn of_two_pods_with_the_same_name_the_newer_gets_the_slot_and_the_older_logs_an_error() {
    let world = World::without_topics();
    let older = world.pod("twin").start();
    let slots = world.redis.live();
    let (number, _) = slots.first_key_value().expect("the pod has a slot");
    let newer = world.pod("twin").start();
    eventually("the newer has the slot", WITHIN, || {
        (world.redis.slots().get(number)?.url == newer.url()).then_some(())
    });
    eventually("the older claims another", WITHIN, || {
        world.redis.slots().iter().any(|(other, slot)| other != number && slot.url == older.url()).then_some(())
    });
    let errors = || older.log().lines().filter(|line| line.contains("ERROR")).count();
    eventually("the older logs it", WITHIN, || (errors() >= 1).then_some(()));
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
        let slot = slots.values().next().expect("the pod keeps its slot");
        assert!(slot.expires_at_ms > world.redis.now_ms(), "its lease expired");
    }
}

#[test]
fn with_the_shortest_lease_no_outage_moves_a_client() {
    let mut world = World::start();
    let pods = world.three_pods(&[("LEASE_TTL_MS", "1000")]);
    let mut fleet = Fleet::open(&world, &pods);
    // Long enough for the backoff to grow.
    world.redis.kill();
    read_for(&mut fleet.clients, Duration::from_secs(4));
    world.redis.start_again();
    fleet.is_as_before(&world, &pods);
    world.redis.pause();
    read_for(&mut fleet.clients, Duration::from_secs(4));
    world.redis.resume();
    fleet.is_as_before(&world, &pods);
}

/// Three pods, each with its own proxy to Redis.
fn pods_with_proxies(world: &World, settings: &[(&str, &str)]) -> (Vec<RedisProxy>, Vec<Pod>) {
    let proxies: Vec<_> = (0..3).map(|_| RedisProxy::to(world.redis.port())).collect();
    let pod = |(number, proxy): (usize, &RedisProxy)| {
        world.pod(&format!("pod-{number}")).set_all(settings).set("REDIS_PORT", &proxy.port().to_string()).spawn()
    };
    let pods: Vec<_> = proxies.iter().enumerate().map(pod).collect();
    pods.iter().for_each(Pod::ready);
    world.settled(&pods);
    (proxies, pods)
}

#[test]
fn a_pod_that_starts_just_after_an_outage_takes_no_slot_of_pods_that_have_yet_to_return() {
    let world = World::start();
    let (proxies, pods) = pods_with_proxies(&world, LEASE_SETTING);
    let before = world.redis.slots();
    proxies.iter().for_each(RedisProxy::pause);
    eventually("their leases expire", WITHIN, || world.redis.live().is_empty().then_some(()));
    let newcomer = world.pod("fresh").set_all(LEASE_SETTING).start();
    let holders = || -> Vec<_> { world.redis.slots().into_values().map(|slot| (slot.node, slot.instance)).collect() };
    let theirs: Vec<_> = before.values().map(|slot| (slot.node.clone(), slot.instance.clone())).collect();
    assert_eq!(holders()[..3], theirs, "the new pod can't know whether they are dead");
    assert_eq!(world.redis.live().into_iter().collect::<Vec<_>>(), [(3, "fresh".to_owned())]);

    proxies.iter().for_each(RedisProxy::resume);
    eventually("all are live", WITHIN, || (world.redis.live().len() == 4).then_some(()));
    assert_eq!(holders()[..3], theirs, "each kept its slot");
    // Pods that don't return are removed a lease later.
    drop(pods);
    eventually("the dead pods are removed", LEASE * 2 + Duration::from_secs(2), || {
        (world.redis.slots().len() == 1).then_some(())
    });
    assert_eq!(world.redis.live().len(), 1);
    newcomer.ready();
}

#[test]
fn with_a_slow_redis_pods_stay_ready_and_a_dead_pod_expires() {
    let world = World::start();
    let (proxies, mut pods) = pods_with_proxies(&world, &[("LEASE_TTL_MS", "3000")]);
    let slots = world.redis.live();
    proxies.iter().for_each(|proxy| proxy.delay(Duration::from_millis(1000)));
    // Each call takes a third of the lease.
    always("all keep their slots", Duration::from_secs(6), || {
        world.redis.live() == slots && pods.iter().all(|pod| pod.get("/ready").status == 200)
    });
    let calls = |pod: &Pod| pod.metrics().sum("shardgate_redis_calls_failed_total");
    assert!(pods.iter().all(|pod| calls(pod) == 0.0));
    let mut dead = pods.remove(1);
    dead.kill();
    eventually("its slot is vacant", Duration::from_secs(3 + 2), || (world.redis.slots().len() == 2).then_some(()));
    for pod in &pods {
        eventually("no client is redirected to it", WITHIN, || {
            let ids = (0..32).map(|number| format!("id-{number}"));
            ids.into_iter().all(|id| pod.owner_of(&id) != dead.url()).then_some(())
        });
    }
}

#[test]
fn a_read_only_replica_counts_as_unreachable_until_it_is_a_primary() {
    let world = World::start();
    let pods = world.three_pods(LEASE_SETTING);
    let mut fleet = Fleet::open(&world, &pods);
    let other = Redis::start();
    // This replaces its data with the other's.
    world.redis.follow(&other);
    let new = world.pod("new").set_all(LEASE_SETTING).spawn();
    eventually("the pod listens", READY_WITHIN, || new.try_get("/health"));
    let all: Vec<_> = pods.iter().chain([&new]).collect();
    for pod in &all {
        eventually("the outage is reported", WITHIN, || {
            (pod.get("/ready").json()["redis"] == "disconnected").then_some(())
        });
    }
    always("the replica counts as unreachable", Duration::from_secs(6), || {
        all.iter().all(|pod| pod.get("/ready").json()["redis"] == "disconnected")
    });
    read_for(&mut fleet.clients, Duration::from_millis(100));
    fleet.is_owned_as_before(&pods);
    fleet.is_served(&world);
    let logged = new.log().lines().filter(|line| line.contains("Redis unreachable")).count();
    assert_eq!(logged, 1, "logged once");
    assert!(new.log().contains("read only replica"), "with the reason");
    drop(new);
    world.redis.lead();
    fleet.is_as_before(&world, &pods);
}

/// Three pods whose Redis has its own clock, and their clients.
fn world_with_clock() -> (World, Vec<Pod>, Fleet) {
    let world = World::with_redis(Redis::start_with_clock());
    let pods = Vec::from(world.three_pods(LEASE_SETTING));
    let fleet = Fleet::open(&world, &pods);
    (world, pods, fleet)
}

#[test]
fn a_step_of_redis_clock_moves_no_client() {
    let (world, pods, mut fleet) = world_with_clock();
    // By more than a lease, by less, and by an hour at once.
    for seconds in [3_600, 3_601, 3_605, 3_604, 3_600, 0, -3_600, 86_400, 0] {
        world.redis.set_clock(seconds);
        read_for(&mut fleet.clients, LEASE);
        fleet.is_not_moved();
        assert!(pods.iter().all(|pod| pod.get("/ready").status == 200), "they reach Redis");
    }
    fleet.is_as_before(&world, &pods);
    let logged = pods[0].log().lines().filter(|line| line.contains("the clock of Redis stepped")).count();
    assert!((1..=2).contains(&logged), "{logged} lines");
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
        // Its own lease, at most another because of the step, and a poll.
        assert!(began.elapsed() < LEASE * 2 + Duration::from_secs(1), "{:?}", began.elapsed());
        for pod in &pods {
            fleet.until("no client is redirected to it", || {
                (0..32).all(|n| pod.owner_of(&format!("id-{n}")) != dead.url())
            });
        }
    }
}
