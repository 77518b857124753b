//! The manifest `family.toml`, which describes a family.

use std::{
    collections::BTreeMap,
    fmt::Display,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    ExitsSpec, ExpertSet, ExpertsSpec, FamilyError, ImageSpec, MapSpec, OnnxSource, StitchesSpec,
    files::MANIFEST_FILE,
};
use crate::tensor::read_text;

/// A parsed and validated `family.toml`. Unknown keys are errors.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
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
}

impl Metric {
    /// Returns the name that manifests use.
    pub fn name(self) -> &'static str {
        match self {
            Self::RecallAt10 => "recall@10",
            Self::Accuracy => "accuracy",
        }
    }
}

/// A pretrained network.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnchorSpec {
    /// Folder in the Hugging Face layout (`config.json`, `model.safetensors`).
    pub folder: Option<PathBuf>,
    /// ONNX file and the tensors at which it is cut.
    pub onnx: Option<OnnxSource>,
    /// Part of a larger checkpoint.
    pub part: Option<PartSource>,
    /// Tokenizer (`tokenizer.json`) with which the anchor was trained; texts only.
    pub tokenizer: Option<PathBuf>,
    /// Whether the family may be loaded without this anchor when its files are missing.
    #[serde(default)]
    pub optional: bool,
    /// Variants to offer for each sub-layer: `int8`, `skip`.
    #[serde(default)]
    pub variants: Vec<String>,
    /// Narrower forms of every block, trained together with it: prefixes of its heads and hidden
    /// units.
    #[serde(default)]
    pub widths: Vec<WidthSpec>,
    /// Numbers of ways that a token may take, besides the anchor's own number; for anchors that
    /// route tokens. A way is an expert or an attention branch. Each number makes parallel modules
    /// called `k1`, `k2` and so on.
    #[serde(default)]
    pub top_k: Vec<usize>,
    /// Subsets of experts to offer for the anchor's routed parts. Each subset makes parallel
    /// modules.
    #[serde(default)]
    pub expert_sets: Vec<ExpertSet>,
    /// Depths after which the anchor's own norm and head may follow, as trained by SortedNet.
    #[serde(default)]
    pub depths: Vec<usize>,
    /// SHA-256 of every file of the anchor, by path.
    pub sha256: BTreeMap<PathBuf, String>,
}

/// Part of a checkpoint that holds several networks, as SN-Net's do.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartSource {
    /// The safetensors file.
    pub file: PathBuf,
    /// Prefix of this network's tensor names, such as `anchors.0.`.
    pub prefix: String,
    /// The network's configuration.
    pub config: PathBuf,
}

/// A narrower form of a block: a prefix of its heads and a prefix of its hidden units (MatFormer,
/// DynaBERT).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WidthSpec {
    /// The variant's name.
    pub name: String,
    /// Number of attention heads kept.
    pub heads: usize,
    /// Number of the feed-forward part's hidden units kept.
    pub hidden: usize,
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
        let text = read_text(&path)
            .map_err(|source| FamilyError::Unreadable { path: path.clone(), source })?;
        let manifest: Self = toml::from_str(&text)
            .map_err(|e| FamilyError::Syntax { path: path.clone(), message: e.to_string() })?;
        let folder_name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        manifest.validate(&path, folder_name)?;
        Ok(manifest)
    }

    fn validate(&self, path: &Path, folder: &str) -> Result<(), FamilyError> {
        let refuse = |key: &str, value: &dyn Display, expected: String| {
            Err(FamilyError::Value {
                path: path.to_owned(),
                key: key.to_owned(),
                value: value.to_string(),
                expected,
            })
        };
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
            anchor.validate(name).or_else(|(key, value, expected)| {
                refuse(&format!("anchors.{name}.{key}"), &value, expected)
            })?;
        }
        let labels = self.output.labels.len();
        if labels != 0 && labels != self.output.width {
            let expected = format!("there must be one for each of the {}", self.output.width);
            return refuse("output.labels", &format!("{labels} labels"), expected);
        }
        if let Some((key, value, expected)) = self.image.as_ref().and_then(ImageSpec::fault) {
            return refuse(&format!("image.{key}"), &value, expected);
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
                Some(("anchor", spec.anchor.clone(), "must be an anchor".to_owned()))
            } else if self.experts[..index].iter().any(same) {
                let expected = "an anchor is split into as many experts once".to_owned();
                Some(("num_experts", spec.num_experts.to_string(), expected))
            } else {
                spec.fault()
            };
            if let Some((key, value, expected)) = fault {
                let (path, key) = (path.to_owned(), spec.key(key));
                return Err(FamilyError::Value { path, key, value, expected });
            }
        }
        Ok(())
    }

    fn validate_maps(&self, path: &Path) -> Result<(), FamilyError> {
        let refuse = |key: &str, value: &dyn Display, expected: String| {
            Err(FamilyError::Value {
                path: path.to_owned(),
                key: key.to_owned(),
                value: value.to_string(),
                expected,
            })
        };
        for map in &self.maps {
            if let Some(label) = map.label.as_ref().filter(|label| !is_plain(label)) {
                let key = format!("maps ({} to {}).label", map.from, map.to);
                return refuse(&key, label, "a label is letters, digits, `_` and `-`".into());
            }
            if let Some(variant) = map.variants.iter().find(|variant| *variant != "int8") {
                let key = format!("maps ({} to {}).variants", map.from, map.to);
                return refuse(&key, variant, "maps have the variant `int8`".into());
            }
        }
        Ok(())
    }
}

impl AnchorSpec {
    /// Checks the constraints that the types do not express. An error is the key, its value and the
    /// valid values.
    fn validate(&self, name: &str) -> Result<(), (String, String, String)> {
        let refuse = |key: &str, value: String, expected: &str| {
            Err((key.to_owned(), value, expected.to_owned()))
        };
        let plain = |text: &str| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        if !plain(name) {
            return refuse("", name.into(), "an anchor's name is letters, digits and `_`");
        }
        let sources = [self.folder.is_some(), self.onnx.is_some(), self.part.is_some()];
        if sources.into_iter().filter(|given| *given).count() != 1 {
            let expected = "exactly one of `folder`, `onnx` and `part` is needed";
            return refuse("folder", "".into(), expected);
        }
        if let Some(variant) = self.variants.iter().find(|v| !matches!(v.as_str(), "int8" | "skip"))
        {
            return refuse("variants", variant.clone(), "variants are `int8` and `skip`");
        }
        if let Some(width) = self.widths.iter().find(|width| {
            !is_plain(&width.name)
                || is_reserved(&width.name)
                || width.heads == 0
                || width.hidden == 0
        }) {
            let expected = "a width has a name of its own, at least one head and one hidden unit";
            return refuse("widths", format!("{width:?}"), expected);
        }
        if let Some(set) = self
            .expert_sets
            .iter()
            .find(|set| !is_plain(&set.name) || is_reserved(&set.name) || !set.is_ordered())
        {
            let expected =
                "a set has a name of its own, and at least one expert, in ascending order";
            return refuse("expert_sets", format!("{}, {:?}", set.name, set.experts), expected);
        }
        if let Some((key, value, expected)) = self.onnx.as_ref().and_then(OnnxSource::fault) {
            return refuse(key, value, &expected);
        }
        let onnx = self.onnx.as_ref().map(|onnx| &onnx.file);
        let part = self.part.iter().flat_map(|part| [&part.file, &part.config]);
        let paths = self.folder.iter().chain(onnx).chain(part).chain(&self.tokenizer);
        for path in paths.chain(self.sha256.keys()) {
            if !is_inside(path) {
                let expected = "paths are relative and stay inside the family's folder";
                return refuse("", path.display().to_string(), expected);
            }
        }
        Ok(())
    }
}

/// Returns whether `path` stays inside the folder to which it is relative.
fn is_inside(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_)))
}

/// Returns whether `name` already has a meaning in plan ids.
fn is_reserved(name: &str) -> bool {
    matches!(name, "int8" | "skip" | "via" | "exit")
}

/// Returns whether `label` may appear in plan ids and file names.
fn is_plain(label: &str) -> bool {
    !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
