//! Raising a model to a later version of the standard's operators (opset).

use bytes::Bytes;

use super::proto::{AttributeProto, ModelProto, NodeProto, TensorProto, attribute_type, data_type};

/// Versions between which [`raise`] can convert.
const KNOWN: std::ops::RangeInclusive<i64> = 13..=21;

/// First version in which reductions read their axes as an input and `Split` counts its outputs.
pub(super) const AXES_ARE_INPUTS: i64 = 18;

/// Operators whose meaning changed within [`KNOWN`] in a way that [`mend`] does not handle.
const CHANGED: [&str; 6] =
    ["DFT", "GridSample", "GroupNormalization", "Resize", "RoiAlign", "Upsample"];

/// Reductions whose axes were an attribute before version 18.
const REDUCTIONS: [&str; 9] = [
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
];

/// Returns the version of the standard's operators that `model` declares; 1 if it declares none.
pub(super) fn version(model: &ModelProto) -> i64 {
    let standard = model.opset_import.iter().find(|opset| opset.domain.is_empty());
    standard.map_or(1, |opset| opset.version)
}

/// Raises `model` to `version`, and returns whether it now declares `version` or a later one.
///
/// A model stays as it is if one of its operators has another meaning in `version`.
pub(super) fn raise(model: &mut ModelProto, version: i64) -> bool {
    let found = self::version(model);
    if found >= version {
        return true;
    }
    let nodes = || model.graph.iter().flat_map(|graph| &graph.node);
    let is_known = KNOWN.contains(&found) && KNOWN.contains(&version);
    if !is_known || !nodes().all(keeps_its_meaning) {
        return false;
    }
    if let Some(graph) = &mut model.graph
        && (found..version).contains(&(AXES_ARE_INPUTS - 1))
    {
        let axes = graph.node.iter_mut().filter_map(mend);
        graph.initializer.extend(axes);
    }
    let standard = model.opset_import.iter_mut().filter(|opset| opset.domain.is_empty());
    standard.for_each(|opset| opset.version = version);
    model.ir_version = model.ir_version.max(IR_VERSION);
    true
}

/// File format version that belongs to the last version in [`KNOWN`].
const IR_VERSION: i64 = 10;

fn keeps_its_meaning(node: &NodeProto) -> bool {
    let has_graph = node.attribute.iter().any(|a| a.g.is_some() || !a.graphs.is_empty());
    let is_changed = node.domain.is_empty() && CHANGED.contains(&node.op_type.as_str());
    !(has_graph || is_changed)
}

/// Converts a node from before version 18 to its later form; returns its axes as an initializer.
fn mend(node: &mut NodeProto) -> Option<TensorProto> {
    if node.op_type == "Split" && node.input.len() < 2 {
        node.attribute.push(AttributeProto {
            name: "num_outputs".into(),
            i: Some(node.output.len() as i64),
            r#type: attribute_type::INT,
            ..AttributeProto::default()
        });
    }
    if !REDUCTIONS.contains(&node.op_type.as_str()) {
        return None;
    }
    let place = node.attribute.iter().position(|attribute| attribute.name == "axes")?;
    let axes = node.attribute.remove(place).ints;
    let name = format!("{}.axes", node.output.first()?);
    node.input.push(name.clone());
    let raw: Vec<u8> = axes.iter().flat_map(|axis| axis.to_le_bytes()).collect();
    Some(TensorProto {
        name,
        data_type: data_type::INT64,
        dims: vec![axes.len() as i64],
        raw_data: Some(Bytes::from(raw)),
        ..TensorProto::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{
        Attribute, GraphBuilder,
        proto::{OperatorSetId, data_type::FLOAT},
    };

    fn model(op: &str, version: i64) -> ModelProto {
        let mut graph = GraphBuilder::default();
        let value = graph.input("value", FLOAT, &[None, Some(4)]);
        let node = graph.node(op, &[&value], &[("axes", Attribute::Ints(vec![-1]))]);
        let mut model = graph.finish(&node, "output", &[None, None]);
        model.opset_import = vec![OperatorSetId { domain: String::new(), version }];
        model
    }

    #[test]
    fn axes_of_reductions_become_inputs() {
        let mut model = model("ReduceMean", 17);
        assert!(raise(&mut model, 21));
        assert_eq!(version(&model), 21);
        let graph = model.graph.expect("a graph");
        assert_eq!(graph.node[0].input.len(), 2);
        assert!(graph.node[0].attribute.is_empty());
        let axes = &graph.initializer[0];
        assert_eq!((&axes.name, &axes.dims[..]), (&graph.node[0].input[1], &[1][..]));
        assert_eq!(axes.raw_data.as_deref(), Some(&(-1i64).to_le_bytes()[..]));
    }

    #[test]
    fn what_would_change_its_meaning_stays() {
        for (op, found) in [("Resize", 17), ("ReduceMean", 12)] {
            let before = model(op, found);
            let mut after = before.clone();
            assert!(!raise(&mut after, 21));
            assert_eq!(after, before);
        }
    }

    #[test]
    fn a_model_that_is_later_already_stays() {
        let before = model("Resize", 21);
        let mut after = before.clone();
        assert!(raise(&mut after, 18));
        assert_eq!(after, before);
    }
}
