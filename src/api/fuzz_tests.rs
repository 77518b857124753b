//! Malformed requests in great numbers, which must be answered or refused: `make fuzz`.

use std::{
    io::{Read, Write},
    time::Instant,
};

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use bytes::Bytes;
use flate2::{
    Compression,
    read::{GzDecoder, ZlibDecoder},
    write::{GzEncoder, ZlibEncoder},
};
use serde_json::{Map, Value, json};

use super::{
    access::clients::{Clients, Gate},
    codec::{
        body::parse_json,
        bounds::Bounds,
        decode::{Decoded, read_parts},
        encode::{WireData, raw_bytes},
        packed::Coding,
        specs::Specs,
    },
    error::ApiError,
    http::{
        generate::{
            chat::ChatQuestion, completions::CompletionQuestion, messages,
            responses::ResponseQuestion,
        },
        infer::json_length,
        openai::Question,
        plans::{WireQuestion, parse_query},
        repository::{IndexQuestion, RepositoryCall},
    },
    layers::authorization,
};
use crate::{
    plan::Shape,
    tensor::{
        ByteSize, DataType, Tensor, TensorSpec,
        mutate::{feed, feed_file},
    },
};

const BOUNDS: Bounds = Bounds { texts: 64, numbers: 4096 };

/// Returns the specs of a model with an input of every type.
pub(super) fn specs() -> Specs {
    let spec = |name: &str, data_type, shape: &[Option<usize>]| TensorSpec {
        name: name.to_owned(),
        data_type,
        shape: shape.to_vec(),
    };
    Specs {
        inputs: vec![
            spec("text", DataType::Bytes, &[None]),
            spec("ids", DataType::I64, &[None, None]),
            spec("pixels", DataType::F32, &[None, Some(2)]),
        ],
        outputs: vec![spec("scores", DataType::F32, &[None, Some(3)])],
        num_labels: 3,
        bounds: BOUNDS,
    }
}

/// Returns `read`, having written the answer to a refusal.
pub(super) fn accepted<T>(read: Result<T, ApiError>) -> Option<T> {
    read.inspect_err(|error| drop(error.render("1"))).ok()
}

fn texts(seeds: &[Value]) -> Vec<Vec<u8>> {
    seeds.iter().map(|seed| seed.to_string().into_bytes()).collect()
}

/// Returns the tensors as an input of JSON.
fn in_json(inputs: &[(String, Tensor)]) -> Vec<u8> {
    let inputs = inputs.iter().map(|(name, tensor)| {
        json!({"name": name, "shape": tensor.shape(), "datatype": tensor.data_type().name(),
               "data": WireData(tensor.data())})
    });
    json!({"inputs": inputs.collect::<Vec<_>>()}).to_string().into_bytes()
}

/// Returns the tensors as raw bytes behind JSON, and the length of the JSON.
fn in_bytes(inputs: &[(String, Tensor)]) -> (Vec<u8>, usize) {
    let raw: Vec<Vec<u8>> =
        inputs.iter().map(|(_, tensor)| raw_bytes(tensor).expect("short")).collect();
    let inputs = inputs.iter().zip(&raw).map(|((name, tensor), raw)| {
        json!({"name": name, "shape": tensor.shape(), "datatype": tensor.data_type().name(),
               "parameters": {"binary_data_size": raw.len()}})
    });
    let head = json!({"inputs": inputs.collect::<Vec<_>>()}).to_string().into_bytes();
    let json_len = head.len();
    ([head, raw.concat()].concat(), json_len)
}

fn read(body: Vec<u8>, json_len: Option<usize>, specs: &Specs) -> Option<Decoded> {
    let parts = read_parts(Bytes::from(body), json_len, &specs.bounds);
    accepted(parts.and_then(|parts| Decoded::new(parts, specs, Instant::now())))
}

#[test]
fn json_requests() {
    let seeds = texts(&[
        json!({
            "id": "7",
            "parameters": {"latency_budget_ms": 5.5, "min_quality": 0.5, "plan": "a[0..2]",
                           "explain": true, "priority": 1, "timeout": 1000},
            "inputs": [
                {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a", "é\u{1f600}"]},
                {"name": "ids", "shape": [1, 3], "datatype": "INT64", "data": [[1, -2, 3]]},
                {"name": "pixels", "shape": [1, 2], "datatype": "FP32", "data": [0.5, -1e-3]},
            ],
            "outputs": [{"name": "scores", "parameters": {"classification": 2}}],
        }),
        json!({"inputs": [{"name": "pixels", "shape": [2, 2], "datatype": "FP16",
                           "data": [[1, 2], [3, 4]]}]}),
    ]);
    let specs = specs();
    feed(&seeds, |body| {
        let Some(decoded) = read(body, None, &specs) else { return };
        let inputs = decoded.request.inputs;
        let again = read(in_json(&inputs), None, &specs).expect("it was accepted before");
        assert_eq!(again.request.inputs, inputs);
    });
}

#[test]
fn binary_bodies() {
    let head = json!({
        "inputs": [
            {"name": "text", "shape": [2], "datatype": "BYTES",
             "parameters": {"binary_data_size": 11}},
            {"name": "ids", "shape": [1, 2], "datatype": "INT16",
             "parameters": {"binary_data_size": 4}},
            {"name": "pixels", "shape": [1, 2], "datatype": "BF16",
             "parameters": {"binary_data_size": 4}},
        ],
        "outputs": [{"name": "scores", "parameters": {"binary_data": true}}],
    })
    .to_string()
    .into_bytes();
    let json_len = head.len();
    let raw = b"\x01\0\0\0a\x02\0\0\0bc\x01\0\xff\xff\x80\x3f\0\x40".to_vec();
    let specs = specs();
    let check = |body: Vec<u8>| {
        let Some(decoded) = read(body, Some(json_len), &specs) else { return };
        let (body, json_len) = in_bytes(&decoded.request.inputs);
        let again = read(body.clone(), Some(json_len), &specs).expect("it was accepted before");
        // Numbers that are not equal to themselves have equal bytes.
        assert_eq!(in_bytes(&again.request.inputs), (body, json_len));
    };
    // The first run changes only the raw bytes after the JSON, the second one the whole body.
    feed(std::slice::from_ref(&raw), |raw| check([head.clone(), raw].concat()));
    feed(&[[head.clone(), raw.clone()].concat()], check);
}

#[test]
fn requests_for_text() {
    let seeds = texts(&[
        json!({"model": "chat", "temperature": 0.5, "stop": ["a"], "logit_bias": {"1": -1},
               "response_format": {"type": "json_schema", "json_schema": {"schema": {}}},
               "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto",
               "messages": [
                   {"role": "developer", "content": [{"type": "text", "text": "é"}]},
                   {"role": "assistant", "tool_calls": [{"id": "1", "type": "function",
                       "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
                   {"role": "tool", "tool_call_id": "1", "content": "b"}]}),
        json!({"model": "chat", "prompt": [1, 2], "max_tokens": 3, "best_of": 2, "echo": true}),
        json!({"model": "chat", "instructions": "a", "input": [{"role": "user", "content": "b"}],
               "text": {"format": {"type": "json_object"}}, "metadata": {"a": "b"}}),
    ]);
    feed(&seeds, |body| {
        accepted(ChatQuestion::parse(&body));
        accepted(CompletionQuestion::parse(&body));
        accepted(ResponseQuestion::parse(&body));
        let object: Option<Map<String, Value>> = accepted(parse_json(&body, &Bounds::NO_TENSORS));
        let messages = object.and_then(|mut object| object.remove("messages"));
        let messages = messages.and_then(|messages| serde_json::from_value(messages).ok());
        let Some(checked) = messages.and_then(|own| accepted(messages::checked(own))) else {
            return;
        };
        assert!(checked.iter().all(|message| message["role"].is_string()));
    });
}

#[test]
fn other_json_requests() {
    let seeds = texts(&[
        json!({"model": "text", "input": ["a", "b"], "encoding_format": "base64",
               "dimensions": 8, "latency_budget_ms": 5}),
        json!({"model": "text", "input": [[1, 2], [3]], "user": "me"}),
        json!({"model": "text", "input": "a"}),
        json!({"batch": 2, "tokens": 8, "parameters": {"memory_budget_mb": 1.5}}),
        json!({"parameters": {"unload_dependents": true}}),
        json!({"ready": true}),
    ]);
    feed(&seeds, |body| {
        accepted(parse_json::<Question>(&body, &BOUNDS));
        accepted(parse_json::<WireQuestion>(&body, &Bounds::NO_TENSORS));
        accepted(parse_json::<RepositoryCall>(&body, &Bounds::NO_TENSORS));
        accepted(parse_json::<IndexQuestion>(&body, &Bounds::NO_TENSORS));
    });
}

#[test]
fn queries() {
    feed(&[b"batch=8&tokens=128".to_vec(), b"tokens=1&&batch=%31".to_vec()], |query| {
        let query = String::from_utf8_lossy(&query);
        let Some(shape) = accepted(parse_query(&query, Shape::DEFAULT)) else { return };
        let written = format!("batch={}&tokens={}", shape.batch, shape.tokens);
        assert_eq!(parse_query(&written, Shape::DEFAULT).expect("as read"), shape);
    });
}

#[test]
fn headers() {
    let seeds = ["gzip", "X-GZIP", "Bearer a token", "123", "deflate"];
    let gate = Gate::new(None);
    feed(&seeds.map(|seed| seed.as_bytes().to_vec()), |bytes| {
        let Ok(value) = HeaderValue::from_bytes(&bytes) else { return };
        for name in [
            header::CONTENT_ENCODING,
            header::AUTHORIZATION,
            HeaderName::from_static("inference-header-content-length"),
        ] {
            let headers = HeaderMap::from_iter([(name, value.clone())]);
            accepted(Coding::of(&headers));
            accepted(json_length(&headers, 100));
            accepted(gate.pass(authorization(&headers)));
        }
    });
}

#[test]
fn compressed_bodies() {
    const LIMIT: ByteSize = ByteSize(1 << 20);
    let text = b"one body, which is not so short; one body, which is not so short".repeat(20);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(&text).expect("written");
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
    zlib.write_all(&text).expect("written");
    let (gzip, zlib) = (gzip.finish().expect("written"), zlib.finish().expect("written"));
    let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
    bomb.write_all(&vec![0; 4 << 20]).expect("written");
    let bomb = bomb.finish().expect("written");
    let members = [gzip.clone(), gzip.clone()].concat();
    feed(&[gzip, zlib, members, bomb], |packed| {
        for coding in [Coding::Gzip, Coding::Deflate] {
            let Some(unpacked) = accepted(coding.unpack(&packed, LIMIT)) else { continue };
            assert!(unpacked.len() <= LIMIT.as_usize());
            // The first member is what the library itself unpacks.
            let mut first = Vec::new();
            let read = match coding {
                Coding::Gzip => GzDecoder::new(&packed[..]).read_to_end(&mut first),
                Coding::Deflate => ZlibDecoder::new(&packed[..]).read_to_end(&mut first),
            };
            assert!(packed.is_empty() || read.is_ok() && unpacked.starts_with(&first));
        }
    });
}

#[test]
fn clients() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("clients.toml");
    let seed = format!(
        "[clients.a]\ntoken = \"0123456789abcdef\"\nrequests_per_second = 7\nadmin = true\n\
         [clients.b]\ntoken_sha256 = \"{}\"\nmax_latency_budget_ms = 5.5\n\
         max_memory_budget_mb = 100\nfirst_priority = 3\n",
        "0a".repeat(32)
    );
    feed_file(&[seed.into_bytes()], &path, || {
        if let Ok(clients) = Clients::read(&path) {
            let gate = Gate::new(Some(clients));
            drop(gate.pass(Some("Bearer 0123456789abcdef")));
        }
    });
}
