//! Copies the pods' logs into files, as a log collector does, and can pause. The pipe between it and a pod is the
//! smallest that the kernel offers: about ten lines fill it.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Smallest size of a pipe: a page.
const PIPE_BYTES: libc::c_int = 4096;

/// Reads the logs of pods. Clones share the pause.
#[derive(Debug, Clone, Default)]
pub(super) struct LogReader(Arc<(Mutex<bool>, Condvar)>);

impl LogReader {
    /// Returns a pipe. A thread copies its other end into a file, and ends when the last holder closes the pipe.
    pub(super) fn pipe_to(&self, file: &Path) -> io::Result<OwnedFd> {
        let (mut lines, pipe) = io::pipe()?;
        // SAFETY: fcntl takes plain numbers here, and the descriptor is open.
        let sized = unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE_BYTES) };
        if sized < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut file = File::options().create(true).append(true).open(file)?;
        let reader = self.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = lines.read(&mut buffer) {
                // A log that can't be written must not block the pods.
                let _ = file.write_all(&buffer[..count]);
                reader.wait();
            }
        });
        Ok(pipe.into())
    }

    /// Reads nothing for this time.
    pub(super) fn pause_for(&self, time: Duration) {
        self.set(true);
        thread::sleep(time);
        self.set(false);
    }

    fn set(&self, is_paused: bool) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = is_paused;
        self.0.1.notify_all();
    }

    fn wait(&self) {
        let is_paused = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.0.1.wait_while(is_paused, |is_paused| *is_paused).unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::process::{TempDir, eventually};

    const WITHIN: Duration = Duration::from_secs(10);

    #[test]
    fn while_the_reader_pauses_a_page_fills_the_pipe() {
        let dir = TempDir::new("log-reader");
        let (file, reader) = (dir.path().join("log"), LogReader::default());
        let mut pipe = File::from(reader.pipe_to(&file).expect("pipes are left"));
        let len = || std::fs::metadata(&file).map_or(0, |file| file.len());
        pipe.write_all(b"one line\n").unwrap();
        eventually("the line is in the file", WITHIN, || (len() == 9).then_some(()));

        reader.set(true);
        let began = Instant::now();
        let pause = thread::spawn({
            let reader = reader.clone();
            move || reader.pause_for(Duration::from_millis(500))
        });
        // More than the pipe and the reader's buffer hold.
        pipe.write_all(&[b'x'; 20_000]).unwrap();
        assert!(began.elapsed() >= Duration::from_millis(400), "the writer waits for the reader");
        pause.join().unwrap();
        eventually("all lines are in the file", WITHIN, || (len() == 20_009).then_some(()));
    }
}
