//! How much the machine seems to wait for I/O, from `/proc`: what monitoring systems show as a busy disk.

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// Waits for I/O during an interval, in percent of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct IoWait {
    /// Idle time of cores that tasks left to wait for I/O (`iowait` of `/proc/stat`): 100 is one core's.
    pub iowait: f64,
    /// Time in which some task waited for I/O (`some` of `/proc/pressure/io`); `None` if the kernel does not count it.
    pub pressure: Option<f64>,
}

/// Counters since the machine's start, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Counters {
    iowait: f64,
    pressure: Option<f64>,
}

impl IoWait {
    /// Waits during `meanwhile`, and its result.
    ///
    /// # Errors
    /// If `/proc` is not as on Linux.
    pub fn of<T>(meanwhile: impl FnOnce() -> T) -> Result<(Self, T)> {
        let (begin, before) = (Instant::now(), Counters::now()?);
        let done = meanwhile();
        let (seconds, after) = (begin.elapsed().as_secs_f64(), Counters::now()?);
        let percent = |before: f64, after: f64| (after - before) / seconds * 100.0;
        let pressure = before.pressure.zip(after.pressure).map(|(before, after)| percent(before, after));
        Ok((Self { iowait: percent(before.iowait, after.iowait), pressure }, done))
    }
}

impl Counters {
    fn now() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
        // There is none on a kernel without PSI, and one that can't be read where it is switched off.
        let pressure = fs::read_to_string("/proc/pressure/io").unwrap_or_default();
        // SAFETY: sysconf takes a plain number.
        let ticks_per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
        Self::parse(&stat, &pressure, ticks_per_second).context("/proc/stat has the sum of all cores")
    }

    fn parse(stat: &str, pressure: &str, ticks_per_second: f64) -> Option<Self> {
        // user, nice, system, idle, iowait.
        let iowait: f64 = stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace().nth(4)?.parse().ok()?;
        let some = pressure.lines().find_map(|line| line.strip_prefix("some "));
        let total_us: Option<f64> = some.and_then(|some| some.rsplit_once("total=")?.1.trim().parse().ok());
        Some(Self { iowait: iowait / ticks_per_second, pressure: total_us.map(|us| us / 1e6) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_those_of_all_cores_and_of_some_task() {
        let pressure = "some avg10=0.02 avg60=0.71 avg300=0.89 total=6500000\nfull avg10=0.00 total=1\n";
        let counters = Counters::parse("cpu  10 0 20 50 250 5 5 5 7 0\ncpu0 1\n", pressure, 100.0);
        assert_eq!(counters, Some(Counters { iowait: 2.5, pressure: Some(6.5) }));
        assert_eq!(Counters::parse("cpu  1 2 3 4 500", "", 100.0), Some(Counters { iowait: 5.0, pressure: None }));
        assert_eq!(Counters::parse("cpu  1 2 3", pressure, 100.0), None);
    }
}
