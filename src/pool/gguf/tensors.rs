//! Descriptions of a GGUF file's tensors.

use std::collections::BTreeSet;

use super::cursor::Cursor;
use crate::onnx::{blocks::BlockType, proto::data_type};

/// Most axes of a tensor.
const MAX_AXES: u32 = 4;

/// Longest name of a tensor, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// Least size of a description, in bytes: an empty name, one axis, a type and an offset.
const MIN_BYTES: u64 = 8 + 4 + 8 + 4 + 8;

/// A tensor's name, shape, type and place.
#[derive(Debug)]
pub(super) struct Tensor {
    pub(super) name: String,
    /// Extent of each axis, the outermost first.
    pub(super) shape: Vec<usize>,
    /// ONNX number of the element type, or that of a type of blocks.
    pub(super) data_type: i32,
    /// Offset of the first byte in the file.
    pub(super) offset: u64,
    /// Number of bytes.
    pub(super) length: u64,
}

/// Reads `count` descriptions, and checks the tensors' places behind them.
pub(super) fn read(
    cursor: &mut Cursor<'_>,
    count: u64,
    alignment: u64,
) -> Result<Vec<Tensor>, String> {
    cursor.check_room("tensors", count, MIN_BYTES)?;
    let mut tensors = Vec::new();
    for _ in 0..count {
        let name = cursor.text()?;
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            let length = name.len();
            return Err(format!("a tensor's name has {length} bytes, but 1 to 255 are supported"));
        }
        tensors.push(one(cursor, name).map_err(|fault| format!("tensor `{name}`: {fault}"))?);
    }
    let start = (cursor.at() as u64).next_multiple_of(alignment);
    place(&mut tensors, start, cursor.end(), alignment)?;
    Ok(tensors)
}

/// Reads the description of the tensor `name`, whose offset counts from the first tensor.
fn one(cursor: &mut Cursor<'_>, name: &str) -> Result<Tensor, String> {
    let num_axes = cursor.u32()?;
    if !(1..=MAX_AXES).contains(&num_axes) {
        return Err(format!("it has {num_axes} axes, but 1 to {MAX_AXES} are supported"));
    }
    // The file has the innermost axis first.
    let mut extents: Vec<u64> = (0..num_axes).map(|_| cursor.u64()).collect::<Result<_, _>>()?;
    let columns = extents[0];
    extents.reverse();
    let number = cursor.u32()?;
    let (data_type, elements, bytes) = element_type(number)?;
    if !columns.is_multiple_of(elements) {
        return Err(format!("its rows have {columns} elements, but blocks have {elements}"));
    }
    let all = extents.iter().try_fold(1_u64, |all, extent| all.checked_mul(*extent));
    let length = all.filter(|all| *all > 0).and_then(|all| (all / elements).checked_mul(bytes));
    let length = length.ok_or_else(|| format!("its extents {extents:?} are not possible"))?;
    let shape: Result<_, _> = extents.iter().map(|extent| usize::try_from(*extent)).collect();
    let shape = shape.map_err(|_| format!("its extents {extents:?} are not possible"))?;
    Ok(Tensor { name: name.to_owned(), shape, data_type, offset: cursor.u64()?, length })
}

/// Returns the element type with ggml's number `number`: its number here, and the elements and the
/// bytes of a block.
fn element_type(number: u32) -> Result<(i32, u64, u64), String> {
    match (number, BlockType::of_ggml(number)) {
        (0, _) => Ok((data_type::FLOAT, 1, 4)),
        (1, _) => Ok((data_type::FLOAT16, 1, 2)),
        (30, _) => Ok((data_type::BFLOAT16, 1, 2)),
        (_, Some(block)) => Ok((block.data_type(), block.elements() as u64, block.bytes() as u64)),
        _ => Err(format!(
            "it has the type {}; F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and \
             Q6_K are supported",
            type_name(number)
        )),
    }
}

/// Returns ggml's name of a type that is not supported, or its number.
fn type_name(number: u32) -> String {
    let known = match number {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return number.to_string(),
    };
    known.to_owned()
}

/// Moves the tensors' offsets by `start`, and checks that no two tensors overlap and none lies
/// beyond `end`.
fn place(tensors: &mut [Tensor], start: u64, end: u64, alignment: u64) -> Result<(), String> {
    let mut names = BTreeSet::new();
    for tensor in &mut *tensors {
        let Tensor { name, offset, length, .. } = tensor;
        if !names.insert(name.clone()) {
            return Err(format!("tensor `{name}` stands twice"));
        }
        if !offset.is_multiple_of(alignment) {
            return Err(format!(
                "tensor `{name}` starts at {offset}, which is not a multiple of {alignment}"
            ));
        }
        let moved = offset.checked_add(start);
        let last = moved.and_then(|first| first.checked_add(*length));
        match (moved, last) {
            (Some(first), Some(last)) if last <= end => *offset = first,
            _ => return Err(format!("tensor `{name}` lies beyond the file's end")),
        }
    }
    let mut order: Vec<&Tensor> = tensors.iter().collect();
    order.sort_by_key(|tensor| tensor.offset);
    let overlapping =
        order.windows(2).find(|pair| pair[0].offset + pair[0].length > pair[1].offset);
    match overlapping {
        Some(pair) => Err(format!("tensors `{}` and `{}` overlap", pair[0].name, pair[1].name)),
        None => Ok(()),
    }
}
