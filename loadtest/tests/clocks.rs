//! A pod whose wall clock steps: its clients stay connected and miss nothing.

use std::time::Duration;

use loadtest::client::{Ask, WITHIN, read_for, read_until};
use loadtest::events::{MARKETS, assert_saw, event, seen, tick};
use loadtest::pods::World;
use loadtest::token;
use loadtest::wall_clock::WallClock;
use serde_json::json;

#[test]
fn a_pod_whose_wall_clock_steps_keeps_its_clients_and_delivers_everything() {
    let world = World::start();
    let clock = WallClock::new();
    let mut plan = world.pod("pod-0");
    for (name, value) in clock.environment() {
        plan = plan.set(name, &value);
    }
    let pod = plan.start();
    // Their token expires in half an hour. The clock steps by more.
    let claims = json!({ "userId": token::USER, "exp": token::in_seconds(1_800.0) });
    let ask = || Ask::to(&pod.url()).token(&token::signed(&claims));
    let mut clients = vec![ask().assessment("a").open(), ask().open()];
    let producer = world.producer();
    for (number, seconds) in (0..).zip([0, 3_600, -3_600, 86_400, 0]) {
        clock.set(seconds);
        producer.event(&event("a", number));
        producer.event(&tick(MARKETS[0], number));
        producer.flush();
        let price = format!("\"price\":{number}.250");
        read_until(&mut clients, "the event and the tick arrive", WITHIN, |clients| {
            let has_tick = |of: usize| clients[of].of_type("market_price").any(|tick| tick.text.contains(&price));
            seen(&clients[0]).count() as u64 == number + 1 && has_tick(0) && has_tick(1)
        });
        // Long enough for the sweep to apply the new time.
        read_for(&mut clients, Duration::from_secs(2));
        assert!(clients.iter().all(|client| client.ended().is_none()));
        assert_eq!(pod.get("/ready").status, 200);
    }
    assert_saw(&clients[0], "a", 0..5);
}
