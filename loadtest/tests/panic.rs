//! A panic ends the process with its message, without delay if the message is not read.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{Write as _, pipe};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use loadtest::client::WITHIN;
use loadtest::http;
use loadtest::process::{Process, Signal, TempDir, eventually, free_port};
use shardgate::config::{Config, Sources};
use shardgate::discovery::ClusterMode;
use shardgate::gateway::{self, machine};
use shardgate::operations::log::Log;

/// Environment variable of the process that panics: the port that it listens on.
const PORT_OF_CHILD: &str = "PANIC_TEST_PORT";

const NAME: &str = "a_panic_ends_the_process_even_if_the_log_is_not_read";

/// A pod whose control thread panics when it reloads its routes.
fn panic_on_reload(port: OsString) {
    let flags =
        ["--host".into(), "127.0.0.1".into(), "--port".into(), port, "--kafka-brokers".into(), "127.0.0.1:1".into()];
    let environment = BTreeMap::from([("JWT_SECRET".into(), loadtest::token::SECRET.into())]);
    let read_file = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
    let (presets, unused, machine) = (&[], &[], &machine::read());
    let sources = Sources { flags: &flags, environment: &environment, presets, unused, read_file: &read_file, machine };
    let config = Config::from_sources(&sources).unwrap();
    let log = Log::start().unwrap();
    log.subscribe(config.log, config.log_json.then(|| config.node())).unwrap();
    let process = gateway::ProcessHandles { log, read_routes: Box::new(|| panic!("as the test asks")) };
    gateway::run(config, ClusterMode::SinglePod, &process).unwrap();
}

#[test]
fn a_panic_ends_the_process_even_if_the_log_is_not_read() {
    if let Some(port) = std::env::var_os(PORT_OF_CHILD) {
        return panic_on_reload(port);
    }
    let dir = TempDir::new("panic");
    let log = dir.path().join("log");
    let start = |errors: Option<OwnedFd>| {
        let port = free_port(Ipv4Addr::LOCALHOST);
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", NAME, "--nocapture"]).env(PORT_OF_CHILD, port.to_string());
        let process = Process::start_with("pod", command, &log, errors);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        eventually("the pod answers", WITHIN, || http::get(address, "/health", WITHIN).ok());
        process.signal(Signal::Hup);
        process
    };
    let mut read = start(None);
    assert_eq!(read.wait_exit(WITHIN).signal(), Some(libc::SIGABRT), "{}", read.log_tail());
    let log_text = read.log();
    let line = log_text.lines().find(|line| line.contains("thread panicked")).unwrap_or_else(|| panic!("{log_text}"));
    assert!(line.contains("ERROR"), "{line}");
    assert!(log_text.contains("as the test asks") && log_text.contains("panic.rs"), "{log_text}");

    // The unread pipe is full, so a blocking write would wait for ever.
    let (_unread, errors) = pipe().unwrap();
    let mut errors = OwnedFd::from(errors);
    fill(&mut errors);
    let mut unread = start(Some(errors));
    assert_eq!(unread.wait_exit(WITHIN).signal(), Some(libc::SIGABRT));
}

/// Fills a pipe.
fn fill(pipe: &mut OwnedFd) {
    use std::os::fd::AsRawFd as _;
    let nonblocking = |on: libc::c_int| {
        // SAFETY: fcntl takes plain numbers, and the descriptor is open.
        let set = unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETFL, on) };
        assert_eq!(set, 0);
    };
    nonblocking(libc::O_NONBLOCK);
    let mut file = std::fs::File::from(pipe.try_clone().unwrap());
    while file.write(&[b'x'; 4096]).is_ok() {}
    nonblocking(0);
}
