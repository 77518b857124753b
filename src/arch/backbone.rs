//! Pretrained networks as their parts, whatever the architecture.

use std::fmt::Debug;

use super::{
    ArchError,
    layout::{Layout, PartId},
    nonlinearity::Nonlinearity,
};
use crate::{
    family::{CacheType, WidthSpec},
    input::Language,
    module::{Body, Precision, Router},
    onnx::proto::TensorProto,
};

/// Pretrained network that is built part by part.
pub(crate) trait Backbone: Debug + Send {
    /// Returns all that can be said of the network.
    fn layout(&self) -> &Layout;

    /// Builds a part of the [`layout`](Self::layout) in a form.
    ///
    /// # Errors
    ///
    /// Fails on weights that are missing or of another shape.
    fn build(&self, part: PartId, form: &Form<'_>) -> Result<Body, ArchError>;

    /// Returns the tokenizer and the template of chats that the network's file has, or `None` if
    /// they are in files of their own.
    ///
    /// # Errors
    ///
    /// Fails on a vocabulary that is not supported.
    fn language(&self) -> Result<Option<Language>, ArchError> {
        Ok(None)
    }

    /// Returns the pieces of block `index`'s feed-forward part, or `None` if it cannot be taken
    /// apart.
    fn dense(&self, _index: usize) -> Result<Option<Dense>, ArchError> {
        Ok(None)
    }
}

/// Form in which a part runs. Its choices are independent of one another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form<'a> {
    /// Precision of the matrix products.
    pub(crate) precision: Precision,
    /// Prefix of the trained heads and hidden units, or `None` for all of them.
    pub(crate) width: Option<&'a WidthSpec>,
    /// Number of experts of each token, or `None` for the trained number.
    pub(crate) top_k: Option<usize>,
    /// Experts among which tokens choose, or `None` for all of them.
    pub(crate) experts: Option<&'a [usize]>,
    /// Whether a head has its final norm.
    pub(crate) has_norm: bool,
    /// Whether tokens were merged before the part, so that each row has a size.
    pub(crate) is_merged: bool,
    /// Whether the part runs on the packed tokens of a step, `[tokens, width]`, and keeps a cache
    /// of keys and values if it has attention. Only parts of blocks have this form.
    pub(crate) is_step: bool,
    /// Type of the elements of that cache.
    pub(crate) cache_type: CacheType,
}

impl Form<'_> {
    /// Form that was trained.
    pub(crate) const PLAIN: Self = Form {
        precision: Precision::F32,
        width: None,
        top_k: None,
        experts: None,
        has_norm: true,
        is_merged: false,
        is_step: false,
        cache_type: CacheType::F32,
    };

    /// Changes the router of an architecture to that of this form.
    pub(crate) fn route(&self, router: &mut Router) {
        router.top_k = self.top_k.unwrap_or(router.top_k);
        if let Some(experts) = self.experts {
            router.top_k = router.top_k.min(experts.len());
            router.allowed = Some(experts.to_vec());
        }
    }
}

/// Expanding half of a feed-forward block: `gelu(expand · x + bias)`.
#[derive(Debug, Clone)]
pub(crate) struct Expansion {
    /// Matrix of the expansion, `[hidden, width]`.
    pub(crate) weight: TensorProto,
    /// Bias of the expansion, `[hidden]`.
    pub(crate) bias: TensorProto,
    /// Nonlinearity behind the bias.
    pub(crate) nonlinearity: Nonlinearity,
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
