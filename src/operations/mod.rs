//! operations (to come)
