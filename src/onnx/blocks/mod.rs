//! Blocks of quantized weights, as GGUF files hold them (ggml's `ggml-common.h`).
//!
//! A block holds the levels of 32 or 256 elements of a row and how to scale them. A weight of such
//! blocks is a [`TensorProto`](super::proto::TensorProto) with a type of its own,
//! `[rows, columns]`, which ONNX Runtime does not know. [`dequantize`] gives its values. `pack`
//! gives the form of ONNX Runtime's products, which is as exact.

mod decode;
mod packed;

pub use decode::dequantize;
pub(super) use packed::{Packed, PackedForm, pack};

/// Type of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are ggml's own")]
pub enum BlockType {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

/// All types of blocks.
pub(super) const ALL: [BlockType; 8] = [
    BlockType::Q4_0,
    BlockType::Q4_1,
    BlockType::Q5_0,
    BlockType::Q5_1,
    BlockType::Q8_0,
    BlockType::Q4K,
    BlockType::Q5K,
    BlockType::Q6K,
];

/// Element type of a weight of blocks, less ggml's number of the type. No type of the standard is
/// near.
const FIRST_DATA_TYPE: i32 = 0x6767_0000;

/// Sizes of a block, and the computation of its elements.
///
/// An element is `scale * (level - centre)`, plus the minimum of its group less `centre` times the
/// scale if the type has minima.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockLayout {
    /// Number of elements of a block.
    pub(super) elements: usize,
    /// Size of a block in bytes.
    pub(super) bytes: usize,
    /// Number of elements that share a scale.
    pub(super) group: usize,
    /// Level of zero, or the middle level if the type has minima.
    pub(super) centre: u8,
    /// Whether groups have minima.
    pub(super) has_minima: bool,
}

impl BlockType {
    /// Returns the type with ggml's number `number`, or `None` if it is not supported.
    pub fn of_ggml(number: u32) -> Option<Self> {
        ALL.into_iter().find(|block| block.number() == number)
    }

    /// Returns the type of a weight whose element type is `data_type`, or `None` for a type of the
    /// standard.
    pub fn of_data_type(data_type: i32) -> Option<Self> {
        ALL.into_iter().find(|block| block.data_type() == data_type)
    }

    /// Returns the element type of weights of this type.
    pub fn data_type(self) -> i32 {
        FIRST_DATA_TYPE + self.number().cast_signed()
    }

    /// Returns the number of elements of a block.
    pub fn elements(self) -> usize {
        self.layout().elements
    }

    /// Returns the size of a block in bytes.
    pub fn bytes(self) -> usize {
        self.layout().bytes
    }

    /// Returns the size of a weight of `elements` elements as products hold it, in bytes.
    pub fn packed_bytes(self, elements: u64) -> u64 {
        self.packed_form().bytes(elements)
    }

    /// Returns whether elements are whole bytes with a sign, so that rows can be read where they
    /// lie in a file.
    pub fn has_bytes(self) -> bool {
        self == Self::Q8_0
    }

    /// Returns ggml's number of the type.
    fn number(self) -> u32 {
        match self {
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
        }
    }

    /// Returns the sizes of a block.
    pub(super) fn layout(self) -> BlockLayout {
        let layout = |elements, bytes, group, centre, has_minima| BlockLayout {
            elements,
            bytes,
            group,
            centre,
            has_minima,
        };
        match self {
            Self::Q4_0 => layout(32, 18, 32, 8, false),
            Self::Q4_1 => layout(32, 20, 32, 8, true),
            Self::Q5_0 => layout(32, 22, 32, 16, false),
            Self::Q5_1 => layout(32, 24, 32, 16, true),
            Self::Q8_0 => layout(32, 34, 32, 128, false),
            Self::Q4K => layout(256, 144, 32, 8, true),
            Self::Q5K => layout(256, 176, 32, 16, true),
            Self::Q6K => layout(256, 210, 16, 32, false),
        }
    }
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
