//! The edge to standard error. A log line goes into a bounded buffer that one thread writes, so that no other thread
//! waits for the log's reader. Lines that do not fit are dropped and counted; the count is logged when writing
//! continues.

mod json_lines;

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
use tracing_subscriber::{Registry as Spans, reload};

use self::json_lines::WithNode;
use crate::limits::{LOG_BUFFER_BYTES_MAX, LOG_FLUSH_MAX};

/// Pause before a write is retried if standard error is non-blocking and full.
const WRITE_RETRY: Duration = Duration::from_millis(20);

/// The log. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Log(Arc<LogShared>);

#[derive(Debug, Default)]
struct LogShared {
    buffer: Mutex<Buffer>,
    /// Signalled when the buffer gets a first line.
    lines_waiting: Condvar,
    /// Signalled when everything in the buffer is written.
    written: Condvar,
    dropped: Counter,
    /// Changes which lines are written.
    filter: OnceLock<FilterHandle>,
    /// Writes to standard error itself. Only the writing thread uses it, since it may block there.
    direct: OnceLock<Dispatch>,
}

/// Replaces the filter of a log.
type FilterHandle = reload::Handle<Targets, Spans>;

impl Log {
    /// Starts the writing thread.
    ///
    /// # Errors
    /// If the kernel refuses a thread.
    pub fn start() -> io::Result<Self> {
        let shared = Arc::new(LogShared::default());
        let writing = Arc::clone(&shared);
        // It ends with the process and is never joined, since it may block in a write forever.
        thread::Builder::new().name("log".to_owned()).spawn(move || write_forever(&writing, &mut io::stderr()))?;
        Ok(Self(shared))
    }

    /// Directs the process's log here: our own lines by `level`, those of libraries from warnings on, because libraries
    /// don't know what is secret. Lines of JSON, where they are wanted, name this pod.
    ///
    /// # Errors
    /// If the process already has a log.
    pub fn subscribe(&self, level: Level, json_of: Option<&str>) -> Result<(), SetGlobalDefaultError> {
        let (subscriber_here, filter) = subscriber(level, json_of, self.clone());
        tracing::subscriber::set_global_default(subscriber_here)?;
        // The count of dropped lines is logged at every level.
        let direct = Dispatch::new(subscriber(level.max(Level::WARN), json_of, io::stderr).0);
        let first = self.0.filter.set(filter).is_ok() && self.0.direct.set(direct).is_ok();
        debug_assert!(first, "a process has one log");
        Ok(())
    }

    /// Changes the level of our own lines.
    pub(crate) fn set_level(&self, level: Level) {
        if let Some(filter) = self.0.filter.get() {
            // It fails if the log is gone, and then there are no lines.
            let _ = filter.reload(targets(level));
        }
    }

    /// Registers the count of dropped lines.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let help = "Log lines dropped because standard error was not read or could not be written";
        registry.register("shardgate_log_lines_dropped", help, self.0.dropped.clone());
    }

    /// Writes a text as it is, within the same bound.
    pub fn print(&self, text: &str) {
        self.0.add(text.as_bytes());
    }

    /// Waits until everything is written, for at most [`LOG_FLUSH_MAX`]. Call it before the process ends.
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

/// The formatter writes each line in one call.
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

/// A subscriber that logs to `writer`, and what changes its filter.
fn subscriber<W>(
    level: Level,
    json_of: Option<&str>,
    writer: W,
) -> (impl Subscriber + Send + Sync + use<W>, FilterHandle)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(targets(level));
    let text = fmt::layer().with_writer(writer).with_ansi(io::stderr().is_terminal());
    let layer = match json_of {
        Some(node) => {
            let json = text.json().flatten_event(true).with_current_span(false).with_span_list(false);
            json.map_event_format(|format| WithNode::new(format, node)).boxed()
        }
        None => text.boxed(),
    };
    // The filter is a separate layer. As a filter of the other layer it would remember that it skipped a library's
    // line, and also skip our next line on that thread.
    (tracing_subscriber::registry().with(filter).with(layer), handle)
}

/// Which lines are written at a level.
fn targets(level: Level) -> Targets {
    let libraries = LevelFilter::from_level(level.min(Level::WARN));
    Targets::new().with_default(libraries).with_target(env!("CARGO_CRATE_NAME"), level)
}

// ---- the buffer -----------------------------------------------------------------------------------------------------

/// Lines waiting for the writing thread.
#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// Lines dropped behind them that are not logged yet.
    dropped: u64,
    /// Whether the writing thread is writing lines that it took.
    writing: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Pushed {
    /// The first line: the writing thread sleeps.
    First,
    /// A further line: the thread is awake, or being woken.
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
    /// No code panics while it holds the lock, and a buffer of lines is valid in any case.
    fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, line: &[u8]) {
        // A match on the call itself would hold the lock during the wake-up.
        let pushed = self.lock().push(line);
        match pushed {
            Pushed::First => self.lines_waiting.notify_one(),
            Pushed::More => {}
            Pushed::Dropped => {
                self.dropped.inc();
            }
        }
    }

    /// Waits for lines; returns them, and the number of lines dropped behind them.
    fn take(&self) -> (Vec<u8>, u64) {
        let mut buffer = self.lock();
        buffer.writing = false;
        if buffer.is_written() {
            self.written.notify_all();
        }
        while buffer.bytes.is_empty() {
            buffer = self.lines_waiting.wait(buffer).unwrap_or_else(PoisonError::into_inner);
        }
        buffer.writing = true;
        (std::mem::take(&mut buffer.bytes), std::mem::take(&mut buffer.dropped))
    }
}

// ---- the writing thread ---------------------------------------------------------------------------------------------

#[cfg_attr(not(test), expect(clippy::naive_bytecount, reason = "a few lines, when they are lost"))]
fn write_forever(shared: &LogShared, out: &mut impl Write) {
    let mut unsaid = 0;
    loop {
        let (bytes, dropped) = shared.take();
        let left = write(out, &bytes);
        // The reader is gone or the disk is full; the next lines are tried anyway.
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

/// Writes all bytes; returns those that could not be written.
fn write<'a>(out: &mut impl Write, mut bytes: &'a [u8]) -> &'a [u8] {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => break,
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Another process that shares our standard error made it non-blocking.
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

    /// A line of this length, its end included.
    fn line(bytes: usize) -> Vec<u8> {
        let mut line = vec![b'x'; bytes - 1];
        line.push(b'\n');
        line
    }

    #[test]
    fn after_the_first_line_that_does_not_fit_all_are_dropped_until_the_buffer_is_taken() {
        let shared = LogShared::default();
        shared.add(&line(LOG_BUFFER_BYTES_MAX - 5));
        shared.add(&line(6));
        shared.add(&line(2));
        assert_eq!(shared.dropped.get(), 2, "the second would fit, but would hide the gap");
        let (bytes, dropped) = shared.take();
        assert_eq!((bytes.len(), dropped), (LOG_BUFFER_BYTES_MAX - 5, 2));
        shared.add(&line(2));
        assert_eq!(shared.take().1, 0, "each is counted once");
    }

    /// A writer that completes a write when the test says so.
    struct WriteGate {
        writes: mpsc::Sender<Vec<u8>>,
        open: mpsc::Receiver<io::Result<()>>,
    }

    impl Write for WriteGate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // When the test is over, the gate stays open.
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
        thread::spawn(move || write_forever(&shared, &mut WriteGate { writes, open }));
        (log, written, opener)
    }

    #[test]
    fn no_thread_waits_for_a_reader_that_does_not_read() {
        let (log, written, opener) = gated();
        let long = "x".repeat(1023) + "\n";
        let start = Instant::now();
        for _ in 0..4 * LOG_BUFFER_BYTES_MAX / long.len() {
            log.print(&long);
        }
        assert!(log.0.dropped.get() > 0);
        log.flush();
        assert!(start.elapsed() >= LOG_FLUSH_MAX, "flush waits for its time limit and not longer");

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
    fn flush_waits_until_everything_is_written() {
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
    fn lines_that_cannot_be_written_are_counted_and_the_next_is_tried() {
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
    fn a_line_of_the_formatter_is_written_as_one() {
        let (log, written, opener) = gated();
        let (subscriber, _filter) = subscriber(Level::INFO, Some("pod-\"1\""), log);
        opener.send(Ok(())).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "shardgate::test", elapsed_ms = 7, "said");
            tracing::info!(target: "library", "not said");
            tracing::debug!(target: "shardgate::test", "not said");
        });
        drop(opener);
        let line = String::from_utf8(written.recv().unwrap()).unwrap();
        assert!(line.starts_with(r#"{"node":"pod-\"1\"","timestamp":""#) && line.ends_with("}\n"), "{line}");
        let json: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&json["message"], &json["level"]), (&"said".into(), &"INFO".into()));
        assert_eq!((&json["elapsed_ms"], &json["target"]), (&7.into(), &"shardgate::test".into()));
        assert!(!line.contains("not said"), "{line}");
    }

    #[test]
    fn the_level_changes_while_the_log_runs() {
        let (log, written, opener) = gated();
        let (subscriber, filter) = subscriber(Level::INFO, None, log.clone());
        log.0.filter.set(filter).unwrap();
        drop(opener);
        tracing::subscriber::with_default(subscriber, || {
            for (level, expected) in [(Level::INFO, false), (Level::DEBUG, true), (Level::ERROR, false)] {
                log.set_level(level);
                assert_eq!(tracing::enabled!(target: "shardgate::test", Level::DEBUG), expected, "{level}");
            }
            log.set_level(Level::DEBUG);
            tracing::debug!(target: "shardgate::test", "said");
        });
        assert!(String::from_utf8(written.recv().unwrap()).unwrap().contains("said"));
    }
}
