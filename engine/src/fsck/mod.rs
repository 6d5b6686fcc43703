//! Checking and reading cache sets offline: nothing here needs a running engine, and nothing writes unless it says so.

pub mod view;
