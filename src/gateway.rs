//! The parts, built and connected (to come).
