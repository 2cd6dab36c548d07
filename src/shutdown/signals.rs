//! The edge to signals (PROTOCOL 7): the first SIGTERM, SIGINT or SIGQUIT drains the pod, a second ends it at once;
//! SIGHUP makes it read its files again. SIGPIPE needs no handler: Rust's runtime ignores it from the start of the
//! process.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::warn;

/// Exit code after a second signal: 128 and the number of SIGINT, as in shells.
const EXIT_AT_ONCE: i32 = 130;

/// The request of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SignalRequest {
    /// End; the name of the signal.
    End(&'static str),
    /// Read the files that settings name again.
    Reload,
}

/// The signals that a pod handles. While this exists, they no longer end the process by themselves.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hang_up: Signal,
}

/// Blocks SIGHUP, so that it does not end a process that still reads its settings; one that arrives waits for
/// [`Signals::listen`]. Call it before any thread starts.
pub fn hold_hang_ups() {
    mask_hang_ups(libc::SIG_BLOCK);
}

fn mask_hang_ups(how: libc::c_int) {
    // SAFETY: the set is a plain value, emptied before it is used, and nothing is asked back.
    unsafe {
        let mut hang_up: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut hang_up);
        libc::sigaddset(&raw mut hang_up, libc::SIGHUP);
        libc::pthread_sigmask(how, &raw const hang_up, std::ptr::null_mut());
    }
}

impl Signals {
    /// Starts to listen.
    ///
    /// # Errors
    /// If the kernel refuses a handler.
    pub(crate) fn listen() -> io::Result<Self> {
        let signals = Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hang_up: signal(SignalKind::hangup())?,
        };
        mask_hang_ups(libc::SIG_UNBLOCK);
        Ok(signals)
    }

    /// Waits for the next signal. Cancelling loses none.
    pub(crate) async fn next(&mut self) -> SignalRequest {
        tokio::select! {
            _ = self.terminate.recv() => SignalRequest::End("SIGTERM"),
            _ = self.interrupt.recv() => SignalRequest::End("SIGINT"),
            _ = self.quit.recv() => SignalRequest::End("SIGQUIT"),
            _ = self.hang_up.recv() => SignalRequest::Reload,
        }
    }

    /// Ends the process at the next signal that asks for the end, after calling `last`.
    pub(crate) async fn end_at_next(mut self, last: impl FnOnce()) {
        let signal = loop {
            if let SignalRequest::End(signal) = self.next().await {
                break signal;
            }
        };
        warn!(signal, "second signal: exiting at once");
        last();
        // SAFETY: _exit takes any code and doesn't return. Not exit: that runs the C libraries' handlers, OpenSSL's
        // among them, under the feet of the threads that still use them.
        unsafe { libc::_exit(EXIT_AT_ONCE) }
    }
}
