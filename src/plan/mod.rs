//! Planning: the costs of paths, the paths worth keeping, and the choice of a path for a budget.
//!
//! The room has two halves. Offline, [`CostedGraph`] and [`pareto_front`] find the best paths of a
//! family. No other path beats these in latency, memory and quality at once. Per request,
//! [`PlanTable::choose`] scans the profiled paths and returns the best one that fits a [`Budget`].
//!
//! The room is pure and deterministic. It reads no clock, file, session or random number. It
//! imports no other room, so spaces and modules are indices. The caller keeps their names.
//!
//! Start at [`search`](pareto_front) for the algorithm and at [`PlanTable`] for the rules of
//! choice.

mod budget;
mod choose;
#[cfg(test)]
mod choose_tests;
mod continuation;
mod definition;
mod error;
#[cfg(test)]
mod fuzz_tests;
mod grid;
mod limits;
pub mod oracle;
mod search;
mod shape;
mod staircase;
mod table;

pub use budget::{Budget, BudgetParameters};
pub use choose::{Choice, ChooseError, Infeasible, PlanCost};
pub use continuation::{CacheLengths, Continuation};
pub use definition::{ModuleId, Offers, Plan};
pub use error::{BudgetError, PlanError};
pub use grid::Grid;
pub use limits::{MAX_LATENCY_BUDGET_MS, MAX_MEMORY_BUDGET_MB, MAX_PLAN_ID_BYTES};
pub use search::{
    CostedEdge, CostedGraph, EdgeCost, Ends, Front, FrontPath, PathCost, SearchOptions,
    cheapest_path, pareto_front, topological_order,
};
pub use shape::Shape;
pub use table::{PlanEntry, PlanTable, Quality, QualitySource};
