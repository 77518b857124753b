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
}
