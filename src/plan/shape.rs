//! The shape of a request.

/// Number of sequences or images of a request, and tokens of its longest sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Number of sequences or images.
    pub batch: usize,
    /// Number of tokens of the longest sequence; 1 for images.
    pub tokens: usize,
}

impl Shape {
    /// Shape for which plans are listed and chosen if none is given.
    pub const DEFAULT: Self = Self::new(1, 128);

    /// Creates a shape.
    pub const fn new(batch: usize, tokens: usize) -> Self {
        Self { batch, tokens }
    }
}

impl Default for Shape {
    fn default() -> Self {
        Self::DEFAULT
    }
}
