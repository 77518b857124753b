//! The argument that names a family.

use clap::Args;

/// The family that a command works on.
#[derive(Debug, Args)]
pub struct FamilyArgument {
    /// Family, a folder of the pool
    #[arg(long, default_value = "text")]
    pub family: String,
}
