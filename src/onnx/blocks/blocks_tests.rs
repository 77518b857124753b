//! Tests of blocks against the values of the `gguf` package.

use std::path::Path;

use safetensors::SafeTensors;

use super::*;

const NAMES: [&str; 8] = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"];

/// Calls `check` with blocks of each type and their values according to the `gguf` package.
fn for_each_type(check: impl Fn(BlockType, &[u8], &[f32])) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/references/blocks.safetensors");
    let file = std::fs::read(path).expect("the reference is there");
    let tensors = SafeTensors::deserialize(&file).expect("safetensors");
    for (block_type, name) in ALL.into_iter().zip(NAMES) {
        let read = |part: &str| tensors.tensor(&format!("{name}.{part}")).expect("a tensor").data();
        let values = read("values").as_chunks::<4>().0.iter();
        let values: Vec<f32> = values.map(|bytes| f32::from_le_bytes(*bytes)).collect();
        check(block_type, read("blocks"), &values);
    }
}

#[test]
fn values_are_those_of_the_gguf_package() {
    for_each_type(|block_type, blocks, expected| {
        assert_eq!(dequantize(block_type, blocks), expected, "{block_type:?}");
    });
}

#[test]
fn packed_levels_give_the_same_values() {
    for_each_type(|block_type, blocks, expected| {
        let (form, packed) = (block_type.packed_form(), pack(block_type, blocks));
        let levels: Vec<u8> = match form.bits {
            4 => packed.levels.iter().flat_map(|byte| [byte & 0x0f, byte >> 4]).collect(),
            _ => packed.levels.clone(),
        };
        assert_eq!(levels.len(), expected.len());
        let centre = f32::from(1_u8 << (form.bits - 1));
        for (element, (level, expected)) in levels.iter().zip(expected).enumerate() {
            let group = element / form.group;
            let value = packed.scales[group] * (f32::from(*level) - centre)
                + packed.minima.get(group).copied().unwrap_or(0.0);
            // With minima, the middle level is subtracted and added again.
            let largest = packed.scales[group].abs() * 32.0;
            let tolerance = if form.has_minima { largest * f32::EPSILON } else { 0.0 };
            assert!((value - expected).abs() <= tolerance, "{block_type:?} {value} {expected}");
        }
        let floats = packed.scales.len() + packed.minima.len();
        let bytes = form.bytes(expected.len() as u64);
        assert_eq!(bytes, (packed.levels.len() + 4 * floats) as u64, "{block_type:?}");
    });
}

#[test]
fn each_type_is_found_by_its_numbers() {
    for block_type in ALL {
        assert_eq!(BlockType::of_ggml(block_type.number()), Some(block_type));
        assert_eq!(BlockType::of_data_type(block_type.data_type()), Some(block_type));
        assert!(block_type.data_type() > 1_000, "no type of the standard");
    }
    for number in [0, 1, 4, 5, 9, 10, 11, 15, 30, u32::MAX] {
        assert_eq!(BlockType::of_ggml(number), None);
    }
    assert_eq!(BlockType::of_data_type(1), None);
}

#[test]
fn bytes_behind_the_last_block_are_left_out() {
    for block_type in ALL {
        let bytes = vec![0; block_type.bytes() * 2 - 1];
        assert_eq!(dequantize(block_type, &bytes).len(), block_type.elements());
        assert!(dequantize(block_type, &[]).is_empty());
    }
}
