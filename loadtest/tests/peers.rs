//! Pods that look at each other (`PEER_URL`): one that is gone is taken over before its lease has run out, and one that
//! is back has its assessments again.

use std::time::{Duration, Instant};

use loadtest::client::{Ask, WITHIN, read_until};
use loadtest::events::{Kind, seen};
use loadtest::pods::{Pod, World};
use loadtest::process::{Signal, eventually};

/// Far longer than any test here takes: what happens within it is not by the end of a lease.
const LEASE_MS: &str = "60000";

/// Within this time a pod that refuses connections is taken over: a look each 500 ms, two more, and a busy machine.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(5);

fn three_pods(world: &World) -> [Pod; 3] {
    world.three_of(|plan| plan.with_looks().set("LEASE_TTL_MS", LEASE_MS))
}

/// An assessment that the first of these pods says the second owns.
fn assessment_of(asked: &Pod, owner: &Pod) -> String {
    let mut ids = (0..).map(|number| format!("assessment-{number}"));
    ids.find(|id| asked.owner_of(id) == owner.url()).expect("each pod owns about a third")
}

/// Waits until this pod says that it or another owns the assessment; returns which.
#[track_caller]
fn owner_other_than(gone: &Pod, asked: &Pod, id: &str) -> String {
    eventually("it is taken over", TAKEN_OVER_WITHIN, || Some(asked.owner_of(id)).filter(|owner| *owner != gone.url()))
}

#[test]
fn a_killed_pod_is_taken_over_long_before_its_lease_has_run_out() {
    let world = World::start();
    let [asked, other, gone] = three_pods(&world);
    let id = assessment_of(&asked, &gone);
    let producer = world.producer();
    let mut client = gone.client(&id);
    client.expect_type("connected");
    producer.event(&Kind::BalanceUpdated.event(&id, 0));
    producer.flush();
    read_until(std::slice::from_mut(&mut client), "an event", WITHIN, |clients| seen(&clients[0]).count() == 1);
    let cursor = client.last_cursor();

    gone.signal(Signal::Kill);
    let died = Instant::now();
    producer.event(&Kind::BalanceUpdated.event(&id, 1));
    producer.flush();
    let owner = owner_other_than(&gone, &asked, &id);
    println!("taken over after {:?}", died.elapsed());
    assert_eq!(owner_other_than(&gone, &other, &id), owner, "both agree");
    let mut back = Ask::to(&owner).assessment(&id).parameter(&format!("cursor={cursor}")).open();
    assert_eq!(back.expect_type("connected").json()["resumed"], true);
    read_until(std::slice::from_mut(&mut back), "what it lacks", WITHIN, |clients| seen(&clients[0]).count() == 1);
    for pod in [&asked, &other] {
        assert_eq!(pod.metrics().sum("shardgate_peers_gone"), 1.0);
        let log = pod.log();
        let line = log.lines().find(|line| line.contains("pod gone")).unwrap();
        assert!(line.contains(gone.name()), "{line}");
    }
}

#[test]
fn a_pod_that_hangs_is_taken_over_and_has_its_clients_again_when_it_answers() {
    let world = World::start();
    let [asked, other, gone] = three_pods(&world);
    let id = assessment_of(&asked, &gone);
    gone.signal(Signal::Stop);
    let owner = owner_other_than(&gone, &asked, &id);
    assert_eq!(owner_other_than(&gone, &other, &id), owner);
    let mut client = Ask::to(&owner).assessment(&id).open();
    client.expect_type("connected");

    gone.signal(Signal::Cont);
    let redirect = client.expect_type("Redirect").json();
    assert_eq!(redirect["url"].as_str(), Some(&*gone.url()), "its clients return");
    eventually("no pod is gone", WITHIN, || {
        [&asked, &other, &gone].iter().all(|pod| pod.metrics().sum("shardgate_peers_gone") == 0.0).then_some(())
    });
}

#[test]
fn a_pod_that_reaches_no_other_takes_over_nothing_but_serves_who_does_not_reach_them_either() {
    let world = World::start();
    let [asked, other, gone] = three_pods(&world);
    let id = assessment_of(&asked, &gone);
    other.signal(Signal::Kill);
    gone.signal(Signal::Kill);
    eventually("it seems to be cut off", TAKEN_OVER_WITHIN, || {
        asked.log().contains("this pod seems to be cut off").then_some(())
    });
    assert_eq!(asked.metrics().sum("shardgate_peers_gone"), 0.0);
    assert_eq!(asked.owner_of(&id), gone.url());
    let comes_back = |node: &str| {
        let mut client = asked.ask().assessment(&id).parameter(&format!("unreachable={node}")).open();
        client.expect("an answer", |_| true).kind.clone()
    };
    assert_eq!(comes_back(other.name()), "Redirect", "that pod is not its owner");
    assert_eq!(comes_back(gone.name()), "connected");
}
