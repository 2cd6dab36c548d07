//! Readiness of sockets and the wake timer, in one epoll per shard that the executor waits for as one descriptor.
//! Sleeping and waking then costs the same with ten thousand connections as with ten: io_uring searches all its
//! requests for each one that it cancels (a timer on every sleep).

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use mio::event::Source;
use mio::unix::SourceFd;
use mio::{Events, Interest, Registry, Token};
use slotmap::{Key, KeyData, SlotMap, new_key_type};

use super::executor::{self, Watch};
use super::operator_log;
use crate::limits::ACCEPT_LOG_EVERY;
use crate::log_throttle::LogThrottle;

/// Events taken from the kernel in one call, before the tasks that they wake run.
const EVENTS_PER_POLL: usize = 1024;

/// Poll interval of the epoll if no descriptor is left to wait on it.
const POLL_EVERY: Duration = Duration::from_millis(5);

new_key_type! {
    /// A registered waiter. A key that outlives its waiter matches no other.
    struct WaitKey;
}

// A key is a token.
const _: () = assert!(usize::BITS >= u64::BITS);

/// A shard's epoll, and the tasks that wait for its descriptors.
pub(super) struct Reactor {
    epoll: RefCell<mio::Poll>,
    registry: Registry,
    waiting: RefCell<SlotMap<WaitKey, Registration>>,
    /// Throttles the line about a failed registration.
    registration_failures: LogThrottle,
}

#[derive(Debug, Default)]
struct Registration {
    /// The task to wake, once.
    task: Option<Waker>,
    /// The interest that the kernel knows.
    registered: Option<Interest>,
}

impl Reactor {
    /// With address space for this many waiters. Memory that is not used is not resident.
    ///
    /// # Errors
    /// If no descriptor is left for it.
    pub(super) fn with_room_for(count: usize) -> io::Result<Rc<Self>> {
        let epoll = mio::Poll::new()?;
        let registry = epoll.registry().try_clone()?;
        let registration_failures = LogThrottle::new(ACCEPT_LOG_EVERY);
        let waiting = RefCell::new(SlotMap::with_capacity_and_key(count));
        Ok(Rc::new(Self { epoll: RefCell::new(epoll), registry, waiting, registration_failures }))
    }

    /// Wakes tasks whose descriptor is ready, for as long as the shard runs.
    pub(super) async fn run(self: Rc<Self>) {
        let mut events = Events::with_capacity(EVENTS_PER_POLL);
        // SAFETY: the epoll owns the descriptor and is borrowed for as long as it is watched.
        let mut epoll = Watch::new(unsafe { BorrowedFd::borrow_raw(self.registry.as_raw_fd()) });
        loop {
            if epoll.readable().await.is_err() {
                executor::sleep(POLL_EVERY).await;
            }
            while self.poll_events(&mut events) {
                executor::yield_now().await;
            }
        }
    }

    /// Wakes the tasks whose descriptor is ready; returns whether there may be more.
    fn poll_events(&self, events: &mut Events) -> bool {
        if self.epoll.borrow_mut().poll(events, Some(Duration::ZERO)).is_err() {
            // Interrupted by a signal: an open epoll has no other error.
            return true;
        }
        let mut seen = 0;
        for event in &*events {
            seen += 1;
            self.wake(KeyData::from_ffi(event.token().0 as u64).into());
        }
        seen == EVENTS_PER_POLL
    }

    /// Logs a connection that is closed because the kernel could not register it.
    fn log_registration_failure(&self, error: &io::Error) {
        if let Some(suppressed) = self.registration_failures.admit(Instant::now()) {
            operator_log::registration_failed(error, suppressed);
        }
    }

    fn wake(&self, key: WaitKey) {
        let task = self.waiting.borrow_mut().get_mut(key).and_then(|waiting| waiting.task.take());
        if let Some(task) = task {
            task.wake();
        }
    }
}

/// A task's entry among the waiters, removed when it is dropped.
struct ReadinessWaiter {
    reactor: Rc<Reactor>,
    key: WaitKey,
}

impl ReadinessWaiter {
    fn new(reactor: &Rc<Reactor>) -> Self {
        let key = reactor.waiting.borrow_mut().insert(Registration::default());
        Self { reactor: Rc::clone(reactor), key }
    }

    /// Tries a call; if it would block, arranges one wake-up of the task when the source is ready.
    fn poll<S: Source, T>(
        &self,
        source: &mut S,
        interest: Interest,
        task: &Waker,
        mut call: impl FnMut(&mut S) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            match call(source) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return Poll::Ready(result),
            }
        }
        self.register_waker(task);
        match self.register(source, interest) {
            Ok(()) => Poll::Pending,
            Err(error) => {
                self.reactor.log_registration_failure(&error);
                Poll::Ready(Err(error))
            }
        }
    }

    fn register_waker(&self, task: &Waker) {
        // The replaced waker is dropped last: it may own its task, and that task may own waiters here.
        let _before;
        let known = &mut self.reactor.waiting.borrow_mut()[self.key].task;
        if !known.as_ref().is_some_and(|known| known.will_wake(task)) {
            _before = known.replace(task.clone());
        }
    }

    /// Registers a source with the kernel, edge-triggered. A new interest reports at once if it is already satisfied.
    #[expect(clippy::cast_possible_truncation, reason = "a usize has 64 bits here")]
    fn register(&self, source: &mut impl Source, interest: Interest) -> io::Result<()> {
        let registered = &mut self.reactor.waiting.borrow_mut()[self.key].registered;
        let all = registered.map_or(interest, |registered| registered | interest);
        let token = Token(self.key.data().as_ffi() as usize);
        match *registered {
            Some(registered) if registered == all => return Ok(()),
            Some(_) => source.reregister(&self.reactor.registry, token, all)?,
            None => source.register(&self.reactor.registry, token, all)?,
        }
        *registered = Some(all);
        Ok(())
    }

    /// Makes the kernel forget a source that lives on.
    fn deregister(self, source: &mut impl Source) {
        if self.reactor.waiting.borrow()[self.key].registered.is_some() {
            // It fails if the source was never registered.
            let _ = source.deregister(&self.reactor.registry);
        }
    }
}

impl Drop for ReadinessWaiter {
    fn drop(&mut self) {
        // Dropped after the borrow has ended: see `register_waker`.
        let _removed = self.reactor.waiting.borrow_mut().remove(self.key);
    }
}

// ---- sockets ------------------------------------------------------------------------------------------------------

/// A client's socket, owned by one task.
pub(super) struct Stream {
    socket: mio::net::TcpStream,
    waiter: ReadinessWaiter,
}

impl Stream {
    /// Takes over a connected, non-blocking socket.
    pub(super) fn new(reactor: &Rc<Reactor>, socket: OwnedFd) -> Self {
        Self { socket: socket.into(), waiter: ReadinessWaiter::new(reactor) }
    }

    /// Reads what has arrived, or waits for more.
    ///
    /// # Errors
    /// If the connection is gone.
    pub(super) fn poll_read(&mut self, cx: &Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
        self.waiter.poll(&mut self.socket, Interest::READABLE, cx.waker(), |socket| socket.read(bytes))
    }

    /// Writes what the socket takes, or waits until it takes something.
    ///
    /// # Errors
    /// If the connection is gone.
    pub(super) fn poll_write(&mut self, cx: &Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.waiter.poll(&mut self.socket, Interest::WRITABLE, cx.waker(), |socket| socket.write(bytes))
    }

    /// Writes once without waiting and ignores the outcome.
    pub(super) fn write_now(&mut self, bytes: &[u8]) {
        let _ = self.socket.write(bytes);
    }

    /// Shuts down the writing side. A failure means that the peer is gone, which the next read reports.
    pub(super) fn shutdown_write(&self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Lets [`TaskWaker::wake`] wake its task, even if the task waits for nothing else.
    pub(super) fn register_task_waker(&self, cx: &Context<'_>) {
        self.waiter.register_waker(cx.waker());
    }

    /// Number of written bytes, the end of the stream included, that the peer's kernel has not acknowledged.
    pub(super) fn unacknowledged(&self) -> usize {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the descriptor is the stream's own, and the call (tcp(7), SIOCOUTQ) writes one int.
        let asked = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
        if asked == 0 { usize::try_from(bytes).unwrap_or(0) } else { 0 }
    }

    /// Closes the socket at once. By default the kernel keeps unacknowledged bytes as long as the peer answers probes,
    /// outside every limit of ours; so a connection with such bytes is reset.
    pub(super) fn close_now(self) {
        if self.unacknowledged() > 0 {
            // It fails if the connection is gone.
            let _ = rustix::net::sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
        }
    }

    /// The socket, to be passed to another shard or thread.
    pub(super) fn into_fd(self) -> OwnedFd {
        let Self { mut socket, waiter } = self;
        waiter.deregister(&mut socket);
        socket.into()
    }

    /// The descriptor, which is valid until the stream is dropped.
    pub(super) fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// A handle that wakes its task.
    pub(super) fn task_waker(&self) -> TaskWaker {
        TaskWaker { reactor: Rc::clone(&self.waiter.reactor), key: self.waiter.key }
    }
}

/// Wakes the task of a stream. Does nothing once the stream is dropped.
pub(super) struct TaskWaker {
    reactor: Rc<Reactor>,
    key: WaitKey,
}

impl TaskWaker {
    /// Wakes the task once per wait: the executor's wake count has 16 bits (glommio 0.9).
    pub(super) fn wake(&self) {
        self.reactor.wake(self.key);
    }
}

/// A shard's listener.
pub(super) struct Listener {
    socket: mio::net::TcpListener,
    waiter: ReadinessWaiter,
}

impl Listener {
    /// Takes over a non-blocking listener.
    pub(super) fn new(reactor: &Rc<Reactor>, socket: std::net::TcpListener) -> Self {
        Self { socket: mio::net::TcpListener::from_std(socket), waiter: ReadinessWaiter::new(reactor) }
    }

    /// Accepts the next connection; returns it with the peer's address.
    ///
    /// # Errors
    /// The kernel's error: no descriptor or no memory is left.
    pub(super) async fn accept(&mut self) -> io::Result<(Stream, IpAddr)> {
        let Self { socket, waiter } = self;
        let accept =
            |cx: &mut Context<'_>| waiter.poll(socket, Interest::READABLE, cx.waker(), |socket| socket.accept());
        let (socket, peer) = poll_fn(accept).await?;
        Ok((Stream { socket, waiter: ReadinessWaiter::new(&self.waiter.reactor) }, peer.ip().to_canonical()))
    }
}

// ---- the wake timer -----------------------------------------------------------------------------------------------

/// Wakes a task at a given time. A timer of the executor may cost two more kernel entries per sleep; this one costs one
/// call, and only if the new deadline is earlier.
pub(super) struct WakeTimer {
    timer: OwnedFd,
    waiter: ReadinessWaiter,
    set_for: Cell<Option<Instant>>,
}

impl WakeTimer {
    /// # Errors
    /// If no descriptor is left for it, or the kernel can't watch one more.
    pub(super) fn new(reactor: &Rc<Reactor>) -> io::Result<Self> {
        // SAFETY: the call takes no memory of ours.
        let timer = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) };
        if timer < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, and has no other owner.
        let timer = unsafe { OwnedFd::from_raw_fd(timer) };
        let waiter = ReadinessWaiter::new(reactor);
        waiter.register(&mut SourceFd(&timer.as_raw_fd()), Interest::READABLE)?;
        Ok(Self { timer, waiter, set_for: Cell::new(None) })
    }

    /// Wakes the task at this time, or earlier.
    pub(super) fn set(&self, at: Instant, now: Instant, task: &Waker) {
        self.waiter.register_waker(task);
        if self.set_for.get().is_some_and(|set_for| now < set_for && set_for <= at) {
            return;
        }
        let after = at.saturating_duration_since(now).max(Duration::from_nanos(1));
        let once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let it_value = libc::timespec {
            tv_sec: libc::time_t::try_from(after.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(after.subsec_nanos()),
        };
        let setting = libc::itimerspec { it_interval: once, it_value };
        // SAFETY: the descriptor is the timer's own, the setting outlives the call, and the old one is not
        // returned.
        let set = unsafe { libc::timerfd_settime(self.timer.as_raw_fd(), 0, &raw const setting, std::ptr::null_mut()) };
        assert_eq!(set, 0, "the timer is open, and the time is valid (timerfd_settime(2))");
        self.set_for.set(Some(at));
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use futures_lite::future;

    use super::super::executor::Executor;
    use super::*;
    use crate::config::Engine;

    /// Runs a task beside a reactor, on each engine.
    fn run<F: Future<Output = ()> + 'static>(task: impl Fn(Rc<Reactor>) -> F) {
        for engine in Engine::ALL {
            let reactor = Reactor::with_room_for(0).unwrap();
            let task = task(Rc::clone(&reactor));
            Executor::new(engine, None).unwrap().run(future::or(task, async {
                reactor.run().await;
                unreachable!("it runs for ever");
            }));
        }
    }

    /// A client's end, and a shard's.
    async fn accepted(reactor: &Rc<Reactor>) -> (TcpStream, Stream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = std::thread::spawn(move || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap());
        let (stream, _) = Listener::new(reactor, listener).accept().await.unwrap();
        (client.join().unwrap(), stream)
    }

    async fn read(stream: &mut Stream) -> Vec<u8> {
        let mut bytes = [0; 64];
        let len = poll_fn(|cx| stream.poll_read(cx, &mut bytes)).await.unwrap();
        bytes[..len].to_vec()
    }

    #[test]
    fn a_reader_is_woken_by_each_arrival_and_by_end_of_input() {
        run(|reactor| async move {
            let (client, mut stream) = accepted(&reactor).await;
            let (word, words) = crossbeam_channel::bounded::<&'static [u8]>(0);
            let says = std::thread::spawn(move || words.iter().for_each(|word| (&client).write_all(word).unwrap()));
            for said in [&b"one"[..], b"two", b"three"] {
                word.send(said).unwrap();
                assert_eq!(read(&mut stream).await, said);
            }
            drop(word);
            assert_eq!(read(&mut stream).await, b"");
            says.join().unwrap();
        });
    }

    #[test]
    fn a_writer_is_woken_when_the_socket_is_writable_again() {
        run(|reactor| async move {
            let (mut client, mut stream) = accepted(&reactor).await;
            const LEN: usize = 32 * 1024 * 1024;
            let (full, is_full) = crossbeam_channel::bounded(1);
            let reads = std::thread::spawn(move || {
                is_full.recv().expect("more than the socket takes at once");
                let mut bytes = vec![0; LEN];
                client.read_exact(&mut bytes).unwrap();
                bytes
            });
            let sent: Vec<u8> = (0..LEN).map(|at| (at % 251) as u8).collect();
            let mut left = &sent[..];
            while !left.is_empty() {
                let written = poll_fn(|cx| {
                    let written = stream.poll_write(cx, left);
                    if written.is_pending() {
                        let _already_full = full.try_send(());
                    }
                    written
                });
                left = &left[written.await.unwrap()..];
            }
            drop(full);
            assert!(reads.join().unwrap() == sent);
        });
    }

    #[test]
    fn a_task_waker_wakes_its_task_and_does_nothing_after_the_stream_is_dropped() {
        run(|reactor| async move {
            let (_client, mut stream) = accepted(&reactor).await;
            let task_waker = stream.task_waker();
            let mut polls = 0;
            poll_fn(|cx| {
                polls += 1;
                assert!(stream.poll_read(cx, &mut [0]).is_pending());
                task_waker.wake();
                if polls < 3 { Poll::Pending } else { Poll::Ready(()) }
            })
            .await;
            drop(stream);
            assert!(reactor.waiting.borrow().is_empty());
            task_waker.wake();
        });
    }

    #[test]
    fn a_socket_moves_to_another_reactor() {
        run(|reactor| async move {
            let (mut client, mut stream) = accepted(&reactor).await;
            let no_wait = poll_fn(|cx| Poll::Ready(stream.poll_read(cx, &mut [0]).is_pending()));
            assert!(no_wait.await, "nothing has arrived, and the interest is registered");
            let socket = stream.into_fd();
            let other = Reactor::with_room_for(0).unwrap();
            let mut stream = Stream::new(&other, socket);
            client.write_all(b"here").unwrap();
            future::or(
                async {
                    assert_eq!(read(&mut stream).await, b"here");
                    let registered = poll_fn(|cx| Poll::Ready(stream.poll_read(cx, &mut [0]).is_pending()));
                    assert!(registered.await);
                    client.write_all(b"again").unwrap();
                    assert_eq!(read(&mut stream).await, b"again");
                },
                Rc::clone(&other).run(),
            )
            .await;
            let mut events = Events::with_capacity(1);
            assert!(!reactor.poll_events(&mut events) && events.is_empty(), "the first one gets no event");
        });
    }

    #[test]
    fn a_failed_registration_is_logged_once_and_returned_as_an_error() {
        run(|reactor| async move {
            let file = std::fs::File::open("/proc/self/exe").unwrap();
            let refused = async || {
                let waiter = ReadinessWaiter::new(&reactor);
                let blocks = |_: &mut SourceFd<'_>| Err::<(), _>(io::ErrorKind::WouldBlock.into());
                poll_fn(|cx| waiter.poll(&mut SourceFd(&file.as_raw_fd()), Interest::READABLE, cx.waker(), blocks))
                    .await
            };
            // epoll_ctl(2): a regular file is never waited for.
            assert_eq!(refused().await.unwrap_err().raw_os_error(), Some(libc::EPERM));
            assert!(refused().await.is_err());
            assert_eq!(reactor.registration_failures.admit(Instant::now()), None, "logged a moment ago");
        });
    }

    #[test]
    fn the_wake_timer_fires_at_its_earliest_deadline_and_can_be_rearmed() {
        run(|reactor| async move {
            let wake_timer = WakeTimer::new(&reactor).unwrap();
            let start = Instant::now();
            let after = |ms| start + Duration::from_millis(ms);
            let mut set = vec![after(3_600_000), after(20), after(7_200_000)].into_iter();
            let wake = async |times: &mut dyn Iterator<Item = Instant>| {
                let mut woken = false;
                poll_fn(|cx| {
                    if std::mem::replace(&mut woken, true) {
                        return Poll::Ready(());
                    }
                    times.for_each(|at| wake_timer.set(at, Instant::now(), cx.waker()));
                    Poll::Pending
                })
                .await;
            };
            wake(&mut set).await;
            assert!(start.elapsed() >= Duration::from_millis(20));
            wake(&mut [Instant::now() + Duration::from_millis(5), start].into_iter()).await;
            assert!(start.elapsed() < Duration::from_secs(3_600));
        });
    }
}
