//! More requests than there is time for: smaller plans first, then refusals.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tessera::{
    api::{ApiConfig, ApiState, router},
    runtime::Residency,
    serve::{Observer, Outcome, Registry, ServiceConfig},
};

use crate::{
    http::{app, get, send},
    support::{CONFIG, Families, metrics, start, start_with},
};

const NUM_REQUESTS: usize = 200;

fn request(latency_budget_ms: Option<f64>) -> String {
    let pixels: Vec<f32> = (0..784).map(|index| (index % 7) as f32 / 7.0).collect();
    let input = json!({
        "name": "pixel_values", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": pixels,
    });
    let parameters = latency_budget_ms.map_or(json!({}), |ms| json!({"latency_budget_ms": ms}));
    json!({"inputs": [input], "parameters": parameters}).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_plans_shrink_before_requests_are_refused() {
    let app = app();
    let infer = "/v2/models/fashion/infer";
    // Every module is loaded, and the machine's speed known, before it matters.
    for _ in 0..30 {
        send(&app, "POST", infer, request(None)).await.expect(200);
    }
    let front = get(&app, "/v2/models/fashion/plans").await.expect(200);
    let last = front["plans"].as_array().and_then(|plans| plans.last()).expect("a plan").clone();
    let largest_ms = last["predicted_latency_ms"].as_f64().expect("a number");

    let requests: Vec<_> = (0..NUM_REQUESTS)
        .map(|_| {
            let app = app.clone();
            let body = request(Some(largest_ms * 5.0));
            tokio::spawn(async move { send(&app, "POST", infer, body).await })
        })
        .collect();
    let (mut plans, mut num_answered, mut num_refused) = (BTreeSet::new(), 0, 0);
    for request in requests {
        let reply = request.await.expect("an answer");
        if reply.status == 200 {
            num_answered += 1;
            plans.insert(reply.json()["parameters"]["plan"].as_str().map(str::to_owned));
        } else {
            num_refused += 1;
            let error: Value = reply.expect(429);
            assert_eq!(error["code"], "overloaded");
            assert_eq!(reply.headers["retry-after"], "1");
        }
    }
    assert_eq!(num_answered + num_refused, NUM_REQUESTS);
    assert!(num_answered > 0 && num_refused > 0, "{num_answered} answered");
    let is_smaller = |plan: &Option<String>| plan.as_deref() != last["plan"].as_str();
    assert!(plans.iter().any(is_smaller), "{plans:?}");

    // Who has time is answered as before.
    let calm = send(&app, "POST", infer, request(None)).await.expect(200);
    assert_eq!(calm["parameters"]["plan"], last["plan"]);
}

/// An observer that panics on the inference thread when it is told to.
struct Panicking(AtomicBool);

impl Observer for Panicking {
    fn finished(&self, _family: &str, _outcome: &Outcome<'_>) {}

    fn batch_ran(&self, _family: &str, _rows: usize, _correction: f64) {}

    fn module_ran(&self, _family: &str, _module: &str, _time: Duration) {
        assert!(!self.0.swap(false, Ordering::Relaxed), "as it was told to");
    }

    fn residency_changed(&self, _family: &str, _residency: &Residency) {}

    fn queue_changed(&self, _family: &str, _change: i64) {}

    fn connections_changed(&self, _protocol: &str, _change: i64) {}

    fn connection_refused(&self, _protocol: &str) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_workers_answer_as_one_does_and_a_panic_fails_one_request() {
    let panicking = Arc::new(Panicking(AtomicBool::new(false)));
    let config = ServiceConfig { num_workers: 3, ..CONFIG };
    let families = Box::new(Families);
    let (repository, _threads) =
        start_with(config, Registry::default(), panicking.clone(), families);
    repository.load("fashion").expect("loaded");
    let state = ApiState::new(repository.clone(), metrics(), Arc::new(String::new));
    let app = router(state, &ApiConfig::default());
    let infer = || {
        let app = app.clone();
        tokio::spawn(
            async move { send(&app, "POST", "/v2/models/fashion/infer", request(None)).await },
        )
    };
    let expected = infer().await.expect("an answer").expect(200)["outputs"].clone();
    for _ in 0..10 {
        let together: Vec<_> = (0..12).map(|_| infer()).collect();
        for request in together {
            let reply = request.await.expect("an answer").expect(200);
            assert_eq!(reply["outputs"][0]["shape"], expected[0]["shape"]);
        }
    }
    panicking.0.store(true, Ordering::Relaxed);
    let together: Vec<_> = (0..4).map(|_| infer()).collect();
    let mut statuses = Vec::new();
    for request in together {
        statuses.push(request.await.expect("an answer").status);
    }
    // One that panics in a batch of several is answered when it runs again alone.
    assert!(statuses.iter().filter(|status| **status != 200).count() <= 1, "{statuses:?}");
    assert_eq!(infer().await.expect("an answer").expect(200)["outputs"], expected);
    // A family goes while workers are there, and comes back.
    repository.unload("fashion").expect("unloaded");
    repository.load("fashion").expect("loaded again");
    assert_eq!(infer().await.expect("an answer").expect(200)["outputs"], expected);
}

#[tokio::test]
async fn a_panic_on_the_inference_thread_fails_one_request() {
    let panicking = Arc::new(Panicking(AtomicBool::new(false)));
    let (repository, _thread) = start(Registry::default(), panicking.clone(), Box::new(Families));
    repository.load("fashion").expect("loaded");
    let state = ApiState::new(repository, metrics(), Arc::new(String::new));
    let app = router(state, &ApiConfig::default());
    let infer = || send(&app, "POST", "/v2/models/fashion/infer", request(None));
    let expected = infer().await.expect(200)["outputs"].clone();
    panicking.0.store(true, Ordering::Relaxed);
    let error = infer().await.expect(500);
    assert_eq!(error["error"], "internal error");
    for _ in 0..3 {
        assert_eq!(infer().await.expect(200)["outputs"], expected);
    }
}
