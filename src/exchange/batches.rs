//! The channel that carries batches to a shard, bounded by count and by bytes: waiting batches are outside the
//! history's budget, and a batch of large events is many times the size of one of small events.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, TryRecvError, TrySendError, bounded};

use crate::limits::{BATCH_CHANNEL_BYTES_MAX, BATCH_CHANNEL_DEPTH};
use crate::stream::batch::Batch;

use super::Undelivered;

/// Ingest's side of the channel. One thread sends.
#[derive(Debug, Clone)]
pub(super) struct BatchSender {
    batches: Sender<Batch>,
    /// Bytes of the batches that wait.
    bytes: Arc<AtomicUsize>,
    /// Signalled when the bytes fall below the limit; may hold a stale signal.
    room: Receiver<()>,
}

/// A shard's side of the channel.
#[derive(Debug)]
pub(crate) struct BatchReceiver {
    batches: Receiver<Batch>,
    bytes: Arc<AtomicUsize>,
    room: Sender<()>,
}

/// Makes both sides.
pub(super) fn batch_channel() -> (BatchSender, BatchReceiver) {
    let (batches_in, batches) = bounded(BATCH_CHANNEL_DEPTH);
    let (room_in, room) = bounded(1);
    let bytes = Arc::new(AtomicUsize::new(0));
    (
        BatchSender { batches: batches_in, bytes: Arc::clone(&bytes), room },
        BatchReceiver { batches, bytes, room: room_in },
    )
}

impl BatchSender {
    /// Sends a batch where there is room for it. There is while at most [`BATCH_CHANNEL_BYTES_MAX`] wait, however large
    /// the batch: so one of any size gets through.
    ///
    /// # Errors
    /// The batch comes back, where there is no room or the shard has ended.
    pub(super) fn try_send(&self, batch: Batch) -> Result<(), Undelivered> {
        if self.bytes.load(Ordering::Relaxed) > BATCH_CHANNEL_BYTES_MAX {
            return Err(Undelivered::Full(Box::new(batch)));
        }
        let bytes = batch.bytes();
        // Ahead of the sending: the shard may have taken the batch before the next line.
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let sent = self.batches.try_send(batch);
        self.taken_back(bytes, sent.is_err());
        sent.map_err(|error| match error {
            TrySendError::Full(batch) => Undelivered::Full(Box::new(batch)),
            TrySendError::Disconnected(_) => Undelivered::Ended,
        })
    }

    /// Sends a batch, and waits for room for at most about `timeout`.
    ///
    /// # Errors
    /// The batch comes back, where there was no room or the shard has ended.
    pub(super) fn send(&self, batch: Batch, timeout: Duration) -> Result<(), Undelivered> {
        if self.bytes.load(Ordering::Relaxed) > BATCH_CHANNEL_BYTES_MAX {
            let waited = self.room.recv_timeout(timeout);
            if waited == Err(RecvTimeoutError::Disconnected) {
                return Err(Undelivered::Ended);
            }
            // The wake-up may belong to an earlier wait: the sender then tries again.
            if self.bytes.load(Ordering::Relaxed) > BATCH_CHANNEL_BYTES_MAX {
                return Err(Undelivered::Full(Box::new(batch)));
            }
        }
        let bytes = batch.bytes();
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let sent = self.batches.send_timeout(batch, timeout);
        self.taken_back(bytes, sent.is_err());
        sent.map_err(|error| match error {
            SendTimeoutError::Timeout(batch) => Undelivered::Full(Box::new(batch)),
            SendTimeoutError::Disconnected(_) => Undelivered::Ended,
        })
    }

    fn taken_back(&self, bytes: usize, is_back: bool) {
        if is_back {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

impl BatchReceiver {
    /// The next batch.
    ///
    /// # Errors
    /// Where none waits, or ingest has ended.
    pub(crate) fn try_recv(&self) -> Result<Batch, TryRecvError> {
        self.batches.try_recv().inspect(|batch| self.taken(batch))
    }

    /// The next batch, waited for.
    #[cfg(test)]
    pub(crate) fn recv_timeout(&self, timeout: Duration) -> Result<Batch, RecvTimeoutError> {
        self.batches.recv_timeout(timeout).inspect(|batch| self.taken(batch))
    }

    /// How many wait.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.batches.len()
    }

    /// Whether none waits.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    fn taken(&self, batch: &Batch) {
        let bytes = batch.bytes();
        let before = self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        if before > BATCH_CHANNEL_BYTES_MAX && before - bytes <= BATCH_CHANNEL_BYTES_MAX {
            // Full is where the last one was not looked at, and will be.
            let _ = self.room.try_send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const SOON: Duration = Duration::from_millis(1);
    /// Far longer than anything here takes.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn of_bytes(count: usize) -> Batch {
        Batch { arena: vec![0; count], ..Batch::default() }
    }

    #[test]
    fn batches_of_large_events_wait_when_few_are_under_way_and_none_is_lost() {
        let (sender, receiver) = batch_channel();
        let large = BATCH_CHANNEL_BYTES_MAX / 4 + 1;
        let mut sent = 0;
        while sender.try_send(of_bytes(large)).is_ok() {
            sent += 1;
        }
        assert_eq!(sent, 4, "up to the bound, and the one that passes it");
        let Err(Undelivered::Full(back)) = sender.send(of_bytes(7), SOON) else { panic!("a small one waits, too") };
        assert_eq!(back.arena.len(), 7);

        let waiting = thread::spawn(move || sender.send(*back, PATIENCE).map(|()| sender));
        assert_eq!(receiver.try_recv().unwrap().arena.len(), large);
        let sender = waiting.join().unwrap().expect("room was made");
        let rest: Vec<_> = (0..4).map(|_| receiver.recv_timeout(PATIENCE).unwrap().arena.len()).collect();
        assert_eq!(rest, [large, large, large, 7]);
        assert!(receiver.is_empty());
        assert_eq!(sender.bytes.load(Ordering::Relaxed), 0, "the count goes back to nothing");
    }

    #[test]
    fn a_batch_over_the_bound_gets_through_and_room_that_was_made_for_nobody_lets_none_pass() {
        let (sender, receiver) = batch_channel();
        for _ in 0..3 {
            sender.try_send(of_bytes(2 * BATCH_CHANNEL_BYTES_MAX)).expect("whatever its size, where none is under way");
            assert!(matches!(sender.send(of_bytes(1), SOON), Err(Undelivered::Full(_))));
            // The sender is not waiting: the next round finds that room was made, and there is none.
            assert_eq!(receiver.try_recv().unwrap().arena.len(), 2 * BATCH_CHANNEL_BYTES_MAX);
        }
    }

    #[test]
    fn small_batches_are_bounded_by_their_number_and_what_comes_back_is_not_under_way() {
        let (sender, receiver) = batch_channel();
        for _ in 0..BATCH_CHANNEL_DEPTH {
            sender.try_send(of_bytes(10)).unwrap();
        }
        assert!(matches!(sender.try_send(of_bytes(10)), Err(Undelivered::Full(_))));
        assert!(matches!(sender.send(of_bytes(10), SOON), Err(Undelivered::Full(_))));
        assert_eq!(receiver.len(), BATCH_CHANNEL_DEPTH);
        assert_eq!(sender.bytes.load(Ordering::Relaxed), 10 * BATCH_CHANNEL_DEPTH);
    }

    #[test]
    fn a_shard_that_has_ended_takes_nothing_and_is_not_waited_for() {
        for waiting in [1, 2 * BATCH_CHANNEL_BYTES_MAX] {
            let (sender, receiver) = batch_channel();
            sender.try_send(of_bytes(waiting)).unwrap();
            drop(receiver);
            assert!(matches!(sender.send(of_bytes(1), PATIENCE), Err(Undelivered::Ended)));
        }
    }
}
