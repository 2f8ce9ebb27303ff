//! Stops every process and describes it.
