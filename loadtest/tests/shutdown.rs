//! How pods end: SIGTERM under load with other pods and alone, a second signal, and SIGKILL.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use loadtest::client::{Ask, Client, WITHIN, read_for, read_until};
use loadtest::events::{ExpectedMessage, Kind, number_of, seen};
use loadtest::pods::{Pod, World};
use loadtest::process::{Signal, always, eventually};

const DRAIN_DELAY: Duration = Duration::from_millis(1500);
const DRAIN: Duration = Duration::from_millis(3000);
const DRAIN_SETTINGS: &[(&str, &str)] = &[("DRAIN_DELAY_MS", "1500"), ("DRAIN_MS", "3000")];

/// Ids that this pod owns.
fn ids_of(pod: &Pod, count: usize) -> Vec<String> {
    let ids = (0..).map(|number| format!("assessment-{number}"));
    ids.filter(|id| pod.owner_of(id) == pod.url()).take(count).collect()
}

/// Checks that the client received the balance events without a gap from its first, all as expected.
fn assert_no_gap(client: &Client, id: &str) {
    let mut next = None;
    for message in seen(client) {
        let number = number_of(message);
        assert!(next.is_none_or(|next| next == number), "{id}: {number} instead of {next:?}");
        assert_eq!(ExpectedMessage::from(message), Kind::BalanceUpdated.event(id, number).expected);
        next = Some(number + 1);
    }
    assert!(next.is_some(), "{id} received events");
}

#[test]
fn a_pod_stopped_under_load_redirects_its_clients_evenly_over_the_drain() {
    let world = World::start();
    let mut pods = world.three_pods(DRAIN_SETTINGS);
    let ids = ids_of(&pods[0], 60);
    let mut clients: Vec<_> = ids.iter().map(|id| pods[0].client(id)).collect();
    clients.push(pods[0].market_client());
    let listener = world.redis.listen(&["websocket:node:leave"]);
    let urls = [pods[1].url(), pods[2].url()];
    let stop = AtomicBool::new(false);

    thread::scope(|scope| {
        scope.spawn(|| {
            let producer = world.producer();
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                for id in &ids {
                    producer.event(&Kind::BalanceUpdated.event(id, number));
                }
                producer.flush();
                // This sets the rate. It does not wait for an event.
                thread::sleep(Duration::from_millis(10));
            }
        });
        read_until(&mut clients, "the load runs", WITHIN, |clients| {
            clients[..ids.len()].iter().all(|client| seen(client).count() >= 3)
        });

        pods[0].signal(Signal::Term);
        let signalled = Instant::now();
        eventually("the slot is gone at once", Duration::from_secs(1), || {
            (!world.redis.live().values().any(|node| node == "pod-0")).then_some(())
        });
        listener.expect("websocket:node:leave", "pod-0", Duration::from_secs(1));
        let ready = pods[0].get("/ready");
        assert_eq!((ready.status, &ready.json()["draining"]), (503, &true.into()));
        new_clients_are_redirected(&pods[0], &ids[0], &urls);

        let before: Vec<_> = clients[..ids.len()].iter().map(|client| seen(client).count()).collect();
        let left = DRAIN_DELAY.saturating_sub(Duration::from_millis(200)).saturating_sub(signalled.elapsed());
        read_for(&mut clients, left);
        assert!(clients.iter().all(|client| client.ended().is_none()), "all stay connected for DRAIN_DELAY_MS");
        for (client, before) in clients.iter().zip(before) {
            assert!(seen(client).count() > before, "and receive events");
        }

        read_until(&mut clients, "all are closed", DRAIN_DELAY + DRAIN + Duration::from_secs(3), |clients| {
            clients.iter().all(|client| client.ended().is_some())
        });
        closes_are_spread_out(&clients, signalled);
        assert_eq!(pods[0].wait_exit(Duration::from_secs(2)).code(), Some(0));
        stop.store(true, Ordering::Relaxed);
    });

    for (client, id) in clients.iter().zip(&ids) {
        assert_no_gap(client, id);
        can_continue_at_the_redirect(client, Some(id), &urls);
    }
    can_continue_at_the_redirect(&clients[ids.len()], None, &urls);
}

fn new_clients_are_redirected(pod: &Pod, id: &str, urls: &[String]) {
    let (refusal, code) = pod.client(id).expect_refusal();
    assert_eq!((refusal["error"].as_str(), code), (Some("Redirect"), 1008));
    assert!(urls.iter().any(|url| refusal["url"] == url.as_str()), "{refusal}");
    let (refusal, code) = pod.market_client().expect_refusal();
    assert_eq!((refusal["error"].as_str(), code), (Some("Redirect"), 1008), "also clients of market data only");
}

/// In each third of the drain about a third of the clients is closed, and none before or after.
fn closes_are_spread_out(clients: &[Client], signalled: Instant) {
    let mut thirds = [0_usize; 3];
    for client in clients {
        let after = client.ended().expect("all have ended").duration_since(signalled);
        let third = after.saturating_sub(DRAIN_DELAY).as_secs_f64() / DRAIN.as_secs_f64() * 3.0;
        assert!(after + Duration::from_millis(100) > DRAIN_DELAY, "closed after {after:?}");
        assert!(third < 3.5, "closed after {after:?}");
        thirds[(third as usize).min(2)] += 1;
    }
    let even = clients.len() / 3;
    assert!(
        thirds.iter().all(|count| (even / 2..=even * 2).contains(count)),
        "closes in thirds of the time: {thirds:?}"
    );
}

/// Checks that the last message was a redirect with close code 1012, and that its URL is correct.
fn can_continue_at_the_redirect(client: &Client, id: Option<&str>, urls: &[String]) {
    assert_eq!(client.close_frame().map(|(code, _)| *code), Some(1012));
    let last = client.messages().last().expect("a redirect").json();
    assert_eq!(last["error"], "Redirect", "{last}");
    let url = last["url"].as_str().expect("a URL");
    assert!(urls.iter().any(|live| live == url), "{last}");
    let ask = Ask::to(url);
    let mut client = id.map_or(ask.clone(), |id| ask.assessment(id)).open();
    assert_eq!(client.expect("a first message", |_| true).kind, "connected", "the redirect is correct");
}

#[test]
fn a_stopped_pod_without_others_closes_its_clients_and_accepts_no_new_one() {
    let world = World::without_topics();
    let mut pod = world.pod("pod-0").set_all(&[("DRAIN_DELAY_MS", "1000"), ("DRAIN_MS", "1000")]).start();
    let mut clients: Vec<_> = (0..10).map(|number| pod.client(&format!("a-{number}"))).collect();
    pod.signal(Signal::Int);
    eventually("its slot is gone", Duration::from_secs(1), || world.redis.live().is_empty().then_some(()));
    let refusal = pod.ask().try_open().expect_err("no new clients");
    assert_eq!(refusal.status, 503);
    assert!(refusal.header("retry-after").is_some());
    for client in &mut clients {
        assert_eq!(client.expect_close().0, 1001);
        assert!(client.messages().iter().all(|message| message.kind != "Redirect"));
    }
    assert_eq!(pod.wait_exit(Duration::from_secs(3)).code(), Some(0));
}

#[test]
fn a_stopped_pod_without_clients_exits_at_once() {
    let world = World::without_topics();
    let mut pod = world.pod("pod-0").set("DRAIN_DELAY_MS", "60000").start();
    let leaves_meanwhile = pod.client("a");
    pod.signal(Signal::Term);
    eventually("the pod drains", WITHIN, || (pod.get("/ready").json()["draining"] == true).then_some(()));
    leaves_meanwhile.close();
    assert_eq!(pod.wait_exit(Duration::from_secs(3)).code(), Some(0), "as soon as the last client has left");
}

#[test]
fn a_pod_exits_cleanly_even_if_kafka_and_redis_hang_also_during_startup() {
    let mut world = World::without_topics();
    let mut serves = world.pod("pod-0").start();
    world.kafka.broker(0).pause();
    world.redis.pause();
    let mut starts = world.pod("pod-1").spawn();
    eventually("the pod answers", WITHIN, || starts.try_get("/health"));
    for pod in [&mut serves, &mut starts] {
        pod.signal(Signal::Term);
        assert_eq!(pod.wait_exit(Duration::from_secs(6)).code(), Some(0), "{}", pod.log());
    }
    world.redis.resume();
    world.kafka.broker(0).resume();
}

#[test]
fn a_second_signal_makes_a_pod_exit_at_once() {
    let world = World::without_topics();
    let mut pod = world.pod("pod-0").set("DRAIN_DELAY_MS", "60000").start();
    let _client = pod.client("a");
    pod.signal(Signal::Term);
    eventually("the pod drains", WITHIN, || (pod.get("/ready").json()["draining"] == true).then_some(()));
    pod.signal(Signal::Term);
    assert_ne!(pod.wait_exit(Duration::from_secs(1)).code(), Some(0));
}

#[test]
fn a_killed_pod_owns_nothing_after_its_lease_and_no_client_of_others_is_moved() {
    const LEASE: Duration = Duration::from_millis(2000);
    let world = World::start();
    let mut pods = world.three_pods(&[("LEASE_TTL_MS", "2000")]);
    let lost = ids_of(&pods[0], 20);
    let kept = ids_of(&pods[1], 20);
    let mut clients: Vec<_> = kept.iter().map(|id| pods[1].client(id)).collect();
    let listener = world.redis.listen(&["websocket:node:leave"]);
    let slots = world.redis.live();

    pods[0].kill();
    let killed = Instant::now();
    let alive = || world.redis.live().values().any(|node| node == "pod-0");
    always("its lease holds", LEASE / 4, alive);
    eventually("its lease expires", LEASE, || (!alive()).then_some(()));
    listener.expect("websocket:node:leave", "pod-0", Duration::from_secs(2));

    let [_, one, two] = &pods;
    for id in &lost {
        let owner = eventually("the id has another owner", LEASE + Duration::from_secs(3), || {
            let urls = [one.owner_of(id), two.owner_of(id)];
            (urls[0] == urls[1] && urls[0] != pods[0].url()).then(|| urls[0].clone())
        });
        let mut client = Ask::to(&owner).assessment(id).open();
        assert_eq!(client.expect("a first message", |_| true).kind, "connected");
    }
    assert!(killed.elapsed() < LEASE + Duration::from_secs(6), "{:?}", killed.elapsed());

    // The others keep their slots, their assessments and their clients.
    let others = world.redis.live();
    assert_eq!(others.len(), 2);
    assert!(others.iter().all(|(number, node)| slots.get(number) == Some(node)), "{slots:?}, then {others:?}");
    read_for(&mut clients, Duration::from_millis(200));
    assert!(clients.iter().all(|client| client.ended().is_none()));
    for id in &kept {
        assert_eq!(pods[2].owner_of(id), pods[1].url());
    }
}
