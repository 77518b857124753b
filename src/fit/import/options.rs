//! Settings of an import.

use std::{collections::HashMap, path::PathBuf};

use crate::tensor::Tensor;

/// Settings of an import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Name of the family.
    pub family: String,
    /// Paths of the exports, the cheapest first; the last is the reference.
    pub files: Vec<PathBuf>,
    /// Names of the tensors to cut at, by anchor, in place of the proposed ones.
    pub cuts: HashMap<String, Vec<String>>,
    /// Names of the classes; empty if they are unknown.
    pub labels: Vec<String>,
    /// Path of a `preprocessor_config.json`, which defines how images become tensors.
    pub preprocessor: Option<PathBuf>,
    /// SPDX licence of the weights.
    pub license: String,
    /// Whether each image runs by itself. This admits networks that mix the images of a batch or
    /// take only one image.
    pub one_by_one: bool,
    /// Images for the comparison besides random ones, `[batch, channels, height, width]`.
    pub probes: Vec<Tensor>,
}
