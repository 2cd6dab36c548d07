//! The edge to signals: the first SIGTERM or SIGINT drains the pod, a second ends it at once (PROTOCOL 7).

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::warn;

/// The exit code of a pod that a second signal ended: 128 and SIGINT's number, as shells have it.
const EXIT_AT_ONCE: i32 = 130;

/// The signals that stop a pod. From its making on they don't end the process by themselves.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Begins to listen.
    ///
    /// # Errors
    /// Where the kernel refuses a handler.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The name of the next signal. Cancelling it loses none.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// Ends the process at the next signal, with `last` as the last that it does.
    pub async fn end_at_next(mut self, last: impl FnOnce()) {
        let signal = self.next().await;
        warn!(signal, "a second signal: ending at once");
        last();
        // SAFETY: _exit takes any code and doesn't return. Not exit: that runs the C libraries' handlers, OpenSSL's
        // among them, under the feet of the threads that still use them.
        unsafe { libc::_exit(EXIT_AT_ONCE) }
    }
}
