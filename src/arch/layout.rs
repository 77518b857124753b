//! Layout of a pretrained network: all that can be said of it, as data.

use crate::{
    family::{ModuleKind, SpaceSpec},
    input::Prompts,
    module::CacheSpec,
};

/// Parts of a pretrained network, the spaces between them, and the choices that they leave open.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// Input of the first part.
    pub(crate) reads: Reads,
    /// Output of the last part.
    pub(crate) gives: SpaceSpec,
    /// Parts in the order in which the network runs them: the stem, the parts of each block, and
    /// the head if the network has its own.
    pub(crate) parts: Vec<PartSpec>,
    /// Texts that may stand before each text.
    pub(crate) prompts: Prompts,
    /// Whether parts run where tokens were merged.
    pub(crate) can_merge: bool,
}

/// Input of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reads {
    /// Token ids.
    Tokens {
        /// Number of ids in the vocabulary, or `None` if it is not known.
        num_words: Option<usize>,
        /// Largest number of tokens for which there are positions, or `None` if there is none.
        max_tokens: Option<usize>,
    },
    /// Images of these channels, height and width.
    Images([usize; 3]),
}

/// Position of a part in its [`Layout`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PartId(pub(crate) usize);

/// Part of a network.
#[derive(Debug, Clone)]
pub(crate) struct PartSpec {
    /// Role of the part.
    pub(crate) kind: ModuleKind,
    /// Block of the part, or `None` for a stem or a head.
    pub(crate) block: Option<usize>,
    /// Space to which the part leads.
    pub(crate) to: SpaceSpec,
    /// Choices that the part leaves open.
    pub(crate) axes: Axes,
}

/// Choices that a part leaves open, beside its precision.
#[derive(Debug, Clone, Default)]
pub(crate) struct Axes {
    /// Number of heads and hidden units, of which a prefix can run.
    pub(crate) width: Option<Widest>,
    /// Number of experts, of which each token takes some; `None` if no tokens are routed.
    pub(crate) num_experts: Option<usize>,
    /// Cache of keys and values that the part can keep, or `None`.
    pub(crate) cache: Option<CacheSpec>,
}

/// Number of heads and hidden units of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Widest {
    /// Number of heads.
    pub(crate) heads: usize,
    /// Number of hidden units.
    pub(crate) hidden: usize,
}

impl Layout {
    /// Creates the layout of a network with a stem, blocks of the parts that `block` lists, and a
    /// head. All hidden states are of `hidden`.
    pub(crate) fn uniform(
        reads: Reads,
        hidden: &SpaceSpec,
        gives: SpaceSpec,
        blocks: impl IntoIterator<Item = Vec<(ModuleKind, Axes)>>,
    ) -> Self {
        let (parts, prompts) = (Vec::new(), Prompts::default());
        let mut layout = Self { reads, gives, parts, prompts, can_merge: false };
        layout.add(ModuleKind::Stem, None, hidden, Axes::default());
        for (block, parts) in blocks.into_iter().enumerate() {
            for (kind, axes) in parts {
                layout.add(kind, Some(block), hidden, axes);
            }
        }
        layout.with_head()
    }

    /// Adds a part that leads to `to`.
    pub(crate) fn add(
        &mut self,
        kind: ModuleKind,
        block: Option<usize>,
        to: &SpaceSpec,
        axes: Axes,
    ) {
        self.parts.push(PartSpec { kind, block, to: to.clone(), axes });
    }

    /// Adds a head, which leads to the network's output.
    #[must_use]
    pub(crate) fn with_head(mut self) -> Self {
        let gives = self.gives.clone();
        self.add(ModuleKind::Head, None, &gives, Axes::default());
        self
    }

    /// Returns the part with `id`.
    pub(crate) fn part(&self, id: PartId) -> &PartSpec {
        &self.parts[id.0]
    }

    /// Returns whether the part can run on the tokens of a step: it is of a block whose attention
    /// can keep a cache.
    pub(crate) fn is_stepped(&self, id: PartId) -> bool {
        let block = self.part(id).block;
        let mut own = self.parts.iter().filter(|part| part.block == block);
        block.is_some() && own.any(|part| part.axes.cache.is_some())
    }

    /// Returns the number of blocks.
    pub(crate) fn num_blocks(&self) -> usize {
        self.parts.iter().filter_map(|part| part.block).max().map_or(0, |last| last + 1)
    }

    /// Returns the parts of block `index` in their order.
    pub(crate) fn block(&self, index: usize) -> impl Iterator<Item = PartId> {
        self.where_part(move |part| part.block == Some(index))
    }

    /// Returns the part before the first block.
    pub(crate) fn stem(&self) -> Option<PartId> {
        self.where_part(|part| part.kind == ModuleKind::Stem).next()
    }

    /// Returns the part after the last block, or `None` if the network has no head.
    pub(crate) fn head(&self) -> Option<PartId> {
        self.where_part(|part| part.kind == ModuleKind::Head).next()
    }

    /// Returns the spaces that lie before each part of block `index`, the space between two blocks
    /// first. Behind the last block there is only that one.
    pub(crate) fn spaces_before(&self, index: usize) -> Vec<&SpaceSpec> {
        let first = self.parts.iter().position(|part| part.block == Some(index));
        let first = first.or(self.head().map(|head| head.0)).unwrap_or(self.parts.len());
        let num = self.block(index).count().max(1);
        self.parts[first.saturating_sub(1)..].iter().take(num).map(|part| &part.to).collect()
    }

    /// Returns the largest number of tokens for which there are positions, or `None`.
    pub(crate) fn max_tokens(&self) -> Option<usize> {
        match self.reads {
            Reads::Tokens { max_tokens, .. } => max_tokens,
            Reads::Images(_) => None,
        }
    }

    /// Returns the number of token ids, or `None` if it is not known.
    pub(crate) fn num_words(&self) -> Option<usize> {
        match self.reads {
            Reads::Tokens { num_words, .. } => num_words,
            Reads::Images(_) => None,
        }
    }

    /// Returns the number of heads and hidden units of the blocks, or `None` if they cannot run
    /// narrower.
    pub(crate) fn widest(&self) -> Option<Widest> {
        self.parts.iter().find_map(|part| part.axes.width)
    }

    fn where_part(&self, is_it: impl Fn(&PartSpec) -> bool) -> impl Iterator<Item = PartId> {
        let parts = self.parts.iter().enumerate();
        parts.filter(move |(_, part)| is_it(part)).map(|(index, _)| PartId(index))
    }
}
