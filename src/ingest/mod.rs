//! ingest (to come)
