//! Assembles anchors, stitches, maps and variants into a family's graph.
//!
//! Knows no budgets and runs nothing. Start at [`Family::load`].

mod builder;
#[cfg(test)]
mod fuzz_tests;
mod language;
mod loaded;
mod maps;
mod networks;
mod promises;
mod sides;
mod steps;
mod variants;

pub use loaded::Family;
pub use steps::StepRun;
