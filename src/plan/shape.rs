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
    /// Creates a shape.
    pub fn new(batch: usize, tokens: usize) -> Self {
        Self { batch, tokens }
    }
}
