//! The table at the end of a run, and the check of recovery times against their limits.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::checker::{Cause, REDIRECTS_MAX, REDIRECTS_MAX_WITHOUT_REDIS, Recovery, Verdict};
use super::log::FaultSpan;
use super::schedule::FaultKind;

/// Limit for p99 of the recovery of clients of a pod that a rolling update restarts.
const ROLLING_P99_MS: u64 = 2_000;

/// Limit for the recovery of clients of a killed pod, on top of the lease.
const KILL_OVER_LEASE_MS: u64 = 2_000;

/// Limits of the time that clients of a killed pod need, in ms, where pods look at each other.
const KILL_P50_MS: u64 = 1_000;
const KILL_P99_MS: u64 = 2_000;

/// Parameters of a run, for the head of its table.
#[derive(Debug, Clone)]
pub struct Title {
    /// Seed of the schedule.
    pub seed: u64,
    /// Duration of the faults in minutes.
    pub minutes: f64,
    /// Number of clients.
    pub clients: u32,
    /// The pods' lease in milliseconds.
    pub lease_ms: u64,
    /// Whether pods look at each other.
    pub has_looks: bool,
}

/// Durations of the recoveries with one cause.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RecoveryTimes {
    sorted_ms: Vec<u64>,
    never: usize,
}

impl RecoveryTimes {
    fn of<'a>(recoveries: impl Iterator<Item = &'a Recovery>) -> Self {
        let (mut sorted_ms, mut never) = (Vec::new(), 0);
        for recovery in recoveries {
            match recovery.took_ms() {
                Some(ms) => sorted_ms.push(ms),
                None => never += 1,
            }
        }
        sorted_ms.sort_unstable();
        Self { sorted_ms, never }
    }

    fn percentile(&self, percent: usize) -> Option<u64> {
        let last = self.sorted_ms.len().checked_sub(1)?;
        Some(self.sorted_ms[(last * percent).div_ceil(100)])
    }

    fn cells(&self) -> String {
        let cell = |percent| match self.percentile(percent) {
            Some(ms) => format!("{:>8.2} s", super::checker::seconds(ms)),
            None => format!("{:>10}", "-"),
        };
        format!("{}{}{}", cell(50), cell(99), cell(100))
    }
}

/// Checks the limits for times: a sentence for each that was exceeded.
#[must_use]
pub fn over_limit(title: &Title, verdict: &Verdict) -> Vec<String> {
    let mut over = Vec::new();
    let mut limit = |kind, percent, limit_ms: u64| {
        let times = RecoveryTimes::of(alone(verdict, Cause::Fault(kind)));
        if let Some(ms) = times.percentile(percent).filter(|ms| *ms > limit_ms) {
            over.push(format!("{kind}: p{percent} of recovery is {ms} ms, limit {limit_ms} ms"));
        }
    };
    limit(FaultKind::Kill, 100, title.lease_ms + KILL_OVER_LEASE_MS);
    if title.has_looks {
        limit(FaultKind::Kill, 50, KILL_P50_MS);
        limit(FaultKind::Kill, 99, KILL_P99_MS);
    }
    limit(FaultKind::Rolling, 99, ROLLING_P99_MS);
    let redirects = [
        (verdict.redirects_max, "", REDIRECTS_MAX),
        (verdict.redirects_max_without_redis, " while Redis was down", REDIRECTS_MAX_WITHOUT_REDIS),
    ];
    for (most, when, limit) in redirects {
        if most > limit {
            over.push(format!("a client had {most} redirects in a rolling restart{when}, limit {limit}"));
        }
    }
    over
}

/// The recoveries with this cause that no other fault overlapped.
fn alone(verdict: &Verdict, cause: Cause) -> impl Iterator<Item = &Recovery> {
    verdict.recoveries.iter().filter(move |recovery| recovery.cause == cause && recovery.is_alone)
}

/// The whole table.
///
/// # Panics
/// Never: writing to a string does not fail.
#[must_use]
pub fn table(title: &Title, verdict: &Verdict, spans: &[FaultSpan]) -> String {
    let mut text = String::new();
    let mut line = |content: String| writeln!(text, "{}", content.trim_end()).expect("a string takes all");
    let Title { seed, minutes, clients, lease_ms, has_looks } = title;
    let looks = if *has_looks { "pods look at each other" } else { "no looks" };
    line(format!("chaos: seed {seed}, {minutes} minutes, {clients} clients; lease {lease_ms} ms, {looks}"));
    line(format!(
        "events       {} produced, {} aborted, {} of unknown fate, {} truncated, {} compacted; {} deliveries",
        verdict.made, verdict.aborted, verdict.unknown, verdict.truncated, verdict.compacted, verdict.seen
    ));
    line(format!("repeats      {} deliveries repeated because the log holds the event twice", verdict.written_again));
    line(format!("connections  {}, {} of them resumed from a cursor", verdict.connections, verdict.resumed));
    let faults = [
        ("lost", verdict.lost),
        ("duplicated", verdict.duplicated),
        ("out of order", verdict.out_of_order),
        ("missing at the end", verdict.missing_tail),
        ("aborted, yet sent", verdict.unexpected),
        ("losses not reported", verdict.silent_losses),
        ("unexplained resets", verdict.unexplained_resets.values().sum()),
        ("protocol violations", verdict.protocol_violations),
        ("incomplete logs", verdict.unfinished),
    ];
    for (name, count) in faults {
        line(format!("  {name:<20}{count:>8}{}", if count > 0 { "  <-- FAULT" } else { "" }));
    }
    let reasons: Vec<_> = verdict.explained_resets.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    line(format!(
        "  explained resets    {:>8}  {}",
        verdict.explained_resets.values().sum::<u64>(),
        reasons.join(", ")
    ));
    let Verdict { redirects_max, redirects_max_without_redis: without, .. } = verdict;
    line(format!("  most redirects in a rolling restart: {redirects_max} per client; while Redis was down: {without}"));
    line(String::new());
    line("recovery: from the loss of a connection until caught up; alone: no other fault overlapped".to_owned());
    line(format!(
        "{:<18}{:>6}{:>9}{:>8}  {:>10}{:>10}{:>10}{:>9}{:>10}{:>10}{:>10}",
        "", "faults", "clients", "never", "p50", "p99", "max", "alone", "p50", "p99", "max"
    ));
    let times = spans.iter().fold(BTreeMap::new(), |mut times, span| {
        *times.entry(Cause::Fault(span.kind)).or_insert(0) += 1;
        times
    });
    let others = [(Cause::Handover, 0), (Cause::None, 0)];
    for (cause, count) in times.into_iter().chain(others) {
        let all = RecoveryTimes::of(verdict.recoveries.iter().filter(|recovery| recovery.cause == cause));
        let alone = RecoveryTimes::of(alone(verdict, cause));
        let name = match cause {
            Cause::Fault(kind) => kind.to_string(),
            Cause::Handover => "handover".to_owned(),
            Cause::None => "no fault".to_owned(),
        };
        let clients = all.sorted_ms.len() + all.never;
        if count == 0 && clients == 0 {
            continue;
        }
        line(format!(
            "{name:<18}{count:>6}{clients:>9}{:>8}  {}{:>9}{}",
            all.never,
            all.cells(),
            alone.sorted_ms.len(),
            alone.cells()
        ));
    }
    for sentence in &verdict.violations {
        line(format!("! {sentence}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::log::EndCause;

    fn recovery(cause: Cause, took_ms: u64, is_alone: bool) -> Recovery {
        let (node, end) = ("pod-0".to_owned(), EndCause::Aborted);
        Recovery { client: 0, node, end, from_ms: 1000, to_ms: Some(1000 + took_ms), cause, is_alone }
    }

    #[test]
    fn limits_apply_to_faults_that_no_other_fault_overlaps() {
        let title = Title { seed: 1, minutes: 2.0, clients: 3, lease_ms: 3_000, has_looks: false };
        let kill = Cause::Fault(FaultKind::Kill);
        let mut verdict = Verdict { recoveries: vec![recovery(kill, 5_000, true)], ..Verdict::default() };
        verdict.recoveries.push(recovery(kill, 9_000, false));
        assert!(over_limit(&title, &verdict).is_empty());
        verdict.recoveries.push(recovery(kill, 5_001, true));
        verdict.recoveries.push(recovery(Cause::Fault(FaultKind::Rolling), 2_001, true));
        verdict.redirects_max = 4;
        assert_eq!(over_limit(&title, &verdict).len(), 3);
        verdict.redirects_max_without_redis = 4;
        assert_eq!(over_limit(&title, &verdict).len(), 3);
        verdict.redirects_max_without_redis = 5;
        assert_eq!(over_limit(&title, &verdict).len(), 4);
    }

    #[test]
    fn the_table_marks_violations_and_lists_recovery_times_by_cause() {
        let title = Title { seed: 9, minutes: 2.0, clients: 3, lease_ms: 3_000, has_looks: true };
        let mut verdict = Verdict { lost: 2, violations: vec!["topic 3: 4 is gone".into()], ..Verdict::default() };
        verdict.recoveries.extend((1..=100).map(|ms| recovery(Cause::Fault(FaultKind::Drop), ms * 10, true)));
        let spans = [FaultSpan { kind: FaultKind::Drop, target: String::new(), from_ms: 900, to_ms: 1000 }];
        let table = table(&title, &verdict, &spans);
        assert!(table.contains("seed 9"));
        assert!(table.lines().any(|line| line.contains("lost") && line.ends_with("2  <-- FAULT")), "{table}");
        let row = table.lines().find(|line| line.starts_with("drop")).unwrap();
        assert_eq!(
            row.split_whitespace().collect::<Vec<_>>(),
            [
                "drop", "1", "100", "0", "0.51", "s", "1.00", "s", "1.00", "s", "100", "0.51", "s", "1.00", "s",
                "1.00", "s"
            ]
        );
        assert!(table.contains("! topic 3: 4 is gone"));
    }
}
