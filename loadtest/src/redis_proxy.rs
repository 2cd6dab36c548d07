//! A proxy between a pod and Redis that can add latency, block, drop announcements, or leave dead connections open, so
//! that two pods have different views for a moment.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// A proxy to Redis. It closes all its connections on drop.
pub struct RedisProxy {
    port: u16,
    shared: Arc<ProxyState>,
}

#[derive(Default)]
struct ProxyState {
    behaviour: Mutex<ProxyBehaviour>,
    changed: Condvar,
}

#[derive(Default)]
struct ProxyBehaviour {
    paused: bool,
    drops_announcements: bool,
    delay: Duration,
    ended: bool,
    streams: Vec<TcpStream>,
    /// Connections so far, and the numbers of those that pass nothing any more.
    count: usize,
    blackholed: Vec<usize>,
    /// Connections with a subscription to announcements.
    announcing: Vec<usize>,
}

impl ProxyState {
    fn behaviour(&self) -> MutexGuard<'_, ProxyBehaviour> {
        self.behaviour.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut ProxyBehaviour)) {
        change(&mut self.behaviour());
        self.changed.notify_all();
    }

    /// Waits while the connection is blocked. Returns the latency, and whether announcements are dropped.
    fn gate(&self, connection: usize) -> (Duration, bool) {
        let is_blocked = |behaviour: &mut ProxyBehaviour| {
            (behaviour.paused || behaviour.blackholed.contains(&connection)) && !behaviour.ended
        };
        let behaviour = self.changed.wait_while(self.behaviour(), is_blocked);
        let behaviour = behaviour.unwrap_or_else(PoisonError::into_inner);
        (behaviour.delay, behaviour.drops_announcements)
    }
}

impl RedisProxy {
    /// A proxy to the server on a port of 127.0.0.1.
    ///
    /// # Panics
    /// If no port is free.
    #[must_use]
    pub fn to(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is left");
        let port = listener.local_addr().expect("the listener is bound").port();
        let shared = Arc::new(ProxyState::default());
        let proxy = Self { port, shared: Arc::clone(&shared) };
        thread::spawn(move || {
            for client in listener.incoming() {
                if shared.behaviour().ended {
                    return;
                }
                // If the server is down, the client's connection ends as it would without a proxy.
                let _ = client.and_then(|client| join(&shared, client, server));
            }
        });
        proxy
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Passes nothing. Connections stay open.
    pub fn pause(&self) {
        self.shared.change(|behaviour| behaviour.paused = true);
    }

    /// Passes data again, held-back data first.
    pub fn resume(&self) {
        self.shared.change(|behaviour| behaviour.paused = false);
    }

    /// Delays each answer.
    pub fn delay(&self, delay: Duration) {
        self.shared.change(|behaviour| behaviour.delay = delay);
    }

    /// Passes nothing more through the existing connections, which stay open. New ones work.
    pub fn blackhole(&self) {
        self.shared.change(|behaviour| behaviour.blackholed = (1..=behaviour.count).collect());
    }

    /// Like [`Self::blackhole`], only for connections with a subscription to announcements.
    pub fn blackhole_announcements(&self) {
        self.shared.change(|behaviour| behaviour.blackholed.clone_from(&behaviour.announcing));
    }

    /// Drops announcements. Calls are still answered.
    pub fn drop_announcements(&self) {
        self.shared.change(|behaviour| behaviour.drops_announcements = true);
    }
}

impl Drop for RedisProxy {
    fn drop(&mut self) {
        self.shared.change(|behaviour| {
            behaviour.ended = true;
            for stream in &behaviour.streams {
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
        // Wakes the accepting thread so that it ends.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

/// Connects a client with the server.
fn join(shared: &Arc<ProxyState>, client: TcpStream, server: u16) -> io::Result<()> {
    let server = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, server)), Duration::from_secs(1))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let number = {
        let mut behaviour = shared.behaviour();
        behaviour.streams.extend([client.try_clone()?, server.try_clone()?]);
        behaviour.count += 1;
        behaviour.count
    };
    let directions = [(client.try_clone()?, server.try_clone()?, false), (server, client, true)];
    for (from, to, is_answer) in directions {
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            let _ = pass(&shared, number, &from, &to, is_answer);
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}

fn pass(
    shared: &ProxyState,
    number: usize,
    mut from: &TcpStream,
    mut to: &TcpStream,
    is_answer: bool,
) -> io::Result<()> {
    const ANNOUNCEMENT: &[u8] = b"$7\r\nmessage\r\n";
    const SUBSCRIBE: &[u8] = b"SUBSCRIBE";
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let len = from.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        if !is_answer && buffer[..len].windows(SUBSCRIBE.len()).any(|part| part == SUBSCRIBE) {
            shared.change(|behaviour| behaviour.announcing.push(number));
        }
        let (delay, drops_announcements) = shared.gate(number);
        let is_announced = || buffer[..len].windows(ANNOUNCEMENT.len()).any(|part| part == ANNOUNCEMENT);
        if is_answer {
            if drops_announcements && is_announced() {
                continue;
            }
            thread::sleep(delay);
        }
        to.write_all(&buffer[..len])?;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::process::eventually;
    use crate::redis::Redis;

    const WITHIN: Duration = Duration::from_secs(10);

    #[test]
    fn a_proxy_can_delay_block_and_drop_only_announcements() {
        let redis = Redis::start();
        let proxy = RedisProxy::to(redis.port());
        let client = redis::Client::open(("127.0.0.1", proxy.port())).unwrap();
        let mut connection = client.get_connection().unwrap();
        connection.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let ping = |connection: &mut redis::Connection| redis::cmd("PING").query::<String>(connection);
        assert_eq!(ping(&mut connection).unwrap(), "PONG");

        proxy.delay(Duration::from_millis(100));
        let called = Instant::now();
        assert_eq!(ping(&mut connection).unwrap(), "PONG");
        assert!(called.elapsed() >= Duration::from_millis(100));
        proxy.delay(Duration::ZERO);

        proxy.pause();
        assert!(ping(&mut connection).is_err());
        proxy.resume();
        let ping_on_a_new_connection =
            || client.get_connection().ok().and_then(|mut connection| ping(&mut connection).ok());
        assert_eq!(eventually("the proxy passes data again", WITHIN, ping_on_a_new_connection), "PONG");

        let mut listening = client.get_connection().unwrap();
        let mut subscription = listening.as_pubsub();
        subscription.subscribe("news").unwrap();
        subscription.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let publish = |text: &str| {
            let mut direct = redis::Client::open(("127.0.0.1", redis.port())).unwrap().get_connection().unwrap();
            redis::cmd("PUBLISH").arg("news").arg(text).exec(&mut direct).unwrap();
        };
        publish("first");
        assert_eq!(subscription.get_message().unwrap().get_payload::<String>().unwrap(), "first");
        proxy.drop_announcements();
        publish("second");
        assert!(subscription.get_message().is_err());
        assert_eq!(ping_on_a_new_connection().unwrap(), "PONG", "calls are answered");

        connection = client.get_connection().unwrap();
        connection.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        proxy.blackhole_announcements();
        assert_eq!(ping(&mut connection).unwrap(), "PONG", "the connection has no subscription");
        proxy.blackhole();
        assert!(ping(&mut connection).is_err());
        assert_eq!(ping_on_a_new_connection().unwrap(), "PONG", "new connections work");
    }
}
