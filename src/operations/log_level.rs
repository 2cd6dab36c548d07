//! The level of the log: that of `LOG`, or for a while another that an operator asked for.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{Level, info};

use crate::limits::SIGNALLED_LEVEL_FOR;

/// The levels, from the fewest lines to the most.
const LEVELS: [Level; 5] = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];

/// Changes the log's level.
pub(crate) struct LogLevel {
    /// Applies a level.
    apply: Box<dyn Fn(Level) + Send + Sync>,
    /// `LOG`.
    setting: Level,
    /// The level in force, if it is another.
    instead: Mutex<Option<LevelOverride>>,
}

impl std::fmt::Debug for LogLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogLevel").field("setting", &self.setting).field("instead", &self.get()).finish_non_exhaustive()
    }
}

/// A level in place of the setting's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LevelOverride {
    level: Level,
    /// When the setting's comes back; `None` for never.
    until: Option<Instant>,
}

impl LogLevel {
    /// The level of a log that was started with the setting.
    #[must_use]
    pub(crate) fn new(setting: Level, apply: impl Fn(Level) + Send + Sync + 'static) -> Self {
        Self { apply: Box::new(apply), setting, instead: Mutex::default() }
    }

    /// The level of `LOG`.
    #[must_use]
    pub(crate) fn setting(&self) -> Level {
        self.setting
    }

    /// Sets the level, for a while or until the process ends.
    pub(crate) fn set(&self, level: Level, duration: Option<Duration>, now: Instant) {
        let until = duration.and_then(|duration| now.checked_add(duration));
        self.replace(Some(LevelOverride { level, until }));
    }

    /// Sets the level next to the current one, with more lines or with fewer, for [`SIGNALLED_LEVEL_FOR`].
    pub(crate) fn step(&self, more: bool, now: Instant) {
        let index = LEVELS.iter().position(|level| *level == self.current()).unwrap_or(0);
        let index = if more { (index + 1).min(LEVELS.len() - 1) } else { index.saturating_sub(1) };
        self.set(LEVELS[index], Some(SIGNALLED_LEVEL_FOR), now);
    }

    /// Returns to the setting if the time of another level is over.
    pub(crate) fn expire(&self, now: Instant) {
        if self.get().is_some_and(|instead| instead.until.is_some_and(|until| until <= now)) {
            self.replace(None);
        }
    }

    fn current(&self) -> Level {
        self.get().map_or(self.setting, |instead| instead.level)
    }

    fn get(&self) -> Option<LevelOverride> {
        *self.instead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs the change at the level with more lines, so that it is seen.
    fn replace(&self, new: Option<LevelOverride>) {
        let (before, level) = (self.current(), new.map_or(self.setting, |new| new.level));
        *self.instead.lock().unwrap_or_else(PoisonError::into_inner) = new;
        let log = || info!(before = %before, now = %level, setting = %self.setting, "log level changed");
        if level < before {
            log();
        }
        (self.apply)(level);
        if level >= before {
            log();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_level_holds_for_its_time() {
        let log_level = LogLevel::new(Level::INFO, |_| {});
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        log_level.set(Level::DEBUG, Some(Duration::from_secs(10)), start);
        log_level.expire(at(9));
        assert_eq!(log_level.current(), Level::DEBUG);
        log_level.expire(at(10));
        assert_eq!(log_level.current(), Level::INFO);
        log_level.set(Level::ERROR, None, start);
        log_level.expire(at(1_000_000));
        assert_eq!(log_level.current(), Level::ERROR, "until the process ends");
        log_level.set(Level::WARN, Some(Duration::MAX), start);
        log_level.expire(at(1_000_000));
        assert_eq!(log_level.current(), Level::WARN);
    }

    #[test]
    fn steps_go_to_the_next_level_and_stop_at_the_last() {
        let log_level = LogLevel::new(Level::INFO, |_| {});
        let now = Instant::now();
        let mut step = |more| {
            log_level.step(more, now);
            log_level.current()
        };
        assert_eq!([true, true, true].map(&mut step), [Level::DEBUG, Level::TRACE, Level::TRACE]);
        assert_eq!([false; 5].map(&mut step), [Level::DEBUG, Level::INFO, Level::WARN, Level::ERROR, Level::ERROR]);
        log_level.expire(now + SIGNALLED_LEVEL_FOR);
        assert_eq!(log_level.current(), Level::INFO);
    }
}
