//! Tests over the golden sets.

mod sets;
