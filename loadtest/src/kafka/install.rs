//! Kafka's jars, and what lets a broker start in two seconds: a class data archive, and a formatted log directory that
//! each new broker copies. Made once per machine, in the user's cache.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use super::{Kafka, START_WITHIN};
use crate::process::{Signal, TempDir, tool};

const POM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kafka/pom.xml");
const COPY: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies";
const PACKAGES: &str = "maven default-jdk-headless";

/// SerialGC, C1 only and the class data archive together halve the startup time. Performance data would go to a
/// directory outside ours. The log is short because failed tests print it together with the pods' logs.
const JVM: &[&str] = &[
    "-Xms64m",
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-XX:-UsePerfData",
    "-XX:+ExitOnOutOfMemoryError",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
];

/// An installed Kafka.
#[derive(Debug)]
pub(super) struct Install {
    java: PathBuf,
    dir: PathBuf,
}

impl Install {
    /// The installation of this machine. The first call makes it, which takes half a minute, most of it in Maven.
    pub(super) fn get() -> &'static Self {
        static INSTALL: OnceLock<Install> = OnceLock::new();
        INSTALL.get_or_init(|| {
            let install = Self::locate();
            install.make().unwrap_or_else(|error| panic!("Kafka in {}: {error:#}", install.dir.display()));
            install
        })
    }

    /// The command that runs a class of Kafka. `archive` selects whether the class data archive is made or used. The
    /// JVM unpacks the codecs' libraries into `temp`, because a killed JVM does not delete them.
    pub(super) fn java(&self, archive: Archive, temp: &Path, class: &str) -> Command {
        let mut command = Command::new(&self.java);
        let option = match archive {
            Archive::Use => "SharedArchiveFile",
            Archive::Make => "ArchiveClassesAtExit",
        };
        command.args(JVM).arg(format!("-XX:{option}={}", self.dir.join("classes.jsa").display()));
        command.arg(format!("-Djava.io.tmpdir={}", temp.display()));
        // Where a broker may read the key set of an identity provider.
        let key_set = temp.join(super::KEY_SET);
        command.arg(format!("-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls=file://{}", key_set.display()));
        command.arg("-cp").arg(self.dir.join("lib/*")).arg(class);
        command
    }

    /// Copies the files of the formatted log directory, except `meta.properties`.
    pub(super) fn copy_format(&self, to: &Path) -> io::Result<()> {
        const CHECKPOINT: &str = "__cluster_metadata-0/00000000000000000000-0000000000.checkpoint";
        fs::create_dir_all(to.join("__cluster_metadata-0"))?;
        fs::copy(self.dir.join("format").join(CHECKPOINT), to.join(CHECKPOINT))?;
        Ok(())
    }

    fn locate() -> Self {
        let java = match std::env::var_os("JAVA_HOME") {
            Some(home) => Path::new(&home).join("bin/java"),
            None => tool("java", PACKAGES),
        };
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| {
            let home = std::env::var_os("HOME")?;
            Some(Path::new(&home).join(".cache"))
        });
        let cache = cache.expect("HOME or XDG_CACHE_HOME is set");
        // Another version of Kafka, Java or the options is another installation.
        let mut key = DefaultHasher::new();
        fs::read(POM).expect("the pom of this crate").hash(&mut key);
        JVM.hash(&mut key);
        let real = java.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", java.display()));
        real.metadata().and_then(|meta| meta.modified()).ok().hash(&mut key);
        real.hash(&mut key);
        Self { java, dir: cache.join(format!("shardgate-test/kafka-{:016x}", key.finish())) }
    }

    /// Makes the installation if it does not exist. One process at a time; a directory without the file `ready` was
    /// interrupted and is made again.
    fn make(&self) -> anyhow::Result<()> {
        let parent = self.dir.parent().expect("the installation is in the cache");
        fs::create_dir_all(parent)?;
        let lock = File::create(parent.join("lock"))?;
        lock.lock()?;
        if self.dir.join("ready").exists() {
            return Ok(());
        }
        let _ = fs::remove_dir_all(&self.dir);
        fs::create_dir_all(&self.dir)?;
        self.resolve()?;
        self.format()?;
        self.archive_classes();
        File::create(self.dir.join("ready"))?;
        Ok(())
    }

    fn resolve(&self) -> anyhow::Result<()> {
        let maven = || {
            let mut command = Command::new(tool("mvn", PACKAGES));
            command.args(["-B", "-q", "-f", POM, COPY, "-DincludeScope=runtime"]);
            command.arg(format!("-DoutputDirectory={}", self.dir.join("lib").display()));
            command
        };
        // Retried once, because a registry may fail for a moment.
        run(&mut maven()).or_else(|_| run(&mut maven()))
    }

    fn format(&self) -> anyhow::Result<()> {
        let dir = TempDir::new("kafka-format");
        let logs = self.dir.join("format");
        let config = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:1\n\
             listeners=PLAINTEXT://127.0.0.1:2,CONTROLLER://127.0.0.1:1\ncontroller.listener.names=CONTROLLER\n\
             log.dirs={}\n",
            logs.display()
        );
        let config = dir.file("format.properties", &config);
        let mut command = self.java(Archive::Use, dir.path(), "kafka.tools.StorageTool");
        run(command.args(["format", "--cluster-id", &super::random_uuid(), "--config"]).arg(config))
    }

    /// Runs a broker once and archives the classes that it loaded. Brokers also work without the archive, but start
    /// more slowly.
    fn archive_classes(&self) {
        let mut kafka = Kafka::launch(1, &[], None, self, Archive::Make);
        kafka.create("trained", 1);
        kafka.delete("trained");
        let broker = kafka.broker(0).process.as_mut().expect("the broker was just started");
        broker.signal(Signal::Term);
        broker.wait_exit(START_WITHIN + Duration::from_secs(30));
    }
}

/// How the class data archive is handled.
#[derive(Debug, Clone, Copy)]
pub(super) enum Archive {
    /// Use the archive.
    Use,
    /// Write the archive when the JVM exits.
    Make,
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output()?;
    anyhow::ensure!(
        output.status.success(),
        "{} {}: {}{}",
        command.get_program().to_string_lossy(),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
