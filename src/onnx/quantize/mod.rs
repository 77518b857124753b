//! Dynamic int8 quantization of a graph's matrix products.

mod levels;
mod rows;

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use super::{
    OnnxError,
    blocks::BlockType,
    external::read_floats,
    opset,
    proto::{GraphProto, ModelProto, NodeProto, TensorProto, data_type},
};
use levels::{Matrix, Quantized};
use rows::Rows;

/// Least number of elements of a matrix that is quantized.
const MIN_ELEMENTS: usize = 4_096;

/// First version of the standard's operators that quantizes tensors by block.
const BLOCKED: i64 = 21;

/// Quantizes the constant matrices of `model` to int8, symmetrically and per output channel. Matrix
/// products with them quantize their left side at run time, row by row.
///
/// A row is divided by its largest absolute value. It depends only on itself, not on the batch or
/// on padding. A left side that several products share is quantized once. A row that holds a NaN or
/// an infinite value gives no finite value.
///
/// `max_level` is the largest quantized weight. It is 127, or 63 on processors whose 8-bit products
/// saturate at 16 bits (AVX2 without VNNI).
///
/// # Errors
///
/// Fails when a weight cannot be read from `folder`.
pub fn quantize_weights(
    model: &ModelProto,
    folder: &Path,
    max_level: i8,
) -> Result<ModelProto, OnnxError> {
    let mut model = model.clone();
    let is_blocked = opset::raise(&mut model, BLOCKED);
    let axes_are_inputs = opset::version(&model) >= opset::AXES_ARE_INPUTS;
    let Some(graph) = model.graph.as_mut() else {
        return Ok(model);
    };
    let matrices = constant_matrices(graph);
    let mut rows = Rows::new(is_blocked, axes_are_inputs);
    let mut added = Vec::new();
    for node in std::mem::take(&mut graph.node) {
        let is_product = node.op_type == "MatMul";
        let Some(matrix) = node.input.get(1).filter(|_| is_product).and_then(|b| matrices.get(b))
        else {
            rows.nodes.push(node);
            continue;
        };
        let weight = &graph.initializer[matrix.initializer];
        let values = read_floats(folder, weight)?;
        let quantized = Quantized::new(&values, matrix, max_level);
        rows.quantize(&node.input[0], matrix.rows);
        rows.multiply(&node, &weight.name);
        added.extend(quantized.into_initializers(&weight.name));
    }
    graph.node = rows.nodes;
    graph.initializer.extend(added);
    graph.initializer.extend(rows::constants());
    remove_unused(graph);
    Ok(model)
}

/// Leading columns of a constant matrix as the file holds it.
#[derive(Clone, Copy)]
struct Stored {
    initializer: usize,
    rows: usize,
    columns: usize,
    stride: usize,
}

/// Finds the constant float matrices, by the name under which products read them.
fn constant_matrices(graph: &GraphProto) -> HashMap<String, Matrix> {
    let mut stored = stored_matrices(graph);
    // Columns are left out before a matrix is transposed.
    for op in ["Cast", "Slice"] {
        for node in graph.node.iter().filter(|node| node.op_type == op) {
            let [input, output] = ends(node);
            let Some(known) = stored.get(input).copied() else { continue };
            let columns = if op == "Cast" { Some(known.columns) } else { kept(graph, node) };
            if let Some(columns) = columns.filter(|columns| *columns <= known.columns) {
                stored.insert(output, Stored { columns, ..known });
            }
        }
    }
    let transposes = graph.node.iter().filter(|node| node.op_type == "Transpose");
    let transposed = transposes.filter_map(|node| {
        let [input, output] = ends(node);
        Some((output, *stored.get(input)?))
    });
    let swapped = transposed.map(|(name, Stored { initializer, rows, columns, stride })| {
        let (rows, columns) = (columns, rows);
        (name, Matrix { initializer, rows, columns, stride, is_transposed: true })
    });
    let plain = stored.iter().map(|(name, Stored { initializer, rows, columns, stride })| {
        let (initializer, rows, columns, stride) = (*initializer, *rows, *columns, *stride);
        (*name, Matrix { initializer, rows, columns, stride, is_transposed: false })
    });
    let large =
        plain.chain(swapped).filter(|(_, m)| m.rows.saturating_mul(m.columns) >= MIN_ELEMENTS);
    large.map(|(name, matrix)| (name.to_owned(), matrix)).collect()
}

/// Returns the float matrices among the weights by name.
fn stored_matrices(graph: &GraphProto) -> HashMap<&str, Stored> {
    let matrix = |(index, tensor): (usize, &TensorProto)| {
        let dims: Vec<usize> =
            tensor.dims.iter().filter_map(|extent| usize::try_from(*extent).ok()).collect();
        let [rows, columns] = dims[..] else { return None };
        let is_float =
            matches!(tensor.data_type, data_type::FLOAT | data_type::FLOAT16 | data_type::BFLOAT16)
                || BlockType::of_data_type(tensor.data_type).is_some();
        is_float.then_some(Stored { initializer: index, rows, columns, stride: columns })
    };
    let tensors = graph.initializer.iter().enumerate();
    tensors.filter_map(|found| Some((found.1.name.as_str(), matrix(found)?))).collect()
}

/// Returns the number of leading columns that a slice keeps, or `None` if it is another slice.
fn kept(graph: &GraphProto, slice: &NodeProto) -> Option<usize> {
    let constant = |index: usize| {
        let name = slice.input.get(index)?;
        let tensor = graph.initializer.iter().find(|tensor| tensor.name == *name)?;
        let bytes: [u8; 8] = tensor.raw_data.as_deref()?.try_into().ok()?;
        Some(i64::from_le_bytes(bytes))
    };
    let is_leading = (constant(1)?, constant(3)?, slice.input.len()) == (0, 1, 4);
    usize::try_from(constant(2)?).ok().filter(|_| is_leading)
}

/// Returns a node's first input and output, each empty if a malformed node lacks it.
fn ends(node: &NodeProto) -> [&str; 2] {
    [&node.input, &node.output].map(|names| names.first().map_or("", String::as_str))
}

/// Removes transposes, slices, casts and weights that are no longer read.
pub(super) fn remove_unused(graph: &mut GraphProto) {
    let outputs: HashSet<String> = graph.output.iter().map(|output| output.name.clone()).collect();
    let reads = |graph: &GraphProto| -> HashSet<String> {
        graph.node.iter().flat_map(|node| node.input.iter().cloned()).collect()
    };
    for op in ["Transpose", "Slice", "Cast"] {
        let read = reads(graph);
        graph.node.retain(|node| {
            node.op_type != op
                || node.output.iter().any(|name| read.contains(name) || outputs.contains(name))
        });
    }
    let read = reads(graph);
    graph.initializer.retain(|tensor| read.contains(&tensor.name));
}
