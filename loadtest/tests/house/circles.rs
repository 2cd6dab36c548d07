//! Modules that use each other. Files that import each other in a circle can only be read as one, so none may.
//!
//! A module and what lies below it are one room, seen from outside: what `ingest::reader::missing` uses, `ingest::reader`
//! uses. So each folder is looked at by itself, with the arrows between its direct children.

use std::collections::{BTreeMap, BTreeSet};

use crate::fault;
use crate::source::Source;

/// The crates whose modules are looked at.
const CRATES: &[&str] = &["src/", "loadtest/src/"];

/// An arrow from one module to another: where the first line is that draws it.
type Arrows = BTreeMap<String, BTreeMap<String, (usize, usize)>>;

/// One fault for each circle, with a line for each of its arrows.
pub(crate) fn circles(sources: &[Source]) -> Vec<String> {
    CRATES.iter().flat_map(|root| circles_of(root, sources)).collect()
}

fn circles_of(root: &str, sources: &[Source]) -> Vec<String> {
    let files = sources.iter().enumerate().filter(|(_, source)| source.path.starts_with(root));
    let modules: BTreeSet<Vec<String>> = files.clone().map(|(_, source)| source.module()).collect();
    let mut folders: BTreeMap<Vec<String>, Arrows> = BTreeMap::new();
    for (file, source) in files {
        let from = source.module();
        for path in source.paths().into_iter().filter(|path| path.segments[0] == "crate") {
            let Some(to) = module_of(&path.segments[1..], &modules) else { continue };
            let common = from.iter().zip(&to).take_while(|(from, to)| from == to).count();
            if let (Some(from), Some(to)) = (from.get(common), to.get(common)) {
                let arrows = folders.entry(path.segments[1..=common].to_vec()).or_default();
                arrows.entry(from.clone()).or_default().entry(to.clone()).or_insert((file, path.line));
            }
        }
    }
    let circles =
        folders.iter().flat_map(|(folder, arrows)| circles_in(arrows).into_iter().map(move |c| (folder, arrows, c)));
    circles.map(|(folder, arrows, circle)| describe(folder, arrows, &circle, sources)).collect()
}

/// The module that a path leads into.
fn module_of(path: &[String], modules: &BTreeSet<Vec<String>>) -> Option<Vec<String>> {
    (1..=path.len()).rev().map(|len| path[..len].to_vec()).find(|module| modules.contains(module))
}

/// The sets of modules of which each leads to each other one.
fn circles_in(arrows: &Arrows) -> Vec<BTreeSet<&str>> {
    let reach = |from: &str| {
        let (mut seen, mut left) = (BTreeSet::new(), vec![from.to_owned()]);
        while let Some(module) = left.pop() {
            for to in arrows.get(&module).into_iter().flat_map(BTreeMap::keys) {
                if seen.insert(to.as_str()) {
                    left.push(to.clone());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&str, BTreeSet<&str>> = arrows.keys().map(|from| (from.as_str(), reach(from))).collect();
    let is_mutual = |a: &str, b: &str| reached.get(b).is_some_and(|reached| reached.contains(a));
    let circles = reached.iter().filter(|(from, reached)| reached.contains(*from));
    let circles = circles.map(|(from, reached)| reached.iter().copied().filter(|to| is_mutual(from, to)).collect());
    circles.collect::<BTreeSet<_>>().into_iter().collect()
}

fn describe(folder: &[String], arrows: &Arrows, circle: &BTreeSet<&str>, sources: &[Source]) -> String {
    let names: Vec<&str> = circle.iter().copied().collect();
    let within = if folder.is_empty() { "the crate".to_owned() } else { format!("`{}`", folder.join("::")) };
    let mut lines = vec![format!("in {within}, {} use each other:", names.join(", "))];
    for from in &names {
        let to = arrows[*from].iter().filter(|(to, _)| circle.contains(to.as_str()) && to != from);
        lines.extend(to.map(|(to, &(file, line))| fault(&sources[file], line, &format!("`{from}` uses `{to}`"))));
    }
    lines.join("\n    ")
}
