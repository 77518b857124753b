//! Configurations and tensor names of vision transformers: timm's and Hugging Face's.
//!
//! Sizes come from the tensors if possible. The number of heads comes from the configuration,
//! because the tensors do not determine it.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::timm;
use crate::{
    arch::{
        error::ArchError,
        keys::{ConfigFile, Keys, TRANSFORMERS},
        nonlinearity::Nonlinearity,
    },
    family::Fault,
    pool::{Checkpoint, PoolError},
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
    /// Nonlinearity of the feed-forward parts.
    pub(super) nonlinearity: Nonlinearity,
    /// Tokens that the classifier reads.
    pub(super) pooling: Pooling,
}

/// Tokens that a classifier reads, and their reduction to one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pooling {
    /// The class token.
    ClassToken,
    /// The mean of the patches, each after the final norm.
    MeanOfNormed,
    /// The final norm of the mean of the patches.
    NormOfMean,
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
    NormOfMean,
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
            Part::NormOfMean => ("fc_norm", "fc_norm"),
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
    image_size: Option<Size>,
    patch_size: Option<Size>,
    num_channels: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    qkv_bias: Option<bool>,
    architecture: Option<String>,
    global_pool: Option<String>,
    #[serde(default)]
    model_args: Map<String, Value>,
    pretrained_cfg: Option<Map<String, Value>>,
}

/// Arguments of timm's constructors that affect the network.
#[derive(Debug, Default, Deserialize)]
struct ModelArguments {
    num_heads: Option<usize>,
    img_size: Option<Size>,
    patch_size: Option<Size>,
    in_chans: Option<usize>,
    embed_dim: Option<usize>,
    depth: Option<usize>,
    num_classes: Option<usize>,
    global_pool: Option<String>,
    act_layer: Option<String>,
}

/// Side of a square, or height and width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Size {
    Side(usize),
    Extents([usize; 2]),
}

impl Size {
    fn extents(self) -> [usize; 2] {
        match self {
            Self::Side(side) => [side; 2],
            Self::Extents(extents) => extents,
        }
    }
}

/// Keys of transformers' `config.json` beside those of every configuration.
const KEYS: Keys = Keys {
    honoured: &[
        "hidden_act",
        "hidden_size",
        "image_size",
        "intermediate_size",
        "layer_norm_eps",
        "num_attention_heads",
        "num_channels",
        "num_hidden_layers",
        "patch_size",
        "qkv_bias",
    ],
    only: &[],
    ignored: &[
        ("the pooler is not used for classes", &["pooler_act", "pooler_output_size"]),
        ("only masked images read it", &["encoder_stride"]),
    ],
};

/// Reads the configuration `file` and finds the sizes in the checkpoint.
///
/// # Errors
///
/// Fails on a configuration or tensors that do not belong to a vision transformer, and where both
/// contradict each other.
pub(crate) fn read(
    file: ConfigFile<'_>,
    is_timm: bool,
    checkpoint: &Checkpoint,
) -> Result<(VitNames, VitShape), ArchError> {
    let tables: &[Keys] = if is_timm { &[timm::KEYS] } else { &[TRANSFORMERS, KEYS] };
    let config: Config = file.read(tables)?;
    let arguments: ModelArguments =
        file.nested("model_args", &config.model_args, &[timm::ARGUMENTS])?;
    let names = names_of(&config, checkpoint);
    let refuse =
        |key: &str, value: &str, expected: &str| file.refuse(Fault::new(key, value, expected));
    let nonlinearity = match (&config.hidden_act, &arguments.act_layer) {
        (Some(name), _) => Nonlinearity::named(name).ok_or(("hidden_act", name)),
        (None, Some(name)) => Nonlinearity::named(name).ok_or(("model_args.act_layer", name)),
        (None, None) => Ok(Nonlinearity::Gelu),
    };
    let nonlinearity =
        nonlinearity.map_err(|(key, name)| refuse(key, name, Nonlinearity::SUPPORTED))?;
    let (argument, top) = (arguments.global_pool.as_deref(), config.global_pool.as_deref());
    let pool = timm::pooling(argument, top, config.pretrained_cfg.as_ref());
    let pooling = match pool.map_err(|fault| file.refuse(fault))? {
        "token" => Pooling::ClassToken,
        "avg" if checkpoint.has("fc_norm.weight") => Pooling::NormOfMean,
        "avg" => Pooling::MeanOfNormed,
        other => return Err(refuse("global_pool", other, "`token` and `avg` are supported")),
    };
    check_names(names, pooling, checkpoint)?;
    let named = config.architecture.as_deref().unwrap_or_default();
    let by_name = timm::HEADS.iter().find(|known| named.contains(known.0)).map(|known| known.1);
    let num_heads = config.num_attention_heads.or(arguments.num_heads).or(by_name);
    let num_heads = num_heads.ok_or_else(|| match is_timm {
        true => {
            let expected = "give model_args.num_heads, or an architecture that tells the size";
            refuse("architecture", named, expected)
        }
        false => refuse("num_attention_heads", "missing", "a number is needed"),
    })?;
    let default_epsilon = if names == VitNames::Timm { 1e-6 } else { 1e-12 };
    let epsilon = config.layer_norm_eps.unwrap_or(default_epsilon);
    let shape = measure(names, checkpoint, num_heads)?;
    let shape = VitShape { epsilon, nonlinearity, pooling, ..shape };
    check_sizes(&shape, &config, &arguments).map_err(|fault| file.refuse(fault))?;
    let has_bias = checkpoint.has(&format!("{}.bias", names.query_key_value(0, 0).0));
    if let Some(other) = config.qkv_bias.filter(|bias| *bias != has_bias) {
        let expected = format!("the tensors say {has_bias}");
        return Err(file.refuse(Fault::new("qkv_bias", other, expected)));
    }
    Ok((names, shape))
}

fn names_of(config: &Config, checkpoint: &Checkpoint) -> VitNames {
    let taught = checkpoint.has("cls_classifier.weight");
    let head = if taught { "cls_classifier" } else { "classifier" };
    match config.model_type.as_deref() {
        Some("vit") => VitNames::HuggingFace { root: "vit", head },
        Some("deit") => VitNames::HuggingFace { root: "deit", head },
        _ => VitNames::Timm,
    }
}

/// Checks that the sizes that the configuration says are those of the tensors.
fn check_sizes(shape: &VitShape, config: &Config, arguments: &ModelArguments) -> Result<(), Fault> {
    let VitShape { image, patch, width, num_blocks, num_heads, hidden, num_classes, .. } = *shape;
    if num_heads == 0 || !width.is_multiple_of(num_heads) {
        let (key, divided) = match config.num_attention_heads {
            Some(_) => ("num_attention_heads", "hidden_size"),
            None => ("model_args.num_heads", "model_args.embed_dim"),
        };
        let expected = format!("it must divide {divided}, {width}");
        return Err(Fault::new(key, num_heads, expected));
    }
    let numbers = [
        ("num_channels", config.num_channels, image[0]),
        ("hidden_size", config.hidden_size, width),
        ("intermediate_size", config.intermediate_size, hidden),
        ("num_hidden_layers", config.num_hidden_layers, num_blocks),
        ("model_args.in_chans", arguments.in_chans, image[0]),
        ("model_args.embed_dim", arguments.embed_dim, width),
        ("model_args.depth", arguments.depth, num_blocks),
        ("model_args.num_classes", arguments.num_classes, num_classes),
    ];
    for (key, found, is) in numbers {
        if let Some(found) = found.filter(|found| *found != is) {
            return Err(Fault::new(key, found, format!("the tensors have {is}")));
        }
    }
    let sizes = [
        ("image_size", config.image_size, [image[1], image[2]]),
        ("patch_size", config.patch_size, [patch, patch]),
        ("model_args.img_size", arguments.img_size, [image[1], image[2]]),
        ("model_args.patch_size", arguments.patch_size, [patch, patch]),
    ];
    for (key, found, is) in sizes {
        if let Some(found) = found.map(Size::extents).filter(|found| *found != is) {
            let expected = format!("the tensors are those of {} by {} pixels", is[0], is[1]);
            return Err(Fault::new(key, format!("{found:?}"), expected));
        }
    }
    Ok(())
}

/// Checks that the checkpoint has only tensors of the supported vision transformers.
///
/// Tensors of a normalization of queries or of registers are examples of others. Without them the
/// answers would be wrong.
fn check_names(
    names: VitNames,
    pooling: Pooling,
    checkpoint: &Checkpoint,
) -> Result<(), ArchError> {
    use BlockPart::{Contract, Expand, NormAfter, NormBefore, Projection};
    use Part::{ClassToken, DistillationHead, DistillationToken, Head, Norm, Patches, Positions};
    let norm = if pooling == Pooling::NormOfMean { Part::NormOfMean } else { Norm };
    let parts = [ClassToken, DistillationToken, Positions, Patches, norm, Head, DistillationHead];
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
            architecture: "vision transformers without registers, with a linear head on the class \
                           token or on the mean of the patches",
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
    Ok(VitShape {
        image,
        patch,
        width,
        num_blocks,
        num_heads,
        hidden,
        num_classes,
        epsilon: 0.0,
        nonlinearity: Nonlinearity::Gelu,
        pooling: Pooling::ClassToken,
    })
}
