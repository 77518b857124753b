//! Tables of blocks from which a network's inputs choose rows, such as word embeddings.

use std::path::Path;

use half::f16;

use super::{
    nodes::{floats, fused, int, ints, levels, node},
    weight::{Weight, Weights},
};
use crate::{
    onnx::{
        OnnxError,
        external::{Place, initializer},
        proto::{NodeProto, TensorProto, data_type},
    },
    tensor::signed,
};

/// Returns the table from which `node` chooses rows, or `None` if it does not.
pub(super) fn table_of<'g>(node: &NodeProto, weights: &Weights<'g>) -> Option<Weight<'g>> {
    let axis = node.attribute.iter().find(|attribute| attribute.name == "axis");
    let is_by_row = node.op_type == "Gather" && axis.is_none_or(|axis| axis.i.unwrap_or(0) == 0);
    let table = node.input.first().filter(|_| is_by_row && node.input.len() == 2)?;
    weights.get(table.as_str()).copied()
}

/// Writes the choice of rows of `weight` as nodes and their constants.
pub(super) fn write(
    gather: &NodeProto,
    weight: Weight<'_>,
    folder: &Path,
    nodes: &mut Vec<NodeProto>,
    constants: &mut Vec<TensorProto>,
) -> Result<(), OnnxError> {
    let ([_, indices], [output]) = (&gather.input[..], &gather.output[..]) else {
        return Ok(());
    };
    if weight.block_type.has_bytes()
        && let Some(place) = weight.place()
    {
        write_of_file([indices, output], weight, &place, nodes, constants);
        return Ok(());
    }
    let form = weight.block_type.packed_form();
    let packed = weight.packed(folder)?;
    let (rows, groups) = (weight.rows, weight.columns / form.group);
    let name = |part: &str| format!("{output}.{part}");
    let product = if form.has_minima { name("product") } else { output.clone() };
    let bytes = weight.columns * form.bits / 8;
    constants.push(levels(&name("levels"), &[rows, bytes], packed.levels));
    constants.push(floats(&name("scales"), &[rows, groups], &packed.scales));
    nodes.push(fused(
        "GatherBlockQuantized",
        &[&name("levels"), indices, &name("scales")],
        &product,
        &[
            ("bits", form.bits),
            ("block_size", form.group),
            ("gather_axis", 0),
            ("quantize_axis", 1),
        ],
    ));
    if form.has_minima {
        constants.push(floats(&name("minima"), &[rows, groups], &packed.minima));
        let (split, whole) = (signed(form.group), signed(weight.columns));
        constants.push(ints(&name("split"), &[0, 0, signed(groups), split]));
        constants.push(ints(&name("single"), &[0, 0, signed(groups), 1]));
        constants.push(ints(&name("whole"), &[0, 0, whole]));
        nodes.extend([
            node("Gather", &[&name("minima"), indices], &[&name("chosen")]),
            node("Reshape", &[&name("chosen"), &name("single")], &[&name("least")]),
            node("Reshape", &[&product, &name("split")], &[&name("groups")]),
            node("Add", &[&name("groups"), &name("least")], &[&name("sum")]),
            node("Reshape", &[&name("sum"), &name("whole")], &[output]),
        ]);
    }
    Ok(())
}

/// Writes the choice of rows of a weight that stays in its file. A block is a scale in half
/// precision, and its elements as bytes with a sign.
fn write_of_file(
    [indices, output]: [&String; 2],
    weight: Weight<'_>,
    place: &Place,
    nodes: &mut Vec<NodeProto>,
    constants: &mut Vec<TensorProto>,
) {
    let name = |part: &str| format!("{output}.{part}");
    let block = weight.block_type;
    let groups = weight.columns / block.elements();
    let dims = vec![signed(weight.rows), signed(groups * block.bytes())];
    constants.push(initializer(&name("rows"), data_type::INT8, dims, place));
    let halves: Vec<f32> = (0..=u16::MAX).map(|bits| f16::from_bits(bits).to_f32()).collect();
    constants.extend([
        floats(&name("halves"), &[halves.len()], &halves),
        ints(&name("blocks"), &[0, 0, signed(groups), signed(block.bytes())]),
        ints(&name("sizes"), &[2, signed(block.elements())]),
        ints(&name("digits"), &[1, 1 << 8]),
        ints(&name("axis"), &[-1]),
        ints(&name("whole"), &[0, 0, signed(weight.columns)]),
    ]);
    let cast = |value: &str, to: i32, output: &str| {
        let mut cast = node("Cast", &[value], &[output]);
        cast.attribute.push(int("to", i64::from(to)));
        cast
    };
    let [rows, blocks, sizes] = ["rows", "blocks", "sizes"].map(name);
    let [halves, digits, axis, whole] = ["halves", "digits", "axis", "whole"].map(name);
    let [chosen, split, scale, level] = ["chosen", "split", "scale", "level"].map(name);
    let [bytes, wide, parts, number] = ["bytes", "wide", "parts", "number"].map(name);
    let [factor, floats, scaled] = ["factor", "floats", "scaled"].map(name);
    let mut split_last = node("Split", &[&split, &sizes], &[&scale, &level]);
    split_last.attribute.push(int("axis", -1));
    nodes.extend([
        node("Gather", &[&rows, indices], &[&chosen]),
        node("Reshape", &[&chosen, &blocks], &[&split]),
        split_last,
        // The two bytes of a scale are the number of its value among all of half precision.
        cast(&scale, data_type::UINT8, &bytes),
        cast(&bytes, data_type::INT64, &wide),
        node("Mul", &[&wide, &digits], &[&parts]),
        node("ReduceSum", &[&parts, &axis], &[&number]),
        node("Gather", &[&halves, &number], &[&factor]),
        cast(&level, data_type::FLOAT, &floats),
        node("Mul", &[&floats, &factor], &[&scaled]),
        node("Reshape", &[&scaled, &whole], &[output]),
    ]);
}
