//! Configurations and tensor names of vision transformers: timm's and Hugging Face's.
//!
//! Sizes come from the tensors if possible. The number of heads comes from the configuration,
//! because the tensors do not determine it.

use std::path::Path;

use serde::Deserialize;

use crate::{
    arch::error::ArchError,
    family::Fault,
    pool::{Checkpoint, PoolError, parse_json},
};

/// Sizes of a vision transformer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct VitShape {
    /// Channels, height and width of an image.
    pub(super) image: [usize; 3],
    /// Side of a patch in pixels.
    pub(super) patch: usize,
    /// Width of a token.
    pub(super) width: usize,
    /// Number of blocks.
    pub(super) num_blocks: usize,
    /// Number of attention heads.
    pub(super) num_heads: usize,
    /// Number of hidden units of a feed-forward part.
    pub(super) hidden: usize,
    /// Number of classes.
    pub(super) num_classes: usize,
    /// Epsilon of the layer norms.
    pub(super) epsilon: f32,
}

impl VitShape {
    /// Returns the number of patches of an image.
    pub(super) fn num_patches(&self) -> usize {
        (self.image[1] / self.patch) * (self.image[2] / self.patch)
    }
}

/// Naming scheme of the tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VitNames {
    /// Names of timm, with one matrix for queries, keys and values.
    Timm,
    /// Names of Hugging Face, with three matrices for queries, keys and values.
    HuggingFace {
        /// Prefix of all names but the heads'.
        root: &'static str,
        /// Name of the classifier on the first token.
        head: &'static str,
    },
}

/// Part of a vision transformer, independent of its tensors' names.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    ClassToken,
    DistillationToken,
    Positions,
    Patches,
    Norm,
    Head,
    DistillationHead,
}

/// Part of a block.
#[derive(Debug, Clone, Copy)]
pub(super) enum BlockPart {
    NormBefore,
    Projection,
    NormAfter,
    Expand,
    Contract,
}

impl VitNames {
    /// Returns the name of a tensor, or of a layer that has a weight and a bias.
    pub(super) fn part(self, part: Part) -> String {
        let (timm, hub) = match part {
            Part::ClassToken => ("cls_token", "embeddings.cls_token"),
            Part::DistillationToken => ("dist_token", "embeddings.distillation_token"),
            Part::Positions => ("pos_embed", "embeddings.position_embeddings"),
            Part::Patches => ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
            Part::Norm => ("norm", "layernorm"),
            Part::Head => ("head", "head"),
            Part::DistillationHead => ("head_dist", "distillation_classifier"),
        };
        match (self, part) {
            (Self::Timm, _) => timm.into(),
            (Self::HuggingFace { head, .. }, Part::Head) => head.into(),
            (Self::HuggingFace { .. }, Part::DistillationHead) => hub.into(),
            (Self::HuggingFace { root, .. }, _) => format!("{root}.{hub}"),
        }
    }

    /// Returns the name of a layer of block `index`.
    pub(super) fn block(self, index: usize, part: BlockPart) -> String {
        let (timm, hub) = match part {
            BlockPart::NormBefore => ("norm1", "layernorm_before"),
            BlockPart::Projection => ("attn.proj", "attention.output.dense"),
            BlockPart::NormAfter => ("norm2", "layernorm_after"),
            BlockPart::Expand => ("mlp.fc1", "intermediate.dense"),
            BlockPart::Contract => ("mlp.fc2", "output.dense"),
        };
        match self {
            Self::Timm => format!("blocks.{index}.{timm}"),
            Self::HuggingFace { root, .. } => format!("{root}.encoder.layer.{index}.{hub}"),
        }
    }

    /// Returns the name of the layer that makes queries (0), keys (1) or values (2) in block
    /// `index`. The second value is whether the layer makes all three, one after another.
    pub(super) fn query_key_value(self, index: usize, which: usize) -> (String, bool) {
        match self {
            Self::Timm => (format!("blocks.{index}.attn.qkv"), true),
            Self::HuggingFace { root, .. } => {
                let name = ["query", "key", "value"][which];
                (format!("{root}.encoder.layer.{index}.attention.attention.{name}"), false)
            }
        }
    }
}

/// Keys of `config.json` that affect the network.
#[derive(Debug, Deserialize)]
struct Config {
    model_type: Option<String>,
    num_attention_heads: Option<usize>,
    layer_norm_eps: Option<f32>,
    hidden_act: Option<String>,
    architecture: Option<String>,
    #[serde(default)]
    model_args: ModelArguments,
}

/// Arguments of timm's constructors that affect the network.
#[derive(Debug, Default, Deserialize)]
struct ModelArguments {
    num_heads: Option<usize>,
    img_size: Option<usize>,
    global_pool: Option<String>,
}

/// Number of heads for the sizes in timm's architecture names.
const TIMM_HEADS: [(&str, usize); 5] =
    [("_tiny_", 3), ("_small_", 6), ("_base_", 12), ("_large_", 16), ("_huge_", 16)];

/// Reads a configuration and finds the sizes in the checkpoint.
///
/// # Errors
///
/// Fails on a configuration or tensors that do not belong to a vision transformer.
pub(crate) fn read(
    path: &Path,
    config: &str,
    checkpoint: &Checkpoint,
) -> Result<(VitNames, VitShape), ArchError> {
    let config: Config = parse_json(path, config)?;
    let refuse = |key: &str, value: String, expected: &str| ArchError::Config {
        path: path.to_owned(),
        fault: Fault::new(key, value, expected),
    };
    let taught = checkpoint.has("cls_classifier.weight");
    let head = if taught { "cls_classifier" } else { "classifier" };
    let names = match config.model_type.as_deref() {
        Some("vit") => VitNames::HuggingFace { root: "vit", head },
        Some("deit") => VitNames::HuggingFace { root: "deit", head },
        _ => VitNames::Timm,
    };
    check_names(names, checkpoint)?;
    if let Some(other) = config.hidden_act.as_ref().filter(|act| *act != "gelu") {
        return Err(refuse("hidden_act", other.clone(), "`gelu` is supported"));
    }
    if let Some(other) = config.model_args.global_pool.as_ref().filter(|pool| *pool != "token") {
        return Err(refuse("model_args.global_pool", other.clone(), "`token` is supported"));
    }
    let named = config.architecture.as_deref().unwrap_or_default();
    let by_name = TIMM_HEADS.iter().find(|known| named.contains(known.0)).map(|known| known.1);
    let num_heads = config.num_attention_heads.or(config.model_args.num_heads).or(by_name);
    let num_heads = num_heads.ok_or_else(|| {
        let expected = "give model_args.num_heads, or an architecture that tells the size";
        refuse("architecture", named.into(), expected)
    })?;
    let default_epsilon = if names == VitNames::Timm { 1e-6 } else { 1e-12 };
    let epsilon = config.layer_norm_eps.unwrap_or(default_epsilon);
    let shape = measure(names, checkpoint, num_heads, epsilon)?;
    if num_heads == 0 || !shape.width.is_multiple_of(num_heads) {
        let expected = format!("it must divide the width, {}", shape.width);
        return Err(refuse("num_heads", num_heads.to_string(), &expected));
    }
    if let Some(size) = config.model_args.img_size.filter(|size| *size != shape.image[1]) {
        let expected = format!("the positions are those of {} pixels", shape.image[1]);
        return Err(refuse("model_args.img_size", size.to_string(), &expected));
    }
    Ok((names, shape))
}

/// Checks that the checkpoint has only tensors of the supported vision transformers.
///
/// Tensors of a normalization of queries or of registers are examples of others. Without them the
/// answers would be wrong.
fn check_names(names: VitNames, checkpoint: &Checkpoint) -> Result<(), ArchError> {
    use BlockPart::{Contract, Expand, NormAfter, NormBefore, Projection};
    use Part::{ClassToken, DistillationHead, DistillationToken, Head, Norm, Patches, Positions};
    let parts = [ClassToken, DistillationToken, Positions, Patches, Norm, Head, DistillationHead];
    let parts = parts.map(|part| names.part(part));
    let layers = [NormBefore, Projection, NormAfter, Expand, Contract];
    let layers = layers.map(|part| names.block(0, part));
    let three = [0, 1, 2].map(|which| names.query_key_value(0, which).0);
    let scales = ["blocks.0.ls1.gamma".to_owned(), "blocks.0.ls2.gamma".to_owned()];
    let known: Vec<String> = parts.into_iter().chain(layers).chain(three).chain(scales).collect();
    let is_known = |name: &str| {
        let name = in_first_block(name);
        let layer = name.strip_suffix(".weight").or(name.strip_suffix(".bias"));
        let is_pooler = name.contains(".pooler.");
        is_pooler || known.iter().any(|known| *known == name || Some(known.as_str()) == layer)
    };
    match checkpoint.names().find(|name| !is_known(name)) {
        None => Ok(()),
        Some(name) => Err(ArchError::UnknownTensor {
            path: checkpoint.path().to_owned(),
            name: name.into(),
            architecture: "vision transformers without registers, with the class token's head",
        }),
    }
}

/// Replaces a block's number in a tensor's name by 0.
fn in_first_block(name: &str) -> String {
    let mut parts: Vec<&str> = name.split('.').collect();
    if let Some(number) = parts.iter_mut().find(|part| part.parse::<usize>().is_ok()) {
        *number = "0";
    }
    parts.join(".")
}

/// Reads the sizes off the tensors.
fn measure(
    names: VitNames,
    checkpoint: &Checkpoint,
    num_heads: usize,
    epsilon: f32,
) -> Result<VitShape, PoolError> {
    let extents = |name: &str| checkpoint.tensor(name).map(|tensor| tensor.shape.clone());
    let patches = format!("{}.weight", names.part(Part::Patches));
    let wrong = |name: &str, found: Vec<usize>, expected: &[usize]| PoolError::TensorShape {
        path: checkpoint.path().to_owned(),
        name: name.into(),
        found,
        expected: expected.to_vec(),
    };
    let [width, channels, patch, other] = extents(&patches)?[..] else {
        return Err(wrong(&patches, extents(&patches)?, &[0, 3, 16, 16]));
    };
    if patch != other || patch == 0 {
        return Err(wrong(
            &patches,
            vec![width, channels, patch, other],
            &[width, channels, patch],
        ));
    }
    let block = |index| names.block(index, BlockPart::NormBefore);
    let has_block = |index: &usize| checkpoint.has(&format!("{}.weight", block(*index)));
    let num_blocks = (0..1_000).take_while(has_block).count();
    if num_blocks == 0 {
        let (path, name) = (checkpoint.path().to_owned(), format!("{}.weight", block(0)));
        return Err(PoolError::NoTensor { path, name });
    }
    let first = |name: String| extents(&name).map(|shape| shape.first().copied().unwrap_or(0));
    let hidden = first(format!("{}.weight", names.block(0, BlockPart::Expand)))?;
    let num_classes = first(format!("{}.weight", names.part(Part::Head)))?;
    let positions = names.part(Part::Positions);
    let table = extents(&positions)?;
    let rows = table.get(1).copied().unwrap_or(0);
    let extra = 1 + usize::from(checkpoint.has(&names.part(Part::DistillationToken)));
    let side = |patches: usize| (1..=patches).find(|side| side * side >= patches).unwrap_or(0);
    // Some tables leave the class token out. The number of rows that is a square shows which form
    // it is.
    let patches = [rows.saturating_sub(extra), rows];
    let grid =
        patches.into_iter().map(|n| (n, side(n))).find(|(n, side)| *n > 0 && side * side == *n);
    let (_, grid) = grid.ok_or_else(|| wrong(&positions, table, &[1, extra + 196, width]))?;
    let size = grid * patch;
    let image = [channels, size, size];
    Ok(VitShape { image, patch, width, num_blocks, num_heads, hidden, num_classes, epsilon })
}
