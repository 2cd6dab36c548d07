//! The writing side of a connection: it sends to the socket whose stream its task reads, and fetches ahead what the
//! next connection needs.

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
    /// Nearly always it is one frame, and to pass that by itself is cheaper: the kernel has no list to copy and to
    /// check.
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        const FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
        // SAFETY: the descriptor is open for as long as the connection is in the shard's state.
        let socket = unsafe { BorrowedFd::borrow_raw(self.fd) };
        let sent = match slices {
            [one] => net::send(socket, one, FLAGS),
            all => net::sendmsg(socket, all, &mut SendAncillaryBuffer::default(), FLAGS),
        };
        sent.map_err(io::Error::from)
    }

    fn wake(&self) {
        self.task.wake();
    }

    /// The system call in between takes long enough for it. It is asked for by address, since to ask the slot map for
    /// the other one is to look at its slot, and to wait for that. Of the list, the key behind its own is fetched, too.
    fn fetch_ahead((key, this): (ConnectionKey, &Connection<Self>), others: &[ConnectionKey]) {
        /// What is looked at first in a connection, whichever way it lies in lines of 64 bytes, and what the slot map
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

/// What a connection takes in the slot map, with the number that says whether its slot is taken.
const SLOT_BYTES: isize = size_of::<(Connection<Writer>, u32)>().cast_signed();

/// How many keys beyond the next one the list of them is fetched: eight share a line of the cache.
const KEYS_AHEAD: usize = 1;

/// How many slots further than one connection another lies. The lower half of a key's number is its slot; were it not,
/// what is fetched ahead would be something else.
fn slots_between(from: ConnectionKey, to: ConnectionKey) -> isize {
    let slot = |key: ConnectionKey| (key.data().as_ffi() & u64::from(u32::MAX)).cast_signed() as isize;
    slot(to) - slot(from)
}
