//! What all our clients of librdkafka share: settings, log callbacks, the delay of fetches, shutdown.
//! [`super::batching_delay`] decides how long a fetch is held back, [`super::stall_detector`] and
//! [`super::reachability`] when a client is replaced.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::bindings as sys;
use rdkafka::client::ClientContext;
use rdkafka::error::KafkaError;
use rdkafka::types::{RDKafkaRespErr, RDKafkaType};
use tracing::{debug, error, warn};

use super::oauth;
use crate::config::OidcConfig;
use crate::limits::{CLIENTS_ENDING_MAX, KAFKA_LOG_EVERY};
use crate::log_throttle::LogThrottles;

// ---- settings -----------------------------------------------------------------------------------------------------

/// librdkafka rejects the settings: a fault in `KAFKA_PROPERTIES_FILE` or `KAFKA_BROKERS`. The error names the property,
/// and never its value, which may be a password.
#[derive(Debug, thiserror::Error)]
pub enum InvalidProperties {
    /// A property is unknown, or its value is invalid.
    #[error("KAFKA_PROPERTIES_FILE: librdkafka does not take the value of {0:?}, or does not know it")]
    Property(Box<str>),
    /// They contradict each other, or name a file that is missing, such as a certificate.
    #[error("KAFKA_PROPERTIES_FILE: librdkafka can't work with these properties: {0}")]
    Together(Box<str>),
    /// The process has no file descriptor left for the consumer.
    #[error("no descriptor for Kafka's consumer: {0}")]
    NoDescriptor(#[from] io::Error),
}

/// A client that reports log lines and errors by callbacks, because the batch call serves callbacks, not events.
pub(super) fn client(properties: &ClientConfig, context: Context) -> Result<KafkaClient, InvalidProperties> {
    let native = properties.create_native_config().map_err(|error| match error {
        KafkaError::ClientConfig(_, _, property, _) => InvalidProperties::Property(property.into()),
        _ => InvalidProperties::Property("a name or value with a NUL".into()),
    })?;
    // SAFETY: the configuration is alive, and both functions have the types that the header asks for.
    unsafe {
        sys::rd_kafka_conf_set_log_cb(native.ptr(), Some(on_log));
        sys::rd_kafka_conf_set_error_cb(native.ptr(), Some(on_error));
    }
    let gets_tokens = context.oidc.is_some();
    if gets_tokens {
        // SAFETY: as above.
        unsafe {
            sys::rd_kafka_conf_set_oauthbearer_token_refresh_cb(native.ptr(), Some(on_token_wanted));
            sys::rd_kafka_conf_enable_sasl_queue(native.ptr(), 1);
        }
    }
    let client = rdkafka::client::Client::new(properties, native, RDKafkaType::RD_KAFKA_CONSUMER, context)
        .map(|client| KafkaClient(ManuallyDrop::new(client)))
        .map_err(|error| InvalidProperties::Together(error.to_string().into()))?;
    if gets_tokens {
        // A thread of librdkafka's own waits for the provider, and not the one that reads.
        // SAFETY: the client is alive; an error is ours to destroy.
        unsafe {
            let error = sys::rd_kafka_sasl_background_callbacks_enable(client.native_ptr());
            if !error.is_null() {
                sys::rd_kafka_error_destroy(error);
                return Err(InvalidProperties::Together("no thread for tokens".into()));
            }
        }
    }
    Ok(client)
}

// ---- log lines of librdkafka --------------------------------------------------------------------------------------

/// Receives librdkafka's log lines. It reports a broker that is down each second: the same line is logged once in
/// [`KAFKA_LOG_EVERY`].
pub(super) struct Context {
    /// Whether errors are logged as warnings. Two clients of one cluster have the same errors; one of them logs.
    heard: bool,
    log_throttle: Mutex<LogThrottles<Box<str>>>,
    /// All connections were lost since the last answer.
    all_down: AtomicBool,
    /// A connection was refused since the last answer.
    refused: AtomicBool,
    /// From whom to get tokens.
    oidc: Option<OidcConfig>,
}

impl Context {
    pub(super) fn new(heard: bool, oidc: Option<OidcConfig>) -> Self {
        let log_throttle = Mutex::new(LogThrottles::new(KAFKA_LOG_EVERY));
        Self { heard, log_throttle, all_down: AtomicBool::new(false), refused: AtomicBool::new(false), oidc }
    }

    /// Whether the brokers are gone rather than hanging: this client's connections are lost, and new ones are refused.
    pub(super) fn are_brokers_gone(&self) -> bool {
        self.all_down.load(Ordering::Relaxed) && self.refused.load(Ordering::Relaxed)
    }

    /// A broker answered.
    pub(super) fn handle_answer(&self) {
        self.all_down.store(false, Ordering::Relaxed);
        self.refused.store(false, Ordering::Relaxed);
    }

    /// Logs a line at our level. librdkafka recovers from what it logs as errors, so they are warnings here.
    fn say(&self, severity: c_int, kind: &str, text: &str) {
        match severity {
            // Emergency, alert and critical: it can't continue.
            ..=2 if self.heard => error!(kind, "librdkafka: {text}"),
            ..=4 => {
                let mut log_throttle = self.log_throttle.lock().unwrap_or_else(PoisonError::into_inner);
                match log_throttle.admit(kind.into(), Instant::now()) {
                    Some(held_back) if self.heard => warn!(kind, held_back, "librdkafka: {text}"),
                    _ => debug!(kind, "librdkafka: {text}"),
                }
            }
            _ => debug!(kind, "librdkafka: {text}"),
        }
    }
}

/// rdkafka's own callbacks are never called: those below replace them.
impl ClientContext for Context {}

/// A log line. Called where a client's queue is served.
unsafe extern "C" fn on_log(
    client: *const sys::rd_kafka_t,
    severity: c_int,
    facility: *const c_char,
    text: *const c_char,
) {
    if client.is_null() {
        return;
    }
    // SAFETY: librdkafka passes a live client; its opaque is the context of the `KafkaClient` that owns it
    // (`KafkaClient::new`).
    let context = unsafe { sys::rd_kafka_opaque(client).cast::<Context>().as_ref() };
    // SAFETY: both strings are librdkafka's own, end in a NUL, and live for this call.
    let (facility, text) = unsafe { (CStr::from_ptr(facility), CStr::from_ptr(text)) };
    if let Some(context) = context {
        context.say(severity, &facility.to_string_lossy(), &text.to_string_lossy());
    }
}

/// An error of the client as a whole, such as an unreachable broker. It is logged at DEBUG: librdkafka logs a line for
/// it as well, and probes decide whether the brokers answer.
unsafe extern "C" fn on_error(_client: *mut sys::rd_kafka_t, code: c_int, reason: *const c_char, opaque: *mut c_void) {
    // SAFETY: the string is librdkafka's own, ends in a NUL, and lives for this call.
    let reason = unsafe { CStr::from_ptr(reason) }.to_string_lossy();
    // SAFETY: a client's opaque is the context of the `KafkaClient` that owns it (`KafkaClient::new`).
    if let Some(context) = unsafe { opaque.cast::<Context>().as_ref() } {
        if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN as c_int {
            context.all_down.store(true, Ordering::Relaxed);
        }
        // It has no code of its own.
        if reason.contains(CONNECT_FAILED) {
            context.refused.store(true, Ordering::Relaxed);
        }
    }
    debug!(code, "librdkafka: {reason}");
}

/// The client needs a token. Called on its thread for such callbacks. If there is none, it asks again in ten seconds.
unsafe extern "C" fn on_token_wanted(client: *mut sys::rd_kafka_t, _config: *const c_char, opaque: *mut c_void) {
    // SAFETY: a client's opaque is the context of the `KafkaClient` that owns it (`KafkaClient::new`).
    let Some(context) = (unsafe { opaque.cast::<Context>().as_ref() }) else { return };
    let Some(oidc) = &context.oidc else { return };
    let text = |text: &str| CString::new(text.replace('\0', "")).unwrap_or_default();
    let refused = match oauth::token(oidc) {
        Ok(token) => {
            let (value, principal) = (text(&token.text), text(&oidc.client_id));
            let mut why = [0; 256];
            // SAFETY: the client is alive, the strings end in a NUL and are copied, and there are no extensions.
            let code = unsafe {
                sys::rd_kafka_oauthbearer_set_token(
                    client,
                    value.as_ptr(),
                    token.valid_until_ms,
                    principal.as_ptr(),
                    ptr::null_mut(),
                    0,
                    why.as_mut_ptr(),
                    why.len(),
                )
            };
            if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                return;
            }
            "librdkafka takes no such token".to_owned()
        }
        Err(error) => error.to_string(),
    };
    if context.heard {
        warn!(url = %oidc.token_url, error = refused, "no token for Kafka");
    }
    let refused = text(&refused);
    // SAFETY: the client is alive, and the string ends in a NUL and is copied.
    unsafe { sys::rd_kafka_oauthbearer_set_token_failure(client, refused.as_ptr()) };
}

/// librdkafka's texts for a connection that was refused, or has no route to the host. A connection that timed out is not
/// among them.
const CONNECT_FAILED: &str = "Connect to ";

// ---- a client's lifetime ------------------------------------------------------------------------------------------

/// A librdkafka client. Dropping it leaves no group and waits for no broker.
pub(super) struct KafkaClient(ManuallyDrop<rdkafka::client::Client<Context>>);

impl Deref for KafkaClient {
    type Target = rdkafka::client::Client<Context>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Drop for KafkaClient {
    fn drop(&mut self) {
        let context = Arc::clone(self.0.context());
        // SAFETY: the client is alive, and this is its end: the inner value, which would end it again and would first
        // close it as a group's member, is never dropped. What that value held besides is its count of the context,
        // which is given back here after librdkafka's last use of it.
        unsafe {
            sys::rd_kafka_destroy_flags(self.0.native_ptr(), sys::RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
            Arc::decrement_strong_count(Arc::as_ptr(&context));
        }
    }
}

/// Shuts clients down, each on a thread of its own: librdkafka then waits for its own threads, and these may hang.
#[derive(Debug, Clone, Default)]
pub(super) struct ClientTerminator(Arc<AtomicUsize>);

impl ClientTerminator {
    /// Whether one more client may be shut down. If this many hang in their shutdown, another one would hang, too.
    pub(super) fn has_room(&self) -> bool {
        self.0.load(Ordering::Relaxed) < CLIENTS_ENDING_MAX
    }

    /// Shuts a client down, without waiting for it.
    pub(super) fn end(&self, client: impl Send + 'static) {
        let count = Arc::clone(&self.0);
        count.fetch_add(1, Ordering::Relaxed);
        let ends = move || {
            drop(client);
            count.fetch_sub(1, Ordering::Relaxed);
        };
        // Without a thread it is dropped here and now, and its count stays: the next one has less room.
        if let Err(error) = thread::Builder::new().name("kafka-ending".into()).spawn(ends) {
            warn!(%error, "no thread to shut down a Kafka client");
        }
    }
}

/// A time in librdkafka's unit.
pub(super) fn millis(time: Duration) -> c_int {
    c_int::try_from(time.as_millis()).unwrap_or(c_int::MAX)
}

// ---- the delay of fetches -----------------------------------------------------------------------------------------

/// How long each fetch request is held back, in this process: librdkafka's functions know no client.
static FETCH_DELAY_NS: AtomicU64 = AtomicU64::new(0);

/// Has each fetch request held back this long from now on, so that its answer has more records. librdkafka's own setting
/// (`fetch.queue.backoff.ms`) can't be changed while a client runs.
pub(super) fn delay_fetches(delay: Duration) {
    FETCH_DELAY_NS.store(u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

unsafe extern "C" {
    fn __real_rd_kafka_broker_fetch_toppars(broker: *mut c_void, now_us: i64) -> c_int;
}

/// Stands in for librdkafka's function of this name, by the linker's `--wrap` (`src/build.rs`). A broker's thread calls it
/// to ask for records, when the last answer is in the queue; a broker is asked for everything by that one thread.
// SAFETY: nothing else has a symbol of this name, and the signature is the original's.
#[unsafe(no_mangle)]
extern "C" fn __wrap_rd_kafka_broker_fetch_toppars(broker: *mut c_void, now_us: i64) -> c_int {
    let delay = FETCH_DELAY_NS.load(Ordering::Relaxed);
    if delay > 0 {
        thread::sleep(Duration::from_nanos(delay));
    }
    // SAFETY: these are librdkafka's own arguments. The time is the base of the request's time limit, which is seconds.
    unsafe { __real_rd_kafka_broker_fetch_toppars(broker, now_us) }
}

// ---- a fault of librdkafka's --------------------------------------------------------------------------------------

/// Stands in for librdkafka's function of this name, by the linker's `--wrap` (`src/build.rs`): it takes nothing in.
///
/// The original applies the leaders that a fetch response names beside an error (KIP-951). Up to at least 2.15, if one
/// of those partitions has no leader, it reads past the initialised part of its list and uses what is there as
/// partitions, negative ones included (confluentinc/librdkafka#5280, open). Without it, a client asks for the new
/// leader after the error, as with older brokers.
// SAFETY: nothing else has a symbol of this name, and the signature is the original's.
#[unsafe(no_mangle)]
extern "C" fn __wrap_rd_kafka_metadata_update_op(_client: *mut sys::rd_kafka_t, _leaders: *mut c_void) -> c_int {
    /// `RD_KAFKA_OP_RES_HANDLED`: the caller frees the list.
    const HANDLED: c_int = 1;
    HANDLED
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" {
        fn rd_kafka_broker_fetch_toppars(broker: *mut c_void, now_us: i64) -> c_int;
        fn rd_kafka_metadata_update_op(client: *mut sys::rd_kafka_t, leaders: *mut c_void) -> c_int;
    }

    #[test]
    fn fetches_pass_through_our_delay() {
        type Fetch = unsafe extern "C" fn(*mut c_void, i64) -> c_int;
        let (theirs, ours): (Fetch, Fetch) = (rd_kafka_broker_fetch_toppars, __wrap_rd_kafka_broker_fetch_toppars);
        assert!(ptr::fn_addr_eq(theirs, ours), "the linker was not told");
    }

    #[test]
    fn leaders_that_a_fetch_names_are_not_taken_in() {
        type Update = unsafe extern "C" fn(*mut sys::rd_kafka_t, *mut c_void) -> c_int;
        let (theirs, ours): (Update, Update) = (rd_kafka_metadata_update_op, __wrap_rd_kafka_metadata_update_op);
        assert!(ptr::fn_addr_eq(theirs, ours), "the linker was not told");
    }
}
