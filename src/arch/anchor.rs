//! Interface between a family and its pretrained networks of any architecture, and opening them.

use std::{
    fmt::Debug,
    path::{Path, PathBuf},
};

use super::{
    ArchError, Checkpoint, Network, bert, checkpoint::open_verified, decoder, experts::Dense,
    exported::Exported, fitted::Expansion, moduleformer, mpnet, network::Precision, routed::Body,
    vit::VisionTransformer, vit_layout,
};
use crate::family::{AnchorSpec, ModuleKind, WidthSpec};

/// Pretrained network, split into modules.
pub(super) trait Anchor: Debug {
    /// Returns the number of blocks.
    fn num_blocks(&self) -> usize;

    /// Returns the extents, after the batch, of the hidden states after `depth` blocks. With
    /// `inner`, they are those between the two sub-layers of the next block.
    fn hidden_shape(&self, depth: usize, inner: bool) -> Vec<Option<usize>>;

    /// Returns the kinds of the modules of block `index`: its two sub-layers, or the block as a
    /// whole.
    fn parts(&self, _index: usize) -> &'static [ModuleKind] {
        &[ModuleKind::Attention, ModuleKind::Mlp]
    }

    /// Returns channels, height and width of the anchor's images, or `None` if it reads no images.
    fn image(&self) -> Option<[usize; 3]> {
        None
    }

    /// Returns the width of the anchor's own output.
    fn output_width(&self) -> usize;

    /// Returns the number of heads and of hidden units of a block, or `None` if blocks cannot run
    /// narrower.
    fn widest(&self) -> Option<(usize, usize)> {
        None
    }

    /// Returns the largest number of tokens for which the anchor has positions.
    fn max_tokens(&self) -> usize {
        usize::MAX
    }

    /// Returns the number of token ids in the anchor's vocabulary.
    fn num_words(&self) -> usize {
        usize::MAX
    }

    /// Returns whether the head returns a row of scores for each token, and the last hidden states.
    fn scores_tokens(&self) -> bool {
        false
    }

    /// Builds the network before the first block.
    fn stem(&self) -> Result<Network, ArchError>;

    /// Builds one of the [`parts`](Self::parts) of block `index` in the given form.
    fn part(&self, index: usize, part: ModuleKind, form: Form<'_>) -> Result<Body, ArchError>;

    /// Returns the number of experts of a part of block `index`, or `None` if it routes no tokens.
    fn num_ways(&self, _index: usize, _part: ModuleKind) -> Option<usize> {
        None
    }

    /// Builds the network after the last block, or returns `None` if the anchor has no own head.
    /// Without `has_norm`, the network lacks the final norm.
    fn head(&self, has_norm: bool) -> Result<Option<Network>, ArchError>;

    /// Returns the expanding half of block `index`'s feed-forward part, or `None` if maps cannot
    /// use it.
    fn expansion(&self, _index: usize) -> Result<Option<Expansion>, ArchError> {
        Ok(None)
    }

    /// Returns the pieces of block `index`'s feed-forward part, or `None` if it cannot be split.
    fn dense(&self, _index: usize) -> Result<Option<Dense>, ArchError> {
        Ok(None)
    }
}

/// Form in which a module of a block runs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Form<'a> {
    /// The form that was trained.
    Plain,
    /// The trained form in 8-bit integers.
    Int8,
    /// A prefix of the trained heads and hidden units.
    Narrow(&'a WidthSpec),
    /// The trained form with another number of experts per token.
    TopK(usize),
}

impl<'a> Form<'a> {
    /// Returns the precision of the matrix products.
    pub(super) fn precision(self) -> Precision {
        if matches!(self, Self::Int8) { Precision::Int8 } else { Precision::F32 }
    }

    /// Returns the prefix to run, or `None` if the form is not narrow.
    pub(super) fn narrow(self) -> Option<&'a WidthSpec> {
        match self {
            Self::Narrow(width) => Some(width),
            Self::Plain | Self::Int8 | Self::TopK(_) => None,
        }
    }

    /// Returns the number of experts per token; `own` is the number it was trained with.
    pub(super) fn top_k(self, own: usize) -> usize {
        if let Self::TopK(k) = self { k } else { own }
    }
}

/// Opens the anchor `name` of the family in `folder`.
pub(super) fn open(
    folder: &Path,
    name: &str,
    spec: &AnchorSpec,
) -> Result<Box<dyn Anchor>, ArchError> {
    if let Some(onnx) = &spec.onnx {
        let sha256 = digest(folder, spec, &onnx.file)?;
        return Ok(Box::new(Exported::open(folder, name, onnx, sha256)?));
    }
    let (config, weights, prefix) = match &spec.part {
        Some(part) => (part.config.clone(), part.file.clone(), part.prefix.as_str()),
        None => {
            let anchor = spec.folder.clone().unwrap_or_default();
            (anchor.join("config.json"), anchor.join("model.safetensors"), "")
        }
    };
    let file = open_verified(folder, &config, digest(folder, spec, &config)?)?;
    let text = String::from_utf8_lossy(file.bytes()).into_owned();
    let path = folder.join(&config);
    let index = weights.with_extension("safetensors.index.json");
    let is_whole = spec.sha256.contains_key(&weights) || !folder.join(&index).exists();
    let checkpoint = match is_whole {
        true => Checkpoint::open(folder, &weights, digest(folder, spec, &weights)?)?,
        false => Checkpoint::open_sharded(folder, &index, |file| digest(folder, spec, file))?,
    };
    of_config(path, &text, checkpoint.part(prefix))
}

/// Opens an anchor of the architecture named in its configuration.
fn of_config(
    path: PathBuf,
    text: &str,
    checkpoint: Checkpoint,
) -> Result<Box<dyn Anchor>, ArchError> {
    let value: serde_json::Value = serde_json::from_str(text)
        .map_err(|e| ArchError::Malformed { path: path.clone(), message: e.to_string() })?;
    let architecture = value["architecture"].as_str();
    let is_timm = architecture.is_some_and(|name| {
        ["vit_", "deit_", "deit3_"].iter().any(|known| name.starts_with(known))
    });
    let model_type = value["model_type"].as_str();
    if let Some(architecture) = model_type.and_then(decoder::architecture) {
        return Ok(Box::new(decoder::open(&path, text, architecture, checkpoint)?));
    }
    match model_type {
        Some("moduleformer") => Ok(Box::new(moduleformer::open(&path, text, checkpoint)?)),
        Some("bert") => Ok(Box::new(bert::open(&path, text, checkpoint)?)),
        Some("mpnet") => Ok(Box::new(mpnet::open(&path, text, checkpoint)?)),
        model_type if matches!(model_type, Some("vit" | "deit")) || is_timm => {
            let (layout, shape) = vit_layout::read(&path, text, &checkpoint)?;
            Ok(Box::new(VisionTransformer { shape, layout, checkpoint }))
        }
        other => Err(ArchError::Config {
            path,
            key: "model_type".into(),
            value: other.or(architecture).unwrap_or_default().into(),
            expected: "`bert`, `mpnet`, `vit`, `deit`, `mixtral`, `olmoe`, `qwen2_moe`, \
                       `qwen3_moe`, `granitemoe`, `granitemoeshared` and `moduleformer` are \
                       supported, and timm's architectures vit_*, deit_* and deit3_*"
                .into(),
        }),
    }
}

/// Returns the digest that the manifest holds for a file of an anchor.
pub(super) fn digest<'a>(
    folder: &Path,
    spec: &'a AnchorSpec,
    file: &Path,
) -> Result<&'a str, ArchError> {
    let found = spec.sha256.get(file).map(String::as_str);
    found.ok_or_else(|| ArchError::NoDigest { path: folder.join(file) })
}
