//! Planning: what paths cost, which of them are worth keeping, and which one a budget gets.
//!
//! Two halves share this room. Offline, [`CostedGraph`] and [`pareto_front`] find the paths of a
//! family that no other path beats in latency, memory and quality at once. Per request,
//! [`PlanTable::choose`] scans the profiled survivors and returns the best one that fits a
//! [`Budget`].
//!
//! The room is pure and deterministic. It reads no clock, no file, no session and no random number;
//! it imports no other room, so spaces and modules are plain indices here and the caller keeps
//! their names.
//!
//! Start at [`search`](pareto_front) for the algorithm and at [`PlanTable`] for the rules of
//! choice.

mod budget;
mod choose;
mod cost;
mod error;
mod graph;
mod grid;
mod limits;
mod search;
mod staircase;
mod table;

pub use budget::{Budget, BudgetParameters};
pub use choose::{Choice, ChooseError, Infeasible, PlanCost};
pub use cost::{EdgeCost, PathCost};
pub use error::{BudgetError, PlanError};
pub use graph::{CostedEdge, CostedGraph};
pub use grid::Grid;
pub use limits::{MAX_LATENCY_BUDGET_MS, MAX_MEMORY_BUDGET_MB, MAX_PLAN_ID_BYTES};
pub use search::{Front, FrontPath, SearchOptions, cheapest_path, pareto_front};
pub use table::{PlanEntry, PlanTable, Quality, QualitySource};

#[cfg(test)]
mod choose_tests;
#[cfg(test)]
mod search_tests;
