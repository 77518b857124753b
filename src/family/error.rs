//! What can be wrong with a family.

use std::path::{Path, PathBuf};

use super::files::MANIFEST_FILE;

/// Why a manifest or a graph is refused, or a plan does not exist in it.
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
    /// The manifest is no valid TOML or has a wrong or unknown key.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// The manifest's path.
        path: PathBuf,
        /// What the parser says, with the place.
        message: String,
    },
    /// A key has a value that cannot be.
    #[error("{}: key `{key}` is `{value}`, but {expected}", path.display())]
    Value {
        /// The manifest's path.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What would be valid.
        expected: String,
    },
    /// A module starts or ends in a space that does not exist.
    #[error("module `{module}` names the space `{space}`, which does not exist; known: {known}")]
    DanglingModule {
        /// The module.
        module: String,
        /// The space it names.
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
    /// Two modules have the same name, or cannot be told apart in a plan id.
    #[error("two modules are called `{module}`")]
    DuplicateModule {
        /// The name.
        module: String,
    },
    /// A text is no plan id.
    #[error("`{id}` is no plan: {reason}")]
    PlanSyntax {
        /// The text.
        id: String,
        /// What is wrong, and what would be valid.
        reason: String,
    },
}

impl FamilyError {
    /// Returns the error for the key `key` of the manifest in `folder`, which has the wrong `value`.
    pub fn value(folder: &Path, key: &str, value: String, expected: String) -> Self {
        Self::Value { path: folder.join(MANIFEST_FILE), key: key.into(), value, expected }
    }
}
