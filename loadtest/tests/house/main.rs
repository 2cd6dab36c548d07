//! The house rules, as a test: which module may know which, where the world is touched, how long a file and a function
//! may be, and what no file may hold. Each rule is tried on a planted file that breaks it, so that it is known to bite.

mod circles;
mod documents;
mod layers;
mod source;
mod tree;
mod words;

use source::Source;

/// Lines of a file, at most.
const FILE_LINES_MAX: usize = 600;

/// Lines of a function, at most, from `fn` to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;

/// A rule names what it finds as `path:line: what is wrong`.
type Rule = fn(&Source) -> Vec<String>;

/// The rules that look at one Rust file at a time.
const RULES: &[Rule] = &[
    layers::imports,
    layers::strangers,
    layers::edges,
    layers::world,
    lengths,
    panics,
    unfinished,
    unsafe_code,
    words::retired,
    words::short_docs,
];

/// Files and functions that are too long to be read at one go.
fn lengths(source: &Source) -> Vec<String> {
    let lines = source.text.lines().count();
    let file = (lines > FILE_LINES_MAX).then(|| fault(source, lines, &format!("over {FILE_LINES_MAX} lines")));
    let functions = source.functions.iter().filter(|function| function.lines > FUNCTION_LINES_MAX).map(|function| {
        let what = format!("`{}` has {} lines, over {FUNCTION_LINES_MAX}", function.name, function.lines);
        fault(source, function.line, &what)
    });
    file.into_iter().chain(functions).collect()
}

/// `unwrap()` in the gateway, outside of its tests. (`expect` says why it holds.)
fn panics(source: &Source) -> Vec<String> {
    if !source.path.starts_with("src/") {
        return Vec::new();
    }
    let calls = source.code.windows(3).filter(|texts| texts[0].text == "." && texts[2].text == "(");
    calls
        .filter(|texts| matches!(texts[1].text.as_str(), "unwrap" | "unwrap_err"))
        .map(|texts| fault(source, texts[1].line, &format!("`{}()` outside of tests", texts[1].text)))
        .collect()
}

/// What is left of unfinished work: `todo!` and its like, skipped tests, dead code that is kept.
fn unfinished(source: &Source) -> Vec<String> {
    let mut faults = Vec::new();
    for texts in source.all.windows(2).filter(|texts| texts[1].text == "!") {
        if matches!(texts[0].text.as_str(), "todo" | "unimplemented" | "dbg") {
            faults.push(fault(source, texts[0].line, &format!("`{}!`", texts[0].text)));
        }
    }
    for at in 0..source.all.len() {
        let texts: Vec<&str> = source.all[at..].iter().take(8).map(|token| token.text.as_str()).collect();
        let what = match texts[..] {
            ["#", "[", "ignore", ..] => "a test that is skipped",
            ["#", "[", "allow", "(", "dead_code", ..] | ["#", "!", "[", "allow", "(", "dead_code", ..] => "dead code",
            _ => continue,
        };
        faults.push(fault(source, source.all[at].line, what));
    }
    faults
}

/// `unsafe` belongs at the edges, and right above it stands why it is sound.
fn unsafe_code(source: &Source) -> Vec<String> {
    let lines: Vec<&str> = source.text.lines().collect();
    let mut faults = Vec::new();
    // An `unsafe fn` leaves the reasons to its callers; a block and an `impl` have them.
    for tokens in source.code.windows(2).filter(|tokens| tokens[0].text == "unsafe") {
        let token = &tokens[0];
        if source.path.starts_with("src/") && !layers::is_edge(&source.path) {
            faults.push(fault(source, token.line, "`unsafe` outside of the edges"));
        }
        if matches!(tokens[1].text.as_str(), "{" | "impl") && !explained(&lines, token.line) {
            faults.push(fault(source, token.line, "`unsafe` without a SAFETY comment right above it"));
        }
    }
    faults
}

/// Whether the comment above a line, or above the statement that the line is in, says SAFETY.
fn explained(lines: &[&str], line: usize) -> bool {
    let above = lines[..line - 1].iter().rev();
    let is_comment = |text: &&&str| text.trim_start().starts_with("//");
    // rustfmt may have put the start of the statement a line or two further up.
    above.clone().take(3).position(|text| is_comment(&text)).is_some_and(|skipped| {
        above.skip(skipped).take_while(is_comment).any(|text| text.to_lowercase().contains("safety"))
    })
}

/// A finding, as the rules tell it.
fn fault(source: &Source, line: usize, what: &str) -> String {
    format!("{}:{line}: {what}", source.path)
}

fn check(source: &Source) -> Vec<String> {
    RULES.iter().flat_map(|rule| rule(source)).collect()
}

#[test]
fn the_code_keeps_the_house_rules() {
    let sources = tree::rust_files();
    assert!(sources.len() > 20, "the rules saw only {} files", sources.len());
    let faults: Vec<String> = sources.iter().flat_map(check).collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn no_modules_use_each_other() {
    let found = circles::circles(&tree::rust_files());
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn a_circle_is_found_also_through_what_lies_below_a_module() {
    let tree = |files: &[(&str, &str)]| files.iter().map(|(path, text)| Source::new(path, text)).collect::<Vec<_>>();
    let direct =
        tree(&[("src/a/b.rs", "use super::c::C;"), ("src/a/c.rs", "use crate::a::b::B;"), ("src/a/mod.rs", "")]);
    let found = circles::circles(&direct);
    assert!(found.len() == 1 && found[0].contains("in `a`, b, c use each other"), "{found:?}");
    let below =
        tree(&[("src/b.rs", "fn f() { crate::c::g(); }"), ("src/c/d.rs", "use crate::b;"), ("src/c/mod.rs", "")]);
    assert_eq!(circles::circles(&below).len(), 1);
    let harness = tree(&[("loadtest/src/b.rs", "use crate::c::C;"), ("loadtest/src/c.rs", "use crate::b::B;")]);
    assert_eq!(circles::circles(&harness).len(), 1);
    let parent =
        tree(&[("src/b.rs", "mod c; use c::C;"), ("src/b/c.rs", "use super::B;"), ("src/d.rs", "use crate::b::B;")]);
    assert_eq!(circles::circles(&parent), Vec::<String>::new());
}

#[test]
fn the_rules_tables_and_the_map_tell_of_files_that_are_there() {
    let texts = tree::texts();
    let paths: Vec<&str> = texts.iter().map(|(path, _)| path.as_str()).collect();
    let (_, map) = texts.iter().find(|(path, _)| path == "src/lib.rs").unwrap();
    assert_eq!(layers::stale(&paths, map), Vec::<String>::new());
    assert_eq!(layers::stale(&paths, "//! `shard/threads.rs`, `Cargo.toml`\n// `a/b.rs`").len(), 1);
}

#[test]
fn every_rule_finds_its_planted_violation() {
    let long_function = format!("fn long() {{\n{}}}", "    let _ = 1;\n".repeat(70));
    let planted: &[(&str, &str, &str)] = &[
        // Layers.
        ("src/ids.rs", "use crate::routing::table::Table;", "`ids` imports `routing`"),
        ("src/stream/board.rs", "use crate::{clock, config::Config, ids};", "`stream` imports `config`"),
        ("src/stream/board.rs", "fn f() { let _ = super::super::gateway::run; }", "`stream` imports `gateway`"),
        ("src/protocol/head.rs", "fn f() { select! { _ = crate::shard::run() => {} } }", "`protocol` imports `shard`"),
        ("src/shard/state.rs", "use crate::ingest::lag::Lag;", "`shard` and `ingest`"),
        ("src/discovery/view.rs", "use crate::shard::mailbox;", "`discovery` and `shard`"),
        ("src/nowhere.rs", "pub struct Unit;", "`nowhere` has no layer"),
        ("src/shard/state.rs", "use super::event_loop::Loop;", "imports the edge `shard::event_loop`"),
        // The world.
        ("src/stream/history.rs", "use std::{collections::HashMap, fs};", "`std::fs`"),
        ("src/stream/history.rs", "fn f() { let _ = std::env::var(\"X\"); }", "`std::env`"),
        ("src/shutdown/phases.rs", "fn f() { let _ = Instant::now(); }", "`Instant::now`"),
        ("src/shutdown/phases.rs", "fn f() { let _ = std::time::SystemTime::now(); }", "`SystemTime::now`"),
        ("src/protocol/session.rs", "use glommio::net::TcpStream;", "`glommio`"),
        ("src/shard/executor.rs", "use glommio::timer::Timer;", "`glommio`"),
        ("src/shard/handshake.rs", "fn f() { tokio::task::spawn_local(g()) }", "`tokio::task`"),
        ("src/discovery/view.rs", "use redis::aio::Connection;", "`redis`"),
        // Lengths.
        ("src/long.rs", &long_function, "`long` has 72 lines"),
        ("loadtest/src/long.rs", &"// A line.\n".repeat(601), "over 600 lines"),
        // What no code may hold.
        ("src/stream/board.rs", "fn f(x: Option<u8>) -> u8 { x.unwrap() }", "`unwrap()` outside of tests"),
        ("src/stream/board.rs", "fn f() { todo!() }", "`todo!`"),
        ("loadtest/src/lib.rs", "fn f() { unimplemented!() }", "`unimplemented!`"),
        ("src/stream/board.rs", "#[cfg(test)]\nmod tests { fn f() { dbg!(1); } }", "`dbg!`"),
        ("loadtest/tests/x.rs", "#[test]\n#[ignore]\nfn f() {}", "a test that is skipped"),
        ("src/stream/board.rs", "#[allow(dead_code)]\nfn f() {}", "dead code"),
        ("src/stream/board.rs", "struct Chain;", "`Chain` is a name of the past"),
        ("src/stream/board.rs", "/// Which.\npub struct A;", "the doc \"Which.\""),
        ("src/stream/board.rs", "pub struct A {\n    /// Where.\n    b: u8,\n}", "src/stream/board.rs:2"),
        ("src/main.rs", "mod redis;\nmod inner { use redis::Client; }", "`redis`"),
        ("src/stream/board.rs", "// SAFETY: none.\nunsafe fn f() {}", "`unsafe` outside of the edges"),
        ("src/shard/handshake.rs", "fn f() {\n    unsafe { g() }\n}", "without a SAFETY comment"),
    ];
    for (path, text, expected) in planted {
        let faults = check(&Source::new(path, text));
        assert!(
            faults.iter().any(|fault| fault.contains(expected)),
            "{path}: {text}\nexpected {expected}, got {faults:#?}"
        );
    }
}

#[test]
fn what_is_allowed_passes() {
    let planted: &[(&str, &str)] = &[
        (
            "src/stream/board.rs",
            "use crate::ids::MarketId;\nuse std::time::{Duration, Instant};\n/// `x.unwrap()`, todo!\nfn f() {}",
        ),
        (
            "src/stream/board.rs",
            "#[cfg(test)]\nmod tests {\n    use super::*;\n    use std::fs;\n    fn f(x: Option<u8>) { x.unwrap(); }\n}",
        ),
        (
            "src/stream/board.rs",
            "#[cfg(test)]\nuse std::fs::{self, File};\nfn f() -> &'static str { \"std::fs, .unwrap()\" }",
        ),
        (
            "src/shard/handshake.rs",
            "fn f() {\n    // SAFETY: the descriptor is owned\n    // by the caller.\n    let a =\n        unsafe { g() };\n}",
        ),
        ("src/gateway.rs", "use crate::{ingest, shard::event_loop, discovery};"),
        ("src/discovery/mod.rs", "mod redis;\nuse redis::Contact;"),
        ("src/shard/executor/io_uring.rs", "use crate::shard::event_loop::Source;\nuse glommio::net::TcpStream;"),
    ];
    for (path, text) in planted {
        let faults = check(&Source::new(path, text));
        assert!(faults.is_empty(), "{path}: {text}\n{faults:#?}");
    }
}

#[test]
fn the_top_level_holds_what_it_should() {
    assert_eq!(tree::strays(&tree::top_level()), Vec::<String>::new());
    assert_eq!(tree::strays(&[".ci", "src", "notes.md", "README.md"].map(str::to_owned)), ["notes.md"]);
}

#[test]
fn no_file_has_a_word_that_a_reader_stops_at() {
    let texts = tree::texts();
    let read = texts.iter().filter(|(path, _)| words::is_read(path));
    let faults: Vec<String> = read.flat_map(|(path, text)| words::strange(path, text)).collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
    assert_eq!(words::strange("src/x.rs", "// Nobody is told of it.\nlet nobodys = 1;").len(), 2);
}

#[test]
fn no_file_names_a_path_of_the_machine_it_was_written_on() {
    let faults: Vec<String> = tree::texts().iter().flat_map(|(path, text)| tree::machine_paths(path, text)).collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
    let planted = format!("fine\nsee {}notes\n", ["", "root", ""].join("/"));
    assert_eq!(tree::machine_paths("README.md", &planted).len(), 1);
    assert!(tree::machine_paths("README.md", "http://127.0.0.1:3003/ root/ /rooted\n").is_empty());
}

#[test]
fn no_file_cites_what_the_repository_does_not_hold() {
    let faults: Vec<String> = tree::texts().iter().flat_map(|(path, text)| tree::dangling(path, text)).collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
    assert_eq!(tree::dangling("src/x.rs", &format!("// as {} 4 says\n// as PROTOCOL 4 says", "DESIGN")).len(), 1);
}
