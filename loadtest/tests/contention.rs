//! A pod that is short of CPU may be slow, but none of its shards stalls.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use loadtest::client::{Client, WITHIN, read_until};
use loadtest::events::{MARKETS, tick};
use loadtest::pods::World;

const RUN: Duration = Duration::from_secs(10);
/// Heartbeats come every 100 ms. A client without one for this long waits for more than a core.
const LATE: Duration = Duration::from_secs(4);

#[test]
fn every_shard_keeps_its_turns_while_others_take_the_cores() {
    let world = World::start();
    let settings = [("SHARDS", "3"), ("HEARTBEAT_INTERVAL", "100"), ("MARKET_FLUSH_MS", "1")];
    let pod = world.pod("pod-0").set_all(&settings).start();
    let mut clients: Vec<_> = (0..30).map(|number| pod.client(&format!("client-{number}"))).collect();
    let end = Instant::now() + RUN;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..2 * cores {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        scope.spawn(|| {
            let producer = world.producer();
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                producer.event(&tick(MARKETS[0], number));
                // This sets the rate. It does not wait for an event.
                thread::sleep(Duration::from_millis(2));
            }
        });
        read_until(&mut clients, "the run is over", RUN + WITHIN, |_| Instant::now() >= end);
        stop.store(true, Ordering::Relaxed);
    });
    for client in &clients {
        let at = |client: &Client| client.messages().iter().map(|message| message.at).collect::<Vec<_>>();
        let times = [at(client), vec![end]].concat();
        let longest = times.windows(2).map(|pair| pair[1].saturating_duration_since(pair[0])).max();
        assert!(longest.is_some_and(|longest| longest < LATE), "{longest:?} without a message");
    }
}
