//! Readiness of many sockets, told by the kernel (epoll, level-triggered): no crate lies between the clients and it.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::time::Duration;

/// How much is told at a time.
const EVENTS_MAX: usize = 1024;

/// What is waited for.
#[derive(Debug)]
pub(crate) struct Epoll {
    own: OwnedFd,
    events: Vec<libc::epoll_event>,
}

/// What a socket is ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ready {
    /// Whose it is, as it was added.
    pub(crate) token: u64,
    /// Whether it can be written to.
    pub(crate) to_write: bool,
}

impl Epoll {
    /// With nothing to wait for.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: it takes a plain flag.
        let own = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if own < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, and nobody else's.
        let own = unsafe { OwnedFd::from_raw_fd(own) };
        Ok(Self { own, events: Vec::with_capacity(EVENTS_MAX) })
    }

    /// Waits for a socket that connects: until it can be written to.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn await_connected(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, libc::EPOLLOUT)
    }

    /// Waits from now on for something to read.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn await_readable(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, libc::EPOLLIN)
    }

    /// Waits for something to read on a descriptor that is new here.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn add_readable(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, libc::EPOLLIN)
    }

    /// Waits for it no longer. A descriptor that is closed is forgotten by itself.
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

    /// Waits until something is ready, or the time is over; rounded up to a millisecond.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn wait(&mut self, timeout: Duration) -> io::Result<impl Iterator<Item = Ready> + '_> {
        let ms = i32::try_from(timeout.as_micros().div_ceil(1_000)).unwrap_or(i32::MAX);
        let (room, count) = (self.events.as_mut_ptr(), i32::try_from(EVENTS_MAX).expect("it is small"));
        // SAFETY: the vector has room for as many as the kernel is asked for.
        let told = unsafe { libc::epoll_wait(self.own.as_raw_fd(), room, count, ms) };
        let told = match usize::try_from(told) {
            Ok(told) => told,
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => 0,
            Err(_) => return Err(io::Error::last_os_error()),
        };
        // SAFETY: the kernel wrote so many.
        unsafe { self.events.set_len(told) };
        let wants_write = (libc::EPOLLOUT | libc::EPOLLERR | libc::EPOLLHUP).cast_unsigned();
        Ok(self.events.iter().map(move |event| Ready { token: event.u64, to_write: event.events & wants_write != 0 }))
    }
}
