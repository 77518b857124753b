//! The parts of a pretrained network, whatever its architecture.

use std::fmt::Debug;

use super::ArchError;
use crate::{
    family::{ModuleKind, WidthSpec},
    module::{Body, Network, Precision},
    onnx::proto::TensorProto,
};

/// Pretrained network, split into modules.
pub(crate) trait Anchor: Debug {
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
pub(crate) enum Form<'a> {
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
    /// Returns how the matrix products compute.
    pub(crate) fn precision(self) -> Precision {
        if matches!(self, Self::Int8) { Precision::Int8 } else { Precision::F32 }
    }

    /// Returns the prefix to run, if it is one.
    pub(crate) fn narrow(self) -> Option<&'a WidthSpec> {
        match self {
            Self::Narrow(width) => Some(width),
            Self::Plain | Self::Int8 | Self::TopK(_) => None,
        }
    }

    /// Returns the number of ways that a token takes, where it takes `own` as it was trained.
    pub(crate) fn top_k(self, own: usize) -> usize {
        if let Self::TopK(k) = self { k } else { own }
    }
}

/// Expanding half of a feed-forward block: `gelu(expand · x + bias)`.
#[derive(Debug, Clone)]
pub(crate) struct Expansion {
    /// Matrix of the expansion, `[hidden, width]`.
    pub(crate) weight: TensorProto,
    /// Bias of the expansion, `[hidden]`.
    pub(crate) bias: TensorProto,
    /// Name of ONNX Runtime's operator for the activation with its bias.
    pub(crate) activation: &'static str,
}

/// Pieces of a feed-forward part.
#[derive(Debug)]
pub(crate) struct Dense {
    /// Width of a token.
    pub(crate) width: usize,
    /// Number of hidden units.
    pub(crate) num_units: usize,
    /// First half of the part.
    pub(crate) expansion: Expansion,
    /// Second matrix, `[width, units]`.
    pub(crate) contraction: TensorProto,
    /// Bias of the second half, `[width]`.
    pub(crate) bias: TensorProto,
    /// Scale and bias of the norm, `[width]`.
    pub(crate) norm: [TensorProto; 2],
    /// Whether the norm comes before the part, instead of after it and the residual.
    pub(crate) is_pre_norm: bool,
    /// Epsilon of the norm.
    pub(crate) epsilon: f32,
    /// Factor on the part's output, `[width]` (layer scale).
    pub(crate) scale: Option<TensorProto>,
}
