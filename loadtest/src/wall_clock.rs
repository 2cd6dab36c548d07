//! A wall clock for a program, which steps on command: libfaketime, preloaded into the program. Monotonic clocks are
//! unchanged.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::process::{TempDir, tool};

/// A wall clock for the programs that are started with it.
#[derive(Debug)]
pub struct WallClock {
    dir: TempDir,
    library: PathBuf,
}

impl WallClock {
    /// A clock that shows the real time.
    ///
    /// # Panics
    /// If libfaketime is missing. The message is one line that says how to install it.
    #[must_use]
    pub fn new() -> Self {
        let _ = tool("faketime", "faketime");
        let found = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
        let found = found.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1")).find(|file| file.is_file());
        let clock = Self { dir: TempDir::new("clock"), library: found.expect("faketime includes its library") };
        clock.set(0);
        clock
    }

    /// Sets its offset from the real time, also for running programs.
    ///
    /// # Panics
    /// If its file can't be written.
    pub fn set(&self, seconds: i64) {
        let file = self.dir.file("new", &format!("{seconds:+}s\n"));
        fs::rename(file, self.file()).expect("within one directory");
    }

    /// Environment variables of a program with this clock.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, String); 4] {
        [
            // Redis' jemalloc reads the clock before libfaketime, which allocates, is initialized. Preloading libc
            // makes its malloc win.
            ("LD_PRELOAD", format!("{} libc.so.6", self.library.display())),
            ("FAKETIME_TIMESTAMP_FILE", self.file().display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }

    /// Sets the environment of a command.
    pub fn apply_to(&self, command: &mut Command) {
        command.envs(self.environment());
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("offset")
    }
}

impl Default for WallClock {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_sees_the_time_of_its_clock() {
        let (clock, real) =
            (WallClock::new(), || Command::new("date").arg("+%s").output().expect("date is there").stdout);
        let seconds = |text: Vec<u8>| String::from_utf8(text).unwrap().trim().parse::<i64>().unwrap();
        for off in [0, 3_600, -7_200] {
            clock.set(off);
            let mut date = Command::new("date");
            clock.apply_to(date.arg("+%s"));
            let seen = seconds(date.output().expect("date is there").stdout) - seconds(real());
            assert!((seen - off).abs() <= 2, "{seen} of {off}");
        }
    }
}
