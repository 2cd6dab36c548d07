//! Readiness of many sockets by epoll, level-triggered, without a crate in between.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::time::Duration;

/// Events per wait.
const EVENTS_MAX: usize = 1024;

/// An epoll instance.
#[derive(Debug)]
pub(crate) struct Epoll {
    own: OwnedFd,
    events: Vec<libc::epoll_event>,
}

/// Readiness of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ready {
    /// The token with which it was added.
    pub(crate) token: u64,
    /// Whether it is writable.
    pub(crate) to_write: bool,
}

impl Epoll {
    /// An empty instance.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: it takes a plain flag.
        let own = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if own < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and has no other owner.
        let own = unsafe { OwnedFd::from_raw_fd(own) };
        Ok(Self { own, events: Vec::with_capacity(EVENTS_MAX) })
    }

    /// Adds a connecting socket, to wait until it is writable.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn await_connected(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, libc::EPOLLOUT)
    }

    /// Waits from now on until a socket is readable.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn await_readable(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, libc::EPOLLIN)
    }

    /// Adds a descriptor, to wait until it is readable.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn add_readable(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, libc::EPOLLIN)
    }

    /// Removes a descriptor. Closing one removes it as well.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn remove(&self, fd: RawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, 0)
    }

    fn control(&self, operation: i32, fd: RawFd, token: u64, interest: i32) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest.cast_unsigned(), u64: token };
        // SAFETY: the pointer is of a live struct, which the kernel only reads.
        match unsafe { libc::epoll_ctl(self.own.as_raw_fd(), operation, fd, &raw mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits until something is ready, or for the timeout rounded up to a millisecond.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn wait(&mut self, timeout: Duration) -> io::Result<impl Iterator<Item = Ready> + '_> {
        let ms = i32::try_from(timeout.as_micros().div_ceil(1_000)).unwrap_or(i32::MAX);
        let (room, count) = (self.events.as_mut_ptr(), i32::try_from(EVENTS_MAX).expect("EVENTS_MAX is small"));
        // SAFETY: the vector has room for as many events as the kernel may write.
        let count_or_error = unsafe { libc::epoll_wait(self.own.as_raw_fd(), room, count, ms) };
        let count_or_error = match usize::try_from(count_or_error) {
            Ok(count_or_error) => count_or_error,
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => 0,
            Err(_) => return Err(io::Error::last_os_error()),
        };
        // SAFETY: the kernel wrote this many.
        unsafe { self.events.set_len(count_or_error) };
        let wants_write = (libc::EPOLLOUT | libc::EPOLLERR | libc::EPOLLHUP).cast_unsigned();
        Ok(self.events.iter().map(move |event| Ready { token: event.u64, to_write: event.events & wants_write != 0 }))
    }
}
