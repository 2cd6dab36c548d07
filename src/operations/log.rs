//! The edge to standard error. A log line goes into a bounded buffer that one thread writes, so that no other thread
//! waits for the log's reader. Lines that do not fit are dropped and counted; the count is logged when writing
//! continues.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::SetGlobalDefaultError;
use tracing::{Dispatch, Level, Subscriber, dispatcher, warn};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::{Layer, SubscriberExt};

use crate::limits::{LOG_BUFFER_BYTES_MAX, LOG_FLUSH_MAX};

/// The pause before standard error is tried again where it is non-blocking and full.
const WRITE_RETRY: Duration = Duration::from_millis(20);

/// The log. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Log(Arc<LogShared>);

#[derive(Debug, Default)]
struct LogShared {
    buffer: Mutex<Buffer>,
    /// There is something to write.
    filled: Condvar,
    /// All that was in the buffer is written.
    written: Condvar,
    dropped: Counter,
    /// Writes to standard error itself: for the writing thread alone, which may wait for it.
    direct: OnceLock<Dispatch>,
}

impl Log {
    /// Starts the writing thread.
    ///
    /// # Errors
    /// Where the kernel gives no thread.
    pub fn start() -> io::Result<Self> {
        let shared = Arc::new(LogShared::default());
        let writing = Arc::clone(&shared);
        // It ends with the process, and nobody waits for it: it may stand in a write for ever.
        thread::Builder::new().name("log".to_owned()).spawn(move || write_for_ever(&writing, &mut io::stderr()))?;
        Ok(Self(shared))
    }

    /// Sends the process's log here: our own as `level` says, at most warnings of the libraries, which don't know what
    /// is secret.
    ///
    /// # Errors
    /// Where the process has another log already.
    pub fn subscribe(&self, level: Level, json: bool) -> Result<(), SetGlobalDefaultError> {
        tracing::subscriber::set_global_default(subscriber(level, json, self.clone()))?;
        // The count of dropped lines is logged at every level.
        let direct = Dispatch::new(subscriber(level.max(Level::WARN), json, io::stderr));
        let first = self.0.direct.set(direct);
        debug_assert!(first.is_ok(), "a process has one log");
        Ok(())
    }

    /// Registers the count of dropped lines.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Log lines dropped because nothing read standard error, or it could not be written";
        registry.register("shardgate_log_lines_dropped", help, self.0.dropped.clone());
    }

    /// Writes a text as it is, with the same bound.
    pub fn print(&self, text: &str) {
        self.0.add(text.as_bytes());
    }

    /// Waits until all is written, for at most [`LOG_FLUSH_MAX`]: before the process ends.
    pub fn flush(&self) {
        let deadline = Instant::now() + LOG_FLUSH_MAX;
        let mut buffer = self.0.lock();
        while !buffer.is_written() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.0.written.wait_timeout(buffer, left);
            buffer = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The formatter writes a line in one call.
impl Write for &Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.add(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// A log that goes to `writer`.
fn subscriber<W>(level: Level, json: bool, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let libraries = LevelFilter::from_level(level.min(Level::WARN));
    let filter = Targets::new().with_default(libraries).with_target(env!("CARGO_CRATE_NAME"), level);
    let text = fmt::layer().with_writer(writer).with_ansi(io::stderr().is_terminal());
    let layer = if json { text.json().boxed() } else { text.boxed() };
    // The filter is a layer of its own. As the other layer's filter it would remember that it passed over a library's
    // line, and pass over the next line of ours on that thread as well.
    tracing_subscriber::registry().with(filter).with(layer)
}

// ---- the buffer -----------------------------------------------------------------------------------------------------

/// Lines that wait for the writing thread.
#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// Lines that were dropped behind those, and not logged yet.
    dropped: u64,
    /// The writing thread has taken some, and is not done.
    writing: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Pushed {
    /// The writing thread sleeps.
    First,
    /// It is awake, or is woken already.
    More,
    Dropped,
}

impl Buffer {
    /// After the first line that does not fit, all lines are dropped until the buffer is taken: one gap, at its correct
    /// place in the log.
    fn push(&mut self, line: &[u8]) -> Pushed {
        if self.dropped > 0 || self.bytes.len() + line.len() > LOG_BUFFER_BYTES_MAX {
            self.dropped += 1;
            return Pushed::Dropped;
        }
        let first = self.is_written();
        self.bytes.extend_from_slice(line);
        if first { Pushed::First } else { Pushed::More }
    }

    fn is_written(&self) -> bool {
        self.bytes.is_empty() && !self.writing
    }
}

impl LogShared {
    /// No code panics with the lock held, and a buffer of lines is good whatever happened.
    fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, line: &[u8]) {
        // Not a match on the call itself: that would hold the lock through the wake-up.
        let pushed = self.lock().push(line);
        match pushed {
            Pushed::First => self.filled.notify_one(),
            Pushed::More => {}
            Pushed::Dropped => {
                self.dropped.inc();
            }
        }
    }

    /// Waits for lines; returns them, and how many were dropped behind them.
    fn take(&self) -> (Vec<u8>, u64) {
        let mut buffer = self.lock();
        buffer.writing = false;
        if buffer.is_written() {
            self.written.notify_all();
        }
        while buffer.bytes.is_empty() {
            buffer = self.filled.wait(buffer).unwrap_or_else(PoisonError::into_inner);
        }
        buffer.writing = true;
        (std::mem::take(&mut buffer.bytes), std::mem::take(&mut buffer.dropped))
    }
}

// ---- the writing thread ---------------------------------------------------------------------------------------------

fn write_for_ever(shared: &LogShared, out: &mut impl Write) {
    let mut unsaid = 0;
    loop {
        let (bytes, dropped) = shared.take();
        let left = write(out, &bytes);
        // A reader that is gone, or a full disk: the next lines are tried all the same.
        let lost = left.iter().filter(|&&byte| byte == b'\n').count() as u64;
        shared.dropped.inc_by(lost);
        unsaid += dropped + lost;
        if unsaid > 0 && left.is_empty() {
            say_dropped(shared, std::mem::take(&mut unsaid));
        }
    }
}

fn say_dropped(shared: &LogShared, lines: u64) {
    if let Some(direct) = shared.direct.get() {
        dispatcher::with_default(direct, || warn!(lines, "log lines dropped: standard error was not read"));
    }
}

/// Writes all; returns what could not be written.
fn write<'a>(out: &mut impl Write, mut bytes: &'a [u8]) -> &'a [u8] {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => break,
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Somebody who shares our standard error made it non-blocking.
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(WRITE_RETRY),
            Err(_) => break,
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A line of so many bytes, its end among them.
    fn line(bytes: usize) -> Vec<u8> {
        let mut line = vec![b'x'; bytes - 1];
        line.push(b'\n');
        line
    }

    #[test]
    fn from_the_first_line_that_does_not_fit_on_all_are_dropped_until_the_buffer_is_taken() {
        let shared = LogShared::default();
        shared.add(&line(LOG_BUFFER_BYTES_MAX - 5));
        shared.add(&line(6));
        shared.add(&line(2));
        assert_eq!(shared.dropped.get(), 2, "the second would fit, and would hide the gap");
        let (bytes, dropped) = shared.take();
        assert_eq!((bytes.len(), dropped), (LOG_BUFFER_BYTES_MAX - 5, 2));
        shared.add(&line(2));
        assert_eq!(shared.take().1, 0, "each is counted once");
    }

    /// Takes a write when it is told to.
    struct WriteGate {
        writes: mpsc::Sender<Vec<u8>>,
        open: mpsc::Receiver<io::Result<()>>,
    }

    impl Write for WriteGate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // A test that is over opens no gate any more.
            self.open.recv().unwrap_or(Ok(()))?;
            let _ = self.writes.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gated() -> (Log, mpsc::Receiver<Vec<u8>>, mpsc::Sender<io::Result<()>>) {
        let log = Log(Arc::default());
        let (writes, written) = mpsc::channel();
        let (opener, open) = mpsc::channel();
        let shared = Arc::clone(&log.0);
        thread::spawn(move || write_for_ever(&shared, &mut WriteGate { writes, open }));
        (log, written, opener)
    }

    #[test]
    fn nobody_waits_for_a_reader_that_does_not_read() {
        let (log, written, opener) = gated();
        let long = "x".repeat(1023) + "\n";
        let start = Instant::now();
        for _ in 0..4 * LOG_BUFFER_BYTES_MAX / long.len() {
            log.print(&long);
        }
        assert!(log.0.dropped.get() > 0);
        log.flush();
        assert!(start.elapsed() >= LOG_FLUSH_MAX, "it is given its time before the process ends, and no more");

        drop(opener);
        let lines = |bytes: Vec<u8>| bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        let all = (4 * LOG_BUFFER_BYTES_MAX / long.len()) as u64;
        let mut seen = 0;
        while seen + log.0.dropped.get() < all {
            seen += lines(written.recv().unwrap());
        }
        assert_eq!(seen + log.0.dropped.get(), all, "each line is written or counted");
    }

    #[test]
    fn the_end_of_the_process_waits_until_all_is_written() {
        let (log, written, opener) = gated();
        log.print("a\n");
        log.print("b\n");
        let opening = thread::spawn(move || {
            let _ = opener.send(Ok(()));
            let _ = opener.send(Ok(()));
        });
        log.flush();
        assert_eq!(written.try_iter().flatten().collect::<Vec<u8>>(), b"a\nb\n");
        opening.join().unwrap();
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_the_next_line_is_tried() {
        let (log, written, opener) = gated();
        opener.send(Err(ErrorKind::StorageFull.into())).unwrap();
        log.print("lost\n");
        log.flush();
        assert_eq!(log.0.dropped.get(), 1);
        for passing in [ErrorKind::Interrupted, ErrorKind::WouldBlock] {
            opener.send(Err(passing.into())).unwrap();
        }
        opener.send(Ok(())).unwrap();
        log.print("written\n");
        assert_eq!(written.recv().unwrap(), b"written\n");
        assert_eq!(log.0.dropped.get(), 1);
    }

    #[test]
    fn a_line_of_the_formatter_is_one_line_here() {
        let (log, written, opener) = gated();
        let subscriber = subscriber(Level::INFO, true, log);
        opener.send(Ok(())).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "shardgate::test", "said");
            tracing::info!(target: "library", "not said");
            tracing::debug!(target: "shardgate::test", "not said");
        });
        drop(opener);
        let line = String::from_utf8(written.recv().unwrap()).unwrap();
        assert!(line.contains("\"message\":\"said\"") && line.ends_with("}\n"), "{line}");
        assert!(!line.contains("not said"), "{line}");
    }
}
