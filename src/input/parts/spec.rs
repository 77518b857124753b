//! Parts that are looked for in an answer.

use std::sync::Arc;

use super::format::CallFormat;

/// Parts that are looked for in an answer.
#[derive(Debug, Clone, Default)]
pub struct PartsSpec {
    /// Form of calls; `None` for an answer in which calls are text.
    pub calls: Option<CallFormat>,
    /// Names of the functions that may be called.
    pub functions: Arc<[String]>,
    /// Whether the model writes thoughts.
    pub thinks: bool,
    /// Whether the prompt ends in a thought, so that the answer begins in it.
    pub in_thought: bool,
}
