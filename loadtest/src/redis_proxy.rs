//! A proxy between a pod and Redis that can add latency, block, drop announcements, or leave dead connections open, so
//! that two pods have different views for a moment.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// A way to Redis. It ends, with all its connections, when it is dropped.
pub struct RedisProxy {
    port: u16,
    shared: Arc<ProxyState>,
}

#[derive(Default)]
struct ProxyState {
    manners: Mutex<ProxyBehaviour>,
    changed: Condvar,
}

#[derive(Default)]
struct ProxyBehaviour {
    paused: bool,
    deaf: bool,
    delay: Duration,
    ended: bool,
    streams: Vec<TcpStream>,
    /// Connections made so far, and those among them through which nothing passes any more.
    made: usize,
    stranded: Vec<usize>,
    /// Connections by which somebody hears announcements.
    announcing: Vec<usize>,
}

impl ProxyState {
    fn manners(&self) -> MutexGuard<'_, ProxyBehaviour> {
        self.manners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut ProxyBehaviour)) {
        change(&mut self.manners());
        self.changed.notify_all();
    }

    /// Waits while nothing is to pass through a connection, and tells how long what passes now is to take and whether
    /// announcements are lost.
    fn gate(&self, connection: usize) -> (Duration, bool) {
        let is_shut =
            |manners: &mut ProxyBehaviour| (manners.paused || manners.stranded.contains(&connection)) && !manners.ended;
        let manners = self.changed.wait_while(self.manners(), is_shut);
        let manners = manners.unwrap_or_else(PoisonError::into_inner);
        (manners.delay, manners.deaf)
    }
}

impl RedisProxy {
    /// A way to the server at a port of 127.0.0.1.
    ///
    /// # Panics
    /// Where no port is left.
    #[must_use]
    pub fn to(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is left");
        let port = listener.local_addr().expect("it is bound").port();
        let shared = Arc::new(ProxyState::default());
        let link = Self { port, shared: Arc::clone(&shared) };
        thread::spawn(move || {
            for client in listener.incoming() {
                if shared.manners().ended {
                    return;
                }
                // Where the server is down, the client's connection ends as it would without a link.
                let _ = client.and_then(|client| join(&shared, client, server));
            }
        });
        link
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Nothing passes any more; connections stay open.
    pub fn pause(&self) {
        self.shared.change(|manners| manners.paused = true);
    }

    /// What was held back passes.
    pub fn resume(&self) {
        self.shared.change(|manners| manners.paused = false);
    }

    /// Each answer takes so long.
    pub fn delay(&self, delay: Duration) {
        self.shared.change(|manners| manners.delay = delay);
    }

    /// Nothing passes any more through the connections that there are; they stay open. New ones are as good as ever.
    pub fn strand(&self) {
        self.shared.change(|manners| manners.stranded = (1..=manners.made).collect());
    }

    /// The same, of the connections for announcements alone.
    pub fn strand_announcements(&self) {
        self.shared.change(|manners| manners.stranded.clone_from(&manners.announcing));
    }

    /// Whatever is announced is lost. Calls are answered.
    pub fn deafen(&self) {
        self.shared.change(|manners| manners.deaf = true);
    }
}

impl Drop for RedisProxy {
    fn drop(&mut self) {
        self.shared.change(|manners| {
            manners.ended = true;
            for stream in &manners.streams {
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
        // The thread that accepts sees that it is over.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

/// Joins a client with the server.
fn join(shared: &Arc<ProxyState>, client: TcpStream, server: u16) -> io::Result<()> {
    let server = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, server)), Duration::from_secs(1))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let number = {
        let mut manners = shared.manners();
        manners.streams.extend([client.try_clone()?, server.try_clone()?]);
        manners.made += 1;
        manners.made
    };
    let ways = [(client.try_clone()?, server.try_clone()?, false), (server, client, true)];
    for (from, to, is_answer) in ways {
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
            shared.change(|manners| manners.announcing.push(number));
        }
        let (delay, deaf) = shared.gate(number);
        let is_announced = || buffer[..len].windows(ANNOUNCEMENT.len()).any(|part| part == ANNOUNCEMENT);
        if is_answer {
            if deaf && is_announced() {
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
    fn a_link_passes_what_is_said_slowly_or_not_at_all_and_loses_announcements_alone() {
        let redis = Redis::start();
        let link = RedisProxy::to(redis.port());
        let client = redis::Client::open(("127.0.0.1", link.port())).unwrap();
        let mut connection = client.get_connection().unwrap();
        connection.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let ping = |connection: &mut redis::Connection| redis::cmd("PING").query::<String>(connection);
        assert_eq!(ping(&mut connection).unwrap(), "PONG");

        link.delay(Duration::from_millis(100));
        let asked = Instant::now();
        assert_eq!(ping(&mut connection).unwrap(), "PONG");
        assert!(asked.elapsed() >= Duration::from_millis(100));
        link.delay(Duration::ZERO);

        link.pause();
        assert!(ping(&mut connection).is_err());
        link.resume();
        let again = || client.get_connection().ok().and_then(|mut connection| ping(&mut connection).ok());
        assert_eq!(eventually("it passes again", WITHIN, again), "PONG");

        let mut listening = client.get_connection().unwrap();
        let mut heard = listening.as_pubsub();
        heard.subscribe("news").unwrap();
        heard.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let publish = |text: &str| {
            let mut direct = redis::Client::open(("127.0.0.1", redis.port())).unwrap().get_connection().unwrap();
            redis::cmd("PUBLISH").arg("news").arg(text).exec(&mut direct).unwrap();
        };
        publish("first");
        assert_eq!(heard.get_message().unwrap().get_payload::<String>().unwrap(), "first");
        link.deafen();
        publish("second");
        assert!(heard.get_message().is_err());
        assert_eq!(again().unwrap(), "PONG", "calls are answered");

        connection = client.get_connection().unwrap();
        connection.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        link.strand_announcements();
        assert_eq!(ping(&mut connection).unwrap(), "PONG", "it hears no announcements");
        link.strand();
        assert!(ping(&mut connection).is_err());
        assert_eq!(again().unwrap(), "PONG", "new connections are as good as ever");
    }
}
