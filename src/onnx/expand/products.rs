//! Products with weights of blocks, stacked by their left side.

use std::{collections::HashMap, path::Path};

use super::{
    nodes::{floats, fused, int, ints, levels, node},
    weight::{Weight, Weights},
};
use crate::{
    onnx::{
        OnnxError,
        blocks::{Packed, PackedForm},
        proto::{GraphProto, NodeProto, TensorProto, data_type},
    },
    tensor::signed,
};

/// Level of accuracy at which the left side is quantized to int8, block by block.
const INT8_ACTIVATIONS: usize = 4;

/// Products of a graph that are replaced.
#[derive(Debug)]
pub(super) struct Products<'g> {
    /// Stacked products, by the output of their first product.
    stacks: HashMap<String, Stack<'g>>,
    /// Outputs of nodes that are left out: the other products, and the joins of all of a stack's.
    others: Vec<String>,
}

/// Products of one left side with weights of one form.
#[derive(Debug)]
pub(super) struct Stack<'g> {
    left: String,
    form: PackedForm,
    columns: usize,
    /// Number of axes of the left side.
    rank: usize,
    /// Weight and output of each product.
    parts: Vec<(Weight<'g>, String)>,
    /// Output of the node that joins the outputs of all products, if no other node reads them.
    joined: Option<String>,
}

impl<'g> Products<'g> {
    /// Finds the products of `graph` with transposed weights of blocks.
    pub(super) fn find(graph: &GraphProto, weights: &Weights<'g>) -> Self {
        let mut known: HashMap<&str, Weight<'g>> =
            weights.iter().map(|(name, weight)| (*name, *weight)).collect();
        let mut transposed: HashMap<&str, Weight<'g>> = HashMap::new();
        let rank = rank(graph);
        let mut found: Vec<Stack<'g>> = Vec::new();
        for node in &graph.node {
            let ([left, right], [output]) = (ends(node), &node.output[..]) else { continue };
            match (node.op_type.as_str(), known.get(left), transposed.get(right)) {
                ("Cast", Some(weight), _) => drop(known.insert(output, *weight)),
                ("Transpose", Some(weight), _) => drop(transposed.insert(output, *weight)),
                ("MatMul", _, Some(weight)) => {
                    let form = weight.block_type.packed_form();
                    let columns = weight.columns;
                    let is_its = |stack: &&mut Stack<'g>| {
                        (&*stack.left, stack.form, stack.columns) == (left, form, columns)
                    };
                    let part = (*weight, output.clone());
                    match found.iter_mut().find(is_its) {
                        Some(stack) => stack.parts.push(part),
                        None => found.push(Stack {
                            left: left.to_owned(),
                            form,
                            columns,
                            rank,
                            parts: vec![part],
                            joined: None,
                        }),
                    }
                }
                _ => {}
            }
        }
        let outputs = |stack: &Stack<'g>| -> Vec<String> {
            stack.parts.iter().skip(1).map(|(_, output)| output.clone()).collect()
        };
        found.iter_mut().for_each(|stack| stack.joined = stack.join(graph));
        let joined = found.iter().filter_map(|stack| stack.joined.clone());
        let others = found.iter().flat_map(outputs).chain(joined).collect();
        let stacks = found.into_iter().map(|stack| (stack.parts[0].1.clone(), stack));
        Self { stacks: stacks.collect(), others }
    }

    /// Takes the stacked products whose first one is `node`, or returns `None`.
    pub(super) fn take(&mut self, node: &NodeProto) -> Option<Stack<'g>> {
        self.stacks.remove(node.output.first()?)
    }

    /// Returns whether `node` is part of an earlier product.
    pub(super) fn is_part(&self, node: &NodeProto) -> bool {
        node.output.first().is_some_and(|output| self.others.contains(output))
    }
}

impl Stack<'_> {
    /// Returns the output of the node that joins all products in their order, if no other node
    /// reads them and they are no outputs of the graph.
    fn join(&self, graph: &GraphProto) -> Option<String> {
        let outputs: Vec<&String> = self.parts.iter().map(|(_, output)| output).collect();
        let is_read = |node: &&NodeProto| node.input.iter().any(|name| outputs.contains(&name));
        let mut readers = graph.node.iter().filter(is_read);
        let (reader, other) = (readers.next()?, readers.next());
        let is_last = |node: &NodeProto| {
            let axis = node.attribute.iter().find(|attribute| attribute.name == "axis");
            axis.is_some_and(|axis| axis.i == Some(-1))
        };
        let joins = reader.op_type == "Concat"
            && outputs.len() > 1
            && outputs.iter().copied().eq(&reader.input)
            && is_last(reader);
        let is_output = graph.output.iter().any(|output| outputs.contains(&&output.name));
        reader.output.first().filter(|_| joins && other.is_none() && !is_output).cloned()
    }

    /// Writes the product as nodes and their constants.
    pub(super) fn write(
        self,
        folder: &Path,
        nodes: &mut Vec<NodeProto>,
        constants: &mut Vec<TensorProto>,
    ) -> Result<(), OnnxError> {
        let mut all = Packed::default();
        for (weight, _) in &self.parts {
            let packed = weight.packed(folder)?;
            all.levels.extend(packed.levels);
            all.scales.extend(packed.scales);
            all.minima.extend(packed.minima);
        }
        let Self { left, form, columns, parts, .. } = &self;
        let rows: usize = parts.iter().map(|(weight, _)| weight.rows).sum();
        let [(_, first), ..] = &parts[..] else { return Ok(()) };
        let name = |part: &str| format!("{first}.{part}");
        let output = match &self.joined {
            Some(joined) => joined.clone(),
            None if parts.len() == 1 => first.clone(),
            None => name("stacked"),
        };
        let product = if form.has_minima { name("product") } else { output.clone() };
        let groups = columns / form.group;
        let [level_name, scale_name] = ["levels", "scales"].map(name);
        let blob = form.group * form.bits / 8;
        constants.push(levels(&level_name, &[rows, groups, blob], all.levels));
        constants.push(floats(&scale_name, &[rows, groups], &all.scales));
        nodes.push(fused(
            "MatMulNBits",
            &[left, &level_name, &scale_name],
            &product,
            &[
                ("K", *columns),
                ("N", rows),
                ("bits", form.bits),
                ("block_size", form.group),
                ("accuracy_level", INT8_ACTIVATIONS),
            ],
        ));
        if form.has_minima {
            let minima = transposed(&all.minima, groups);
            constants.push(floats(&name("minima"), &[groups, rows], &minima));
            self.add_minima([&product, &output], nodes, constants);
        }
        if parts.len() > 1 && self.joined.is_none() {
            let sizes: Vec<i64> = parts.iter().map(|(weight, _)| signed(weight.rows)).collect();
            constants.push(ints(&name("sizes"), &sizes));
            let outputs: Vec<&str> = parts.iter().map(|(_, output)| output.as_str()).collect();
            let mut split = node("Split", &[&output, &name("sizes")], &outputs);
            split.attribute.push(int("axis", -1));
            nodes.push(split);
        }
        Ok(())
    }

    /// Adds to `product` the sums of the left side's groups times the minima.
    fn add_minima(
        &self,
        [product, output]: [&str; 2],
        nodes: &mut Vec<NodeProto>,
        constants: &mut Vec<TensorProto>,
    ) {
        let Self { left, form, columns, rank, parts, .. } = self;
        let name = |part: &str| format!("{}.{part}", parts[0].1);
        let mut shape = vec![0; rank - 1];
        shape.extend([signed(columns / form.group), signed(form.group)]);
        constants.extend([ints(&name("shape"), &shape), ints(&name("axis"), &[-1])]);
        let mut sums = node("ReduceSum", &[&name("groups"), &name("axis")], &[&name("sums")]);
        sums.attribute.push(int("keepdims", 0));
        nodes.extend([node("Reshape", &[left, &name("shape")], &[&name("groups")]), sums]);
        // The operator that adds as well takes matrices only.
        nodes.extend(match rank {
            2 => vec![node("Gemm", &[&name("sums"), &name("minima"), product], &[output])],
            _ => vec![
                node("MatMul", &[&name("sums"), &name("minima")], &[&name("least")]),
                node("Add", &[product, &name("least")], &[output]),
            ],
        });
    }
}

/// Returns a node's first two inputs, each empty if it lacks it.
fn ends(node: &NodeProto) -> [&str; 2] {
    [0, 1].map(|index| node.input.get(index).map_or("", String::as_str))
}

/// Returns the number of axes of a graph's hidden states.
fn rank(graph: &GraphProto) -> usize {
    let floats = graph.input.iter().filter(|input| input.element_type() == Some(data_type::FLOAT));
    floats.filter_map(|input| input.extents()).map(|extents| extents.len()).next().unwrap_or(3)
}

/// Returns a matrix with `columns` columns transposed.
fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    let column = |column: usize| values[column..].iter().step_by(columns).copied();
    (0..columns).flat_map(column).collect()
}
