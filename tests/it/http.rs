//! The HTTP edge over small families: every route, budgets, versions, metrics, draining.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tessera::{
    api::{ApiConfig, ApiState, router, serve_http},
    serve::{FamilyState, Registry},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

use crate::support::{
    Families, Reference, Served, api_config, assert_close,
    http::{app, get, infer, send, state, text_request, transport},
    synthetic::WIDTH,
    text_family,
};

/// A plan that needs no fitted map.
const NAMED: &str = "a[0..2]{skip.attn:1}";

/// A budget that no machine exceeds, in milliseconds.
const AN_HOUR: u32 = 3_600_000;

fn embedding(answer: &Value) -> Vec<f32> {
    let data = answer["outputs"][0]["data"].as_array().expect("an output");
    data.iter().map(|value| value.as_f64().expect("a number") as f32).collect()
}

#[tokio::test]
async fn health_metadata_and_the_index_answer() {
    let app = app();
    assert_eq!(get(&app, "/v2/health/live").await.expect(200), json!({"live": true}));
    assert_eq!(get(&app, "/v2/health/ready").await.expect(200), json!({"ready": true}));
    let server = get(&app, "/v2").await.expect(200);
    assert_eq!(server["name"], "tessera");
    let ready = get(&app, "/v2/models/text/ready").await.expect(200);
    assert_eq!(ready, json!({"name": "text", "ready": true}));
    let index = get(&app, "/").await;
    assert_eq!(index.status, 200);
    assert!(index.text.contains("/v2/models/{model}/infer"), "{}", index.text);
    assert!(index.text.contains("model text: ready"), "{}", index.text);
}

#[tokio::test]
async fn a_model_tells_its_tensors_and_limits() {
    let model = get(&app(), "/v2/models/text").await.expect(200);
    assert_eq!(model["name"], "text");
    assert_eq!(model["platform"], "tessera_onnxruntime");
    assert_eq!(
        model["inputs"],
        json!([
            {"name": "text", "datatype": "BYTES", "shape": [-1]},
            {"name": "input_ids", "datatype": "INT64", "shape": [-1, -1]},
            {"name": "attention_mask", "datatype": "INT64", "shape": [-1, -1]},
        ])
    );
    let output = json!([{"name": "embedding", "datatype": "FP32", "shape": [-1, 8]}]);
    assert_eq!(model["outputs"], output);
    assert_eq!(model["parameters"]["metric"], "recall@10");
    assert_eq!(model["parameters"]["max_tokens"], 256);
}

#[tokio::test]
async fn a_text_is_embedded_and_the_answer_says_how() {
    let mut request = text_request(json!({"explain": true}));
    request["id"] = json!("mail-7");
    let reply = infer(&app(), &request).await;
    let answer = reply.expect(200);
    assert_eq!(answer["model_name"], "text");
    assert_eq!(answer["model_version"], "1");
    assert_eq!(answer["id"], "mail-7");
    assert_eq!(answer["outputs"][0]["name"], "embedding");
    assert_eq!(answer["outputs"][0]["shape"], json!([1, WIDTH]));
    let norm: f32 = embedding(&answer).iter().map(|value| value * value).sum();
    assert!((norm - 1.0).abs() < 1e-4, "{norm}");
    let parameters = &answer["parameters"];
    for name in ["predicted_latency_ms", "latency_ms", "queue_ms", "memory_mb", "quality"] {
        assert!(parameters[name].is_number(), "{name}: {parameters}");
    }
    assert!(parameters["plan"].is_string() && parameters["quality_source"].is_string());
    assert_eq!(parameters["tokens"], 5);
    assert_eq!(reply.header("content-type"), "application/json");
    let timing = reply.header("server-timing");
    for stage in ["preprocess;dur=", "queue;dur=", "compute;dur=", "total;dur="] {
        assert!(timing.contains(stage), "{timing}");
    }
}

#[tokio::test]
async fn token_ids_are_embedded_like_the_reference() {
    let reference = Reference::read("l6");
    let encoding = reference.encoding();
    let shape = json!([encoding.batch, encoding.tokens]);
    let rows: Vec<&[i64]> = encoding.input_ids.chunks(encoding.tokens).collect();
    let request = json!({
        "parameters": {"plan": "l6[0..6]"},
        "inputs": [
            {"name": "input_ids", "shape": shape, "datatype": "INT32", "data": rows},
            {"name": "attention_mask", "shape": shape, "datatype": "INT64",
             "data": encoding.attention_mask},
        ],
        "outputs": [{"name": "embedding", "parameters": {"binary_data": false}}],
    });
    let app = Served::new(Families::of(text_family())).app();
    let answer = infer(&app, &request).await.expect(200);
    let (_, expected) = reference.tensor("embeddings");
    assert_close(&embedding(&answer), expected, 1e-4, "l6 over HTTP");
    assert_eq!(answer["parameters"]["plan"], "l6[0..6]");
}

#[tokio::test]
async fn every_budget_is_met_by_the_plan_it_gets() {
    let app = app();
    let front = get(&app, "/v2/models/text/plans?batch=1&tokens=8").await.expect(200);
    let plans = front["plans"].as_array().expect("plans");
    let number = |plan: &Value, name: &str| plan[name].as_f64().expect("a number");
    let least = |name: &str| plans.iter().map(|plan| number(plan, name)).fold(f64::MAX, f64::min);
    let memory_mb = least("memory_mb") * 1.05;
    let quality = plans.iter().map(|plan| number(plan, "quality")).fold(0.0, f64::max);
    for parameters in [
        json!({"latency_budget_ms": AN_HOUR}),
        json!({"timeout": 1_000 * u64::from(AN_HOUR)}),
        json!({"memory_budget_mb": memory_mb}),
        json!({"min_quality": quality}),
        json!({"min_quality": quality / 2.0, "latency_budget_ms": AN_HOUR}),
    ] {
        let answer = infer(&app, &text_request(parameters.clone())).await.expect(200);
        let done = &answer["parameters"];
        assert!(number(done, "predicted_latency_ms") <= f64::from(AN_HOUR), "{parameters}: {done}");
        if parameters.get("memory_budget_mb").is_some() {
            assert!(number(done, "memory_mb") <= memory_mb, "{parameters}: {done}");
        }
        if let Some(min_quality) = parameters.get("min_quality").and_then(Value::as_f64) {
            assert!(number(done, "quality") >= min_quality, "{parameters}: {done}");
        }
    }
}

#[tokio::test]
async fn a_generous_latency_budget_gets_the_plan_that_no_budget_gets() {
    let app = app();
    let free = infer(&app, &text_request(json!({}))).await.expect(200);
    let generous = text_request(json!({"latency_budget_ms": AN_HOUR}));
    let generous = infer(&app, &generous).await.expect(200);
    assert_eq!(generous["parameters"]["plan"], free["parameters"]["plan"]);
}

#[tokio::test]
async fn the_plan_of_a_budget_is_told_without_running_it() {
    let app = app();
    let question = json!({"batch": 2, "tokens": 16, "parameters": {"latency_budget_ms": AN_HOUR}});
    let path = "/v2/models/text/plan";
    let plan = send(&app, "POST", path, question.to_string()).await.expect(200);
    assert_eq!((&plan["batch"], &plan["tokens"]), (&json!(2), &json!(16)));
    assert_eq!(plan["model"], "text");
    assert!(plan["predicted_latency_ms"].as_f64().expect("a number") <= f64::from(AN_HOUR));
    let named = json!({"parameters": {"plan": NAMED}}).to_string();
    let plan = send(&app, "POST", path, named).await.expect(200);
    assert_eq!(plan["plan"], NAMED);
    send(&app, "POST", path, "").await.expect(200);
}

#[tokio::test]
async fn the_front_rises_in_quality_or_falls_in_memory() {
    let front = get(&app(), "/v2/models/text/plans").await.expect(200);
    assert_eq!((&front["batch"], &front["tokens"]), (&json!(1), &json!(128)));
    assert_eq!(front["metric"], "recall@10");
    let plans = front["plans"].as_array().expect("plans");
    assert!(!plans.is_empty());
    let latency = |plan: &Value| plan["predicted_latency_ms"].as_f64().expect("a number");
    assert!(plans.windows(2).all(|pair| latency(&pair[0]) <= latency(&pair[1])));
}

#[tokio::test]
async fn versions_are_one_and_the_digest() {
    let app = app();
    let model = get(&app, "/v2/models/text/versions/1").await.expect(200);
    let digest = model["versions"][1].as_str().expect("a digest").to_owned();
    let body = text_request(json!({})).to_string();
    for version in ["1", &digest] {
        let path = format!("/v2/models/text/versions/{version}");
        get(&app, &format!("{path}/ready")).await.expect(200);
        get(&app, &format!("{path}/plans")).await.expect(200);
        send(&app, "POST", &format!("{path}/plan"), "{}").await.expect(200);
        let answer = send(&app, "POST", &format!("{path}/infer"), body.clone()).await.expect(200);
        assert_eq!(answer["model_version"], *version);
    }
    let error = get(&app, "/v2/models/text/versions/2").await.expect(404);
    assert_eq!(error["code"], "not_found");
    assert!(error["error"].as_str().expect("a message").contains(&digest), "{error}");
}

#[tokio::test]
async fn metrics_show_what_happened() {
    let app = app();
    // The first loads its modules, and the second has been learned from before the third runs.
    for _ in 0..3 {
        infer(&app, &text_request(json!({"plan": NAMED}))).await.expect(200);
    }
    infer(&app, &text_request(json!({"plan": "c[0..3]"}))).await.expect(404);
    infer(&app, &json!({"inputs": 3})).await.expect(400);
    let reply = get(&app, "/metrics").await;
    assert_eq!(reply.header("content-type"), "text/plain; version=0.0.4");
    for line in [
        r#"tessera_api_requests_total{code="ok",family="text"}"#,
        r#"tessera_api_requests_total{code="not_found",family="text"}"#,
        r#"tessera_api_requests_total{code="invalid_argument",family="text"}"#,
        &format!(r#"tessera_plan_chosen_total{{family="text",plan="{NAMED}"}}"#),
        r#"tessera_serve_stage_duration_seconds_count{family="text",stage="compute"}"#,
        r#"tessera_plan_prediction_ratio_count{family="text"}"#,
        r#"tessera_runtime_resident_bytes{family="text"}"#,
        r#"tessera_runtime_module_loads_total{family="text"}"#,
        r#"tessera_runtime_module_duration_seconds_count{family="text",module="a.stem"}"#,
        r#"tessera_plan_correction_ratio{family="text"}"#,
        r#"tessera_runtime_module_correction_ratio{family="text",module="a.stem"}"#,
        "process_resident_memory_bytes",
    ] {
        assert!(reply.text.lines().any(|found| found.starts_with(line)), "{line}\n{}", reply.text);
    }
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_are_answered_in_json() {
    let app = app();
    let error = get(&app, "/v3/models").await.expect(404);
    assert_eq!(error["code"], "not_found");
    let reply = get(&app, "/v2/models/text/infer").await;
    assert_eq!(reply.expect(405)["code"], "invalid_argument");
    assert_eq!(reply.header("allow"), "POST");
    assert_eq!(reply.header("content-type"), "application/json");
    let error = get(&app, "/v2/models/image").await.expect(404);
    assert!(error["error"].as_str().expect("a message").contains("text"), "{error}");
}

#[tokio::test]
async fn a_family_that_did_not_load_is_unavailable_for_a_reason() {
    let failed = FamilyState::Failed { reason: "no weights".to_owned() };
    let registry = Registry::new([("image".to_owned(), failed)]);
    let app = Served::offering(registry, Families::small()).app();
    for path in ["/v2/models/image", "/v2/models/image/ready"] {
        let reply = get(&app, path).await;
        assert_eq!(reply.expect(503)["code"], "unavailable");
        assert!(reply.text.contains("it did not load: no weights"), "{}", reply.text);
    }
    let index = send(&app, "POST", "/v2/repository/index", "{}").await.expect(200);
    let mut listed = index.as_array().expect("a list").iter();
    let image = listed.find(|entry| entry["name"] == "image").expect("it is listed");
    assert_eq!(image["reason"], "no weights");
    let page = get(&app, "/").await;
    assert!(page.text.contains("model image: failed to load: no weights"), "{}", page.text);
    let ready = get(&app, "/v2/health/ready").await.expect(503);
    let reason = "no model is ready: 1 of 1 did not load";
    let failed = json!({"image": "no weights"});
    assert_eq!(ready, json!({"ready": false, "reason": reason, "failed": failed}));
    get(&app, "/v2/health/live").await.expect(200);
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_answered_504() {
    let config = ApiConfig { request_timeout: Duration::ZERO, ..api_config() };
    let app = router(state(), &config);
    let texts = vec!["a text that takes a while ".repeat(40); 32];
    let slow = json!({"inputs": [
        {"name": "text", "shape": [32], "datatype": "BYTES", "data": texts}]});
    let error = infer(&app, &slow).await.expect(504);
    assert_eq!(error["code"], "deadline_exceeded");
}

#[tokio::test]
async fn a_panic_is_an_internal_error_without_details() {
    let state = ApiState { render_metrics: Arc::new(|| panic!("secret")), ..state() };
    let app = router(state, &api_config());
    let reply = get(&app, "/metrics").await;
    let error = reply.expect(500);
    assert_eq!(error["error"], "internal error");
    assert_eq!(error["request_id"], reply.header("x-request-id"));
    get(&app, "/v2/health/live").await.expect(200);
}

/// Reads what the server sends until it closes the connection.
async fn read_to_end(mut connection: TcpStream) -> String {
    let mut text = String::new();
    connection.read_to_string(&mut text).await.expect("an answer");
    text
}

#[tokio::test]
async fn draining_ends_what_runs_and_takes_nothing_new() {
    let served = Served::new(Families::small());
    let registry = served.repository.registry().clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let stop = CancellationToken::new();
    let app = served.app();
    let server = tokio::spawn(serve_http(listener, app.clone(), transport(8), stop.clone()));

    let body = text_request(json!({})).to_string();
    let head = format!(
        "POST /v2/models/text/infer HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    let mut connection = TcpStream::connect(address).await.expect("connected");
    connection.write_all(head.as_bytes()).await.expect("sent");
    // The server asks for the body once the request runs.
    let mut proceed = [0; 25];
    connection.read_exact(&mut proceed).await.expect("an interim answer");
    assert!(proceed.starts_with(b"HTTP/1.1 100 Continue"));

    registry.start_draining();
    get(&app, "/v2/health/ready").await.expect(503);
    get(&app, "/v2/models/text/ready").await.expect(503);
    stop.cancel();
    connection.write_all(body.as_bytes()).await.expect("sent");
    let answer = read_to_end(connection).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    server.await.expect("ended").expect("without an error");
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn answers_on_a_socket_have_the_length_that_they_say() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let stop = CancellationToken::new();
    let server = tokio::spawn(serve_http(listener, app(), transport(8), stop.clone()));
    for (path, start) in [("/v2/health/live", "HTTP/1.1 200"), ("/nowhere", "HTTP/1.1 404")] {
        let mut connection = TcpStream::connect(address).await.expect("connected");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).await.expect("sent");
        let answer = read_to_end(connection).await;
        assert!(answer.starts_with(start), "{answer}");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let length = format!("content-length: {}", body.len());
        assert!(head.contains(&length), "{answer}");
        serde_json::from_str::<Value>(body).expect("JSON");
    }
    stop.cancel();
    server.await.expect("ended").expect("without an error");
}
