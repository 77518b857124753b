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
        /// Module on the path that sets these hidden states apart from the anchor's own.
        passed: Passed,
    },
    /// The family's output.
    Output,
}

/// Kind of module on the path to a space that changes the meaning of its rows or its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Passed {
    /// The anchor's own modules alone.
    Own,
    /// A stitch, in families that end such paths differently. SN-Net v1 leaves out the final norm.
    Stitch,
    /// The merging of one token in so many with others, so that a row may stand for several tokens.
    Merging(usize),
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

impl Passed {
    /// Returns the mark behind an anchor's name in the names of spaces and modules.
    pub(crate) fn mark(self) -> String {
        match self {
            Self::Own => String::new(),
            Self::Stitch => "~".into(),
            Self::Merging(every) => format!("%{every}"),
        }
    }

    /// Returns whether tokens were merged.
    pub fn is_merging(self) -> bool {
        matches!(self, Self::Merging(_))
    }

    /// Returns the number of rows that a text of `tokens` has.
    pub fn rows(self, tokens: usize) -> usize {
        match self {
            Self::Merging(every) => tokens - (tokens + every).saturating_sub(2) / every,
            Self::Own | Self::Stitch => tokens,
        }
    }
}

impl SpaceKind {
    /// Returns what a path passed on its way to the space.
    pub fn passed(self) -> Passed {
        match self {
            Self::Hidden { passed, .. } => passed,
            Self::Input | Self::Output => Passed::Own,
        }
    }

    /// Returns the marks behind a space's depth: one for each part of the next block that has been
    /// passed.
    pub fn marks(position: usize) -> String {
        "+".repeat(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_second_of_so_many_tokens_is_merged() {
        for every in 2..6 {
            for tokens in 0..40 {
                let kept = (0..tokens).filter(|place| place % every != 1).count();
                assert_eq!(Passed::Merging(every).rows(tokens), kept, "{tokens} by {every}");
            }
        }
        assert_eq!(Passed::Own.rows(7), 7);
    }
}
