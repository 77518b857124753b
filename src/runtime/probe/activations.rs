//! Measurement of a module's bytes of activations with ONNX Runtime's profiler.

use std::path::{Path, PathBuf};

use ort::environment::Environment;

use crate::{
    module::Network,
    runtime::{
        activation::{Activation, SideInputs},
        error::RuntimeError,
        session::ModuleSession,
    },
};

/// Least expected width of an attention head, in elements.
const NARROWEST_HEAD: f64 = 32.0;

/// Folder in memory for scratch files, used if the folder for temporary files is not writable.
const SHARED_MEMORY: &str = "/dev/shm";

/// A network with its name in errors and the folder of its family's files.
#[derive(Clone, Copy)]
pub(crate) struct Profiled<'a> {
    pub(crate) name: &'a str,
    pub(crate) network: &'a Network,
    pub(crate) folder: &'a Path,
}

/// Runs the network once on each of `inputs`, in a session of its own with profiling on. For each
/// input, returns the module's input in bytes plus the largest need of a node. A node needs its
/// inputs, its outputs and its scratch memory.
pub(crate) fn measure(
    environment: &Environment,
    profiled: Profiled<'_>,
    inputs: &[(&SideInputs, Option<&Activation>)],
) -> Result<Vec<f64>, RuntimeError> {
    match measure_in(&std::env::temp_dir(), environment, profiled, inputs) {
        Err(RuntimeError::Scratch { .. }) => {
            measure_in(&PathBuf::from(SHARED_MEMORY), environment, profiled, inputs)
        }
        measured => measured,
    }
}

/// Measures like [`measure`], with a scratch folder in `place`.
fn measure_in(
    place: &Path,
    environment: &Environment,
    Profiled { name, network, folder }: Profiled<'_>,
    inputs: &[(&SideInputs, Option<&Activation>)],
) -> Result<Vec<f64>, RuntimeError> {
    let scratch = tempfile::tempdir_in(place).map_err(|source| RuntimeError::Scratch { source })?;
    let prefix = scratch.path().join("profile");
    let mut session = ModuleSession::load_profiled(environment, folder, name, network, &prefix)?;
    for (sides, state) in inputs {
        let given = state.map(Activation::given).unwrap_or_default();
        session.run(&given, state.map(Activation::value), sides)?;
    }
    let file = session.end_profiling()?;
    let text = std::fs::read_to_string(file).map_err(|source| RuntimeError::Scratch { source })?;
    let events: Vec<serde_json::Value> = serde_json::from_str(&text)
        .map_err(|e| RuntimeError::Scratch { source: std::io::Error::other(e) })?;
    let states = inputs.iter().map(|(_, state)| state.map_or(0.0, Activation::num_bytes));
    let heads = most_heads(network);
    Ok(peaks(&events, inputs.len(), heads).into_iter().zip(states).map(|(a, b)| a + b).collect())
}

/// Returns the largest number of heads of an attention node of `network`, or `None` without such a
/// node.
fn most_heads(network: &Network) -> Option<f64> {
    let nodes = network.model().graph.iter().flat_map(|graph| &graph.node);
    let attributes = nodes.flat_map(|node| &node.attribute);
    let heads = attributes.filter(|attribute| attribute.name == "num_heads");
    heads.filter_map(|heads| f64::from(i32::try_from(heads.i?).ok()?).into()).reduce(f64::max)
}

/// Returns the bytes of the largest node of each run. A run's nodes come before its `model_run`
/// event.
fn peaks(events: &[serde_json::Value], runs: usize, heads: Option<f64>) -> Vec<f64> {
    let mut peaks = vec![0.0_f64; runs];
    let mut run = 0;
    for event in events {
        if event["name"] == "model_run" {
            run += 1;
        } else if let (Some(peak), "Node") =
            (peaks.get_mut(run), event["cat"].as_str().unwrap_or_default())
        {
            let ends = bytes(event, "activation_size") + bytes(event, "output_size");
            *peak = peak.max(ends + scratch(event, heads));
        }
    }
    peaks
}

/// Returns the scratch bytes of a fused attention node, or 0 for another node. Scratch memory holds
/// queries, keys and values by head, the scores, and the mask for every pair of tokens.
fn scratch(event: &serde_json::Value, heads: Option<f64>) -> f64 {
    let operator = event["args"]["op_name"].as_str().unwrap_or_default();
    if !operator.ends_with("Attention") {
        return 0.0;
    }
    let [rows, tokens, width] = first_shape(event).unwrap_or_default();
    // The attention of an export is fused when its session is created. Its number of heads is not
    // known.
    let heads = heads.unwrap_or(width / NARROWEST_HEAD);
    4.0 * (3.0 * rows * tokens * width + rows * (heads + 1.0) * tokens * tokens)
}

/// Returns the extents of a node's first input, or `None` if they are not `[batch, tokens, width]`.
fn first_shape(event: &serde_json::Value) -> Option<[f64; 3]> {
    let first = event["args"]["input_type_shape"].as_array()?.first()?.as_object()?;
    let extents = first.values().next()?.as_array()?;
    let extents: Vec<f64> = extents.iter().filter_map(serde_json::Value::as_f64).collect();
    extents.try_into().ok()
}

/// Returns a number that the profiler writes as text, or 0 if it is missing.
fn bytes(event: &serde_json::Value, key: &str) -> f64 {
    let value = &event["args"][key];
    value.as_str().and_then(|text| text.parse().ok()).or(value.as_f64()).unwrap_or(0.0)
}
