//! Networks of stitches and exits that were trained with their anchors.

use super::pooling::mean_of_all;
use crate::{
    arch::{
        error::ArchError,
        ops::{extent, float_weight, linear, with_hidden},
    },
    module::{Network, Precision},
    onnx::{Attribute, GraphBuilder},
    pool::Checkpoint,
};

/// Epsilon of an exit's norm.
const EPSILON: f32 = 1e-6;

/// Builds a stitch: `x · weightᵀ + bias` for every token.
///
/// # Shapes
///
/// - hidden: \[batch, tokens, width_in\]
/// - output: \[batch, tokens, width_out\]
pub(crate) fn stitch(
    weights: &Checkpoint,
    name: &str,
    [width_in, width_out]: [usize; 2],
) -> Result<Network, ArchError> {
    let (mut graph, hidden) = with_hidden(width_in);
    let output = affine(&mut graph, &hidden, weights, name, [width_in, width_out])?;
    let shape = [None, None, extent(width_out)];
    Ok(Network::new(graph.finish(&output, "output", &shape), Precision::F32))
}

/// Builds an exit: the first token joined with the mean of all, a norm, one score per class.
///
/// # Shapes
///
/// - hidden: \[batch, tokens, width\]
/// - output: \[batch, classes\]
pub(crate) fn exit(
    weights: &Checkpoint,
    name: &str,
    [width, classes]: [usize; 2],
) -> Result<Network, ArchError> {
    let (mut graph, hidden) = with_hidden(width);
    let index = graph.int(0);
    let first = graph.node("Gather", &[&hidden, &index], &[("axis", Attribute::Int(1))]);
    let mean = mean_of_all(&mut graph, &hidden);
    let pooled = graph.node("Concat", &[&first, &mean], &[("axis", Attribute::Int(1))]);
    let mut vector = |part: &str| -> Result<String, ArchError> {
        let weight = weights.weight(&format!("{name}.norm.{part}"), &[2 * width])?;
        Ok(float_weight(&mut graph, weight))
    };
    let (gamma, beta) = (vector("weight")?, vector("bias")?);
    let attributes = [("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(EPSILON))];
    let normed = graph.node("LayerNormalization", &[&pooled, &gamma, &beta], &attributes);
    let head = format!("{name}.head");
    let scores = affine(&mut graph, &normed, weights, &head, [2 * width, classes])?;
    let shape = [None, extent(classes)];
    Ok(Network::new(graph.finish(&scores, "output", &shape), Precision::F32))
}

/// Adds `input · weightᵀ + bias`.
fn affine(
    graph: &mut GraphBuilder,
    input: &str,
    weights: &Checkpoint,
    name: &str,
    [inputs, outputs]: [usize; 2],
) -> Result<String, ArchError> {
    let weight = weights.weight(&format!("{name}.weight"), &[outputs, inputs])?;
    let product = linear(graph, input, weight);
    let bias = float_weight(graph, weights.weight(&format!("{name}.bias"), &[outputs])?);
    Ok(graph.node("Add", &[&product, &bias], &[]))
}
