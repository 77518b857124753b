//! Activation spaces: what a tensor between two modules means, and its axes.

/// An activation space: the meaning and the tensors of what passes between two modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    /// The name: `in`, `out`, `l6.3` after three blocks of `l6`, or `l6.3+` inside the fourth
    /// block.
    pub name: String,
    /// The role of the space.
    pub kind: SpaceKind,
    /// The tensors of the space.
    pub spec: SpaceSpec,
}

/// The role of a [`Space`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SpaceKind {
    /// The family's inputs.
    Input,
    /// Hidden states of an anchor.
    Hidden {
        /// The anchor's index in [`FamilyGraph::anchors`](super::FamilyGraph::anchors).
        anchor: usize,
        /// Number of blocks passed.
        depth: usize,
        /// Number of parts of the next block that have been passed as well.
        position: usize,
        /// Whether the path crossed a stitch, for families that end such paths differently. SN-Net
        /// v1 leaves out the final norm.
        stitched: bool,
    },
    /// The family's output.
    Output,
}

/// The tensors of a space, the one that leads on first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpaceSpec {
    /// The tensors.
    pub tensors: Vec<NamedTensor>,
}

/// A tensor of a space, with its axes after the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedTensor {
    /// The name, such as `hidden` or `states`.
    pub name: &'static str,
    /// The axes.
    pub axes: Vec<Axis>,
}

/// An axis of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Axis {
    /// The name: `tokens`, `width`, `channels` or `height`.
    pub name: &'static str,
    /// The extent, or `None` if it may vary.
    pub extent: Option<usize>,
}

/// Name of the axis on which a sequence's tokens lie.
const TOKENS: &str = "tokens";

impl Space {
    /// Returns the extents of the tensor that leads on, after the batch; `None` if one varies.
    pub fn shape(&self) -> Vec<Option<usize>> {
        self.spec.tensors.first().map(NamedTensor::shape).unwrap_or_default()
    }

    /// Returns the extent of the last axis, or `None` if it may vary.
    pub fn width(&self) -> Option<usize> {
        self.spec.width()
    }
}

impl SpaceSpec {
    /// Creates a space of one tensor, whose axes are named by their number.
    pub fn of_extents(extents: &[Option<usize>]) -> Self {
        Self { tensors: vec![NamedTensor::new("hidden", extents)] }
    }

    /// Adds a tensor.
    #[must_use]
    pub fn with(mut self, name: &'static str, extents: &[Option<usize>]) -> Self {
        self.tensors.push(NamedTensor::new(name, extents));
        self
    }

    /// Returns the extent of the last axis of the tensor that leads on, or `None` if it may vary.
    pub fn width(&self) -> Option<usize> {
        self.axes().last()?.extent
    }

    /// Returns the axes of the tensor that leads on.
    pub fn axes(&self) -> impl Iterator<Item = Axis> {
        self.tensors.first().into_iter().flat_map(|tensor| tensor.axes.iter().copied())
    }

    /// Returns whether the tensor that leads on has a row for each token.
    pub fn has_tokens(&self) -> bool {
        self.axes().next().is_some_and(|axis| axis.name == TOKENS)
    }
}

impl NamedTensor {
    fn new(name: &'static str, extents: &[Option<usize>]) -> Self {
        let names: &[&str] = match extents.len() {
            3 => &["channels", "height", "width"],
            2 => &[TOKENS, "width"],
            _ => &[],
        };
        let names = names.iter().copied().chain(std::iter::repeat("width"));
        let axes = names.zip(extents).map(|(name, extent)| Axis { name, extent: *extent });
        Self { name, axes: axes.collect() }
    }

    /// Returns the extents of the axes; `None` for one that varies.
    pub fn shape(&self) -> Vec<Option<usize>> {
        self.axes.iter().map(|axis| axis.extent).collect()
    }
}

impl SpaceKind {
    /// Returns the marks behind a space's depth: one for each part of the next block that has been
    /// passed.
    pub fn marks(position: usize) -> String {
        "+".repeat(position)
    }
}
