//! The tables of PROTOCOL.md, for the tests that compare them with the code.

/// Returns the cells of the tables' rows in a section, without the heads. Code spans lose their backticks.
pub(crate) fn rows(section: u32) -> Vec<Vec<String>> {
    let document = include_str!("PROTOCOL.md");
    let start = document.find(&format!("\n## {section}. ")).expect("the section exists") + 1;
    let text = &document[start..];
    let text = text.split_once("\n## ").map_or(text, |(text, _)| text);
    let lines: Vec<&str> = text.lines().collect();
    let is_rule = |line: Option<&&str>| line.is_some_and(|line| line.starts_with("|---"));
    let rows = lines
        .iter()
        .enumerate()
        .filter(|(at, line)| line.starts_with("| ") && !is_rule(lines.get(at + 1)) && !line.starts_with("|---"));
    rows.map(|(_, line)| cells(line)).collect()
}

fn cells(line: &str) -> Vec<String> {
    let inner = line.trim().trim_start_matches('|').trim_end_matches('|').replace("\\|", "\u{1}");
    inner.split('|').map(|cell| cell.trim().trim_matches('`').replace('\u{1}', "|")).collect()
}
