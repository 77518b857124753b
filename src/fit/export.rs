//! Exporting a plan as one ONNX model that holds its weights.

use prost::Message;

use super::FitError;
use crate::{
    assembly::Family,
    family::PlanId,
    module::{ATTENTION_MASK, Compute, INPUT_IDS, PIXEL_VALUES},
    onnx::{embed_weights, join, proto::StringStringEntry},
    plan::Plan,
};

/// Joins the modules of `path` into one model that holds their weights.
///
/// The inputs are `input_ids` and `attention_mask`, or `pixel_values`. The output has the name in
/// the manifest. The model's metadata holds the plan's id.
///
/// # Errors
///
/// Fails when a module routes tokens or cannot be quantized, or weights cannot be read.
pub fn export_plan(family: &Family, plan: &Plan) -> Result<Vec<u8>, FitError> {
    let wrap = |e: crate::onnx::OnnxError| FitError::Export { reason: e.to_string() };
    let mut models = Vec::new();
    for id in &plan.path {
        match family.compute(*id) {
            None => {}
            Some(Compute::Network(index)) => {
                models.push(family.network(*index).to_onnx(&family.folder).map_err(wrap)?);
            }
            Some(Compute::Routed(_)) => {
                let name = &family.graph.module(*id).name;
                let reason = format!("module `{name}` routes tokens, which a file of ONNX cannot");
                return Err(FitError::Export { reason });
            }
        }
    }
    let mut model = join(&models, &[INPUT_IDS, ATTENTION_MASK, PIXEL_VALUES], &[]);
    embed_weights(&mut model, &family.folder).map_err(wrap)?;
    if let Some(graph) = &mut model.graph {
        graph.name = family.manifest.name.clone();
        let name = &family.manifest.output.name;
        let old = graph.output.first().map(|output| output.name.clone()).unwrap_or_default();
        let values = graph.node.iter_mut().flat_map(|node| node.output.iter_mut());
        let values = values.chain(graph.output.iter_mut().map(|output| &mut output.name));
        values.filter(|value| **value == old).for_each(|value| value.clone_from(name));
    }
    let entry = |key: &str, value: String| StringStringEntry { key: key.into(), value };
    model.metadata_props = vec![
        entry("tessera.family", family.manifest.name.clone()),
        entry("tessera.plan", PlanId::of(&family.graph, plan).into()),
        entry("license", family.manifest.license.clone()),
    ];
    Ok(model.encode_to_vec())
}
