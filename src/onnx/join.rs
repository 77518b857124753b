//! Joining a chain of modules into one graph.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use super::{
    OnnxError,
    external::{place_of, read_bytes},
    opset,
    proto::{GraphProto, ModelProto, OperatorSetId},
};

/// Joins `models` into one model.
///
/// Names get the model's position as a prefix; `shared` inputs keep their names. Inputs and outputs
/// in `own` are the joined model's, too. Inputs with the name of a further output of an earlier
/// model read that output. Each model's other inputs read the first other output of the model
/// before it; those of the first model are the joined model's. The joined model declares the latest
/// opset that one of `models` declares.
pub fn join(models: &[ModelProto], shared: &[&str], own: &[&str]) -> ModelProto {
    let mut joined = GraphProto { name: "joined".into(), ..GraphProto::default() };
    let mut opsets: Vec<OperatorSetId> = Vec::new();
    let latest = models.iter().map(opset::version).max().unwrap_or_default();
    let mut declared = HashSet::new();
    let mut outputs = Vec::new();
    let mut state: Option<String> = None;
    let mut further: HashMap<String, String> = HashMap::new();
    for (index, model) in models.iter().enumerate() {
        let mut model = model.clone();
        opset::raise(&mut model, latest);
        note_opsets(&mut opsets, model.opset_import);
        let Some(mut graph) = model.graph else {
            continue;
        };
        let inputs: HashSet<String> = graph.input.iter().map(|input| input.name.clone()).collect();
        let rename = |name: &mut String| {
            *name = match name.as_str() {
                "" => String::new(),
                name if shared.contains(&name) => name.to_owned(),
                name if inputs.contains(name) && further.contains_key(name) => {
                    further[name].clone()
                }
                name => match &state {
                    Some(state) if inputs.contains(name) && !own.contains(&name) => state.clone(),
                    _ => format!("{index}/{name}"),
                },
            };
        };
        let is_own: Vec<bool> =
            graph.output.iter().map(|output| own.contains(&output.name.as_str())).collect();
        let others = graph.output.iter().zip(&is_own).filter(|(_, is_own)| !**is_own).skip(1);
        let others: Vec<String> = others.map(|(output, _)| output.name.clone()).collect();
        rename_all(&mut graph, &rename);
        let is_inside = |name: &String| {
            state.as_ref() == Some(name) || further.values().any(|known| known == name)
        };
        for input in graph.input.into_iter().filter(|input| !is_inside(&input.name)) {
            if declared.insert(input.name.clone()) {
                joined.input.push(input);
            }
        }
        joined.node.extend(graph.node);
        joined.initializer.extend(graph.initializer);
        outputs.clear();
        for (output, is_own) in graph.output.into_iter().zip(is_own) {
            if is_own { &mut joined.output } else { &mut outputs }.push(output);
        }
        further.extend(others.into_iter().map(|name| (name.clone(), format!("{index}/{name}"))));
        state = Some(outputs.first().map(|output| output.name.clone()).unwrap_or_default());
    }
    joined.output.append(&mut outputs);
    let ir_version = models.iter().map(|model| model.ir_version).max().unwrap_or_default();
    ModelProto {
        ir_version,
        opset_import: opsets,
        producer_name: "tessera".into(),
        graph: Some(joined),
        metadata_props: Vec::new(),
    }
}

/// Notes operator sets, each with the latest version that a model declares.
fn note_opsets(opsets: &mut Vec<OperatorSetId>, declared: Vec<OperatorSetId>) {
    for opset in declared {
        match opsets.iter_mut().find(|known| known.domain == opset.domain) {
            Some(known) => known.version = known.version.max(opset.version),
            None => opsets.push(opset),
        }
    }
}

/// Moves weights that lie in files of `folder` into the model.
///
/// # Errors
///
/// Fails when a weight cannot be read.
pub fn embed_weights(model: &mut ModelProto, folder: &Path) -> Result<(), OnnxError> {
    let tensors = model.graph.iter_mut().flat_map(|graph| graph.initializer.iter_mut());
    for tensor in tensors.filter(|tensor| place_of(tensor).is_some()) {
        tensor.raw_data = Some(read_bytes(folder, tensor)?);
        tensor.external_data.clear();
        tensor.data_location = None;
    }
    Ok(())
}

/// Renames the tensor `from` to `to` wherever the graph uses it.
pub fn rename_tensor(model: &mut ModelProto, from: &str, to: &str) {
    let rename = |name: &mut String| {
        if name == from {
            to.clone_into(name);
        }
    };
    if let Some(graph) = &mut model.graph {
        for node in &mut graph.node {
            node.input.iter_mut().chain(&mut node.output).for_each(rename);
        }
        graph.initializer.iter_mut().for_each(|tensor| rename(&mut tensor.name));
        graph.input.iter_mut().chain(&mut graph.output).for_each(|value| rename(&mut value.name));
    }
}

fn rename_all(graph: &mut GraphProto, rename: &impl Fn(&mut String)) {
    for node in &mut graph.node {
        rename(&mut node.name);
        node.input.iter_mut().chain(&mut node.output).for_each(rename);
    }
    graph.initializer.iter_mut().for_each(|tensor| rename(&mut tensor.name));
    graph.input.iter_mut().for_each(|input| rename(&mut input.name));
    graph.output.iter_mut().for_each(|output| rename(&mut output.name));
}
