//! Errors of graphs, tables, budgets and choices.

use thiserror::Error;

use super::limits::{MAX_PLAN_ID_BYTES, MAX_VALUE};

/// Error for an invalid graph, search, grid or plan table.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum PlanError {
    /// An edge starts or ends at a space that does not exist.
    #[error("edge {edge} names space {space}, but there are {num_spaces} spaces")]
    EdgeOutOfRange {
        /// Index of the edge.
        edge: usize,
        /// The missing space.
        space: usize,
        /// Number of spaces of the graph.
        num_spaces: usize,
    },
    /// The input or the output is a space that does not exist.
    #[error("the {end} is space {space}, but there are {num_spaces} spaces")]
    EndOutOfRange {
        /// `input` or `output`.
        end: &'static str,
        /// The missing space.
        space: usize,
        /// Number of spaces of the graph.
        num_spaces: usize,
    },
    /// An edge has a latency that is negative, infinite or not a number.
    #[error("edge {edge} has latency {latency_seconds} s, it must be finite and not negative")]
    InvalidLatency {
        /// Index of the edge.
        edge: usize,
        /// The refused latency.
        latency_seconds: f64,
    },
    /// An edge has a loss that is infinite or not a number.
    #[error("edge {edge} has loss {loss}, it must be finite")]
    InvalidLoss {
        /// Index of the edge.
        edge: usize,
        /// The refused loss.
        loss: f64,
    },
    /// The sum of the costs of all edges up to this one overflows.
    #[error("the costs of edges 0 to {edge} overflow when added")]
    CostOverflow {
        /// Index of the edge at which the sum overflows.
        edge: usize,
    },
    /// The graph has a cycle.
    #[error("edge {edge} lies on a cycle")]
    Cycle {
        /// Index of one edge of the cycle.
        edge: usize,
    },
    /// No path leads from the input to the output.
    #[error("no path leads from the input, space {input}, to the output, space {output}")]
    OutputUnreachable {
        /// Index of the input space.
        input: usize,
        /// Index of the output space.
        output: usize,
    },
    /// The tolerance of a search is negative, infinite or not a number.
    #[error("epsilon is {epsilon}, it must be finite and not negative")]
    InvalidEpsilon {
        /// The refused tolerance.
        epsilon: f64,
    },
    /// A space has more non-dominated partial paths than the search may keep.
    #[error(
        "space {space} has {num_labels} non-dominated partial paths, {max_labels} are allowed; \
         raise the limit or epsilon"
    )]
    TooManyLabels {
        /// The space where the search stopped.
        space: usize,
        /// Number of partial paths at this space.
        num_labels: usize,
        /// Most partial paths per space.
        max_labels: usize,
    },
    /// An axis of a grid is empty.
    #[error("the {axis} axis is empty")]
    EmptyAxis {
        /// `batches` or `tokens`.
        axis: &'static str,
    },
    /// An axis of a grid does not start at 1 or more, or does not increase.
    #[error("the {axis} axis has {value} at {position}, it must start at 1 and increase strictly")]
    UnorderedAxis {
        /// `batches` or `tokens`.
        axis: &'static str,
        /// Index of the refused knot.
        position: usize,
        /// The refused knot.
        value: usize,
    },
    /// A grid does not have exactly one value per pair of knots.
    #[error("a grid of {num_batches} x {num_tokens} knots has {num_values} values")]
    WrongNumValues {
        /// Number of knots of the batch axis.
        num_batches: usize,
        /// Number of knots of the token axis.
        num_tokens: usize,
        /// Number of values given.
        num_values: usize,
    },
    /// A value of a grid is negative, too large or not a number.
    #[error("grid value {position} is {value}, it must lie in [0, {MAX_VALUE:e}]")]
    InvalidValue {
        /// Index of the value, in row-major order.
        position: usize,
        /// The refused value.
        value: f64,
    },
    /// The grids to combine have different axes, or there are none.
    #[error("grids can be combined only on equal axes, and at least one is needed")]
    GridMismatch,
    /// A plan table is empty.
    #[error("the plan table is empty")]
    EmptyTable,
    /// Two plans of a table share an id.
    #[error("plan id `{id}` occurs twice")]
    DuplicatePlan {
        /// The shared id.
        id: String,
    },
    /// A plan has a quality outside [0, 1].
    #[error("plan `{id}` has quality {quality}, it must lie in [0, 1]")]
    InvalidQuality {
        /// Id of the plan.
        id: String,
        /// The refused quality.
        quality: f64,
    },
    /// The latency margin of a table is negative, infinite or not a number.
    #[error("the latency margin is {margin}, it must be finite and not negative")]
    InvalidMargin {
        /// The refused margin.
        margin: f64,
    },
}

/// Error for request parameters that are not a valid [`Budget`](super::Budget).
#[derive(Debug, Clone, PartialEq, Error)]
pub enum BudgetError {
    /// A number is outside its range.
    #[error("{parameter} is {value}, it must lie in {range}")]
    OutOfRange {
        /// Name of the parameter, as the client sends it.
        parameter: &'static str,
        /// The refused value.
        value: f64,
        /// The valid range, in interval notation.
        range: &'static str,
    },
    /// A plan id is empty or too long.
    #[error("plan has {num_bytes} bytes, it must have 1 to {MAX_PLAN_ID_BYTES}")]
    PlanIdLength {
        /// Length of the given id, in bytes.
        num_bytes: usize,
    },
}

impl BudgetError {
    /// Returns the name of the parameter, as the client sends it.
    pub fn parameter(&self) -> &'static str {
        match self {
            Self::OutOfRange { parameter, .. } => parameter,
            Self::PlanIdLength { .. } => "plan",
        }
    }
}
