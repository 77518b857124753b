//! Medians of reading and writing a tensor of 197×192 floats as JSON, per parser.

use std::{hint::black_box, time::Instant};

use serde::{Deserialize, Serialize};

const NUM_VALUES: u16 = 197 * 192;
const ROUNDS: usize = 201;

#[derive(Deserialize, Serialize)]
struct Request {
    inputs: Vec<Input>,
}

#[derive(Deserialize, Serialize)]
struct Input {
    name: String,
    shape: Vec<usize>,
    datatype: String,
    data: Vec<f32>,
}

fn median_ms(mut work: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

fn main() {
    let data: Vec<f32> = (0..NUM_VALUES).map(|index| f32::from(index).mul_add(0.37, 1.0).sin()).collect();
    let wide: Vec<f64> = data.iter().copied().map(f64::from).collect();
    let input =
        Input { name: "x".into(), shape: vec![1, 197, 192], datatype: "FP32".into(), data };
    let request = Request { inputs: vec![input] };
    let short = serde_json::to_string(&request).expect("written");
    let list = serde_json::to_string(&request.inputs[0].data).expect("written");
    let long = short.replace(&list, &serde_json::to_string(&wide).expect("written"));
    println!("| | serde_json | sonic-rs | simd-json |\n|---|---|---|---|");
    for (name, text) in [("f32 digits", &short), ("f64 digits", &long)] {
        let serde = median_ms(|| drop(black_box(serde_json::from_str::<Request>(text))));
        let sonic = median_ms(|| drop(black_box(sonic_rs::from_str::<Request>(text))));
        let simd = median_ms(|| {
            let mut bytes = text.clone().into_bytes();
            drop(black_box(simd_json::serde::from_slice::<Request>(&mut bytes)));
        });
        let size = text.len();
        println!("| read {size} bytes, {name} | {serde:.2} ms | {sonic:.2} ms | {simd:.2} ms |");
    }
    let serde = median_ms(|| drop(black_box(serde_json::to_vec(&request))));
    let sonic = median_ms(|| drop(black_box(sonic_rs::to_vec(&request))));
    let simd = median_ms(|| drop(black_box(simd_json::serde::to_vec(&request))));
    println!("| write | {serde:.2} ms | {sonic:.2} ms | {simd:.2} ms |");
}
