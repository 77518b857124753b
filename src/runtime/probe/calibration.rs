//! A fixed piece of work whose time says how fast this machine is.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use super::whole::WholeModel;
use crate::{
    onnx::{GraphBuilder, proto::data_type},
    runtime::{error::RuntimeError, process::Runtime},
    tensor::{Tensor, TensorData},
};

/// Extents of the product: as many rows as a text has tokens, and the matrix of a small encoder.
const ROWS: usize = 128;
const WIDTH: usize = 384;
const COLUMNS: usize = 1_536;

/// Time for which the work is repeated. The fastest of the runs counts: others met other work.
const LENGTH: Duration = Duration::from_millis(60);

/// Least number of runs.
const MIN_RUNS: u32 = 20;

/// Returns the time of the calibration's work on this machine: a matrix product.
///
/// # Errors
///
/// Fails when ONNX Runtime refuses the model or it does not run.
pub fn calibrate(runtime: &Runtime) -> Result<Duration, RuntimeError> {
    let mut graph = GraphBuilder::default();
    let extent = |extent| i64::try_from(extent).ok();
    let rows = graph.input("rows", data_type::FLOAT, &[extent(ROWS), extent(WIDTH)]);
    let shape = [WIDTH, COLUMNS].map(crate::tensor::signed).to_vec();
    let matrix = graph.floats(shape, &numbers(WIDTH * COLUMNS));
    let product = graph.node("MatMul", &[&rows, &matrix], &[]);
    let model = graph.finish(&product, "product", &[extent(ROWS), extent(COLUMNS)]);
    let mut whole = WholeModel::load(runtime, Path::new("."), "calibration", &model, &[])?;
    let data = TensorData::F32(numbers(ROWS * WIDTH));
    let input = Tensor::new(vec![ROWS, WIDTH], data)
        .map_err(|error| RuntimeError::Tensor { source: ort::Error::new(error.to_string()) })?;
    let (start, mut fastest, mut runs) = (Instant::now(), Duration::MAX, 0);
    while runs < MIN_RUNS || start.elapsed() < LENGTH {
        let begun = Instant::now();
        whole.run(&[("rows", &input)], &["product".to_owned()])?;
        fastest = fastest.min(begun.elapsed());
        runs += 1;
    }
    Ok(fastest)
}

/// Returns `count` numbers between −1 and 1.
fn numbers(count: usize) -> Vec<f32> {
    (0..count)
        .map(|index| f32::from(u8::try_from(index % 251).unwrap_or(0)) / 125.0 - 1.0)
        .collect()
}
