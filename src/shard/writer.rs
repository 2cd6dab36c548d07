//! The writing side of a connection: it sends to the socket whose stream its task reads, and prefetches the memory of the
//! connection that is written next.

use std::io::{self, IoSlice};
use std::mem::offset_of;
use std::os::fd::{BorrowedFd, RawFd};

use rustix::net::{self, SendAncillaryBuffer, SendFlags};
use slotmap::Key;

use super::connection::{Connection, ConnectionKey, Socket};
use super::reactor::{Stream, TaskWaker};
use crate::prefetch::prefetch;

/// The writing side of a connection. The reading side, its task, owns the stream and outlives this.
pub(super) struct Writer {
    fd: RawFd,
    task: TaskWaker,
}

impl Writer {
    /// Writes to the socket of a stream that outlives this.
    pub(super) fn of(stream: &Stream) -> Self {
        Self { fd: stream.descriptor(), task: stream.task_waker() }
    }
}

impl Socket for Writer {
    /// Nearly always there is one frame. Passing it without a list is cheaper: the kernel has no list to copy and check.
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        const FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
        // SAFETY: the descriptor is open while the connection is in the shard's state.
        let socket = unsafe { BorrowedFd::borrow_raw(self.fd) };
        let sent = match slices {
            [one] => net::send(socket, one, FLAGS),
            all => net::sendmsg(socket, all, &mut SendAncillaryBuffer::default(), FLAGS),
        };
        sent.map_err(io::Error::from)
    }

    /// As the kernel counts them (tcp(7), TCP_INFO): a counter of our own would cost each connection its bytes, and each
    /// write an addition. 0 if the kernel does not tell.
    fn acknowledged_bytes(&self) -> u64 {
        // SAFETY: the struct has integers alone, for which zeros are valid.
        let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
        let mut len = libc::socklen_t::try_from(size_of_val(&info)).expect("it has a few hundred bytes");
        // SAFETY: the descriptor is open while the connection is in the shard's state, and the kernel writes at most `len`
        // bytes.
        let result = unsafe {
            libc::getsockopt(self.fd, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut len)
        };
        if result == 0 { info.tcpi_bytes_acked } else { 0 }
    }

    fn wake(&self) {
        self.task.wake();
    }

    /// The system call before that write takes long enough for it. The address is computed: asking the slot map would
    /// read the slot, and wait for it. The key after the next one is prefetched as well.
    fn fetch_ahead((key, this): (ConnectionKey, &Connection<Self>), others: &[ConnectionKey]) {
        /// What is read first in a connection, however it is aligned to cache lines of 64 bytes, and what the slot map
        /// checks, right behind it.
        const OFFSETS: [usize; 5] =
            [0, 64, 128, offset_of!(Connection<Writer>, board_seen), size_of::<Connection<Writer>>()];
        let Some(next) = others.last() else { return };
        let other = std::ptr::from_ref(this).cast::<u8>().wrapping_offset(slots_between(key, *next) * SLOT_BYTES);
        for offset in OFFSETS {
            prefetch(other.wrapping_add(offset));
        }
        prefetch(std::ptr::from_ref(next).wrapping_sub(KEYS_AHEAD));
    }
}

/// Size of a slot in the slot map: a connection and its version number.
const SLOT_BYTES: isize = size_of::<(Connection<Writer>, u32)>().cast_signed();

/// Keys prefetched beyond the next one: eight share a cache line.
const KEYS_AHEAD: usize = 1;

/// Distance between two connections in slots. The lower half of a key's number is its slot; if it were not, other memory
/// would be prefetched, with no other effect.
#[expect(clippy::cast_possible_truncation, reason = "the lower half of a number")]
fn slots_between(from: ConnectionKey, to: ConnectionKey) -> isize {
    let slot = |key: ConnectionKey| (key.data().as_ffi() & u64::from(u32::MAX)).cast_signed() as isize;
    slot(to) - slot(from)
}
