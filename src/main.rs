//! The command line: `serve`, `demo`, `check`, `token`, `routes`. Standard output gets a command's result, standard error the
//! log. Exit code 2: the command line or a setting is wrong; 1: anything else failed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use serde_json::Value;
use shardgate::clock::Now;
use shardgate::config::{self, Config, InvalidConfig, Preset, Sources};
use shardgate::demo::{Demo, token};
use shardgate::discovery::ClusterMode;
use shardgate::gateway::{self, ProcessHandles, machine};
use shardgate::operations::log::Log;
use shardgate::protocol::auth::signing::{self, SigningKey};
use shardgate::routing::table::RouteTable;
use shardgate::shutdown::signals;
use tracing::warn;

/// A WebSocket fan-out gateway: from Kafka to many thousands of clients per pod.
#[derive(Parser)]
#[command(name = "shardgate", version)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a gateway pod
    Serve(Settings),
    /// Run a gateway with everything that it needs in one process: events, a page to watch them, no Kafka, no Redis
    Demo(Settings),
    /// Check the settings, the routes file, and that Kafka and Redis answer; exit code 2 if not
    Check(Settings),
    /// Print a token for trials, signed with JWT_SECRET
    Token(TokenArguments),
    /// Print the built-in routes, in the format of ROUTES_FILE
    Routes,
}

/// `config` parses the rest of the line: it reports all faults at once and knows the other sources of settings.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
struct Settings {
    /// --config FILE, and settings as --name VALUE; --help lists them
    #[arg(value_name = "SETTINGS", trailing_var_arg = true, allow_hyphen_values = true)]
    flags: Vec<OsString>,
}

#[derive(clap::Args)]
struct TokenArguments {
    /// The user that the token is for
    #[arg(long, default_value = "demo")]
    user: String,
    /// An assessment that the token allows; repeat the flag for several; without it, any
    #[arg(long = "assessment", value_name = "ID")]
    assessments: Vec<String>,
    /// Lifetime of the token, such as 1h, 90s or 3600; -1h: it expired an hour ago
    #[arg(long, value_name = "TIME", default_value = "1h", allow_hyphen_values = true, value_parser = token::parse_lifetime)]
    expires_in: i64,
    /// A further claim, as JSON or a text; repeat the flag for several
    #[arg(long = "claim", value_name = "NAME=VALUE", value_parser = token::parse_claim)]
    claims: Vec<(String, Value)>,
    /// The algorithm; those other than HS256, HS384 and HS512 need --key-file
    #[arg(long, value_name = "NAME", default_value = "HS256")]
    alg: String,
    /// A private key in PEM, to sign with
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// The key's name in the key set
    #[arg(long, value_name = "ID")]
    kid: Option<String>,
    /// The secret to sign with; otherwise JWT_SECRET from the environment or the settings file
    #[arg(long, value_name = "KEY")]
    jwt_secret: Option<String>,
    /// The settings file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let command = command_line();
    if matches!(command, Command::Serve(_) | Command::Demo(_)) {
        signals::hold_harmless();
    }
    let log = match Log::start() {
        Ok(log) => log,
        Err(error) => {
            eprintln!("shardgate: the log's thread can't be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = match command {
        Command::Serve(settings) => serve(&settings, &log),
        Command::Demo(settings) => demo(&settings, &log),
        Command::Check(settings) => check(&settings, &log),
        Command::Token(arguments) => mint(arguments),
        Command::Routes => print(RouteTable::BUILT_IN),
    };
    let code = done.unwrap_or_else(|error| {
        log.print(&format!("shardgate: {error:#}\n"));
        ExitCode::from(if error.is::<InvalidConfig>() { 2 } else { 1 })
    });
    log.flush();
    code
}

fn command_line() -> Command {
    let matches = CommandLine::command().after_help(config::help()).get_matches();
    CommandLine::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()).command
}

fn serve(settings: &Settings, log: &Log) -> anyhow::Result<ExitCode> {
    let Some(config) = settings.read(&[], &[])? else { return Ok(ExitCode::SUCCESS) };
    start_log(log, &config)?;
    gateway::run(config, ClusterMode::Redis, &settings.process(log))?;
    Ok(ExitCode::SUCCESS)
}

fn demo(settings: &Settings, log: &Log) -> anyhow::Result<ExitCode> {
    let secret = Demo::make_secret().context("the system gives no random bytes")?;
    let Some(mut config) = settings.read(&Demo::presets(&secret), &Demo::UNUSED)? else { return Ok(ExitCode::SUCCESS) };
    start_log(log, &config)?;
    let demo = Demo::start(&mut config)?;
    let program = std::env::args_os().next().unwrap_or_else(|| "shardgate".into());
    print(&Demo::welcome(&config, &secret, Now::read().unix, &program.to_string_lossy()))?;
    let done = gateway::run(config, ClusterMode::SinglePod, &settings.process(log));
    demo.stop();
    done?;
    Ok(ExitCode::SUCCESS)
}

fn check(settings: &Settings, log: &Log) -> anyhow::Result<ExitCode> {
    let Some(config) = settings.read(&[], &[])? else { return Ok(ExitCode::SUCCESS) };
    start_log(log, &config)?;
    let report = gateway::check::check(&config).context("the check can't start")?;
    print(&format!("{}\n", report.lines.join("\n")))?;
    Ok(if report.is_good { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

fn mint(arguments: TokenArguments) -> anyhow::Result<ExitCode> {
    let TokenArguments { user, assessments, expires_in, alg, kid, .. } = arguments;
    let mut claims = token::claims(&user, &assessments, Now::read().unix, expires_in);
    for (name, value) in arguments.claims {
        claims[name] = value;
    }
    let sign = |key| {
        let signed = signing::sign(&alg, key, kid.as_deref(), &claims);
        signed.map_err(|fault| InvalidConfig(vec![fault.to_string()]))
    };
    if let Some(file) = arguments.key_file {
        let pem = std::fs::read(&file).with_context(|| format!("--key-file: can't read {}", file.display()))?;
        return print(&format!("{}\n", sign(SigningKey::Pem(&pem))?));
    }
    let flag = |name: &str, value: OsString| [name.into(), value];
    let secret = arguments.jwt_secret.map(|secret| flag("--jwt-secret", secret.into()));
    let file = arguments.config.map(|file| flag("--config", file.into()));
    let flags: Vec<OsString> = secret.into_iter().chain(file).flatten().collect();
    let secret = with_sources(&flags, &[], &[], config::jwt_secret)?;
    print(&format!("{}\n", sign(SigningKey::Secret(&secret))?))
}

impl Settings {
    /// Reads the config; `None` if the user asked for help, which is printed.
    fn read(&self, presets: &[Preset], unused: &[&'static str]) -> anyhow::Result<Option<Config>> {
        if self.flags.iter().any(|flag| flag == "--help" || flag == "-h") {
            print(&format!(
                "Usage: shardgate serve|demo|check [--config FILE] [--NAME VALUE]...\n\n{}",
                config::help()
            ))?;
            return Ok(None);
        }
        Ok(Some(with_sources(&self.flags, presets, unused, Config::from_sources)?))
    }

    /// The parts of this process that a pod uses.
    fn process(&self, log: &Log) -> ProcessHandles {
        let flags = self.flags.clone();
        ProcessHandles {
            log: log.clone(),
            read_routes: Box::new(move || with_sources(&flags, &[], &[], config::routes)),
        }
    }
}

/// Calls `read` with the process's environment, files and machine.
fn with_sources<T>(
    flags: &[OsString],
    presets: &[Preset],
    unused: &[&'static str],
    read: impl FnOnce(&Sources<'_>) -> Result<T, InvalidConfig>,
) -> Result<T, InvalidConfig> {
    let environment: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    let machine = machine::read();
    let read_file = |path: &std::path::Path| std::fs::read_to_string(path);
    read(&Sources { flags, environment: &environment, presets, unused, read_file: &read_file, machine: &machine })
}

/// Writes to standard output. A closed pipe is no failure.
fn print(text: &str) -> anyhow::Result<ExitCode> {
    stdout().write_all(text.as_bytes()).context("can't write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

/// Starts the log and writes the warnings about settings.
fn start_log(log: &Log, config: &Config) -> anyhow::Result<()> {
    log.subscribe(config.log, config.log_json.then(|| config.node()))?;
    for warning in &config.warnings {
        warn!("{warning}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_behind_serve_demo_and_check_are_left_to_the_settings() {
        CommandLine::command().debug_assert();
        let flags = ["--help", "--port", "1", "-h", "--config=x", "--", "stray", "--version"];
        for name in ["serve", "demo", "check"] {
            let line = ["shardgate", name].into_iter().chain(flags);
            let parsed = CommandLine::try_parse_from(line).unwrap_or_else(|error| panic!("{name}: {error}")).command;
            let (Command::Serve(settings) | Command::Demo(settings) | Command::Check(settings)) = parsed else {
                panic!("{name} is a command")
            };
            assert_eq!(settings.flags, flags);
        }
    }

    #[test]
    fn a_token_allows_every_named_assessment() {
        let line =
            ["shardgate", "token", "--user", "u", "--assessment", "a", "--assessment", "b", "--expires-in", "5m"];
        let Command::Token(arguments) = CommandLine::try_parse_from(line).unwrap_or_else(|e| panic!("{e}")).command
        else {
            panic!("a line of token")
        };
        assert_eq!((arguments.user.as_str(), arguments.expires_in), ("u", 300));
        assert_eq!(arguments.assessments, ["a", "b"]);
    }
}
