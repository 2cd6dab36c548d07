//! For tests: a consumer that gives nothing any more, whatever the brokers have. librdkafka's was seen to.

use std::sync::{Mutex, PoisonError};

/// The `client.id`s whose present consumers are to get stuck.
static TO_GET_STUCK: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Whether a consumer is stuck. One that replaces it is not.
#[derive(Debug)]
pub(super) struct Stuck {
    client_id: String,
    is_stuck: bool,
}

/// Makes the present consumer of this `client.id` give nothing any more.
pub(super) fn get_stuck(client_id: &str) {
    TO_GET_STUCK.lock().unwrap_or_else(PoisonError::into_inner).push(client_id.to_owned());
}

impl Stuck {
    pub(super) fn of(client_id: &str) -> Self {
        Self { client_id: client_id.to_owned(), is_stuck: false }
    }

    /// Whether the consumer gives nothing.
    pub(super) fn gives_nothing(&mut self) -> bool {
        if !self.is_stuck {
            let mut waiting = TO_GET_STUCK.lock().unwrap_or_else(PoisonError::into_inner);
            let found = waiting.iter().position(|client_id| *client_id == self.client_id);
            self.is_stuck = found.map(|found| waiting.swap_remove(found)).is_some();
        }
        self.is_stuck
    }
}
