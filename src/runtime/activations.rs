//! How many bytes of activations a module needs, as ONNX Runtime's profiler reports them.

use std::path::{Path, PathBuf};

use super::{Activation, Runtime, RuntimeError, SideInputs, session::ModuleSession};
use crate::arch::Network;

/// Folder in memory, for where the one for temporary files cannot be written.
const SHARED_MEMORY: &str = "/dev/shm";

/// A network with its name in errors, and where its family's files lie.
#[derive(Clone, Copy)]
pub(super) struct Profiled<'a> {
    pub(super) name: &'a str,
    pub(super) network: &'a Network,
    pub(super) folder: &'a Path,
}

/// Runs `network` once on each of `inputs` in a session of its own with profiling on, and returns
/// for each the largest sum of one node's inputs, outputs and the module's own input, in bytes.
pub(super) fn measure(
    runtime: &Runtime,
    profiled: Profiled<'_>,
    inputs: &[(&SideInputs, Option<&Activation>)],
) -> Result<Vec<f64>, RuntimeError> {
    match measure_in(&std::env::temp_dir(), runtime, profiled, inputs) {
        Err(RuntimeError::Scratch { .. }) => {
            measure_in(&PathBuf::from(SHARED_MEMORY), runtime, profiled, inputs)
        }
        measured => measured,
    }
}

/// Measures with a scratch folder in `place`.
fn measure_in(
    place: &Path,
    runtime: &Runtime,
    Profiled { name, network, folder }: Profiled<'_>,
    inputs: &[(&SideInputs, Option<&Activation>)],
) -> Result<Vec<f64>, RuntimeError> {
    let scratch = tempfile::tempdir_in(place).map_err(|source| RuntimeError::Scratch { source })?;
    let prefix = scratch.path().join("profile");
    let mut session = ModuleSession::load_profiled(runtime, folder, name, network, &prefix)?;
    for (sides, state) in inputs {
        session.run(&[], state.map(Activation::value), sides)?;
    }
    let file = session.end_profiling()?;
    let text = std::fs::read_to_string(file).map_err(|source| RuntimeError::Scratch { source })?;
    let events: Vec<serde_json::Value> = serde_json::from_str(&text)
        .map_err(|e| RuntimeError::Scratch { source: std::io::Error::other(e) })?;
    let states = inputs.iter().map(|(_, state)| state.map_or(0.0, Activation::num_bytes));
    Ok(peaks(&events, inputs.len()).into_iter().zip(states).map(|(a, b)| a + b).collect())
}

/// Returns the largest node of each run: a run's nodes come before its `model_run` event.
fn peaks(events: &[serde_json::Value], runs: usize) -> Vec<f64> {
    let mut peaks = vec![0.0_f64; runs];
    let mut run = 0;
    for event in events {
        if event["name"] == "model_run" {
            run += 1;
        } else if let (Some(peak), "Node") =
            (peaks.get_mut(run), event["cat"].as_str().unwrap_or_default())
        {
            *peak = peak.max(bytes(event, "activation_size") + bytes(event, "output_size"));
        }
    }
    peaks
}

/// Reads a number that the profiler writes as text.
fn bytes(event: &serde_json::Value, key: &str) -> f64 {
    let value = &event["args"][key];
    value.as_str().and_then(|text| text.parse().ok()).or(value.as_f64()).unwrap_or(0.0)
}
