//! The manifest's anchors: pretrained networks, and the forms in which their parts are offered.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    path::{Component, Path, PathBuf},
};

use serde::Deserialize;

use super::{experts::ExpertSet, onnx_source::OnnxSource};
use crate::family::{F32, Fault, INT8, SKIP};

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
    /// GGUF file, with its settings and weights.
    pub gguf: Option<PathBuf>,
    /// Safetensors file that has the tensors which the anchor's own checkpoint lacks, such as
    /// another anchor's embeddings.
    pub base: Option<PathBuf>,
    /// Tokenizer (`tokenizer.json`) with which the anchor was trained; texts only.
    pub tokenizer: Option<PathBuf>,
    /// Whether the family may be loaded without this anchor when its files are missing.
    #[serde(default)]
    pub optional: bool,
    /// Whether the anchor's own head gives vectors that can be compared with those of the
    /// reference, as it does if the anchor was trained to say what the reference says. Heads of
    /// images always give the same classes.
    #[serde(default)]
    pub aligned: bool,
    /// Variants to offer for each sub-layer: `int8`, `skip`, and `f32` for weights of quantized
    /// blocks.
    #[serde(default)]
    pub variants: Vec<String>,
    /// Narrower forms of every block, trained together with it: prefixes of its heads and hidden
    /// units.
    #[serde(default)]
    pub widths: Vec<WidthSpec>,
    /// Mergings of tokens to offer between blocks, for encoders of texts.
    #[serde(default)]
    pub merges: Vec<MergeSpec>,
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
    /// Keys of the configuration that this version does not know, and that do not change answers.
    /// They count as absent.
    #[serde(default)]
    pub ignored_keys: Vec<String>,
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

/// A merging of tokens: one in so many becomes a part of the most similar one of the others (ToMe,
/// Bolya et al. 2023).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeSpec {
    /// One token in this number is merged.
    pub every: usize,
    /// Blocks before which tokens may be merged, in ascending order. A path merges once.
    pub before: Vec<usize>,
}

impl MergeSpec {
    /// Smallest and largest number of which one token is merged.
    const EVERY: RangeInclusive<usize> = 2..=16;

    /// Returns whether the numbers make sense.
    fn is_valid(&self) -> bool {
        let is_ordered = self.before.windows(2).all(|pair| pair[0] < pair[1]);
        Self::EVERY.contains(&self.every) && !self.before.is_empty() && is_ordered
    }
}

impl AnchorSpec {
    /// Checks the constraints that the types do not express.
    pub(super) fn validate(&self, name: &str) -> Result<(), Fault> {
        let refuse =
            |key: &str, value: String, expected: &str| Err(Fault::new(key, value, expected));
        let plain = |text: &str| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        if !plain(name) {
            return refuse("", name.into(), "an anchor's name is letters, digits and `_`");
        }
        let sources =
            [self.folder.is_some(), self.onnx.is_some(), self.part.is_some(), self.gguf.is_some()];
        if sources.into_iter().filter(|given| *given).count() != 1 {
            let expected = "exactly one of `folder`, `onnx`, `part` and `gguf` is needed";
            return refuse("folder", "".into(), expected);
        }
        if let Err(variant) = self.variant_specs() {
            let expected = "variants are `int8`, `f32` and `skip`, and names of widths, sets and \
                            `top_k` joined with `int8` or `f32` and one another by `+`";
            return refuse("variants", variant.to_owned(), expected);
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
        if let Some(fault) = self.merges_fault() {
            return Err(fault);
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
        if let Some(fault) = self.onnx.as_ref().and_then(OnnxSource::fault) {
            return Err(fault);
        }
        if let Some(base) = self.base.as_ref().filter(|_| self.folder.is_none()) {
            let expected = "a base goes with a `folder`, whose checkpoint lacks tensors";
            return refuse("base", base.display().to_string(), expected);
        }
        let onnx = self.onnx.as_ref().map(|onnx| &onnx.file);
        let part = self.part.iter().flat_map(|part| [&part.file, &part.config]);
        let other = self.gguf.iter().chain(&self.base).chain(&self.tokenizer);
        let paths = self.folder.iter().chain(onnx).chain(part).chain(other);
        for path in paths.chain(self.sha256.keys()) {
            if !is_inside(path) {
                let expected = "paths are relative and stay inside the family's folder";
                return refuse("", path.display().to_string(), expected);
            }
        }
        Ok(())
    }

    /// Returns the fault of a merging that makes no sense, or `None`.
    fn merges_fault(&self) -> Option<Fault> {
        let is_twice = |place: usize, merge: &MergeSpec| {
            self.merges[..place].iter().any(|other| other.every == merge.every)
        };
        let mut merges = self.merges.iter().enumerate();
        let (_, merge) =
            merges.find(|(place, merge)| !merge.is_valid() || is_twice(*place, merge))?;
        let expected = "one token in 2 to 16 is merged, each number is there once, and the blocks \
                        are in ascending order";
        Some(Fault::new("merges", format!("{}, {:?}", merge.every, merge.before), expected))
    }
}

/// Returns whether `name` already has a meaning in plan ids.
fn is_reserved(name: &str) -> bool {
    matches!(name, F32 | INT8 | SKIP | "via" | "exit")
}

/// Returns whether `path` stays inside the folder to which it is relative.
pub(super) fn is_inside(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_)))
}

/// Returns whether `label` may appear in plan ids and file names.
pub(super) fn is_plain(label: &str) -> bool {
    !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
}
