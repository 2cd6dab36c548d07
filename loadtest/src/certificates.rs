//! Certificates for tests: an authority of a test's own, and what it signs. By the command `openssl`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::process::{TempDir, tool};

/// An authority, and a certificate for each name that it was asked for.
pub struct Authority {
    dir: TempDir,
}

/// A certificate and its key, in PEM.
pub struct Certified {
    /// The certificate's file.
    pub certificate: PathBuf,
    /// The key's file, PKCS 8.
    pub key: PathBuf,
}

impl Authority {
    /// A new authority.
    #[must_use]
    pub fn new() -> Self {
        let authority = Self { dir: TempDir::new("certificates") };
        let make = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem";
        authority.openssl(make);
        authority
    }

    /// The file of the authority's own certificate.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A certificate for a host, as `IP:127.0.0.1` or `DNS:broker`. Its subject is `CN=<name>`.
    #[must_use]
    pub fn sign(&self, name: &str, host: &str) -> Certified {
        self.openssl(&format!("req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"));
        let _ = self.dir.file("names", &format!("subjectAltName={host}"));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out {name}.pem"
        ));
        let file = |ending: &str| self.dir.path().join(format!("{name}.{ending}"));
        Certified { certificate: file("pem"), key: file("key") }
    }

    /// Settings of brokers whose second listener (`Kafka::start_secured`) has a certificate for 127.0.0.1.
    ///
    /// # Panics
    /// If openssl fails.
    #[must_use]
    pub fn listener_of_brokers(&self) -> Vec<(String, String)> {
        let signed = self.sign("broker", "IP:127.0.0.1");
        let both = [signed.key, signed.certificate].map(|path| fs::read_to_string(path).expect("openssl made it"));
        let store = self.dir.file("broker.pem", &both.concat());
        let setting = |name: &str, value: &str| (format!("listener.name.clients.ssl.{name}"), value.to_owned());
        vec![
            setting("keystore.type", "PEM"),
            setting("keystore.location", &store.display().to_string()),
            setting("truststore.type", "PEM"),
            setting("truststore.location", &self.file().display().to_string()),
        ]
    }

    /// Runs a command of `openssl` in the directory.
    ///
    /// # Panics
    /// If it fails.
    pub fn openssl(&self, arguments: &str) {
        let mut command = Command::new(tool("openssl", "openssl"));
        let made = command.args(arguments.split(' ')).current_dir(self.dir.path()).output().expect("openssl runs");
        assert!(made.status.success(), "{arguments}: {}", String::from_utf8_lossy(&made.stderr));
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}
