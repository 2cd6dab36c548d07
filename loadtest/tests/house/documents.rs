//! Rules on the documents: how long they may be, and that what they name is there.

use std::collections::BTreeSet;

use crate::tree;

/// README's length, in words: a buyer reads all of it.
const README_WORDS_MAX: usize = 1_200;

/// The glossary's length, in lines.
const GLOSSARY_LINES_MAX: usize = 60;

fn text_of(path: &str) -> String {
    let texts = tree::texts();
    let found = texts.into_iter().find(|(other, _)| other == path);
    found.unwrap_or_else(|| panic!("{path} is missing")).1
}

/// The functions that are tests by their attribute, in files below a folder.
fn tests_below(folder: &str) -> BTreeSet<String> {
    let files = tree::texts().into_iter().filter(|(path, _)| path.starts_with(folder) && path.ends_with(".rs"));
    let of_file = |text: &str| -> Vec<String> {
        let after = text.split("#[test]\n").skip(1);
        after.filter_map(|rest| Some(rest.split_once("fn ")?.1.split_once('(')?.0.to_owned())).collect()
    };
    files.flat_map(|(_, text)| of_file(&text)).collect()
}

/// Tests that a document names in tables as `` `name` ``, which none of these is.
fn unknown_tests(document: &str, tests: &BTreeSet<String>) -> Vec<String> {
    let spans =
        document.lines().filter(|line| line.starts_with('|')).flat_map(|line| line.split('`').skip(1).step_by(2));
    let is_name =
        |span: &&str| span.matches('_').count() > 2 && span.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    spans.filter(is_name).filter(|span| !tests.contains(*span)).map(str::to_owned).collect()
}

/// The sections of the contract that a file cites and that are no heading there.
fn unknown_sections(path: &str, text: &str, contract: &str) -> Vec<String> {
    let cited = text.match_indices("PROTOCOL ").filter_map(|(at, name)| {
        let digits: String = text[at + name.len()..].chars().take_while(char::is_ascii_digit).collect();
        (!digits.is_empty()).then_some(digits)
    });
    let is_missing = |number: &String| !contract.contains(&format!("\n## {number}. "));
    cited.filter(is_missing).map(|number| format!("{path} cites PROTOCOL {number}")).collect()
}

/// Links of a Markdown document to files that are not there.
fn broken_links(path: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    let local = targets.filter(|target| !target.contains("://") && !target.starts_with('#'));
    let mut broken = Vec::new();
    for target in local {
        let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
        for part in target.split('/') {
            if part == ".." { parts.truncate(parts.len().saturating_sub(1)) } else { parts.push(part) }
        }
        if !exists(&parts.join("/")) {
            broken.push(format!("{path} links to {target}"));
        }
    }
    broken
}

/// Metrics that a document names and that no code registers. The library appends unit and `_total`.
fn unknown_metrics(path: &str, text: &str, code: &str) -> Vec<String> {
    let spans = text.split('`').skip(1).step_by(2);
    let names = spans.filter(|span| span.starts_with("shardgate_") || span.starts_with("websocket_"));
    let names = names.map(|name| name.split('{').next().unwrap_or_default()).filter(|name| !name.ends_with('_'));
    let is_known = |name: &str| {
        let stem = name.trim_end_matches("_total");
        let units = ["_seconds", "_bytes", "_offsets", "_info"];
        let stems = units.iter().filter_map(|unit| stem.strip_suffix(unit));
        stems.chain([name, stem]).any(|stem| code.contains(&format!("\"{stem}\"")))
    };
    names.filter(|name| !is_known(name)).map(|name| format!("{path} names {name}")).collect()
}

/// Modules in the glossary's last column that are not there.
fn unknown_owners(glossary: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let rows = glossary.lines().filter(|line| line.starts_with("| ") && line.contains('`'));
    let cells = rows.filter_map(|row| row.trim_end_matches([' ', '|']).rsplit('|').next());
    let owners = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    let is_there = |owner: &str| {
        let path = owner.replace("::", "/");
        [format!("src/{path}.rs"), format!("src/{path}"), path].iter().any(|path| exists(path))
    };
    owners.filter(|owner| !is_there(owner)).map(str::to_owned).collect()
}

#[test]
fn every_owner_in_the_glossary_is_a_module() {
    assert_eq!(unknown_owners(&text_of("src/GLOSSARY.md"), tree::exists), Vec::<String>::new());
    assert_eq!(unknown_owners("| a | b. | `x::y` |", |_| false), ["x::y"]);
}

#[test]
fn every_metric_that_a_document_names_is_registered() {
    let texts = tree::texts();
    let code: String =
        texts.iter().filter(|(path, _)| path.starts_with("src/")).map(|(_, text)| text.as_str()).collect();
    let documents = texts.iter().filter(|(path, _)| path.ends_with(".md"));
    let unknown: Vec<String> = documents.flat_map(|(path, text)| unknown_metrics(path, text, &code)).collect();
    assert_eq!(unknown, Vec::<String>::new());
    let code = "\"shardgate_ingest_blocked\"";
    let planted = unknown_metrics("x.md", "`shardgate_ingest_blocked_seconds_total{a}` `shardgate_no_such`", code);
    assert_eq!(planted, ["x.md names shardgate_no_such"]);
}

#[test]
fn readme_and_glossary_are_short() {
    let words = text_of("README.md").split_whitespace().count();
    assert!(words <= README_WORDS_MAX, "README has {words} words");
    let lines = text_of("src/GLOSSARY.md").lines().count();
    assert!(lines <= GLOSSARY_LINES_MAX, "the glossary has {lines} lines");
}

#[test]
fn every_test_that_readme_names_exists() {
    let (readme, tests) = (text_of("README.md"), tests_below("loadtest/tests/"));
    assert!(tests.len() > 100, "only {} tests found", tests.len());
    assert_eq!(unknown_tests(&readme, &tests), Vec::<String>::new());
    let named = tests.iter().filter(|name| readme.contains(&format!("`{name}`"))).count();
    assert!(named >= 8, "README names only {named} tests");
    assert_eq!(unknown_tests("| x | `no_test_has_this_name` |", &tests), ["no_test_has_this_name"]);
}

#[test]
fn every_cited_section_of_the_contract_exists() {
    let contract = text_of("src/protocol/PROTOCOL.md");
    let texts = tree::texts();
    let unknown: Vec<String> = texts.iter().flat_map(|(path, text)| unknown_sections(path, text, &contract)).collect();
    assert_eq!(unknown, Vec::<String>::new());
    assert_eq!(
        unknown_sections("x.rs", &format!("// (PROTOCOL {})", 99), &contract),
        [format!("x.rs cites PROTOCOL {}", 99)]
    );
}

#[test]
fn every_link_between_documents_leads_to_a_file() {
    let documents = tree::texts().into_iter().filter(|(path, _)| path.ends_with(".md"));
    let broken: Vec<String> = documents.flat_map(|(path, text)| broken_links(&path, &text, tree::exists)).collect();
    assert_eq!(broken, Vec::<String>::new());
    let planted = broken_links("a/b.md", "[x](../c.md) [y](d.md) [z](https://e)", |path| path == "c.md");
    assert_eq!(planted, ["a/b.md links to d.md"]);
}
