//! The edge to signals (PROTOCOL 7): the first SIGTERM, SIGINT or SIGQUIT drains the pod, a second ends it at once;
//! SIGHUP makes it read its files anew. SIGPIPE needs nothing here: Rust's runtime ignores it from the process's start
//! on.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::warn;

/// The exit code of a pod that a second signal ended: 128 and SIGINT's number, as shells have it.
const EXIT_AT_ONCE: i32 = 130;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalRequest {
    /// To end, by the signal of this name.
    End(&'static str),
    /// To read the files that settings name anew.
    Reload,
}

/// The signals that a pod heeds. From its making on they don't end the process by themselves.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hang_up: Signal,
}

/// Keeps SIGHUP from ending a process that reads its settings: one that comes waits for [`Signals::listen`]. Before any
/// thread is started.
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
    /// Begins to listen.
    ///
    /// # Errors
    /// Where the kernel refuses a handler.
    pub fn listen() -> io::Result<Self> {
        let signals = Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hang_up: signal(SignalKind::hangup())?,
        };
        mask_hang_ups(libc::SIG_UNBLOCK);
        Ok(signals)
    }

    /// What the next signal asks for. Cancelling it loses none.
    pub async fn next(&mut self) -> SignalRequest {
        tokio::select! {
            _ = self.terminate.recv() => SignalRequest::End("SIGTERM"),
            _ = self.interrupt.recv() => SignalRequest::End("SIGINT"),
            _ = self.quit.recv() => SignalRequest::End("SIGQUIT"),
            _ = self.hang_up.recv() => SignalRequest::Reload,
        }
    }

    /// Ends the process at the next signal to end, with `last` as the last that it does.
    pub async fn end_at_next(mut self, last: impl FnOnce()) {
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
