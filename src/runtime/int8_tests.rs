//! Tests of int8 products against f32. `make test-haswell` runs them as on a processor without
//! VNNI.

use std::path::Path;

use bytes::Bytes;
use ort::value::{DynValue, Tensor as OrtTensor};

use super::{SideInputs, session::ModuleSession, support_tests::runtime};
use crate::{
    module::{Network, Precision},
    onnx::{
        Attribute, GraphBuilder,
        proto::{ModelProto, TensorProto, data_type},
    },
};

const WIDTH: usize = 64;
const INNER: usize = 96;

/// ONNX operator set versions. Some quantize by block, directly or after being raised, and some do
/// not.
const OPSETS: [i64; 4] = [12, 17, 18, 21];

/// Returns pseudorandom values between −1 and 1.
fn noise(seed: u64) -> impl Iterator<Item = f32> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        f32::from((state >> 48) as u16) / 32_768.0 - 1.0
    })
}

/// Returns a feed-forward part at `opset` whose two matrices hold `weights`.
fn network(weights: &[f32], opset: i64) -> ModelProto {
    let mut graph = GraphBuilder::default();
    let hidden = graph.input("hidden", data_type::FLOAT, &[None, None, Some(WIDTH as i64)]);
    let matrix = |name: &str, dims: [usize; 2]| TensorProto {
        name: name.into(),
        data_type: data_type::FLOAT,
        dims: dims.iter().map(|extent| *extent as i64).collect(),
        raw_data: Some(weights.iter().flat_map(|w| w.to_le_bytes()).collect::<Bytes>()),
        ..TensorProto::default()
    };
    let first = graph.weight(matrix("first", [WIDTH, INNER]));
    let second = graph.weight(matrix("second", [INNER, WIDTH]));
    let expanded = graph.node("MatMul", &[&hidden, &first], &[]);
    let other = graph.node("MatMul", &[&hidden, &first], &[]);
    let sum = graph.node("Add", &[&expanded, &other], &[]);
    let active = graph.fused("Gelu", &[&sum], &[]);
    let output = graph.node("MatMul", &[&active, &second], &[]);
    let output = graph.node("Flatten", &[&output], &[("axis", Attribute::Int(2))]);
    let mut model = graph.finish(&output, "output", &[None, Some(WIDTH as i64)]);
    model.opset_import[0].version = opset;
    model
}

fn run(model: ModelProto, precision: Precision, rows: &[f32]) -> Vec<f32> {
    let network = Network::new(model, precision);
    let mut session =
        ModuleSession::load(runtime().environment(), Path::new("."), "part", &network)
            .expect("a session");
    let shape = [1, rows.len() / WIDTH, WIDTH];
    let state: DynValue = OrtTensor::from_array((shape, rows.to_vec())).expect("rows").into_dyn();
    let outputs = session.run(&[], Some(&state), &SideInputs::default()).expect("it runs");
    outputs[0].1.try_extract_tensor::<f32>().expect("f32").1.to_vec()
}

/// Returns each row's distance from the expected row, divided by the expected row's length.
fn distances(found: &[f32], expected: &[f32]) -> Vec<f32> {
    let length = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
    let rows = found.chunks(WIDTH).zip(expected.chunks(WIDTH));
    rows.map(|(found, expected)| {
        let far = length(&mut found.iter().zip(expected).map(|(a, b)| a - b));
        far / length(&mut expected.iter().copied()).max(f32::MIN_POSITIVE)
    })
    .collect()
}

#[test]
fn int8_products_are_near_those_in_f32() {
    let weights: Vec<f32> = noise(1).take(WIDTH * INNER).collect();
    // The rows have values of very different size, because each row has its own scale.
    let sizes = [1e-3, 1.0, 1e3, 0.1, 10.0];
    let rows = noise(2).take(sizes.len() * WIDTH).enumerate();
    let rows: Vec<f32> = rows.map(|(place, value)| value * sizes[place / WIDTH]).collect();
    for opset in OPSETS {
        let model = network(&weights, opset);
        let expected = run(model.clone(), Precision::F32, &rows);
        let found = run(model, Precision::Int8, &rows);
        let distances = distances(&found, &expected);
        assert!(distances.iter().all(|far| *far < 0.03), "opset {opset}: {distances:?}");
        assert!(distances.iter().any(|far| *far > 1e-6), "opset {opset}: nothing was quantized");
    }
}

/// Checks for saturation: on processors without VNNI, sums of two 8-bit products may not fit 16
/// bits.
#[test]
fn int8_products_do_not_saturate() {
    let weights = vec![0.01; WIDTH * INNER];
    let rows: Vec<f32> = noise(3).take(4 * WIDTH).map(|value| 1.0 - value.abs() / 100.0).collect();
    let model = network(&weights, 18);
    let expected = run(model.clone(), Precision::F32, &rows);
    let distances = distances(&run(model, Precision::Int8, &rows), &expected);
    assert!(distances.iter().all(|far| *far < 0.01), "{distances:?}");
}

#[test]
fn rows_that_are_zero_or_no_numbers_stay_so_and_move_no_other() {
    let weights: Vec<f32> = noise(4).take(WIDTH * INNER).collect();
    let rows: Vec<f32> = noise(5).take(4 * WIDTH).collect();
    for opset in OPSETS {
        let model = network(&weights, opset);
        let expected = run(model.clone(), Precision::Int8, &rows);
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0] {
            for place in 0..WIDTH {
                let mut changed = rows.clone();
                match value == 0.0 {
                    true => changed[WIDTH..2 * WIDTH].fill(0.0),
                    false => changed[WIDTH + place] = value,
                }
                let found = run(model.clone(), Precision::Int8, &changed);
                let (own, what) = (&found[WIDTH..2 * WIDTH], format!("opset {opset}: {value}"));
                match value == 0.0 {
                    true => assert!(own.iter().all(|value| *value == 0.0), "{what}: {own:?}"),
                    false => assert!(own.iter().all(|v| !v.is_finite()), "{what}: {own:?}"),
                }
                assert_eq!(found[..WIDTH], expected[..WIDTH], "{what}: the row before");
                assert_eq!(found[2 * WIDTH..], expected[2 * WIDTH..], "{what}: rows behind");
            }
        }
    }
}

#[test]
fn a_weight_that_is_no_number_gives_none() {
    let mut weights: Vec<f32> = noise(6).take(WIDTH * INNER).collect();
    weights[WIDTH * INNER / 2] = f32::NAN;
    let rows: Vec<f32> = noise(7).take(2 * WIDTH).collect();
    for opset in OPSETS {
        let found = run(network(&weights, opset), Precision::Int8, &rows);
        assert!(found.iter().all(|value| value.is_nan()), "opset {opset}: {found:?}");
    }
}
