//! discovery (to come)
