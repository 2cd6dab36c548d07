//! The contract with clients, as rules on bytes: no socket, no clock.
//!
//! - [`head`]: the request's head, and the HTTP answers that refuse it.
//! - [`admin_tokens`]: operators' tokens, and whose a request carries.
//! - [`auth`]: verifies a token; returns the user and the assessments it allows.
//! - [`client_address`]: the client's address behind proxies.
//! - [`session`]: reads a client's frames (tungstenite, sans-io).
//! - [`pages`]: the paths of the operators' pages.
//! - [`messages`]: the gateway's own messages, and frames around JSON.
//! - [`close`]: why a connection ends: one table of codes, texts and metric labels.

#![doc = include_str!("PROTOCOL.md")]

pub mod admin_tokens;
pub mod auth;
pub mod client_address;
pub mod close;
#[cfg(test)]
pub(crate) mod contract;
pub mod head;
pub mod messages;
pub(crate) mod pages;
pub mod session;
