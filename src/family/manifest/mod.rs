//! The manifest `family.toml`, which describes a family.

mod anchor;
mod experts;
mod format;
mod generation;
mod image;
mod maps;
mod onnx_source;
mod trained;
mod variant;

pub use anchor::{AnchorSpec, MergeSpec, PartSource, WidthSpec};
pub use experts::{ExpertSet, ExpertsSpec, RoutedPart, RouterForm};
pub use format::{FORMAT, migrated};
pub use generation::{CacheType, GenerationSpec};
pub use image::{Filter, ImageSpec, Resize};
pub use maps::{Feature, MapForm, MapSpec, fit_file_name};
pub use onnx_source::{BlockEnds, OnnxImage, OnnxSource};
pub use trained::{ExitsSpec, StitchesSpec};
pub use variant::VariantSpec;

use std::{
    collections::BTreeMap,
    fmt::Display,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{FamilyError, fault::Fault, files::MANIFEST_FILE};
use crate::{
    family::INT8,
    tensor::{FileKind, read_text},
};
use anchor::{is_inside, is_plain};

/// A parsed and validated `family.toml`. Unknown keys are errors.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Number of the manifest's format; 0 for manifests from before there were numbers.
    #[serde(default)]
    pub format: u32,
    /// Name under which the family is served; equal to the folder's name.
    pub name: String,
    /// Task of the family, such as `sentence-embedding`.
    pub task: String,
    /// Description in one sentence for human readers.
    pub description: String,
    /// The SPDX licence of the weights.
    pub license: String,
    /// Name of the anchor whose full path defines the output space and a quality of 1.
    pub reference: String,
    /// Limits on the size of a request.
    #[serde(default)]
    pub limits: Limits,
    /// The output tensor.
    pub output: OutputSpec,
    /// Definition of quality in this family.
    pub quality: QualitySpec,
    /// The pretrained networks by name.
    pub anchors: BTreeMap<String, AnchorSpec>,
    /// Image preprocessing, for families of images; `None` for families of texts.
    pub image: Option<ImageSpec>,
    /// Stitches that were trained with the anchors.
    pub stitches: Option<StitchesSpec>,
    /// Exits that were trained with the anchors.
    pub exits: Option<ExitsSpec>,
    /// The maps fitted between spaces.
    #[serde(default)]
    pub maps: Vec<MapSpec>,
    /// Settings of generation, for families that run step by step.
    #[serde(default)]
    pub generation: GenerationSpec,
    /// Feed-forward parts that are split into experts.
    #[serde(default)]
    pub experts: Vec<ExpertsSpec>,
}

/// Limits on the size of a request.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Most tokens per sequence. Longer texts are truncated; longer `input_ids` are refused.
    pub max_tokens: usize,
    /// Most sequences per request.
    pub max_batch: usize,
    /// Most bytes per text.
    pub max_text_bytes: usize,
    /// Most bytes per image file.
    pub max_image_bytes: usize,
    /// Most pixels per image file, after decoding.
    pub max_pixels: u64,
}

/// The output tensor.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputSpec {
    /// The tensor's name.
    pub name: String,
    /// The extent of the last axis.
    pub width: usize,
    /// Whether the output has a row per token, `[batch, tokens, width]`. Otherwise it has a row per
    /// text or image.
    #[serde(default)]
    pub per_token: bool,
    /// Name of an additional output with the last hidden states, for heads that give them.
    pub states: Option<String>,
    /// Class names by index, for an output with one score per class.
    #[serde(default)]
    pub labels: Vec<String>,
}

/// Definition of quality in a family.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QualitySpec {
    /// The metric, with values in \[0, 1\].
    pub metric: Metric,
    /// File with the measured qualities.
    pub file: PathBuf,
    /// Least quality of the plans offered; a plan requested by id may be worse.
    #[serde(default)]
    pub floor: f64,
}

/// Metric by which plans are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub enum Metric {
    /// Fraction of the reference's ten nearest neighbours that a plan's vectors find among the
    /// reference's vectors; 1 for the reference.
    #[serde(rename = "recall@10")]
    RecallAt10,
    /// Fraction of labelled inputs whose label scores highest.
    #[serde(rename = "accuracy")]
    Accuracy,
    /// Fraction of inputs for which the class that scores highest is the reference's; 1 for the
    /// reference. It needs no labels.
    #[serde(rename = "agreement")]
    Agreement,
}

impl Metric {
    /// Returns the name that manifests use.
    pub fn name(self) -> &'static str {
        match self {
            Self::RecallAt10 => "recall@10",
            Self::Accuracy => "accuracy",
            Self::Agreement => "agreement",
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            max_batch: 64,
            max_text_bytes: 262_144,
            max_image_bytes: 8 << 20,
            max_pixels: 25_000_000,
        }
    }
}

impl Manifest {
    /// Reads `family.toml` in `folder` and validates it.
    ///
    /// # Errors
    ///
    /// Fails on a file that cannot be read, is not TOML, has unknown keys, or has contradictory
    /// values. The error names the file, the key, its value and the valid values.
    pub fn read(folder: &Path) -> Result<Self, FamilyError> {
        let path = folder.join(MANIFEST_FILE);
        let text = read_text(&path, FileKind::Manifest)
            .map_err(|source| FamilyError::Unreadable { path: path.clone(), source })?;
        let manifest: Self = format::parse(&path, &text)?;
        let folder_name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        manifest.validate(&path, folder_name)?;
        Ok(manifest)
    }

    /// Returns whether the anchor `name` has its own head. Vectors of texts can be compared only in
    /// the reference's space. Classes of images are the same for every anchor.
    pub fn has_head(&self, name: &str) -> bool {
        let is_aligned = self.anchors.get(name).is_some_and(|anchor| anchor.aligned);
        is_aligned || name == self.reference || self.image.is_some()
    }

    fn validate(&self, path: &Path, folder: &str) -> Result<(), FamilyError> {
        let refuse = |key: &str, value: &dyn Display, expected: String| {
            Err(FamilyError::at(path, Fault::new(key, value, expected)))
        };
        format::check(path, self.format)?;
        if self.name != folder {
            return refuse("name", &self.name, format!("must be the folder's name, `{folder}`"));
        }
        if !self.anchors.contains_key(&self.reference) {
            let known: Vec<&str> = self.anchors.keys().map(String::as_str).collect();
            let expected = format!("must be an anchor: {}", known.join(", "));
            return refuse("reference", &self.reference, expected);
        }
        let limits = [
            ("limits.max_tokens", self.limits.max_tokens),
            ("limits.max_batch", self.limits.max_batch),
            ("limits.max_text_bytes", self.limits.max_text_bytes),
            ("limits.max_image_bytes", self.limits.max_image_bytes),
            ("output.width", self.output.width),
        ];
        if let Some((key, value)) = limits.iter().find(|(_, value)| *value == 0) {
            return refuse(key, value, "must be at least 1".into());
        }
        let stitches = self.stitches.iter().map(|stitches| ("stitches.file", &stitches.file));
        let exits = self.exits.iter().map(|exits| ("exits.file", &exits.file));
        for (key, file) in stitches.chain(exits).chain([("quality.file", &self.quality.file)]) {
            if !is_inside(file) {
                let expected = "paths are relative and stay inside the family's folder".into();
                return refuse(key, &file.display(), expected);
            }
        }
        if !(0.0..=1.0).contains(&self.quality.floor) {
            return refuse("quality.floor", &self.quality.floor, "must lie in [0, 1]".into());
        }
        for (name, anchor) in &self.anchors {
            let refuse =
                |fault: Fault| FamilyError::at(path, fault.below(&format!("anchors.{name}")));
            anchor.validate(name).map_err(refuse)?;
        }
        let labels = self.output.labels.len();
        if labels != 0 && labels != self.output.width {
            let expected = format!("there must be one for each of the {}", self.output.width);
            return refuse("output.labels", &format!("{labels} labels"), expected);
        }
        if let Some(fault) = self.image.as_ref().and_then(ImageSpec::fault) {
            return Err(FamilyError::at(path, fault.below("image")));
        }
        self.validate_experts(path)?;
        self.validate_maps(path)
    }

    fn validate_experts(&self, path: &Path) -> Result<(), FamilyError> {
        for (index, spec) in self.experts.iter().enumerate() {
            let same = |other: &ExpertsSpec| {
                (&other.anchor, other.num_experts) == (&spec.anchor, spec.num_experts)
            };
            let fault = if !self.anchors.contains_key(&spec.anchor) {
                Some(Fault::new("anchor", &spec.anchor, "must be an anchor"))
            } else if self.experts[..index].iter().any(same) {
                let expected = "an anchor is split into as many experts once";
                Some(Fault::new("num_experts", spec.num_experts, expected))
            } else {
                spec.fault()
            };
            if let Some(fault) = fault {
                return Err(FamilyError::at(path, Fault { key: spec.key(&fault.key), ..fault }));
            }
        }
        Ok(())
    }

    fn validate_maps(&self, path: &Path) -> Result<(), FamilyError> {
        let refuse = |key: &str, value: &dyn Display, expected: String| {
            Err(FamilyError::at(path, Fault::new(key, value, expected)))
        };
        for map in &self.maps {
            if let Some(label) = map.label.as_ref().filter(|label| !is_plain(label)) {
                let key = format!("maps ({} to {}).label", map.from, map.to);
                return refuse(&key, label, "a label is letters, digits, `_` and `-`".into());
            }
            if let Some(variant) = map.variants.iter().find(|variant| *variant != INT8) {
                let key = format!("maps ({} to {}).variants", map.from, map.to);
                return refuse(&key, variant, "maps have the variant `int8`".into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
