//! The edge to signals (PROTOCOL 7): the first SIGTERM, SIGINT or SIGQUIT drains the pod, a second ends it at once;
//! SIGHUP makes it read its files again, SIGUSR1 and SIGUSR2 log more or less for a while. SIGPIPE needs no handler: Rust's runtime ignores it from the start of the
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
    /// Log more for a while.
    LogMore,
    /// Log less for a while.
    LogLess,
}

/// The signals that a pod handles. While this exists, they no longer end the process by themselves.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hang_up: Signal,
    user_1: Signal,
    user_2: Signal,
}

/// Signals that end no pod, but would end a process without a handler for them.
const HARMLESS: [libc::c_int; 3] = [libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2];

/// Blocks the signals that end no pod, so that they do not end a process that still reads its settings; one that
/// arrives waits for [`Signals::listen`]. Call it before any thread starts.
pub fn hold_harmless() {
    mask_harmless(libc::SIG_BLOCK);
}

fn mask_harmless(how: libc::c_int) {
    // SAFETY: the set is a plain value, emptied before it is used, and nothing is asked back.
    unsafe {
        let mut harmless: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut harmless);
        for signal in HARMLESS {
            libc::sigaddset(&raw mut harmless, signal);
        }
        libc::pthread_sigmask(how, &raw const harmless, std::ptr::null_mut());
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
            user_1: signal(SignalKind::user_defined1())?,
            user_2: signal(SignalKind::user_defined2())?,
        };
        mask_harmless(libc::SIG_UNBLOCK);
        Ok(signals)
    }

    /// Waits for the next signal. Cancelling loses none.
    pub(crate) async fn next(&mut self) -> SignalRequest {
        tokio::select! {
            _ = self.terminate.recv() => SignalRequest::End("SIGTERM"),
            _ = self.interrupt.recv() => SignalRequest::End("SIGINT"),
            _ = self.quit.recv() => SignalRequest::End("SIGQUIT"),
            _ = self.hang_up.recv() => SignalRequest::Reload,
            _ = self.user_1.recv() => SignalRequest::LogMore,
            _ = self.user_2.recv() => SignalRequest::LogLess,
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
