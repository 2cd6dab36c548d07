//! What Redis answers to the slots script.

use shardgate::discovery::wire::Snapshot;
use shardgate::limits::SLOTS_MAX;

/// The answer's parts in lines: a header, then the holders.
pub fn redis(data: &[u8]) {
    let lines: Vec<Vec<u8>> = data.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
    let Ok(snapshot) = Snapshot::parse(&lines) else { return };
    assert!(snapshot.slots <= SLOTS_MAX);
    let lines_told = snapshot.holders.len() as u64 + snapshot.ignored;
    assert!(lines_told >= lines.len() as u64 - 1, "each holder is in the view or counted");
    for holder in &snapshot.holders {
        assert!(holder.slot < SLOTS_MAX);
        let pod = holder.pod();
        assert!(!pod.node.0.is_empty() && !pod.node.0.chars().any(char::is_control), "a client is told it");
        assert!(pod.url.starts_with("ws://") || pod.url.starts_with("wss://"), "a client is sent there");
        assert!(!pod.url.contains(|c: char| c.is_control() || c.is_whitespace()));
    }
}
