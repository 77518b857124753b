//! The parts of a pretrained network, whatever its architecture.

use std::fmt::Debug;

use super::{ArchError, Network, network::Precision, routed::Body};
use crate::{
    family::{ModuleKind, WidthSpec},
    onnx::proto::TensorProto,
};

/// A pretrained network in modules.
pub(super) trait Anchor: Debug {
    /// Returns the number of blocks.
    fn num_blocks(&self) -> usize;

    /// Returns the extents, after the batch, of the hidden states after `depth` blocks, or inside
    /// the next one.
    fn hidden_shape(&self, depth: usize, inner: bool) -> Vec<Option<usize>>;

    /// Returns the modules of block `index`: its two sub-layers, or the block as a whole.
    fn parts(&self, _index: usize) -> &'static [ModuleKind] {
        &[ModuleKind::Attention, ModuleKind::Mlp]
    }

    /// Returns channels, height and width of its images, where it reads images.
    fn image(&self) -> Option<[usize; 3]> {
        None
    }

    /// Returns the extent of its own output.
    fn output_width(&self) -> usize;

    /// Returns the heads and the hidden units of a block, where it can run narrower.
    fn widest(&self) -> Option<(usize, usize)> {
        None
    }

    /// Returns the most tokens that it has positions for.
    fn max_tokens(&self) -> usize {
        usize::MAX
    }

    /// Returns the number of token ids that it knows.
    fn num_words(&self) -> usize {
        usize::MAX
    }

    /// Tells whether its head gives a row of scores for each token, and the last hidden states
    /// besides.
    fn scores_tokens(&self) -> bool {
        false
    }

    /// Builds what comes before the first block.
    fn stem(&self) -> Result<Network, ArchError>;

    /// Builds one of the [`parts`](Self::parts) of block `index` in one of its forms.
    fn part(&self, index: usize, part: ModuleKind, form: Form<'_>) -> Result<Body, ArchError>;

    /// Returns the number of ways among which tokens are routed in one of the parts of block
    /// `index`, if they are.
    fn num_ways(&self, _index: usize, _part: ModuleKind) -> Option<usize> {
        None
    }

    /// Builds what follows the last block, without its final norm if that is left out; `None` where
    /// it has nothing of its own.
    fn head(&self, has_norm: bool) -> Result<Option<Network>, ArchError>;

    /// Returns the expanding half of block `index`'s feed-forward part, where maps may use it.
    fn expansion(&self, _index: usize) -> Result<Option<Expansion>, ArchError> {
        Ok(None)
    }

    /// Returns block `index`'s feed-forward part in pieces, where it can be split among experts.
    fn dense(&self, _index: usize) -> Result<Option<Dense>, ArchError> {
        Ok(None)
    }
}

/// The form in which a module of a block runs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Form<'a> {
    /// As it was trained.
    Plain,
    /// In 8-bit integers.
    Int8,
    /// With a prefix of its heads and hidden units.
    Narrow(&'a WidthSpec),
    /// With another number of ways that a token takes.
    TopK(usize),
}

impl<'a> Form<'a> {
    /// Returns how the matrix products compute.
    pub(super) fn precision(self) -> Precision {
        if matches!(self, Self::Int8) { Precision::Int8 } else { Precision::F32 }
    }

    /// Returns the prefix to run, if it is one.
    pub(super) fn narrow(self) -> Option<&'a WidthSpec> {
        match self {
            Self::Narrow(width) => Some(width),
            Self::Plain | Self::Int8 | Self::TopK(_) => None,
        }
    }

    /// Returns the number of ways that a token takes, where it takes `own` as it was trained.
    pub(super) fn top_k(self, own: usize) -> usize {
        if let Self::TopK(k) = self { k } else { own }
    }
}

/// The expanding half of a feed-forward block: `gelu(expand · x + bias)`.
#[derive(Debug, Clone)]
pub(super) struct Expansion {
    /// `[hidden, width]`.
    pub(super) weight: TensorProto,
    /// `[hidden]`.
    pub(super) bias: TensorProto,
    /// ONNX Runtime's operator for the activation with its bias.
    pub(super) activation: &'static str,
}

/// A feed-forward part in pieces.
#[derive(Debug)]
pub(super) struct Dense {
    /// The extent of a token.
    pub(super) width: usize,
    /// The number of hidden units.
    pub(super) num_units: usize,
    /// The first half.
    pub(super) expansion: Expansion,
    /// The second matrix, `[width, units]`.
    pub(super) contraction: TensorProto,
    /// The second half's bias, `[width]`.
    pub(super) bias: TensorProto,
    /// The norm's scale and bias, `[width]`.
    pub(super) norm: [TensorProto; 2],
    /// Whether the norm comes before the part, instead of after it and the residual.
    pub(super) is_pre_norm: bool,
    /// The norm's epsilon.
    pub(super) epsilon: f32,
    /// What the part's output is multiplied by, `[width]` (layer scale).
    pub(super) scale: Option<TensorProto>,
}
