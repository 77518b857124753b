//! Answers that are not numbers: an error for the request that has them, and for no other.

use axum::Router;
use serde_json::{Value, json};

use crate::support::{
    Families, Served,
    http::send,
    synthetic::{Synthetic, WEIGHTS, WIDTH},
};

const INFER: &str = "/v2/models/tiny/infer";
const GOOD: &str = "the mail server";
/// Has the word whose embedding overflows.
const BAD: &str = "the answer";

/// Serves a family in which one word overflows.
fn tiny() -> Router {
    let family = Synthetic::new();
    family.change(WEIGHTS, |tensors| {
        let (_, values) = tensors.get_mut("embeddings.word_embeddings.weight").expect("a table");
        values[7 * WIDTH..8 * WIDTH].fill(f32::INFINITY);
    });
    Served::new(Families::synthetic(family)).app()
}

fn request(texts: &[&str], parameters: &Value) -> String {
    let input = json!({"name": "text", "shape": [texts.len()], "datatype": "BYTES", "data": texts});
    json!({"inputs": [input], "parameters": parameters}).to_string()
}

#[tokio::test]
async fn what_is_not_a_number_is_an_error_on_every_route() {
    let app = tiny();
    let raw = json!({"plan": "a[0..2]", "binary_data_output": true});
    let openai = |text: &str, encoding: &str| {
        json!({"model": "tiny", "input": text, "encoding_format": encoding}).to_string()
    };
    let plain = json!({"plan": "a[0..2]"});
    for (path, good, bad) in [
        (INFER, request(&[GOOD], &plain), request(&[BAD], &plain)),
        (INFER, request(&[GOOD, GOOD], &plain), request(&[GOOD, BAD], &plain)),
        ("/v1/embeddings", openai(GOOD, "float"), openai(BAD, "float")),
        ("/v1/embeddings", openai(GOOD, "base64"), openai(BAD, "base64")),
    ] {
        assert_eq!(send(&app, "POST", path, good).await.status, 200, "{path}");
        let reply = send(&app, "POST", path, bad.clone()).await;
        assert_eq!(reply.status, 500, "{path} {bad}: {}", reply.text);
    }
    let reply = send(&app, "POST", INFER, request(&[BAD], &raw)).await;
    assert_eq!(reply.expect(500)["code"], "internal");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_that_run_beside_it_are_answered_as_alone() {
    let app = tiny();
    let plan = json!({"plan": "a[0..2]"});
    let values = |answer: &Value| -> Vec<f64> {
        let data = answer["outputs"][0]["data"].as_array().expect("an output");
        data.iter().map(|value| value.as_f64().expect("a number")).collect()
    };
    let alone = values(&send(&app, "POST", INFER, request(&[GOOD], &plan)).await.expect(200));
    let asked: Vec<_> = (0..60)
        .map(|number| {
            let (app, is_bad) = (app.clone(), number % 5 == 0);
            let body = request(&[if is_bad { BAD } else { GOOD }], &plan);
            tokio::spawn(async move { (is_bad, send(&app, "POST", INFER, body).await) })
        })
        .collect();
    for request in asked {
        let (is_bad, reply) = request.await.expect("an answer");
        if is_bad {
            reply.expect(500);
            continue;
        }
        for (found, expected) in values(&reply.expect(200)).iter().zip(&alone) {
            assert!((found - expected).abs() < 1e-5, "{found} is not {expected}");
        }
    }
}
