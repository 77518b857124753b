//! Errors of families.

use std::path::{Path, PathBuf};

use super::{fault::Fault, files::MANIFEST_FILE};

/// Error for an invalid manifest or graph, or for a plan that the graph does not have.
#[derive(Debug, thiserror::Error)]
pub enum FamilyError {
    /// The manifest cannot be read.
    #[error("{}: cannot be read", path.display())]
    Unreadable {
        /// The manifest's path.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// The manifest is not valid TOML, or has a wrong or unknown key.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// The manifest's path.
        path: PathBuf,
        /// The parser's message, with the line and column.
        message: String,
    },
    /// A key has an invalid value.
    #[error("{}: {fault}", path.display())]
    Value {
        /// The manifest's path.
        path: PathBuf,
        /// The key, its value and the valid values.
        fault: Fault,
    },
    /// A module starts or ends in a space that does not exist.
    #[error("module `{module}` names the space `{space}`, which does not exist; known: {known}")]
    DanglingModule {
        /// The module.
        module: String,
        /// The missing space.
        space: String,
        /// The spaces that exist.
        known: String,
    },
    /// The modules form a cycle.
    #[error("the graph has a cycle through the space `{space}`")]
    Cycle {
        /// A space on the cycle.
        space: String,
    },
    /// No path leads from the input to the output.
    #[error("no path leads from the input to the output")]
    NoPath,
    /// Two modules share a name, or a plan id cannot tell them apart.
    #[error("two modules are called `{module}`")]
    DuplicateModule {
        /// The name of the second module.
        module: String,
    },
    /// A text is not a plan id.
    #[error("`{id}` is not a plan: {reason}")]
    PlanSyntax {
        /// The text.
        id: String,
        /// The fault, and the values that are valid.
        reason: String,
    },
}

impl FamilyError {
    /// Returns the error for `fault` of the manifest in `folder`.
    pub fn value(folder: &Path, fault: Fault) -> Self {
        Self::at(&folder.join(MANIFEST_FILE), fault)
    }

    /// Returns the error for `fault` of the manifest at `path`.
    pub(super) fn at(path: &Path, fault: Fault) -> Self {
        Self::Value { path: path.to_owned(), fault }
    }
}
