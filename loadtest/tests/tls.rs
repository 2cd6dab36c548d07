//! Brokers and Redis with TLS whose certificate the system trusts: they are accepted without configuration of
//! certificates.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;

use loadtest::certificates::Authority;
use loadtest::client::WITHIN;
use loadtest::pods::{READY_WITHIN, binary};
use loadtest::process::{Process, TempDir, eventually, free_port, loopback, tool};
use loadtest::redis::Redis;
use loadtest::token;

/// Where distributions have their bundle.
const BUNDLES: [(&str, &str); 4] = [
    ("Debian, Ubuntu and our image", "/etc/ssl/certs/ca-certificates.crt"),
    ("Alpine", "/etc/ssl/cert.pem"),
    ("Red Hat", "/etc/pki/tls/certs/ca-bundle.crt"),
    ("SUSE", "/etc/ssl/ca-bundle.pem"),
];

/// A broker that shakes hands only, and a Redis, both with a certificate of this authority.
struct Servers {
    authority: Authority,
    broker: u16,
    redis: u16,
    _running: (Process, Redis),
    dir: TempDir,
}

impl Servers {
    fn start() -> Self {
        let (authority, dir) = (Authority::new(), TempDir::new("tls"));
        let certified = authority.sign("server", "IP:127.0.0.1");
        let [broker, redis] = [(); 2].map(|()| free_port(Ipv4Addr::LOCALHOST));
        let mut command = Command::new(tool("openssl", "openssl"));
        command.args(["s_server", "-quiet", "-accept", &format!("127.0.0.1:{broker}")]);
        command.arg("-cert").arg(&certified.certificate).arg("-key").arg(&certified.key);
        let process = Process::start("openssl", command, &dir.path().join("server.log"));
        eventually("the server listens", WITHIN, || TcpStream::connect((Ipv4Addr::LOCALHOST, broker)).ok());
        let text = |path: &Path| path.to_str().expect("our own paths are text").to_owned();
        let settings = [
            "--tls-port".to_owned(),
            redis.to_string(),
            "--tls-cert-file".to_owned(),
            text(&certified.certificate),
            "--tls-key-file".to_owned(),
            text(&certified.key),
            "--tls-ca-cert-file".to_owned(),
            text(&authority.file()),
            "--tls-auth-clients".to_owned(),
            "no".to_owned(),
        ];
        let server = Redis::start_with(&settings.each_ref().map(String::as_str));
        Self { authority, broker, redis, _running: (process, server), dir }
    }

    /// A pod in its own mount namespace, whose `/etc` has these certificates as its bundle and nothing else.
    fn start_pod(&self, bundle: &str, trusted: &Path, variable: Option<&Path>) -> Process {
        let properties = self.dir.file("kafka.properties", "security.protocol=SSL\ndebug=security\n");
        let copy = self.dir.file("trusted.pem", &fs::read_to_string(trusted).expect("a certificate"));
        let mut command = Command::new(tool("unshare", "util-linux"));
        let script = "mount -t tmpfs none /etc && mkdir -p \"${2%/*}\" && cp \"$1\" \"$2\" && exec \"$3\" serve";
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
        command.arg(copy).arg(bundle).arg(binary()).env_clear().env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
        let host = loopback();
        let settings = [
            ("HOST", host.to_string()),
            ("PORT", free_port(host).to_string()),
            ("KAFKA_BROKERS", format!("127.0.0.1:{}", self.broker)),
            ("KAFKA_PROPERTIES_FILE", properties.display().to_string()),
            ("REDIS_URL", format!("rediss://127.0.0.1:{}", self.redis)),
            ("JWT_SECRET", token::SECRET.to_owned()),
            ("LOG", "debug".to_owned()),
        ];
        command.envs(settings).envs(variable.map(|file| ("SSL_CERT_FILE", file)));
        Process::start("pod", command, &self.dir.path().join("pod.log"))
    }
}

#[track_caller]
fn accepts(whose: &str, pod: &Process) {
    eventually(&format!("both certificates are accepted: {whose}"), READY_WITHIN, || {
        let log = pod.log();
        assert!(!log.contains("certificate verify failed"), "{whose}: {}", pod.log_tail());
        let accepted = ["Broker SSL certificate verified", "connected to Redis"];
        accepted.iter().all(|line| log.contains(line)).then_some(())
    });
}

#[track_caller]
fn refuses(whose: &str, pod: &Process) {
    eventually(&format!("both certificates are refused: {whose}"), READY_WITHIN, || {
        let log = pod.log();
        let refused =
            |part: &str| log.lines().any(|line| line.contains(part) && line.contains("certificate verify failed"));
        (refused("librdkafka") && refused("Redis unreachable")).then_some(())
    });
}

#[test]
fn the_systems_certificates_are_found_in_each_distributions_place() {
    let servers = Servers::start();
    for (whose, bundle) in BUNDLES {
        accepts(whose, &servers.start_pod(bundle, &servers.authority.file(), None));
    }
    let (stranger, bundle) = (Authority::new(), BUNDLES[0].1);
    refuses("a system that trusts others", &servers.start_pod(bundle, &stranger.file(), None));
}

#[test]
fn a_variable_overrides_the_systems_certificates() {
    let (servers, stranger) = (Servers::start(), Authority::new());
    let (good, other, bundle) = (servers.authority.file(), stranger.file(), BUNDLES[0].1);
    accepts("SSL_CERT_FILE", &servers.start_pod(bundle, &other, Some(&good)));
    refuses("SSL_CERT_FILE", &servers.start_pod(bundle, &good, Some(&other)));
}
