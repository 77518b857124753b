//! Tables of blocks from which a network's inputs choose rows, such as word embeddings.

use std::path::Path;

use super::{
    nodes::{floats, fused, ints, levels, node},
    weight::{Weight, Weights},
};
use crate::{
    onnx::{
        OnnxError,
        proto::{NodeProto, TensorProto},
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
