//! Requests that name the prompt before their texts.

use std::{fs, sync::Arc};

use axum::Router;
use serde_json::{Value, json};

use crate::{
    checkpoints::{case, copy, manifest},
    support::{
        Families, Folder, Served, assert_close,
        http::{infer, send, text_request},
    },
};

/// Largest difference of an embedding's element from sentence-transformers'.
const TOLERANCE: f64 = 1e-5;

/// Returns routes to a family `texts` with the prompts `query`, its default, and `document`, which
/// is empty, and what sentence-transformers makes of texts.
fn served() -> (Router, Value, Folder) {
    let mut folder = Folder::new("texts");
    copy(&mut folder, &case("prompt"), "a");
    let family = Arc::new(folder.load(&manifest(&folder, 24, "")));
    let expected = fs::read(case("prompt").join("expected.json")).expect("read");
    let expected = serde_json::from_slice(&expected).expect("JSON");
    (Served::new(Families::of(family)).app(), expected, folder)
}

/// Returns the rows of embeddings of `texts`.
async fn embed(app: &Router, texts: &Value, prompt_name: Option<&str>) -> Vec<Vec<f32>> {
    let mut parameters = json!({});
    if let Some(name) = prompt_name {
        parameters["prompt_name"] = name.into();
    }
    let count = texts.as_array().expect("texts").len();
    let input = json!({"name": "text", "shape": [count], "datatype": "BYTES", "data": texts});
    let request = json!({"inputs": [input], "parameters": parameters});
    let reply = send(app, "POST", "/v2/models/texts/infer", request.to_string()).await.expect(200);
    let values: Vec<f32> =
        serde_json::from_value(reply["outputs"][0]["data"].clone()).expect("f32");
    values.chunks(24).map(<[f32]>::to_vec).collect()
}

/// Returns rows scaled to length 1, as those are that the server gives.
fn unit(rows: &Value) -> Vec<Vec<f64>> {
    let mut rows: Vec<Vec<f64>> = serde_json::from_value(rows.clone()).expect("rows");
    for row in &mut rows {
        let length = row.iter().map(|value| value * value).sum::<f64>().sqrt();
        row.iter_mut().for_each(|value| *value /= length);
    }
    rows
}

#[tokio::test]
async fn a_named_prompt_gives_the_embeddings_of_sentence_transformers() {
    let (app, expected, _folder) = served();
    let texts = &expected["texts"];
    for name in ["query", "document"] {
        let rows = unit(&expected["named"][name]);
        let found = embed(&app, texts, Some(name)).await;
        let question = json!({"model": "texts", "input": texts, "prompt_name": name});
        let reply = send(&app, "POST", "/v1/embeddings", question.to_string()).await.expect(200);
        for (index, expected) in rows.iter().enumerate() {
            assert_close(&found[index], expected, TOLERANCE, name);
            let other = reply["data"][index]["embedding"].clone();
            let other: Vec<f32> = serde_json::from_value(other).expect("f32");
            assert_close(&other, expected, TOLERANCE, name);
        }
    }
    assert_eq!(embed(&app, texts, None).await, embed(&app, texts, Some("query")).await);
    let by_hand = embed(&app, &json!(["answer the hello"]), Some("document")).await;
    assert_eq!(embed(&app, &json!(["hello"]), Some("query")).await, by_hand);
    assert_ne!(embed(&app, &json!(["hello"]), Some("document")).await, by_hand);
}

#[tokio::test]
async fn a_prompt_that_texts_cannot_have_is_refused_with_the_valid_names() {
    let (app, _, _folder) = served();
    let text = json!({"name": "text", "shape": [1], "datatype": "BYTES", "data": ["hello"]});
    let ids = json!({"name": "input_ids", "shape": [1, 1], "datatype": "INT64", "data": [5]});
    let valid = "prompt_name is `other`, but the prompts are document, query";
    for (input, name, reason) in [
        (&text, json!("other"), valid),
        (&text, json!(7), "`prompt_name` is 7, but must be a string"),
        (&ids, json!("query"), "prompt_name is `query`, but only the input `text` takes a prompt"),
    ] {
        let request = json!({"inputs": [input], "parameters": {"prompt_name": name}});
        let reply = send(&app, "POST", "/v2/models/texts/infer", request.to_string()).await;
        let error = reply.expect(400)["error"].to_string();
        assert!(error.contains(reason), "{error}");
    }
    let question = json!({"model": "texts", "input": "hello", "prompt_name": "other"});
    let reply = send(&app, "POST", "/v1/embeddings", question.to_string()).await;
    assert!(reply.expect(400).to_string().contains(valid));

    let without = Served::new(Families::small()).app();
    let reply = infer(&without, &text_request(json!({"prompt_name": "query"}))).await;
    let error = reply.expect(400)["error"].to_string();
    assert!(error.contains("prompt_name is `query`, but the model has no prompts"), "{error}");
}
