//! Malformed requests for text in great numbers, which must be read or refused: `make fuzz`.

use std::time::Instant;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{question::Question, tensors::TensorQuestion};
use crate::{
    api::{
        codec::{body::parse_json, bounds::Bounds, decode::read_parts},
        fuzz_tests::accepted,
    },
    tensor::mutate::feed,
};

#[test]
fn keys() {
    let seeds = [
        json!({"temperature": "0.5", "top_p": 0.9, "top_k": -1, "min_p": 1e-3, "seed": 7, "n": 2,
               "max_tokens": 100.0, "stop": ["a", "é"], "stream": "True", "ignore_eos": false,
               "exclude_input_in_output": true, "return_logprobs": true, "logprobs": 2}),
        json!({"logit_bias": {"1": -100}, "guided_choice": ["a"], "guided_json": {"type": "null"},
               "frequency_penalty": 0.1, "presence_penalty": null, "repetition_penalty": 1.1,
               "plan": "a[0..2]", "priority": 1, "min_quality": 0.5, "user": "u"}),
    ];
    feed(&seeds.map(|seed| seed.to_string().into_bytes()), |body| {
        let keys: Option<Map<String, Value>> = accepted(parse_json(&body, &Bounds::NO_TENSORS));
        let Some(keys) = keys else { return };
        let Some(read) = accepted(Question::new("a".to_owned(), keys, Instant::now())) else {
            return;
        };
        // What is read later is refused or read.
        accepted(read.asked.common.sampling(read.logprobs, 300));
        accepted(read.asked.common.stops());
        accepted(read.asked.common.num_sequences(None));
    });
}

#[test]
fn tensors() {
    let input = |name: &str, datatype: &str, value: Value| {
        let data = [value];
        json!({"name": name, "datatype": datatype, "shape": [1], "data": data})
    };
    let seeds = [
        json!({"id": "7", "parameters": {"triton_enable_empty_final_response": true, "seed": 1},
        "inputs": [
            input("text_input", "BYTES", json!("The capital")),
            input("stream", "BOOL", json!(true)),
            input("sampling_parameters", "BYTES", json!("{\"seed\": 1, \"stop\": []}")),
        ]}),
        json!({"parameters": {"binary_data_output": true},
               "inputs": [input("text_input", "BYTES", json!("a"))],
               "outputs": [{"name": "text_output", "parameters": {"binary_data": true}}]}),
    ];
    let bounds = Bounds { texts: 1, numbers: 1 };
    feed(&seeds.map(|seed| seed.to_string().into_bytes()), |body| {
        let Some(parts) = accepted(read_parts(Bytes::from(body), None, &bounds)) else { return };
        accepted(TensorQuestion::read(parts, Instant::now()));
    });
}
