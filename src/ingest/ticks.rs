//! Judges a tick by its record's timestamp: whether the board may show it, how old it is, and whether its time can be
//! compared with that of a tick from another partition. It owns this rule and the faults of timestamps. The board
//! (`stream::board`) decides which tick it shows.

use std::collections::HashMap;
use std::time::Duration;

use crate::clock::{Now, UnixMs, whole_ms};
use crate::ids::TopicIndex;
use crate::limits::{TICK_AHEAD_MAX, TICK_TIMESTAMP_MS_MIN};
use crate::stream::batch::{NextOffset, Origin, TickTime};

/// What is wrong with a tick's timestamp. The cause is the producer, or this pod's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub(super) enum TimeFault {
    /// It is further ahead of now than [`TICK_AHEAD_MAX`]: a wrong clock, or microseconds.
    #[error(
        "its timestamp is ahead of this pod's clock: a tick of another partition with a valid timestamp replaces it"
    )]
    Ahead,
    /// It is not a time in milliseconds: it is missing, negative, or in seconds.
    #[error(
        "its timestamp is missing or not in milliseconds: a tick of another partition with a valid one replaces it"
    )]
    NoTime,
    /// It is older than the window, although the record has just arrived.
    #[error("its timestamp is older than HISTORY_SECONDS: it is not shown")]
    Expired,
}

impl TimeFault {
    pub(super) const ALL: [Self; 3] = [Self::Ahead, Self::NoTime, Self::Expired];

    /// The metric's label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Ahead => "ahead",
            Self::NoTime => "no_time",
            Self::Expired => "expired",
        }
    }
}

/// The result of judging a tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TickVerdict {
    /// Its time, and its age in ms; `None` if the board must not show it.
    pub(super) shown: Option<(TickTime, u32)>,
    /// What is wrong with its timestamp.
    pub(super) fault: Option<TimeFault>,
}

/// Judges ticks.
#[derive(Debug)]
pub(super) struct TickJudge {
    window_ms: u64,
    /// The first reading of both clocks. The wall clock may step; this reading plus the monotonic time since then is a
    /// second wall clock that does not.
    first: Option<Now>,
    /// The earlier and the later of these two wall clocks. A tick is too old, or ahead, only if it is so by both. So a
    /// step of the wall clock hides no market.
    earlier: UnixMs,
    later: UnixMs,
    /// Where each partition ended when reading began. A tick below that offset without a valid timestamp has an unknown
    /// age.
    ends_at_start: HashMap<(TopicIndex, i32), i64>,
}

impl TickJudge {
    /// Nothing older than `window` is shown.
    pub(super) fn new(window: Duration) -> Self {
        Self {
            window_ms: whole_ms(window).min(u64::from(u32::MAX)),
            first: None,
            earlier: UnixMs::default(),
            later: UnixMs::default(),
            ends_at_start: HashMap::new(),
        }
    }

    /// Sets the time by which the next ticks are judged.
    pub(super) fn set_time(&mut self, now: Now) {
        let first = self.first.get_or_insert(now);
        let steady = first.unix.plus(now.instant.saturating_duration_since(first.instant));
        (self.earlier, self.later) = (steady.min(now.unix), steady.max(now.unix));
    }

    /// Records where a partition ended when reading began.
    pub(super) fn ended_at(&mut self, end: NextOffset) {
        self.ends_at_start.insert((end.topic, end.partition), end.offset);
    }

    /// Forgets a topic.
    pub(super) fn forget(&mut self, topic: TopicIndex) {
        self.ends_at_start.retain(|&(of, _), _| of != topic);
    }

    /// Judges a tick by its record's timestamp, in Unix ms.
    pub(super) fn judge(&self, origin: Origin, timestamp_ms: i64) -> TickVerdict {
        if let Some(fault) = self.invalid(timestamp_ms) {
            let shown = (!self.was_there_at_start(origin)).then_some((TickTime::UNKNOWN, 0));
            return TickVerdict { shown, fault: Some(fault) };
        }
        let age_ms = self.earlier.0.saturating_sub(timestamp_ms.unsigned_abs());
        if age_ms > self.window_ms {
            // The last records of each partition are read at the start, at any age: an old one is no fault then.
            let fault = (!self.was_there_at_start(origin)).then_some(TimeFault::Expired);
            return TickVerdict { shown: None, fault };
        }
        let age_ms = u32::try_from(age_ms).expect("an age within the window, which is capped at u32::MAX");
        TickVerdict { shown: Some((TickTime(timestamp_ms), age_ms)), fault: None }
    }

    /// Why a timestamp does not say when the tick was made; `None` if it does.
    fn invalid(&self, timestamp_ms: i64) -> Option<TimeFault> {
        if timestamp_ms < TICK_TIMESTAMP_MS_MIN {
            return Some(TimeFault::NoTime);
        }
        let is_ahead = timestamp_ms.unsigned_abs() > self.later.plus(TICK_AHEAD_MAX).0;
        is_ahead.then_some(TimeFault::Ahead)
    }

    fn was_there_at_start(&self, origin: Origin) -> bool {
        let end = self.ends_at_start.get(&(origin.topic, origin.partition));
        end.is_some_and(|&end| origin.offset < end)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const NOW: i64 = 1_790_000_000_000;
    const TOPIC: TopicIndex = TopicIndex(0);

    fn at(unix_ms: u64) -> Now {
        Now { instant: Instant::now(), unix: UnixMs(unix_ms) }
    }

    /// A judge with a window of ten seconds. The partition ended at offset 100 when reading began.
    fn judge() -> TickJudge {
        let mut judge = TickJudge::new(Duration::from_secs(10));
        judge.set_time(at(NOW.unsigned_abs()));
        judge.ended_at(NextOffset { topic: TOPIC, partition: 0, offset: 100 });
        judge
    }

    fn verdict(offset: i64, timestamp_ms: i64) -> (Option<(TickTime, u32)>, Option<TimeFault>) {
        let TickVerdict { shown, fault } = judge().judge(Origin { topic: TOPIC, partition: 0, offset }, timestamp_ms);
        (shown, fault)
    }

    const NEW: i64 = 100;
    const OLD: i64 = 99;

    #[test]
    fn a_tick_within_the_window_is_shown_by_its_own_time_also_at_the_start() {
        for offset in [OLD, NEW] {
            for (timestamp_ms, age_ms) in
                [(NOW, 0), (NOW - 1, 1), (NOW - 10_000, 10_000), (NOW + 1, 0), (NOW + 5_000, 0)]
            {
                assert_eq!(verdict(offset, timestamp_ms), (Some((TickTime(timestamp_ms), age_ms)), None));
            }
        }
    }

    #[test]
    fn one_that_is_older_than_the_window_is_not_shown_and_is_no_fault_where_it_was_there_at_the_start() {
        for timestamp_ms in [NOW - 10_001, NOW - 86_400_000, TICK_TIMESTAMP_MS_MIN] {
            assert_eq!(verdict(NEW, timestamp_ms), (None, Some(TimeFault::Expired)));
            assert_eq!(verdict(OLD, timestamp_ms), (None, None));
        }
    }

    #[test]
    fn a_timestamp_that_cannot_be_true_decides_nothing_and_what_was_there_at_the_start_with_it_is_not_shown() {
        let ahead = [NOW + 5_001, NOW + 3_600_000, NOW * 1_000, NOW * 1_000_000, i64::MAX];
        let no_time = [NOW / 1_000, -1, 0, -NOW, i64::MIN, TICK_TIMESTAMP_MS_MIN - 1];
        let cases = ahead.map(|time| (time, TimeFault::Ahead)).into_iter();
        for (timestamp_ms, fault) in cases.chain(no_time.map(|time| (time, TimeFault::NoTime))) {
            assert_eq!(verdict(NEW, timestamp_ms), (Some((TickTime::UNKNOWN, 0)), Some(fault)), "{timestamp_ms}");
            assert_eq!(verdict(OLD, timestamp_ms), (None, Some(fault)), "{timestamp_ms}");
        }
    }

    #[test]
    fn a_wall_clock_that_steps_hides_no_market() {
        let origin = Origin { topic: TOPIC, partition: 0, offset: NEW };
        for step_ms in [-3_600_000, 3_600_000] {
            let (mut judge, start) = (judge(), Instant::now());
            let judge_after = |judge: &mut TickJudge, seconds: u64, timestamp_ms: i64| {
                let unix = (NOW + step_ms).unsigned_abs() + seconds * 1_000;
                judge.set_time(Now { instant: start + Duration::from_secs(seconds), unix: UnixMs(unix) });
                judge.judge(origin, timestamp_ms)
            };
            for seconds in 1..100 {
                let made = NOW + i64::try_from(seconds).unwrap() * 1_000;
                let verdict = judge_after(&mut judge, seconds, made);
                assert_eq!((verdict.shown.map(|(made, _)| made), verdict.fault), (Some(TickTime(made)), None));
                // The same for a producer whose clock steps with ours.
                assert_eq!(judge_after(&mut judge, seconds, made + step_ms).fault, None);
            }
        }
    }

    #[test]
    fn a_window_that_is_longer_than_any_age_that_a_tick_can_tell_takes_them_all() {
        let mut judge = TickJudge::new(Duration::MAX);
        judge.set_time(at(u64::MAX));
        let origin = Origin { topic: TOPIC, partition: 0, offset: 0 };
        assert_eq!(judge.judge(origin, NOW).shown, None, "584 million years old");
        let mut judge = TickJudge::new(Duration::MAX);
        judge.set_time(at(NOW.unsigned_abs() + u64::from(u32::MAX)));
        assert_eq!(judge.judge(origin, NOW).shown, Some((TickTime(NOW), u32::MAX)));
    }
}
