//! discovery (to come: a stand-in, so that the command line compiles)

/// Who the members of the cluster are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    /// All pods that share the Redis of the settings.
    Redis,
    /// This pod alone, without Redis: for the demo.
    Alone,
}
