//! The form of ONNX Runtime's products of quantized weights (`MatMulNBits`).
//!
//! Levels of 5 and 6 bits take 8 there. Zero is the middle level, for which that operator has fast
//! kernels; minima become a small matrix by which sums of the left side are multiplied.

use super::{BlockLayout, BlockType, decode::Block};

/// Form of a packed matrix. Matrices of one form and number of columns can be stacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::onnx) struct PackedForm {
    /// Number of bits of a level, 4 or 8.
    pub(in crate::onnx) bits: usize,
    /// Number of elements of a row that share a scale.
    pub(in crate::onnx) group: usize,
    /// Whether groups have minima.
    pub(in crate::onnx) has_minima: bool,
}

/// Matrix of levels, `[rows, columns]`. An element is its scale times its level less the middle
/// level, plus the minimum of its group.
#[derive(Debug, Default)]
pub(in crate::onnx) struct Packed {
    /// Levels, row by row.
    pub(in crate::onnx) levels: Vec<u8>,
    /// Scales, `[rows, groups]`.
    pub(in crate::onnx) scales: Vec<f32>,
    /// Minima, `[rows, groups]`; empty if there are none.
    pub(in crate::onnx) minima: Vec<f32>,
}

impl BlockType {
    /// Returns the form in which weights of this type are packed.
    pub(in crate::onnx) fn packed_form(self) -> PackedForm {
        let BlockLayout { group, centre, has_minima, .. } = self.layout();
        PackedForm { bits: if centre == 8 { 4 } else { 8 }, group, has_minima }
    }
}

impl PackedForm {
    /// Returns the size of a packed matrix of `elements` elements, in bytes.
    pub(in crate::onnx) fn bytes(self, elements: u64) -> u64 {
        let floats = if self.has_minima { 2 } else { 1 };
        let groups = elements / self.group as u64;
        elements * self.bits as u64 / 8 + groups * floats * size_of::<f32>() as u64
    }

    /// Returns the middle level.
    fn centre(self) -> u8 {
        1 << (self.bits - 1)
    }
}

/// Packs the blocks `bytes` of a matrix. Bytes behind the last whole block are left out.
pub(in crate::onnx) fn pack(block_type: BlockType, bytes: &[u8]) -> Packed {
    let BlockLayout { elements, bytes: size, group, centre, has_minima } = block_type.layout();
    let form = block_type.packed_form();
    let num_blocks = bytes.len() / size;
    let num_groups = num_blocks * elements / group;
    let mut packed = Packed {
        levels: Vec::with_capacity(num_blocks * elements * form.bits / 8),
        scales: Vec::with_capacity(num_groups),
        minima: Vec::with_capacity(if has_minima { num_groups } else { 0 }),
    };
    let raised = form.centre() - centre;
    let mut block = Block::default();
    for bytes in bytes.chunks_exact(size) {
        block.read(block_type, bytes);
        let levels = &block.levels[..elements];
        if form.bits == 4 {
            packed
                .levels
                .extend(levels.as_chunks::<2>().0.iter().map(|[low, high]| low | high << 4));
        } else {
            packed.levels.extend(levels.iter().map(|level| level + raised));
        }
        let groups = elements / group;
        packed.scales.extend(&block.scales[..groups]);
        if has_minima {
            let groups = block.minima[..groups].iter().zip(&block.scales);
            packed.minima.extend(groups.map(|(least, scale)| least + f32::from(centre) * scale));
        }
    }
    packed
}
