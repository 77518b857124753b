//! Settings of an import.

use std::{collections::HashMap, path::PathBuf};

use crate::tensor::Tensor;

/// What is imported, and how.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// The family's name.
    pub family: String,
    /// The exports, the cheapest first; the last is the reference.
    pub files: Vec<PathBuf>,
    /// Tensors to cut at, by the anchor's name, in place of those found.
    pub cuts: HashMap<String, Vec<String>>,
    /// The names of the classes; none where they are unknown.
    pub labels: Vec<String>,
    /// A `preprocessor_config.json` that says how images become tensors.
    pub preprocessor: Option<PathBuf>,
    /// The SPDX licence of the weights.
    pub license: String,
    /// Whether each image runs by itself, so that networks which mix the images of a batch, and
    /// those made for one image, can be imported.
    pub one_by_one: bool,
    /// Images to compare on besides random ones, `[batch, channels, height, width]`.
    pub probes: Vec<Tensor>,
}
