//! Clients that were away while something happened to the log, and come back with a cursor.

use loadtest::client::{Client, Message};
use loadtest::events::{number_of, seen};
use loadtest::pods::Pod;

use super::expect_numbers;

/// The cursor of a message.
#[track_caller]
pub(crate) fn cursor_of(message: &Message) -> String {
    message.json()["cursor"].as_str().unwrap_or_else(|| panic!("no cursor: {}", message.text)).to_owned()
}

/// The cursor on the event of this number.
#[track_caller]
pub(crate) fn cursor_at(client: &Client, number: u64) -> String {
    cursor_of(seen(client).find(|message| number_of(message) == number).expect("the client saw the event"))
}

/// Whether a client of `assessment` who comes to a pod with this cursor is resumed, and its connection.
#[track_caller]
pub(crate) fn comes_back(pod: &Pod, assessment: &str, cursor: &str) -> (bool, Client) {
    let mut client = pod.ask().assessment(assessment).parameter(&format!("cursor={cursor}")).open();
    let connected = client.expect_type("connected").json();
    (connected["resumed"].as_bool().expect("a verdict"), client)
}

/// Comes to a pod with this cursor, and checks that exactly the events of these numbers follow, in this order.
#[track_caller]
pub(crate) fn goes_on(pod: &Pod, cursor: &str, expected: impl IntoIterator<Item = u64>) -> Client {
    let (is_resumed, mut client) = comes_back(pod, "a", cursor);
    assert!(is_resumed, "{}: {:?}", pod.name(), client.messages());
    expect_numbers(&mut client, expected);
    assert_eq!(client.of_type("reset").count(), 0);
    client
}

/// Comes to a pod with this cursor, and checks that it is told to fetch its state anew, and nothing of the past; and
/// that the cursor that it is told is good.
#[track_caller]
pub(crate) fn is_reset(pod: &Pod, cursor: &str, reason: &str) {
    let reset = is_told(pod, cursor, reason);
    goes_on(pod, &cursor_of(&reset), []);
}

/// Comes to a pod with this cursor, and checks that it is told to fetch its state anew, and nothing of the past.
#[track_caller]
pub(crate) fn is_told(pod: &Pod, cursor: &str, reason: &str) -> Message {
    let (is_resumed, mut client) = comes_back(pod, "a", cursor);
    let reset = client.expect_type("reset");
    assert_eq!((is_resumed, reset.json()["reason"].as_str()), (false, Some(reason)), "{}", pod.name());
    expect_numbers(&mut client, []);
    reset
}
