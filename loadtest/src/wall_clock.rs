//! A wall clock of a program's own, which steps when it is told to: libfaketime, loaded before the program. Clocks that
//! never step are left alone.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::process::{TempDir, tool};

/// A clock that programs are started with.
#[derive(Debug)]
pub struct WallClock {
    dir: TempDir,
    library: PathBuf,
}

impl WallClock {
    /// One that shows the right time.
    ///
    /// # Panics
    /// Where libfaketime is missing: in one line that says how to get it.
    #[must_use]
    pub fn new() -> Self {
        let _ = tool("faketime", "faketime");
        let found = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
        let found = found.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1")).find(|file| file.is_file());
        let clock = Self { dir: TempDir::new("clock"), library: found.expect("faketime brings its library") };
        clock.set(0);
        clock
    }

    /// It is off by so many seconds from now on, for those that it was given to.
    ///
    /// # Panics
    /// Where its file can't be written.
    pub fn set(&self, seconds: i64) {
        let file = self.dir.file("new", &format!("{seconds:+}s\n"));
        fs::rename(file, self.file()).expect("within one directory");
    }

    /// What a program is to have in its environment for this clock.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, String); 4] {
        [
            // Redis' jemalloc reads the clock while libfaketime, which allocates, is not set up: libc's malloc goes
            // before it.
            ("LD_PRELOAD", format!("{} libc.so.6", self.library.display())),
            ("FAKETIME_TIMESTAMP_FILE", self.file().display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }

    /// Gives it to a program that is to be started.
    pub fn give(&self, command: &mut Command) {
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
    fn a_program_sees_the_time_that_it_is_told() {
        let (clock, real) =
            (WallClock::new(), || Command::new("date").arg("+%s").output().expect("date is there").stdout);
        let seconds = |text: Vec<u8>| String::from_utf8(text).unwrap().trim().parse::<i64>().unwrap();
        for off in [0, 3_600, -7_200] {
            clock.set(off);
            let mut date = Command::new("date");
            clock.give(date.arg("+%s"));
            let seen = seconds(date.output().expect("date is there").stdout) - seconds(real());
            assert!((seen - off).abs() <= 2, "{seen} of {off}");
        }
    }
}
