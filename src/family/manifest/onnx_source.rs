//! The manifest's ONNX anchors: a file and the tensors at which it is cut.

use std::path::PathBuf;

use crate::family::Fault;
use serde::Deserialize;

/// An ONNX file and the tensors that separate its modules.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnnxSource {
    /// The ONNX file.
    pub file: PathBuf,
    /// Width of the hidden states, `[batch, tokens, width]`; texts only.
    pub width: Option<usize>,
    /// Input, output and shapes of a graph that reads images; images only.
    pub image: Option<OnnxImage>,
    /// Whether the rows of a batch run one at a time, because the network mixes rows.
    #[serde(default)]
    pub one_by_one: bool,
    /// Name of the hidden states before the first block.
    pub stem: String,
    /// Names of the hidden states after each block, in order. For a block of two modules, those
    /// after its attention as well.
    pub blocks: Vec<BlockEnds>,
}

/// Settings of an ONNX anchor of images besides its cuts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnnxImage {
    /// Name of the graph's input, `[batch, channels, height, width]`.
    pub input: String,
    /// Name of the graph's output, `[batch, classes]`.
    pub output: String,
    /// Extents, without the batch axis, of the hidden states before each block and after the last.
    pub shapes: Vec<Vec<usize>>,
}

/// Names of the tensors at which a block's modules end.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum BlockEnds {
    /// End of a block that is one module.
    Whole(String),
    /// Ends of the attention and of the feed-forward part, as two modules.
    Parts([String; 2]),
}

impl BlockEnds {
    /// Returns the names of the tensors that end the block's modules.
    pub fn tensors(&self) -> &[String] {
        match self {
            Self::Whole(end) => std::slice::from_ref(end),
            Self::Parts(ends) => ends,
        }
    }
}

impl OnnxSource {
    /// Returns the first fault, or `None` if there is none.
    pub(super) fn fault(&self) -> Option<Fault> {
        match (&self.image, self.width) {
            (Some(image), None) if image.shapes.len() != self.blocks.len() + 1 => {
                let expected =
                    format!("there must be {}, one more than blocks", self.blocks.len() + 1);
                Some(Fault::new(
                    "onnx.image.shapes",
                    format!("{} shapes", image.shapes.len()),
                    expected,
                ))
            }
            (Some(_), None) | (None, Some(_)) => None,
            _ => {
                let expected = "exactly one of `width` (texts) and `image` (images) is needed";
                Some(Fault::new("onnx.width", format!("{:?}", self.width), expected))
            }
        }
    }
}
