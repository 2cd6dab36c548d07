//! An unread log must not delay clients, probes or signals.

use std::io::{BufRead as _, BufReader, PipeReader, Read as _, Write as _, pipe};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use loadtest::client::{Client, WITHIN, read_until};
use loadtest::events::{Kind, Producer, event, seen};
use loadtest::http;
use loadtest::metrics::Scrape;
use loadtest::pods::{READY_WITHIN, World, binary};
use loadtest::process::{Process, Signal, TempDir, eventually, free_port};

/// Longer than a thread may stall before `/health` reports it.
const UNREAD_FOR: Duration = Duration::from_secs(8);

/// A pipe of one page, which a few lines fill.
fn small_pipe() -> (PipeReader, OwnedFd) {
    let (reader, writer) = pipe().unwrap();
    // SAFETY: fcntl takes plain numbers, and the descriptor is open.
    let bytes = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    assert_eq!(bytes, 4096);
    (reader, writer.into())
}

/// Makes the pod log a line at level debug.
fn cause_a_log_line(admin: SocketAddr) {
    // The pod may close the connection before it has read everything.
    let mut stream = TcpStream::connect(admin).unwrap();
    let _ = stream.write_all(b"no HTTP\r\n\r\n");
    let _ = stream.read_to_end(&mut Vec::new());
}

fn metrics(admin: SocketAddr) -> Scrape {
    Scrape::parse(&http::get(admin, "/metrics", WITHIN).unwrap().text()).unwrap()
}

fn delivers(producer: &Producer, client: &mut Client, number: u64) {
    for kind in [Kind::OrderFilled, Kind::BalanceUpdated] {
        // Logged once per second and topic.
        producer.send(kind.topic(), Some("a"), Some(b"no JSON"));
    }
    producer.event(&event("a", number));
    producer.flush();
    let count = usize::try_from(number + 1).unwrap();
    read_until(std::slice::from_mut(client), "the event arrives", WITHIN, |clients| seen(&clients[0]).count() == count);
}

#[test]
fn an_unread_log_stops_no_events_and_its_dropped_lines_are_counted() {
    let world = World::start();
    let (reader, errors) = small_pipe();
    let plan = world.pod("pod-0").set("LOG", "debug").errors_to(errors);
    let admin = SocketAddr::new(plan.address().ip(), free_port([127, 0, 0, 1].into()));
    let plan = plan.set("ADMIN_PORT", &admin.port().to_string());
    let mut pod = plan.spawn();
    drop(plan);
    let status = |path| http::get(admin, path, WITHIN).map(|answer| answer.status).ok();
    eventually("the pod is ready", READY_WITHIN, || (status("/ready") == Some(200)).then_some(()));
    let mut client = pod.client("a");

    let dropped = || metrics(admin).sum("shardgate_log_lines_dropped_total");
    let producer = world.producer();
    let unread_since = Instant::now();
    let mut number = 0;
    while unread_since.elapsed() < UNREAD_FOR || dropped() == 0.0 {
        (0..100).for_each(|_| cause_a_log_line(admin));
        delivers(&producer, &mut client, number);
        assert_eq!((status("/health"), status("/ready")), (Some(200), Some(200)));
        number += 1;
    }

    // From now on the log is read: the count of dropped lines is logged, then new lines.
    let (count_sent, count_is_logged) = mpsc::channel();
    let reading = thread::spawn(move || {
        let mut log = String::new();
        for line in BufReader::new(reader).lines() {
            let line = line.unwrap();
            if line.contains("log lines dropped") {
                // It may be logged again after the receiver is gone.
                let _ = count_sent.send(());
            }
            log.push_str(&line);
            log.push('\n');
        }
        log
    });
    count_is_logged.recv_timeout(WITHIN).expect("the count of dropped lines is logged");
    let counted = dropped();
    client.close();
    pod.signal(Signal::Term);
    assert_eq!(pod.wait_exit(READY_WITHIN).code(), Some(0));
    // The pod's plan holds the pipe too.
    drop(pod);
    let log = reading.join().unwrap();
    let logged: f64 = log.lines().filter(|line| line.contains("log lines dropped")).map(dropped_lines).sum();
    assert_eq!(logged, counted, "{}", tail(&log));
    assert!(log.lines().last().is_some_and(|line| line.contains("stopped")), "{}", tail(&log));
}

/// `… WARN shardgate::operations::log: log lines dropped, … lines=17`
fn dropped_lines(line: &str) -> f64 {
    let number = line.rsplit_once("lines=").unwrap_or_else(|| panic!("{line}")).1;
    number.parse().unwrap_or_else(|error| panic!("{error}: {line}"))
}

fn tail(log: &str) -> &str {
    &log[log.floor_char_boundary(log.len().saturating_sub(2000))..]
}

#[test]
fn a_process_with_an_unread_log_exits() {
    let dir = TempDir::new("unread");
    let start = |arguments: &[&str]| {
        let (reader, errors) = small_pipe();
        let mut filled = std::fs::File::from(errors);
        filled.write_all(&[b'x'; 4096]).unwrap();
        let mut command = Command::new(binary());
        command.args(arguments).env_clear().current_dir(dir.path());
        (Process::start_with("shardgate", command, &dir.path().join("log"), Some(filled.into())), reader)
    };
    let (mut refused, _unread) = start(&["serve", "--port=none"]);
    assert_eq!(refused.wait_exit(WITHIN).code(), Some(2), "its settings are invalid, and the message is not read");

    let port = format!("--port={}", free_port([127, 0, 0, 1].into()));
    let (mut demo, _unread) = start(&["demo", &port]);
    let address = SocketAddr::from(([127, 0, 0, 1], port[7..].parse().unwrap()));
    eventually("the demo is ready", READY_WITHIN, || {
        http::get(address, "/ready", WITHIN).is_ok_and(|answer| answer.status == 200).then_some(())
    });
    demo.signal(Signal::Int);
    assert_eq!(demo.wait_exit(WITHIN).code(), Some(0));
}
