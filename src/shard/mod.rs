//! shard (to come)
