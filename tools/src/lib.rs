//! Support code of the programs.
