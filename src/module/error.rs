//! Errors of describing a module.

/// Error of describing a module.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// A router and the ways that tokens may take contradict each other.
    #[error("module `{module}`: {reason}")]
    Router {
        /// The module.
        module: String,
        /// Contradiction that was found.
        reason: String,
    },
    /// Two inputs of a network could only be its hidden states.
    #[error(
        "module `{module}`: the inputs `{first}` and `{second}` have no source; input_ids, \
         attention_mask, pixel_values and one input for hidden states are known"
    )]
    TwoStates {
        /// The module.
        module: String,
        /// First input.
        first: String,
        /// Second input.
        second: String,
    },
    /// A module that starts at the request reads hidden states.
    #[error(
        "module `{module}`: the input `{input}` has no source; input_ids, attention_mask and \
         pixel_values are known"
    )]
    NoState {
        /// The module.
        module: String,
        /// The input.
        input: String,
    },
}
