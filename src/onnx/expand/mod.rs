//! Weights of quantized blocks in a graph become nodes that ONNX Runtime knows.
//!
//! A product with a transposed weight of blocks becomes `MatMulNBits`, as exact as the file.
//! Products of one left side are stacked into one and split again. A table from which rows are
//! chosen stays in its file if its elements are bytes, and else becomes `GatherBlockQuantized`. Any
//! other weight of blocks becomes its values.

pub(super) mod nodes;
mod products;
mod tables;
mod weight;

use std::path::Path;

use super::{
    OnnxError,
    blocks::{BlockType, dequantize},
    external::map_bytes,
    proto::{ModelProto, TensorProto, data_type},
    quantize::remove_unused,
};
use nodes::float_bytes;
use products::Products;
use weight::{Weight, Weights};

/// Replaces the weights of blocks in `model` by quantized products, tables and values.
///
/// # Errors
///
/// Fails when a weight cannot be read from `folder`.
pub fn expand_blocks(model: &ModelProto, folder: &Path) -> Result<ModelProto, OnnxError> {
    let mut model = model.clone();
    let Some(graph) = model.graph.as_mut() else {
        return Ok(model);
    };
    let tensors = std::mem::take(&mut graph.initializer);
    let weights: Weights<'_> = tensors.iter().filter_map(Weight::of).collect();
    if !weights.is_empty() {
        let mut products = Products::find(graph, &weights);
        let mut nodes = Vec::with_capacity(graph.node.len());
        for node in std::mem::take(&mut graph.node) {
            if let Some(product) = products.take(&node) {
                product.write(folder, &mut nodes, &mut graph.initializer)?;
            } else if let Some(weight) = tables::table_of(&node, &weights) {
                tables::write(&node, weight, folder, &mut nodes, &mut graph.initializer)?;
            } else if !products.is_part(&node) {
                nodes.push(node);
            }
        }
        graph.node = nodes;
    }
    graph.initializer.extend(tensors);
    remove_unused(graph);
    dequantize_all(&mut graph.initializer, folder)?;
    Ok(model)
}

/// Replaces the weights of blocks in `model` by their values in f32.
///
/// # Errors
///
/// Fails when a weight cannot be read from `folder`.
pub fn dequantize_blocks(model: &ModelProto, folder: &Path) -> Result<ModelProto, OnnxError> {
    let mut model = model.clone();
    if let Some(graph) = model.graph.as_mut() {
        dequantize_all(&mut graph.initializer, folder)?;
    }
    Ok(model)
}

fn dequantize_all(tensors: &mut [TensorProto], folder: &Path) -> Result<(), OnnxError> {
    for tensor in tensors {
        if let Some(block_type) = BlockType::of_data_type(tensor.data_type) {
            let values = dequantize(block_type, &map_bytes(folder, tensor)?);
            *tensor = TensorProto {
                name: std::mem::take(&mut tensor.name),
                data_type: data_type::FLOAT,
                dims: std::mem::take(&mut tensor.dims),
                raw_data: Some(float_bytes(&values)),
                ..TensorProto::default()
            };
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "expand_tests.rs"]
mod tests;
