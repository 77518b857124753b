//! Language models as they are served: whole requests over HTTP, and what is refused.

use axum::Router;
use serde_json::{Value, json};
use tessera::input::Encoding;

use crate::support::{
    Families, Served, assert_close,
    http::{Reply, get, send},
    language::{Model, WEIGHTS, reference, rows},
};

/// Serves `model`, which must outlive the result.
fn serve(model: &Model) -> Served {
    Served::new(Families::of(model.load().unwrap_or_else(|e| panic!("{e}"))))
}

async fn ask(app: &Router, request: Value) -> Reply {
    send(app, "POST", "/v2/models/language/infer", request.to_string()).await
}

/// Returns a request about one text.
fn about(ids: &[i64]) -> Value {
    json!({"inputs": [
        {"name": "input_ids", "shape": [1, ids.len()], "datatype": "INT64", "data": ids},
    ]})
}

fn numbers(output: &Value) -> Vec<f32> {
    let data = output["data"].as_array().expect("values");
    data.iter().map(|value| value.as_f64().map_or(f32::NAN, |value| value as f32)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_language_model_is_served_over_http() {
    let model = Model::read("qwen2_moe").with_top_k(&[1]);
    let served = serve(&model);
    let app = served.app();
    let metadata = get(&app, "/v2/models/language").await.expect(200);
    let names = |key: &str| {
        let tensors = metadata[key].as_array().expect("tensors").clone();
        tensors.iter().map(|t| t["name"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names("inputs"), ["input_ids", "attention_mask"]);
    assert_eq!(names("outputs"), ["logits", "last_hidden_state"]);
    assert_eq!(metadata["outputs"][0]["shape"], json!([-1, -1, 103]));
    assert_eq!(metadata["outputs"][1]["shape"], json!([-1, -1, 32]));

    let reference = reference("qwen2_moe");
    let Encoding { batch, tokens, input_ids, attention_mask } = reference.encoding();
    let tensor = |name: &str, values: &[i64]| {
        json!({"name": name, "shape": [batch, tokens],
            "datatype": "INT64", "data": values})
    };
    let inputs =
        json!([tensor("input_ids", &input_ids), tensor("attention_mask", &attention_mask)]);
    let answer = ask(&app, json!({"inputs": inputs})).await.expect(200);
    assert_eq!(answer["parameters"]["plan"], "a[0..4]");
    assert_eq!(answer["parameters"]["quality"], 1.0);
    for (output, name) in ["logits", "last_hidden_state"].into_iter().enumerate() {
        assert_eq!(answer["outputs"][output]["name"], name);
        let found = rows(&numbers(&answer["outputs"][output]), &attention_mask).concat();
        let expected = rows(reference.tensor(name).1, &attention_mask).concat();
        assert_close(&found, &expected, 2e-4, name);
    }
    let wanted = json!({"inputs": inputs, "outputs": [{"name": "last_hidden_state"}]});
    let one = ask(&app, wanted).await.expect(200);
    assert_eq!(one["outputs"].as_array().map(Vec::len), Some(1));
    assert_eq!(one["outputs"][0]["name"], "last_hidden_state");
    let parameters = json!({"plan": "a[0..4]{k1.mlp:3}"});
    let cheap = ask(&app, json!({"inputs": inputs, "parameters": parameters})).await.expect(200);
    assert_ne!(cheap["outputs"][0]["data"], answer["outputs"][0]["data"]);
    assert!(served.metrics.render().contains("family=\"language\""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_language_model_cannot_read_is_refused_by_name() {
    let model = Model::read("mixtral");
    let app = serve(&model).app();
    for (request, message) in [
        (about(&[1, 2, 101]), "element 2 is not a token id; they are 0 to 100"),
        (about(&[1; 21]), "the number of tokens is 21, over the limit of 20"),
        (json!({"inputs": []}), "input `input_ids`: it is missing"),
        (
            json!({"inputs": [
                {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["Hello"]},
            ]}),
            "text",
        ),
    ] {
        let reply = ask(&app, request).await;
        assert!((400..=413).contains(&reply.status), "{}", reply.text);
        assert!(reply.text.contains(message), "{}", reply.text);
    }
    let listed = get(&app, "/v1/models").await.expect(200);
    assert_eq!(listed["data"], json!([]));
    let question = json!({"model": "language", "input": [1, 2, 3]}).to_string();
    let reply = send(&app, "POST", "/v1/embeddings", question).await;
    assert!(reply.text.contains("language-model"), "{}", reply.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_score_that_is_no_number_fails_its_request_alone_and_is_counted() {
    let mut model = Model::read("mixtral");
    model.change(WEIGHTS, |tensors| {
        let (_, _, bytes) = tensors.get_mut("model.embed_tokens.weight").expect("embeddings");
        bytes[7 * 32 * 4..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let served = serve(&model);
    let app = served.app();
    let expected = ask(&app, about(&[1, 2, 3])).await.expect(200)["outputs"].clone();
    for _ in 0..3 {
        let (good, bad, other) = tokio::join!(
            ask(&app, about(&[1, 2, 3])),
            ask(&app, about(&[1, 7, 3])),
            ask(&app, about(&[4, 5])),
        );
        let found = numbers(&good.expect(200)["outputs"][0]);
        let expected: Vec<f64> =
            numbers(&expected[0]).iter().map(|value| f64::from(*value)).collect();
        assert_close(&found, &expected, 1e-5, "beside a request that fails");
        assert_eq!((bad.status, other.status), (500, 200), "{}", bad.text);
        assert!(!bad.text.contains("score"), "details are for the log: {}", bad.text);
    }
    let text = served.metrics.render();
    let counted = "tessera_runtime_router_failures_total{family=\"language\",\
                   module=\"a.block.0.mlp\"} ";
    let line = text.lines().find_map(|line| line.strip_prefix(counted));
    let count: f64 = line.unwrap_or_else(|| panic!("{text}")).parse().expect("a number");
    assert!(count >= 3.0, "{count}");
}
