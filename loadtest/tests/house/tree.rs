//! The repository's files, and the rules on what is where.

use std::fs;
use std::path::{Path, PathBuf};

use crate::source::Source;

/// What the top level holds, beside dotfiles.
const TOP_LEVEL: &[&str] =
    &["Cargo.toml", "Cargo.lock", "LICENSE", "README.md", "src", "benches", "loadtest", "deploy"];

/// What a build or a failed property test leaves, and what git keeps: no part of the repository.
const NOT_OURS: &[&str] = &["target", "proptest-regressions", ".git"];

/// Folders in which people and machines work, and which a reader doesn't have.
const MACHINE_FOLDERS: &[&str] = &["home", "root", "work", "Users", "mnt"];

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the member lies in the workspace's folder").to_owned()
}

/// The names of the top level, without what is not ours.
pub(crate) fn top_level() -> Vec<String> {
    names(&top())
}

/// Whether a file or folder exists, by its path from the top.
pub(crate) fn exists(path: &str) -> bool {
    top().join(path).exists()
}

/// The names that have no place at the top level.
pub(crate) fn strays(names: &[String]) -> Vec<String> {
    names.iter().filter(|name| !name.starts_with('.') && !TOP_LEVEL.contains(&name.as_str())).cloned().collect()
}

/// Every Rust file, parsed.
pub(crate) fn rust_files() -> Vec<Source> {
    let files = texts().into_iter().filter(|(path, _)| path.ends_with(".rs"));
    files.map(|(path, text)| Source::new(&path, &text)).collect()
}

/// Every text file: its path from the top, and what it holds.
pub(crate) fn texts() -> Vec<(String, String)> {
    let mut found = Vec::new();
    walk(&top(), "", &mut found);
    found
}

/// Lines that name a folder of somebody's machine.
pub(crate) fn machine_paths(path: &str, text: &str) -> Vec<String> {
    let names_one = |line: &str| {
        MACHINE_FOLDERS.iter().any(|folder| {
            line.match_indices(&format!("/{folder}/"))
                .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "-_.:/".contains(c)))
        })
    };
    let lines = text.lines().enumerate().filter(|(_, line)| names_one(line));
    lines.map(|(at, line)| format!("{path}:{}: a path of one machine: {}", at + 1, line.trim())).collect()
}

/// Lines that cite a document which the repository doesn't hold.
pub(crate) fn dangling(path: &str, text: &str) -> Vec<String> {
    let cites = |line: &str| {
        ["DESIGN ", "STYLE "].iter().any(|name| {
            line.match_indices(name).any(|(at, _)| line[at + name.len()..].starts_with(|c: char| c.is_ascii_digit()))
        })
    };
    let lines = text.lines().enumerate().filter(|(_, line)| cites(line));
    lines.map(|(at, line)| format!("{path}:{}: cites what is not here: {}", at + 1, line.trim())).collect()
}

fn walk(folder: &Path, prefix: &str, found: &mut Vec<(String, String)>) {
    for name in names(folder) {
        let (path, shown) = (folder.join(&name), format!("{prefix}{name}"));
        if path.is_dir() {
            walk(&path, &format!("{shown}/"), found);
        } else if let Ok(text) = fs::read_to_string(&path) {
            found.push((shown, text));
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|fault| panic!("{}: {fault}", folder.display()));
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().expect("names are UTF-8"));
    let mut names: Vec<String> = names.filter(|name| !NOT_OURS.contains(&name.as_str())).collect();
    names.sort();
    names
}
