//! Families that are loaded, loaded anew and unloaded while requests run.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use serde_json::{Value, json};
use tessera::{
    pool::Stamps,
    serve::{LoadedFamily, Loader, Registry},
};

use tokio::{sync::mpsc, time::timeout};

use crate::support::{
    Families, PATIENCE, Served,
    http::{Reply, app, get, send},
};

fn picture() -> Value {
    let pixels: Vec<f32> = (0..784).map(|index| (index % 7) as f32 / 7.0).collect();
    json!({"inputs": [{
        "name": "pixel_values", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": pixels,
    }]})
}

/// Loader of two families that breaks when it is told to.
struct Breaking {
    families: Families,
    is_broken: Arc<AtomicBool>,
}

impl Loader for Breaking {
    fn names(&self) -> Result<Vec<String>, String> {
        self.families.names()
    }

    fn stamps(&self, name: &str) -> Option<Stamps> {
        self.families.stamps(name)
    }

    fn load(&self, name: &str) -> Result<LoadedFamily, String> {
        match self.is_broken.load(Ordering::Relaxed) {
            true => Err("no weights".to_owned()),
            false => self.families.load(name),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_requests_outlive_twenty_reloads() {
    let app = Served::new(Families::images()).app();
    let body = picture().to_string();
    let expected = send(&app, "POST", "/v2/models/fashion/infer", body.clone()).await;
    let expected = expected.expect(200)["outputs"].clone();
    let (answered, mut answers) = mpsc::channel(1_000);
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (app, body, expected) = (app.clone(), body.clone(), expected.clone());
            let answered = answered.clone();
            tokio::spawn(async move {
                let mut num_answers = 0;
                loop {
                    let path = "/v2/models/fashion/infer";
                    let reply: Reply = send(&app, "POST", path, body.clone()).await;
                    assert_eq!(reply.expect(200)["outputs"], expected);
                    num_answers += 1;
                    if answered.send(()).await.is_err() {
                        return num_answers;
                    }
                }
            })
        })
        .collect();
    drop(answered);
    for _ in 0..20 {
        let reply = send(&app, "POST", "/v2/repository/models/fashion/load", "{}").await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        get(&app, "/v2/health/ready").await.expect(200);
        for _ in 0..500 {
            let answer = timeout(PATIENCE, answers.recv()).await.expect("clients go on");
            answer.expect("a client is left");
        }
    }
    drop(answers);
    let mut num_answers = 0;
    for client in clients {
        num_answers += client.await.expect("every request was answered");
    }
    assert!(num_answers >= 10_000, "{num_answers}");
}

#[tokio::test]
async fn a_reload_that_fails_leaves_the_old_version_serving() {
    let is_broken = Arc::new(AtomicBool::new(true));
    let loader = Breaking { families: Families::small(), is_broken: is_broken.clone() };
    let app = Served::offering(Registry::default(), loader).app();
    let load = "/v2/repository/models/fashion/load";
    let infer = || send(&app, "POST", "/v2/models/fashion/infer", picture().to_string());

    let reply = send(&app, "POST", load, "").await;
    assert_eq!(reply.expect(503)["code"], "unavailable");
    assert!(reply.text.contains("no weights"), "{}", reply.text);
    infer().await.expect(503);
    get(&app, "/v2/health/ready").await.expect(503);

    is_broken.store(false, Ordering::Relaxed);
    assert_eq!(send(&app, "POST", load, "{}").await.status, 200);
    infer().await.expect(200);

    is_broken.store(true, Ordering::Relaxed);
    send(&app, "POST", load, "").await.expect(503);
    infer().await.expect(200);
    get(&app, "/v2/models/fashion/ready").await.expect(200);
}

#[tokio::test]
async fn an_unloaded_family_is_unavailable_until_it_is_loaded() {
    let served = Served::offering(Registry::default(), Families::small());
    served.repository.load("fashion").expect("loaded");
    let app = served.app();
    let index = |app: axum::Router, body: &'static str| async move {
        let index = send(&app, "POST", "/v2/repository/index", body).await.expect(200);
        let state = |entry: &Value| (entry["name"].clone(), entry["state"].clone());
        index.as_array().expect("a list").iter().map(state).collect::<Vec<_>>()
    };
    let entry = |name: &str, state: &str| (json!(name), json!(state));
    let both = [entry("fashion", "READY"), entry("text", "UNAVAILABLE")];
    assert_eq!(index(app.clone(), "").await, both);
    assert_eq!(index(app.clone(), "{\"ready\":true}").await, both[..1]);

    let unload = r#"{"parameters":{"unload_dependents":false}}"#;
    let reply = send(&app, "POST", "/v2/repository/models/fashion/unload", unload).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let error = get(&app, "/v2/models/fashion").await.expect(503);
    assert!(error["error"].as_str().expect("a message").contains("it is unloaded"), "{error}");
    assert_eq!(index(app.clone(), "{\"ready\":true}").await, []);
    assert_eq!(send(&app, "POST", "/v2/repository/models/fashion/load", "").await.status, 200);
    get(&app, "/v2/models/fashion").await.expect(200);
}

#[tokio::test]
async fn repository_calls_take_names_of_the_pool_alone() {
    let app = app();
    for name in ["nothing", "..%2Ftext", "%2E%2E"] {
        let path = format!("/v2/repository/models/{name}/load");
        send(&app, "POST", &path, "").await.expect(404);
        let path = format!("/v2/repository/models/{name}/unload");
        send(&app, "POST", &path, "").await.expect(404);
    }
    let config = r#"{"parameters":{"config":"{}"}}"#;
    let error = send(&app, "POST", "/v2/repository/models/text/load", config).await.expect(400);
    let message = error["error"].as_str().expect("a message");
    assert!(message.contains("unknown parameter `config`"), "{message}");
}

#[tokio::test]
async fn statistics_and_configuration_have_triton_s_form() {
    let app = app();
    let before = get(&app, "/v2/models/fashion/stats").await.expect(200);
    send(&app, "POST", "/v2/models/fashion/infer", picture().to_string()).await.expect(200);
    send(&app, "POST", "/v2/models/fashion/infer", r#"{"inputs":[]}"#).await.expect(400);
    let after = get(&app, "/v2/models/fashion/stats").await.expect(200);
    let count = |answer: &Value, path: &str| {
        answer.pointer(&format!("/model_stats/0/{path}")).and_then(Value::as_u64).expect("a count")
    };
    assert_eq!(after["model_stats"][0]["name"], "fashion");
    for path in [
        "inference_count",
        "execution_count",
        "inference_stats/success/count",
        "inference_stats/fail/count",
        "inference_stats/compute_infer/ns",
    ] {
        assert!(count(&after, path) > count(&before, path), "{path}");
    }
    let all = get(&app, "/v2/models/stats").await.expect(200);
    assert_eq!(all["model_stats"].as_array().map(Vec::len), Some(2));
    let config = get(&app, "/v2/models/fashion/config").await.expect(200);
    assert_eq!(config["max_batch_size"], 64);
    let pixels = json!({"name": "pixel_values", "data_type": "TYPE_FP32", "dims": [1, 28, 28],
                        "optional": true});
    assert_eq!(config["input"][1], pixels);
    assert_eq!(config["output"][0]["data_type"], "TYPE_FP32");
}
