//! The connections of a shard: all of them, the subscribers of each assessment, and those that wait for their turn. What
//! is sent to them is left to [`super::state`].

use std::ops::{Index, IndexMut};

use slotmap::{SecondaryMap, SlotMap};

use super::connection::{Connection, ConnectionKey, DueQueue, Subscription};
use crate::ids::AssessmentHash;
use crate::stream::history::{AssessmentLogKey, Position};

/// A shard's connections by key. Each one knows its index in the lists that hold it, so that removing it costs the same
/// with any number of others.
pub(super) struct Connections<S> {
    slots: SlotMap<ConnectionKey, Connection<S>>,
    /// All keys, in no order.
    keys: Vec<ConnectionKey>,
    subscribers: SecondaryMap<AssessmentLogKey, Subscribers>,
    due_queue: DueQueue,
}

/// The subscribers of an assessment. Most have one, which needs no allocation.
enum Subscribers {
    One(ConnectionKey),
    Several(Vec<ConnectionKey>),
}

impl Subscribers {
    fn as_slice(&self) -> &[ConnectionKey] {
        match self {
            Self::One(key) => std::slice::from_ref(key),
            Self::Several(keys) => keys,
        }
    }

    fn push(&mut self, key: ConnectionKey) {
        match self {
            Self::One(first) => *self = Self::Several(vec![*first, key]),
            Self::Several(keys) => keys.push(key),
        }
    }

    /// Removes the subscriber at an index, whose place the last one takes; returns whether any is left.
    fn swap_remove(&mut self, index: usize) -> bool {
        match self {
            Self::One(_) => false,
            Self::Several(keys) => {
                keys.swap_remove(index);
                !keys.is_empty()
            }
        }
    }
}

// As large as the list alone.
const _: () = assert!(size_of::<Subscribers>() == size_of::<Vec<ConnectionKey>>());

/// Connections to be visited, beside what a visit may change.
pub(super) struct Visit<'a, S> {
    pub(super) keys: &'a [ConnectionKey],
    /// The connections by key, others included.
    pub(super) slots: &'a mut SlotMap<ConnectionKey, Connection<S>>,
    pub(super) due_queue: &'a mut DueQueue,
}

impl<S> Default for Connections<S> {
    fn default() -> Self {
        Self {
            slots: SlotMap::with_key(),
            keys: Vec::new(),
            subscribers: SecondaryMap::new(),
            due_queue: DueQueue::default(),
        }
    }
}

impl<S> Connections<S> {
    /// Takes address space for this many, so that growing copies nothing and leaves no holes. Memory that is not used is not
    /// resident.
    pub(super) fn reserve(&mut self, count: usize) {
        self.slots.reserve(count);
        self.keys.reserve(count);
    }

    pub(super) fn insert(&mut self, mut connection: Connection<S>) -> ConnectionKey {
        connection.index = index_of_len(self.keys.len());
        let key = self.slots.insert(connection);
        self.keys.push(key);
        key
    }

    /// Lists a connection as a subscriber. The history counts subscribers by itself.
    pub(super) fn subscribe(
        &mut self,
        key: ConnectionKey,
        log_key: AssessmentLogKey,
        (hash, position): (AssessmentHash, Position),
    ) {
        let index = match self.subscribers.get_mut(log_key) {
            Some(subscribers) => {
                let index = index_of_len(subscribers.as_slice().len());
                subscribers.push(key);
                index
            }
            None => {
                self.subscribers.insert(log_key, Subscribers::One(key));
                0
            }
        };
        self.slots[key].subscription = Some(Subscription { log_key, hash, position, index });
    }

    /// Takes a connection out of the lists that hold it.
    pub(super) fn remove(&mut self, key: ConnectionKey) -> Option<Connection<S>> {
        let connection = self.slots.remove(key)?;
        self.keys.swap_remove(connection.index as usize);
        if let Some(&moved) = self.keys.get(connection.index as usize) {
            self.slots[moved].index = connection.index;
        }
        if let Some(subscription) = connection.subscription {
            self.unsubscribe(subscription);
        }
        Some(connection)
    }

    fn unsubscribe(&mut self, subscription: Subscription) {
        let Some(subscribers) = self.subscribers.get_mut(subscription.log_key) else { return };
        if !subscribers.swap_remove(subscription.index as usize) {
            self.subscribers.remove(subscription.log_key);
            return;
        }
        if let Some(&moved) = subscribers.as_slice().get(subscription.index as usize)
            && let Some(other) = &mut self.slots[moved].subscription
        {
            other.index = subscription.index;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// All keys. The last one takes the place of one that is removed, so that passes go backwards and skip none.
    pub(super) fn keys(&self) -> &[ConnectionKey] {
        &self.keys
    }

    pub(super) fn contains_key(&self, key: ConnectionKey) -> bool {
        self.slots.contains_key(key)
    }

    pub(super) fn get(&self, key: ConnectionKey) -> Option<&Connection<S>> {
        self.slots.get(key)
    }

    pub(super) fn get_mut(&mut self, key: ConnectionKey) -> Option<&mut Connection<S>> {
        self.slots.get_mut(key)
    }

    pub(super) fn subscribers(&self, log_key: AssessmentLogKey) -> &[ConnectionKey] {
        self.subscribers.get(log_key).map_or(&[], Subscribers::as_slice)
    }

    /// All connections, to be visited.
    pub(super) fn visit_all(&mut self) -> Visit<'_, S> {
        Visit { keys: &self.keys, slots: &mut self.slots, due_queue: &mut self.due_queue }
    }

    /// The subscribers of an assessment, to be visited.
    pub(super) fn visit_subscribers(&mut self, log_key: AssessmentLogKey) -> Visit<'_, S> {
        let keys = self.subscribers.get(log_key).map_or(&[][..], Subscribers::as_slice);
        Visit { keys, slots: &mut self.slots, due_queue: &mut self.due_queue }
    }

    /// A connection to be written to, beside the queue that it may have to wait in.
    pub(super) fn with_queue(&mut self, key: ConnectionKey) -> Option<(&mut Connection<S>, &mut DueQueue)> {
        Some((self.slots.get_mut(key)?, &mut self.due_queue))
    }

    /// Queues a connection for a turn.
    pub(super) fn push_due(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.slots.get_mut(key) {
            self.due_queue.push(key, connection);
        }
    }

    /// Takes the next connection out of the queue.
    pub(super) fn pop_due(&mut self) -> Option<ConnectionKey> {
        self.due_queue.pop(&mut self.slots)
    }

    /// Whether a connection waits for a turn.
    pub(super) fn has_due(&self) -> bool {
        !self.due_queue.is_empty()
    }
}

impl<S> Index<ConnectionKey> for Connections<S> {
    type Output = Connection<S>;

    fn index(&self, key: ConnectionKey) -> &Connection<S> {
        &self.slots[key]
    }
}

impl<S> IndexMut<ConnectionKey> for Connections<S> {
    fn index_mut(&mut self, key: ConnectionKey) -> &mut Connection<S> {
        &mut self.slots[key]
    }
}

fn index_of_len(len: usize) -> u32 {
    u32::try_from(len).expect("a shard has fewer connections than a process has descriptors")
}
