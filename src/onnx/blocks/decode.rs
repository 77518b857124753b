//! Levels, scales and minima of a block.

use super::BlockType;

/// Most elements and groups of a block.
const MAX_ELEMENTS: usize = 256;
const MAX_GROUPS: usize = 16;

/// A block taken apart.
#[derive(Debug)]
pub(super) struct Block {
    /// Level of each element.
    pub(super) levels: [u8; MAX_ELEMENTS],
    /// Scale of each group.
    pub(super) scales: [f32; MAX_GROUPS],
    /// Minimum of each group, for types that have minima.
    pub(super) minima: [f32; MAX_GROUPS],
}

/// Returns the values of the blocks `bytes`. Bytes behind the last whole block are left out.
pub fn dequantize(block_type: BlockType, bytes: &[u8]) -> Vec<f32> {
    let layout = block_type.layout();
    let blocks = bytes.chunks_exact(layout.bytes);
    let mut values = Vec::with_capacity(blocks.len() * layout.elements);
    // The middle level is a matter of packing: with minima, levels count from the minimum.
    let zero = if layout.has_minima { 0.0 } else { f32::from(layout.centre) };
    let mut block = Block::default();
    for bytes in blocks {
        block.read(block_type, bytes);
        for (group, levels) in block.levels[..layout.elements].chunks(layout.group).enumerate() {
            let scale = block.scales[group];
            let values_of = levels.iter().map(|level| scale * (f32::from(*level) - zero));
            match layout.has_minima {
                true => values.extend(values_of.map(|value| value + block.minima[group])),
                false => values.extend(values_of),
            }
        }
    }
    values
}

impl Default for Block {
    fn default() -> Self {
        let (scales, minima) = ([0.0; MAX_GROUPS], [0.0; MAX_GROUPS]);
        Self { levels: [0; MAX_ELEMENTS], scales, minima }
    }
}

impl Block {
    /// Takes the block `bytes` of `block_type` apart. There must be as many bytes as a block has.
    pub(super) fn read(&mut self, block_type: BlockType, bytes: &[u8]) {
        match block_type {
            BlockType::Q4_0 => self.nibbles(bytes, &[0; 4], &bytes[2..]),
            BlockType::Q4_1 => {
                self.minima[0] = half(&bytes[2..]);
                self.nibbles(bytes, &[0; 4], &bytes[4..]);
            }
            BlockType::Q5_0 => self.nibbles(bytes, &bytes[2..6], &bytes[6..]),
            BlockType::Q5_1 => {
                self.minima[0] = half(&bytes[2..]);
                self.nibbles(bytes, &bytes[4..8], &bytes[8..]);
            }
            BlockType::Q8_0 => {
                self.scales[0] = half(bytes);
                for (level, byte) in self.levels.iter_mut().zip(&bytes[2..]) {
                    // Levels are signed there, and count from 0 here.
                    *level = byte ^ 0x80;
                }
            }
            BlockType::Q4K => {
                self.super_scales(bytes);
                self.super_nibbles(&[0; 32], &bytes[16..]);
            }
            BlockType::Q5K => {
                self.super_scales(bytes);
                self.super_nibbles(&bytes[16..48], &bytes[48..]);
            }
            BlockType::Q6K => self.six_bits(bytes),
        }
    }

    /// Reads 32 levels: low halves of 16 bytes, then high halves, each with a fifth bit of `fifth`.
    fn nibbles(&mut self, scale: &[u8], fifth: &[u8], halves: &[u8]) {
        self.scales[0] = half(scale);
        let bit = |element: usize| ((fifth[element / 8] >> (element % 8)) & 1) << 4;
        for (element, byte) in halves[..16].iter().enumerate() {
            self.levels[element] = (byte & 0x0f) | bit(element);
            self.levels[element + 16] = (byte >> 4) | bit(element + 16);
        }
    }

    /// Reads the scales and minima of eight groups, 6 bits each.
    fn super_scales(&mut self, bytes: &[u8]) {
        let (scale, minimum) = (half(bytes), half(&bytes[2..]));
        let packed = &bytes[4..16];
        for group in 0..8 {
            let (own, least) = if group < 4 {
                (packed[group] & 63, packed[group + 4] & 63)
            } else {
                let (rest, high) = (packed[group + 4], [packed[group - 4], packed[group]]);
                ((rest & 0x0f) | ((high[0] >> 6) << 4), (rest >> 4) | ((high[1] >> 6) << 4))
            };
            self.scales[group] = scale * f32::from(own);
            self.minima[group] = -(minimum * f32::from(least));
        }
    }

    /// Reads 256 levels: of each 32 bytes the low halves, then the high halves. Bit `group` of
    /// `fifth` is the fifth bit of a group's levels.
    fn super_nibbles(&mut self, fifth: &[u8], halves: &[u8]) {
        for group in 0..8 {
            let (bytes, shift) = (&halves[group / 2 * 32..][..32], group % 2 * 4);
            let levels = &mut self.levels[group * 32..][..32];
            for ((level, byte), fifth) in levels.iter_mut().zip(bytes).zip(fifth) {
                *level = ((byte >> shift) & 0x0f) | (((fifth >> group) & 1) << 4);
            }
        }
    }

    /// Reads 256 levels of 6 bits and the scales of sixteen groups.
    fn six_bits(&mut self, bytes: &[u8]) {
        let (low, rest) = bytes.split_at(128);
        let (high, rest) = rest.split_at(64);
        let scale = half(&rest[16..]);
        for (own, byte) in self.scales.iter_mut().zip(&rest[..16]) {
            *own = scale * f32::from(byte.cast_signed());
        }
        for (element, level) in self.levels.iter_mut().enumerate() {
            // Each half of the block has four quarters of 32: their low bits lie in 64 bytes, two
            // quarters in each half byte, and their high bits in 32 bytes.
            let (part, quarter, at) = (element / 128, element / 32 % 4, element % 32);
            let four = low[part * 64 + quarter % 2 * 32 + at] >> (quarter / 2 * 4);
            let two = high[part * 32 + at] >> (quarter * 2);
            *level = (four & 0x0f) | ((two & 3) << 4);
        }
    }
}

/// Returns the half-precision number at the start of `bytes`.
fn half(bytes: &[u8]) -> f32 {
    half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}
