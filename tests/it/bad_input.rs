//! Bad input at the HTTP edge: the right 4xx with a reason, and the server goes on.

use axum::{Router, body::Body};
use serde_json::{Value, json};
use tessera::api::{ApiConfig, router};

use crate::support::{
    api_config,
    http::{Reply, app, infer, send, state, text_request},
    synthetic::{WIDTH, WORDS},
};

const INFER: &str = "/v2/models/text/infer";

/// Asserts that `reply` is a refusal that says `reason`, and that a good request is still answered.
async fn assert_refused(app: &Router, reply: Reply, status: u16, reason: &str) {
    let error = reply.expect(status);
    let message = error["error"].as_str().expect("a message");
    assert!(message.contains(reason), "no `{reason}` in: {message}");
    infer(app, &text_request(json!({}))).await.expect(200);
}

/// Sends inputs that must be refused.
async fn refuse(app: &Router, inputs: Value, status: u16, reason: &str) {
    let reply = infer(app, &json!({"inputs": inputs})).await;
    assert_refused(app, reply, status, reason).await;
}

/// Sends parameters that must be refused.
async fn refuse_parameters(app: &Router, parameters: Value, status: u16, reason: &str) {
    let reply = infer(app, &text_request(parameters)).await;
    assert_refused(app, reply, status, reason).await;
}

fn text(shape: Value, data: Value) -> Value {
    json!({"name": "text", "shape": shape, "datatype": "BYTES", "data": data})
}

fn integers(name: &str, shape: Value, data: Value) -> Value {
    json!({"name": name, "shape": shape, "datatype": "INT64", "data": data})
}

#[tokio::test]
async fn inputs_of_wrong_names_are_refused() {
    let app = app();
    let ids = || integers("input_ids", json!([1, 1]), json!([2]));
    let mask = || integers("attention_mask", json!([1, 1]), json!([1]));
    let hello = || text(json!([1]), json!(["a"]));
    let unknown = json!([{"name": "txt", "shape": [1], "datatype": "BYTES", "data": ["a"]}]);
    refuse(&app, unknown, 400, "`text`, `input_ids`, `attention_mask`").await;
    refuse(&app, json!([]), 400, "missing").await;
    refuse(&app, json!([mask()]), 400, "input_ids").await;
    refuse(&app, json!([hello(), ids()]), 400, "excludes").await;
    refuse(&app, json!([hello(), hello()]), 400, "twice").await;
    let request = json!({"inputs": [hello()], "outputs": [{"name": "logits"}]});
    let reply = infer(&app, &request).await;
    assert_refused(&app, reply, 400, "`embedding`").await;
}

#[tokio::test]
async fn inputs_of_wrong_types_are_refused() {
    let app = app();
    let with = |name: &str, shape: Value, datatype: &str, data: Value| {
        let input = json!({"name": name, "shape": shape, "datatype": datatype, "data": data});
        json!([input])
    };
    let (one, square) = (json!([1]), json!([1, 1]));
    refuse(&app, with("text", one.clone(), "INT64", json!([1])), 400, "must be BYTES").await;
    refuse(&app, with("text", one.clone(), "BYTES", json!([1])), 400, "must be strings").await;
    refuse(&app, with("text", one.clone(), "STRING", json!(["a"])), 400, "must be BYTES").await;
    refuse(&app, with("text", one, "BYTES", json!("a")), 400, "must be an array").await;
    let ids = |datatype: &str, data: Value| with("input_ids", square.clone(), datatype, data);
    refuse(&app, ids("FP32", json!([1.0])), 400, "must be INT64").await;
    refuse(&app, ids("INT64", json!([0.5])), 400, "must be integers").await;
    refuse(&app, ids("INT8", json!([300])), 400, "element 0 does not fit INT8").await;
    refuse(&app, ids("INT64", json!([u64::MAX])), 400, "must be integers").await;
    refuse(&app, ids("INT64", json!([null])), 400, "null").await;
}

#[tokio::test]
async fn inputs_of_wrong_shapes_are_refused() {
    let app = app();
    let ids = |shape: Value, data: Value| json!([integers("input_ids", shape, data)]);
    refuse(&app, json!([text(json!([2]), json!(["a"]))]), 400, "has 1 elements").await;
    refuse(&app, json!([text(json!([1]), json!(["a", "b"]))]), 400, "has 2 elements").await;
    refuse(&app, json!([text(json!([1, 1, 1]), json!(["a"]))]), 400, "shape").await;
    refuse(&app, ids(json!([1]), json!([2])), 400, "[batch, tokens]").await;
    refuse(&app, ids(json!([-1, 1]), json!([2])), 400, "0 or more").await;
    refuse(&app, ids(json!([i64::MAX, i64::MAX]), json!([2])), 400, "more elements").await;
    refuse(
        &app,
        ids(json!([usize::MAX, 1]), json!([2])),
        400,
        "`inputs[0].shape[0]` is an integer, but must be an integer",
    )
    .await;
    refuse(&app, ids(json!([1, 0]), json!([])), 400, "no token").await;
    refuse(&app, ids(json!([2, 1]), json!([[2, 3]])), 400, "nested").await;
    refuse(&app, ids(json!([2, 2]), json!([[2, 3], [2]])), 400, "ragged").await;
    refuse(&app, json!([text(json!([0]), json!([]))]), 400, "batch").await;
}

#[tokio::test]
async fn token_ids_and_masks_that_cannot_be_are_refused() {
    let app = app();
    let with_mask = |shape: Value, mask: Value| {
        json!([
            integers("input_ids", json!([1, 2]), json!([2, 3])),
            integers("attention_mask", shape, mask),
        ])
    };
    let pair = json!([1, 2]);
    refuse(&app, with_mask(json!([1, 1]), json!([1])), 400, "attention_mask").await;
    refuse(&app, with_mask(json!([2, 1]), json!([1, 1])), 400, "attention_mask").await;
    refuse(&app, with_mask(pair.clone(), json!([1, 2])), 400, "attention_mask").await;
    refuse(&app, with_mask(pair.clone(), json!([0, 0])), 400, "attention_mask").await;
    refuse(&app, with_mask(pair, json!([0, 1])), 400, "attention_mask").await;
    for id in [-1, WORDS.len() as i64, i64::MAX] {
        let ids = json!([integers("input_ids", json!([1, 1]), json!([id]))]);
        refuse(&app, ids, 400, "input_ids").await;
    }
}

#[tokio::test]
async fn parameters_that_make_no_sense_are_refused() {
    let app = app();
    for name in ["latency_budget_ms", "memory_budget_mb", "min_quality"] {
        for value in [json!(-1), json!("NaN"), json!(null), json!([1]), json!(1e300)] {
            refuse_parameters(&app, json!({name: value}), 400, name).await;
        }
    }
    refuse_parameters(&app, json!({"latency_budget_ms": 0}), 400, "latency_budget_ms").await;
    refuse_parameters(&app, json!({"latency_budget": 5}), 400, "known: latency_budget_ms").await;
    refuse_parameters(&app, json!({"plan": 7}), 400, "a string").await;
    refuse_parameters(&app, json!({"plan": ""}), 400, "plan has 0 bytes").await;
    refuse_parameters(&app, json!({"plan": "l".repeat(5000)}), 400, "5000 bytes").await;
    refuse_parameters(&app, json!({"plan": "l".repeat(2000)}), 404, "form anchor").await;
    for number in ["NaN", "Infinity", "1e999"] {
        let body = format!(r#"{{"parameters":{{"min_quality":{number}}},"inputs":[]}}"#);
        let reply = send(&app, "POST", INFER, body).await;
        assert_refused(&app, reply, 400, "line 1 column").await;
    }
}

#[tokio::test]
async fn plans_that_do_not_exist_are_not_found() {
    let app = app();
    for plan in ["c[0..2]", "a[0..3]", "a", "]", "a[0..2]{warp:1}", "a[2..1]"] {
        refuse_parameters(&app, json!({"plan": plan}), 404, "").await;
    }
}

#[tokio::test]
async fn budgets_that_no_plan_meets_name_the_cheapest() {
    let app = app();
    for parameters in [
        json!({"latency_budget_ms": 0.001}),
        json!({"memory_budget_mb": 0}),
        json!({"memory_budget_mb": 0.005}),
        json!({"plan": "a[0..2]", "memory_budget_mb": 0.005}),
    ] {
        let reply = infer(&app, &text_request(parameters.clone())).await;
        let error = reply.expect(422);
        assert_eq!(error["code"], "budget_infeasible");
        let cheapest = &error["cheapest"];
        assert!(cheapest["plan"].is_string(), "{error}");
        assert!(cheapest["predicted_latency_ms"].as_f64() > Some(0.0), "{error}");
        assert_refused(&app, reply, 422, "no plan meets the budget").await;
        let question = json!({"parameters": parameters}).to_string();
        let told = send(&app, "POST", "/v2/models/text/plan", question).await.expect(422);
        // What requests take is corrected as they run; the budget that was asked for is not.
        if parameters["latency_budget_ms"].is_number() {
            let message = told["error"].as_str().expect("a message");
            assert!(message.contains("0.001"), "{message}");
        }
    }
}

#[tokio::test]
async fn malformed_bodies_are_refused_with_the_place() {
    let app = app();
    let deep = "[".repeat(100_000);
    for (body, reason) in [
        (String::new(), "line 1 column 0"),
        ("{".to_owned(), "line 1 column 1"),
        ("text".to_owned(), "line 1 column"),
        ("{}".to_owned(), "missing field `inputs`"),
        (deep.clone(), "column"),
        (format!("{{\"id\":{deep}"), "column"),
        (format!("{{\"other\":{deep}"), "column"),
        (format!("{{\"parameters\":{{\"plan\":{deep}"), "recursion limit exceeded at line 1"),
        (format!("{{\"inputs\":[{{\"data\":{deep}"), "nested deeper than 8"),
    ] {
        let reply = send(&app, "POST", INFER, body).await;
        assert_refused(&app, reply, 400, reason).await;
    }
    let body = Body::from(b"{\"inputs\":[\"\xff\xfe\"]}".to_vec());
    let reply = send(&app, "POST", INFER, body).await;
    assert_refused(&app, reply, 400, "not UTF-8").await;
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let app = app();
    refuse(&app, json!([text(json!([1]), json!(["a ".repeat(500_000)]))]), 413, "bytes").await;
    let texts = text(json!([10_000]), json!(vec!["a"; 10_000]));
    refuse(&app, json!([texts]), 413, "10000, over the limit of 64").await;
    let inputs = vec![text(json!([1]), json!(["a"])); 10_000];
    refuse(&app, json!(inputs), 413, "10000, over the limit of 64").await;
    let ids = integers("input_ids", json!([1, 10_000]), json!(vec![2; 10_000]));
    refuse(&app, json!([ids]), 413, "tokens").await;
    let reply = send(&app, "POST", INFER, " ".repeat((16 << 20) + 1)).await;
    assert_refused(&app, reply, 413, "16777216 bytes").await;
}

#[tokio::test]
async fn the_body_limit_is_the_configured_one() {
    let config = ApiConfig { max_body: "1KiB".parse().expect("a size"), ..api_config() };
    let app = router(state(), &config);
    let reply = send(&app, "POST", INFER, " ".repeat(1025)).await;
    assert_refused(&app, reply, 413, "1024 bytes").await;
}

#[tokio::test]
async fn shapes_that_plans_are_asked_for_are_checked() {
    let app = app();
    for (query, status) in [
        ("batch=0", 400),
        ("tokens=x", 400),
        ("width=3", 400),
        ("batch=%ff", 400),
        ("%ffbatch=1", 400),
        ("batch=65", 413),
        ("batch=%36%35", 413),
        ("tokens=257", 413),
    ] {
        let reply = send(&app, "GET", &format!("/v2/models/text/plans?{query}"), "").await;
        let name = query.split('=').next().unwrap_or_default().trim_start_matches("%ff");
        assert_refused(&app, reply, status, name).await;
    }
}

/// Asserts that `path`, which is not UTF-8, is refused.
async fn refuse_path(app: &Router, method: &str, path: &str) {
    let reply = send(app, &method.to_uppercase(), path, "").await;
    let error = reply.expect(400);
    // OpenAI's routes answer an object with a message.
    let message = error["error"].get("message").unwrap_or(&error["error"]).as_str();
    let message = message.expect("a message");
    assert!(message.starts_with(&format!("{path} cannot be read: ")), "{message}");
    assert!(message.contains("UTF-8"), "{message}");
}

#[tokio::test]
async fn a_name_in_a_path_that_is_not_utf8_is_refused_with_the_path() {
    let app = app();
    let document = send(&app, "GET", "/openapi.json", "").await.expect(200);
    let paths = document["paths"].as_object().expect("paths").iter();
    let mut num_routes = 0;
    for (path, methods) in paths.filter(|(path, _)| path.contains("{model}")) {
        for method in methods.as_object().expect("methods").keys() {
            refuse_path(&app, method, &path.replace("{model}", "a%ff")).await;
            num_routes += 1;
            if let Some(rest) = path.strip_prefix("/v2/models/{model}") {
                for model in ["text/versions/%c3", "%ff/versions/1"] {
                    refuse_path(&app, method, &format!("/v2/models/{model}{rest}")).await;
                }
            }
        }
    }
    assert_eq!(num_routes, 12);
}

#[tokio::test]
async fn an_empty_text_is_embedded() {
    let request = json!({"inputs": [text(json!([1]), json!([""]))]});
    let answer = infer(&app(), &request).await.expect(200);
    assert_eq!(answer["outputs"][0]["shape"], json!([1, WIDTH]));
}
