//! Triton's requests for text over HTTP: the extension `generate`, and tensors.

use axum::{body::Body, http::Request};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::{
    chats::Chat,
    support::http::{Reply, app, get, send},
};

const GENERATE: &str = "/v2/models/language/generate";
const STREAM: &str = "/v2/models/language/generate_stream";

/// Returns `first` with the keys of `more`.
fn with(first: Value, more: &Value) -> Value {
    let mut all = first.as_object().expect("keys").clone();
    all.extend(more.as_object().expect("keys").clone());
    Value::Object(all)
}

/// Asks for text behind `abc`, with further keys.
async fn generate(chat: &Chat, path: &str, more: Value) -> Reply {
    chat.ask(path, with(json!({"text_input": "abc"}), &more)).await
}

/// Returns the text that `/v1/completions` has behind `abc`.
async fn completion(chat: &Chat, more: Value) -> String {
    let request = with(json!({"model": "language", "prompt": "abc"}), &more);
    let answer = chat.ask("/v1/completions", request).await.expect(200);
    answer["choices"][0]["text"].as_str().expect("a text").to_owned()
}

/// Returns the values of the events of a stream.
fn events(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.header("content-type"), "text/event-stream; charset=utf-8");
    let events = reply.text.strip_suffix("\n\n").expect("an end").split("\n\n");
    let value = |event: &str| {
        let json = event.strip_prefix("data: ").expect("data");
        serde_json::from_str(json).expect("JSON")
    };
    events.map(value).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_text_is_that_of_completions_whole_and_in_pieces() {
    let chat = Chat::new();
    for sampling in [json!({"temperature": 0, "max_tokens": 9}), json!({"seed": 5, "top_k": 40})] {
        let text = completion(&chat, sampling.clone()).await;
        let whole = generate(&chat, GENERATE, json!({"parameters": sampling, "id": "7"})).await;
        let whole = whole.expect(200);
        assert_eq!(whole["text_output"], format!("abc{text}"));
        let head = (&whole["model_name"], &whole["model_version"], &whole["id"]);
        assert_eq!(head, (&json!("language"), &json!("1"), &json!("7")));
        assert_eq!(whole["tessera"]["plan"], "a[0..2]");
        let alone = with(sampling.clone(), &json!({"exclude_input_in_output": true}));
        let alone = generate(&chat, GENERATE, alone).await.expect(200);
        assert_eq!(alone["text_output"], text);
        assert!(alone.get("id").is_none());
        let pieces = events(&generate(&chat, STREAM, sampling).await);
        let streamed: String =
            pieces.iter().map(|piece| piece["text_output"].as_str().expect("a text")).collect();
        assert_eq!(streamed, text);
        assert!(pieces.len() > 2, "{pieces:?}");
        let (last, others) = pieces.split_last().expect("a piece");
        assert_eq!(last["tessera"]["plan"], "a[0..2]");
        assert!(others.iter().all(|piece| piece.get("tessera").is_none()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_behind_the_first_piece_is_an_event_and_one_before_it_a_status() {
    // Nothing can be drawn behind this byte.
    let broken = usize::from(b'Z');
    let chat = Chat::changed(|model| {
        model.change("model.safetensors", |tensors| {
            let (_, shape, bytes) = tensors.get_mut("model.embed_tokens.weight").expect("a table");
            let width = shape[1] * size_of::<f32>();
            let row = &mut bytes[broken * width..][..width];
            row.copy_from_slice(&f32::NAN.to_le_bytes().repeat(shape[1]));
        });
    });
    let forced = json!({"logit_bias": {broken.to_string(): 100}, "plan": "a[0..2]"});
    let events = events(&generate(&chat, STREAM, forced.clone()).await);
    let [first, last] = &events[..] else { panic!("{events:?}") };
    assert_eq!(first["text_output"], "Z");
    assert_eq!(*last, json!({"error": "internal error"}));
    assert_eq!(generate(&chat, GENERATE, forced).await.status, 500);
    for path in [GENERATE, STREAM] {
        let refused = chat.ask(path, json!({"text_input": "Z"})).await.expect(500);
        assert_eq!(refused["error"], "internal error");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_not_compressed() {
    let chat = Chat::new();
    let body = json!({"text_input": "abc"}).to_string();
    let request = Request::post(STREAM).header("accept-encoding", "gzip").body(Body::from(body));
    let response = chat.app.clone().oneshot(request.expect("a request")).await;
    let response = response.expect("infallible");
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers().get("content-encoding"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn further_outputs_come_where_they_are_asked_for() {
    let chat = Chat::new();
    let wanted = json!({
        "max_tokens": "4", "seed": "5", "logprobs": 2, "exclude_input_in_output": true,
        "return_finish_reason": true, "return_cumulative_logprob": true,
        "return_logprobs": true, "return_num_input_tokens": true, "return_num_output_tokens": true,
    });
    let one = generate(&chat, GENERATE, wanted.clone()).await.expect(200);
    assert_eq!(one["finish_reason"], "length");
    assert_eq!((&one["num_input_tokens"], &one["num_output_tokens"]), (&json!(3), &json!(4)));
    let told: Vec<Value> =
        serde_json::from_str(one["logprobs"].as_str().expect("a text")).expect("JSON");
    assert_eq!(told.len(), 4);
    assert!(told.iter().all(|token| (2..=3).contains(&token.as_object().expect("tokens").len())));
    let sum = one["cumulative_logprob"].as_f64().expect("a number");
    assert!(sum < -4.0, "four of 258 random tokens: {sum}");
    let more = with(wanted, &json!({"n": 2, "stream": true, "exclude_input_in_output": true}));
    let pieces = events(&generate(&chat, STREAM, more).await);
    let last = pieces.last().expect("a piece");
    assert_eq!(last["finish_reason"], json!(["length", "length"]));
    let counts = |piece: &Value| piece["num_output_tokens"].as_array().cloned().expect("counts");
    let total: u64 = pieces.iter().flat_map(counts).filter_map(|count| count.as_u64()).sum();
    assert_eq!(total, 8);
    let first: String = pieces
        .iter()
        .filter_map(|piece| piece["text_output"][0].as_str().map(str::to_owned))
        .collect();
    assert_eq!(first, one["text_output"], "the first answer draws as one alone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_that_streams_has_one_event_if_the_request_wants_the_whole() {
    let chat = Chat::new();
    let whole = generate(&chat, GENERATE, json!({"seed": 3})).await.expect(200);
    let events = events(&generate(&chat, STREAM, json!({"seed": 3, "stream": false})).await);
    assert_eq!(events, [whole]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_request_for_text_cannot_have_is_refused_by_its_key() {
    let chat = Chat::new();
    for (more, status, word) in [
        (json!({"text_input": 3}), 400, "`text_input` is an integer, but must be a string"),
        (json!({"text_input": "a".repeat(1 << 20)}), 413, "over the limit"),
        (json!({"text_input": "a".repeat(500)}), 400, "the context holds 400"),
        (json!({"text_input": ""}), 400, "empty"),
        (json!({"parameters": 3}), 400, "`parameters` is an integer, but must be an object"),
        (json!({"parameters": {"bad_words": ""}}), 400, "`bad_words`"),
        (json!({"lora_name": "a"}), 400, "`lora_name`"),
        (json!({"seed": 1, "parameters": {"seed": 2}}), 400, "`seed` is there twice"),
        (json!({"temperature": "warm"}), 400, "`temperature` is \"warm\""),
        (json!({"temperature": 3}), 400, "temperature"),
        (json!({"max_tokens": -1}), 400, "max_tokens"),
        (json!({"max_tokens": 0}), 400, "max_tokens"),
        (json!({"n": 17}), 400, "`n`"),
        (json!({"stop": 7}), 400, "a string or an array of strings"),
        (json!({"stream_options": {}}), 400, "stream_options"),
        (json!({"min_quality": 2}), 400, "min_quality"),
        (json!({"plan": "b[0..1]"}), 404, "b[0..1]"),
        (json!({"latency_budget_ms": 50}), 400, "latency_budget_ms"),
        (json!({"explain": true}), 400, "explain"),
    ] {
        for path in [GENERATE, STREAM] {
            let reply = generate(&chat, path, more.clone()).await;
            assert_eq!(reply.status, status, "{more}: {}", reply.text);
            let message = reply.json()["error"].as_str().expect("a text").to_owned();
            assert!(message.contains(word), "{more}: {message}");
        }
    }
    for (path, more, word) in [
        (GENERATE, json!({"stream": true}), "/generate_stream streams"),
        (STREAM, json!({"exclude_input_in_output": false}), "true or absent in a stream"),
    ] {
        let refused = generate(&chat, path, more).await.expect(400);
        assert!(refused["error"].as_str().expect("a text").contains(word), "{refused}");
    }
    let versioned = "/v2/models/language/versions/1/generate";
    assert_eq!(generate(&chat, versioned, json!({})).await.status, 200);
    assert_eq!(generate(&chat, "/v2/models/other/generate", json!({})).await.status, 404);
    let request = json!({"text_input": "a"}).to_string();
    let refused = send(&app(), "POST", "/v2/models/text/generate", request).await.expect(400);
    let reason = refused["error"].as_str().expect("a text");
    assert!(reason.contains("`text`, which does not generate text"), "{reason}");
}

/// Asks for tensors of a model that generates.
async fn infer(chat: &Chat, inputs: Vec<Value>, more: Value) -> Reply {
    let request = with(json!({"inputs": inputs}), &more);
    chat.ask("/v2/models/language/infer", request).await
}

fn input(name: &str, datatype: &str, value: Value) -> Value {
    json!({"name": name, "datatype": datatype, "shape": [1], "data": [value]})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_may_be_asked_for_with_tensors() {
    let chat = Chat::new();
    let text = completion(&chat, json!({"seed": 5, "max_tokens": 6})).await;
    let inputs = vec![
        input("text_input", "BYTES", json!("abc")),
        input("exclude_input_in_output", "BOOL", json!(true)),
        input("return_finish_reason", "BOOL", json!(true)),
        input(
            "sampling_parameters",
            "BYTES",
            json!("{\"max_tokens\": 6, \"stop\": [\"\\u0000\"]}"),
        ),
    ];
    let more = json!({"id": "7", "parameters": {"seed": 5}});
    let answer = infer(&chat, inputs.clone(), more).await.expect(200);
    assert_eq!((&answer["id"], &answer["parameters"]["plan"]), (&json!("7"), &json!("a[0..2]")));
    let outputs = answer["outputs"].as_array().expect("outputs");
    let names: Vec<&Value> = outputs.iter().map(|output| &output["name"]).collect();
    assert_eq!(names, ["text_output", "finish_reason"]);
    assert_eq!(outputs[0]["data"], json!([text]));
    let named = json!({"outputs": [{"name": "finish_reason"}], "parameters": {"seed": 5}});
    let named = infer(&chat, inputs, named).await.expect(200);
    assert_eq!(named["outputs"][0]["data"], json!(["length"]));
    // The model still has its logits.
    let ids = json!({"name": "input_ids", "datatype": "INT64", "shape": [1, 2], "data": [1, 2]});
    let logits = infer(&chat, vec![ids], json!({})).await.expect(200);
    assert_eq!(logits["outputs"][0]["name"], "logits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tensors_that_a_request_for_text_cannot_have_are_refused_by_name() {
    let chat = Chat::new();
    let two = json!({"name": "stream", "datatype": "BOOL", "shape": [2], "data": [true, false]});
    let ids = json!({"name": "input_ids", "datatype": "INT64", "shape": [1, 2], "data": [1, 2]});
    let alone = infer(&chat, vec![input("stream", "BOOL", json!(true))], json!({})).await;
    assert!(alone.expect(400)["error"].as_str().expect("a text").contains("`text_input`: it is"));
    for (further, parameters, word) in [
        (two, json!({}), "`stream`"),
        (input("text_input", "BYTES", json!("a")), json!({}), "given twice"),
        (ids, json!({}), "`input_ids`"),
        (input("stream", "INT64", json!(1)), json!({}), "must be BOOL"),
        (input("stream", "BOOL", json!(true)), json!({}), "`stream` is true"),
        (input("sampling_parameters", "BYTES", json!("{")), json!({}), "EOF"),
        (input("sampling_parameters", "BYTES", json!("{\"a\": 1}")), json!({}), "`a`"),
        (input("return_logprobs", "BOOL", json!(true)), json!({"stop": ["a"]}), "`stop`"),
        (input("return_logprobs", "BOOL", json!(true)), json!({"b": 1}), "`b`"),
        (
            input("sampling_parameters", "BYTES", json!("{\"seed\": 1}")),
            json!({"seed": 2}),
            "`seed` is there twice",
        ),
        (input("stream", "BOOL", json!(false)), json!({"stream": true}), "`stream` is there twice"),
    ] {
        let inputs = vec![input("text_input", "BYTES", json!("abc")), further.clone()];
        let refused = infer(&chat, inputs, json!({"parameters": parameters})).await.expect(400);
        let message = refused["error"].as_str().expect("a text");
        assert!(message.contains(word), "{further}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_and_configuration_have_the_tensors_of_text() {
    let chat = Chat::new();
    let metadata = get(&chat.app, "/v2/models/language").await.expect(200);
    assert_eq!(
        metadata["inputs"][0],
        json!({"name": "text_input", "datatype": "BYTES",
                                             "shape": [1]})
    );
    assert_eq!(metadata["outputs"][0]["name"], "text_output");
    let config = get(&chat.app, "/v2/models/language/config").await.expect(200);
    assert_eq!(config["model_transaction_policy"], json!({"decoupled": true}));
    assert_eq!(config["max_batch_size"], 0);
    assert_eq!(config["input"][0]["dims"], json!([1]));
    let other = get(&app(), "/v2/models/text/config").await.expect(200);
    assert_eq!(other["model_transaction_policy"], json!({"decoupled": false}));
}
