//! A broker behind TLS whose certificate the system trusts: it is accepted without a word on whose certificates count.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;

use loadtest::client::WITHIN;
use loadtest::pods::{READY_WITHIN, binary};
use loadtest::process::{Process, TempDir, eventually, free_port, loopback, tool};
use loadtest::token;

/// Where Debian's package of certificates keeps them.
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A certificate for 127.0.0.1 that nobody else vouches for, and its key.
fn make_certificate(dir: &Path) {
    let mut command = Command::new(tool("openssl", "openssl"));
    command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]);
    command.args(["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]);
    let made = command.current_dir(dir).output().expect("openssl runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// A pod to whom the system's certificates are this file, in a file system view of its own, or as `SSL_CERT_FILE` says.
fn start_pod(dir: &TempDir, broker: u16, certificates: Option<&Path>) -> Process {
    let properties = dir.file("kafka.properties", "security.protocol=SSL\ndebug=security\n");
    let mut command = Command::new(tool("unshare", "util-linux"));
    let script = format!("mount --bind \"$1\" {BUNDLE} && exec \"$2\" serve");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"]);
    // An empty bundle is one that trusts nobody: it is the pod's environment that must say who is.
    let nobody = dir.file("nobody.pem", &fs::read_to_string(dir.path().join("other.pem")).unwrap_or_default());
    let bundle = if certificates.is_some() { nobody } else { dir.path().join("cert.pem") };
    command.arg(bundle).arg(binary()).env_clear().env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
    let host = loopback();
    let settings = [
        ("HOST", host.to_string()),
        ("PORT", free_port(host).to_string()),
        ("KAFKA_BROKERS", format!("127.0.0.1:{broker}")),
        ("KAFKA_PROPERTIES_FILE", properties.display().to_string()),
        ("REDIS_PORT", "1".to_owned()),
        ("JWT_SECRET", token::SECRET.to_owned()),
        ("LOG", "debug".to_owned()),
    ];
    command.envs(settings).envs(certificates.map(|file| ("SSL_CERT_FILE", file)));
    Process::start("pod", command, &dir.path().join("pod.log"))
}

#[test]
fn a_broker_whose_certificate_the_system_trusts_is_accepted() {
    let dir = TempDir::new("tls");
    make_certificate(dir.path());
    let port = free_port(Ipv4Addr::LOCALHOST);
    let mut server = Command::new(tool("openssl", "openssl"));
    server.args([
        "s_server",
        "-quiet",
        "-cert",
        "cert.pem",
        "-key",
        "key.pem",
        "-accept",
        &format!("127.0.0.1:{port}"),
    ]);
    let _server = Process::start(
        "openssl",
        {
            server.current_dir(dir.path());
            server
        },
        &dir.path().join("server.log"),
    );
    eventually("the server listens", WITHIN, || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok());

    let accepts = |pod: &Process| {
        eventually("the handshake has ended", READY_WITHIN, || {
            let log = pod.log();
            assert!(!log.contains("certificate verify failed"), "{}", pod.log_tail());
            log.contains("Broker SSL certificate verified").then_some(())
        });
    };
    accepts(&start_pod(&dir, port, None));

    // Who says whose certificates count is heeded, and the system's are not looked at.
    let other = TempDir::new("tls");
    make_certificate(other.path());
    fs::copy(other.path().join("cert.pem"), dir.path().join("other.pem")).unwrap();
    accepts(&start_pod(&dir, port, Some(&dir.path().join("cert.pem"))));
    let refuses = start_pod(&dir, port, Some(&dir.path().join("other.pem")));
    eventually("it is refused", READY_WITHIN, || refuses.log().contains("certificate verify failed").then_some(()));
}
