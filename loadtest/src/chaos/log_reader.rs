//! Reads what pods log, as a machine's log collector does, into files; and rests when it is told to. Between it and a
//! pod is the smallest pipe that the kernel makes: some ten lines fill it.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// The least that a pipe holds: a page.
const PIPE_BYTES: libc::c_int = 4096;

/// Reads the logs of pods. Cheap to clone; all rest together.
#[derive(Debug, Clone, Default)]
pub(super) struct LogReader(Arc<(Mutex<bool>, Condvar)>);

impl LogReader {
    /// A pipe whose other end is read into a file, by a thread that ends when nobody has the pipe any more.
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
                // A log that can't be kept is no reason for pods to wait.
                let _ = file.write_all(&buffer[..count]);
                reader.wait();
            }
        });
        Ok(pipe.into())
    }

    /// Reads nothing for so long.
    pub(super) fn rests_for(&self, time: Duration) {
        self.set(true);
        thread::sleep(time);
        self.set(false);
    }

    fn set(&self, rests: bool) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = rests;
        self.0.1.notify_all();
    }

    fn wait(&self) {
        let rests = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.0.1.wait_while(rests, |rests| *rests).unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::process::{TempDir, eventually};

    const WITHIN: Duration = Duration::from_secs(10);

    #[test]
    fn it_reads_into_the_file_and_while_it_rests_a_page_fills_the_pipe() {
        let dir = TempDir::new("log-reader");
        let (file, reader) = (dir.path().join("log"), LogReader::default());
        let mut pipe = File::from(reader.pipe_to(&file).expect("pipes are left"));
        let len = || std::fs::metadata(&file).map_or(0, |file| file.len());
        pipe.write_all(b"one line\n").unwrap();
        eventually("it is read", WITHIN, || (len() == 9).then_some(()));

        reader.set(true);
        let began = Instant::now();
        let resting = thread::spawn({
            let reader = reader.clone();
            move || reader.rests_for(Duration::from_millis(500))
        });
        // More than the pipe and the reader's hands hold.
        pipe.write_all(&[b'x'; 20_000]).unwrap();
        assert!(began.elapsed() >= Duration::from_millis(400), "it waited for the reader");
        resting.join().unwrap();
        eventually("all is read", WITHIN, || (len() == 20_009).then_some(()));
    }
}
