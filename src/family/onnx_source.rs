//! The manifest's ONNX anchors: a file and where to cut it.

use std::path::PathBuf;

use serde::Deserialize;

/// An ONNX file and the tensors that separate its modules.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnnxSource {
    /// The file.
    pub file: PathBuf,
    /// The width of the hidden states, `[batch, tokens, width]`; texts only.
    pub width: Option<usize>,
    /// The graph's input of images, and the hidden states' shapes; images only.
    pub image: Option<OnnxImage>,
    /// Whether the rows of a batch run one at a time, because the network mixes them.
    #[serde(default)]
    pub one_by_one: bool,
    /// The hidden states before the first block.
    pub stem: String,
    /// The hidden states after each block, in order; after its attention too, where they are two.
    pub blocks: Vec<BlockEnds>,
}

/// What an ONNX anchor of images has beyond its cuts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnnxImage {
    /// The graph's input, `[batch, channels, height, width]`.
    pub input: String,
    /// The graph's output, `[batch, classes]`.
    pub output: String,
    /// The extents, after the batch, of the hidden states before each block and after the last.
    pub shapes: Vec<Vec<usize>>,
}

/// Where a block ends, and where its attention does if that is a module of its own.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum BlockEnds {
    /// The block is one module.
    Whole(String),
    /// Attention and feed-forward part are two.
    Parts([String; 2]),
}

impl BlockEnds {
    /// Returns the tensors that end the block's modules.
    pub fn tensors(&self) -> &[String] {
        match self {
            Self::Whole(end) => std::slice::from_ref(end),
            Self::Parts(ends) => ends,
        }
    }
}

impl OnnxSource {
    /// Returns the key, the value and what would be valid, where something is wrong.
    pub(super) fn fault(&self) -> Option<(&'static str, String, String)> {
        match (&self.image, self.width) {
            (Some(image), None) if image.shapes.len() != self.blocks.len() + 1 => {
                let expected =
                    format!("there must be {}, one more than blocks", self.blocks.len() + 1);
                Some(("onnx.image.shapes", format!("{} shapes", image.shapes.len()), expected))
            }
            (Some(_), None) | (None, Some(_)) => None,
            _ => {
                let expected = "exactly one of `width` (texts) and `image` (images) is needed";
                Some(("onnx.width", format!("{:?}", self.width), expected.into()))
            }
        }
    }
}
