//! A broker with TLS whose certificate the system trusts: it is accepted without configuration of certificates.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;

use loadtest::client::WITHIN;
use loadtest::pods::{READY_WITHIN, binary};
use loadtest::process::{Process, TempDir, eventually, free_port, loopback, tool};
use loadtest::token;

/// The certificate bundle on Debian.
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Makes a self-signed certificate for 127.0.0.1 and its key.
fn make_certificate(dir: &Path) {
    let mut command = Command::new(tool("openssl", "openssl"));
    command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]);
    command.args(["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]);
    let made = command.current_dir(dir).output().expect("openssl runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// A pod for which this file is the system's bundle, in its own mount namespace, or set by `SSL_CERT_FILE`.
fn start_pod(dir: &TempDir, broker: u16, certificates: Option<&Path>) -> Process {
    let properties = dir.file("kafka.properties", "security.protocol=SSL\ndebug=security\n");
    let mut command = Command::new(tool("unshare", "util-linux"));
    let script = format!("mount --bind \"$1\" {BUNDLE} && exec \"$2\" serve");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"]);
    // With `SSL_CERT_FILE` the system's bundle trusts no broker.
    let untrusting = dir.file("untrusting.pem", &fs::read_to_string(dir.path().join("other.pem")).unwrap_or_default());
    let bundle = if certificates.is_some() { untrusting } else { dir.path().join("cert.pem") };
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
        eventually("the handshake is complete", READY_WITHIN, || {
            let log = pod.log();
            assert!(!log.contains("certificate verify failed"), "{}", pod.log_tail());
            log.contains("Broker SSL certificate verified").then_some(())
        });
    };
    accepts(&start_pod(&dir, port, None));

    // `SSL_CERT_FILE` overrides the system's bundle.
    let other = TempDir::new("tls");
    make_certificate(other.path());
    fs::copy(other.path().join("cert.pem"), dir.path().join("other.pem")).unwrap();
    accepts(&start_pod(&dir, port, Some(&dir.path().join("cert.pem"))));
    let refuses = start_pod(&dir, port, Some(&dir.path().join("other.pem")));
    eventually("the certificate is refused", READY_WITHIN, || {
        refuses.log().contains("certificate verify failed").then_some(())
    });
}
