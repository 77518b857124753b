//! More requests than there is time for: smaller plans first, then refusals.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tessera::{
    api::{ApiConfig, ApiState, router},
    family::ModuleId,
    plan::{Budget, Shape},
    pool::Stamps,
    runtime::Residency,
    serve::{
        FamilyService, InferRequest, LoadedFamily, Loader, Observer, Outcome, Registry, ServeError,
        ServiceConfig,
    },
    tensor::{Tensor, TensorData},
};

use crate::support::{
    CONFIG, Families, computed, fashion_family,
    http::{app, get, send},
    loaded, metrics, start, start_with,
};

const NUM_REQUESTS: usize = 800;

/// Held by tests that would disturb one another: their budgets are milliseconds.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn request(latency_budget_ms: Option<f64>) -> String {
    let parameters = latency_budget_ms.map_or(json!({}), |ms| json!({"latency_budget_ms": ms}));
    request_with(1, &parameters)
}

fn request_with(num_images: usize, parameters: &Value) -> String {
    let pixels: Vec<f32> = (0..784 * num_images).map(|index| (index % 7) as f32 / 7.0).collect();
    let input = json!({
        "name": "pixel_values", "shape": [num_images, 1, 28, 28], "datatype": "FP32",
        "data": pixels,
    });
    json!({"inputs": [input], "parameters": parameters}).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_plans_shrink_before_requests_are_refused() {
    let _turn = TURN.lock().await;
    let app = app();
    let infer = "/v2/models/fashion/infer";
    // Every module is loaded, and the machine's speed known, before it matters.
    for _ in 0..30 {
        send(&app, "POST", infer, request(None)).await.expect(200);
    }
    let front = get(&app, "/v2/models/fashion/plans").await.expect(200);
    let last = front["plans"].as_array().and_then(|plans| plans.last()).expect("a plan").clone();
    let largest_ms = last["predicted_latency_ms"].as_f64().expect("a number");

    // Longer than threads pause on a busy machine, and too short for all of them.
    let budget_ms = largest_ms * 20.0;
    // What was admitted is to be done within the budget, so nobody is told to wait for longer.
    let longest = (budget_ms / 1e3).ceil();

    let requests: Vec<_> = (0..NUM_REQUESTS)
        .map(|_| {
            let app = app.clone();
            let body = request(Some(budget_ms));
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
            let seconds = reply.header("retry-after").parse::<f64>().expect("seconds");
            assert!((1.0..=longest).contains(&seconds), "{seconds} of {longest}");
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

/// An observer that panics on the inference thread when it is told to, and keeps what it hears of
/// modules' corrections.
#[derive(Default)]
struct Watching {
    panics: AtomicBool,
    corrections: Mutex<BTreeMap<String, f64>>,
}

impl Observer for Watching {
    fn accepted(&self, _family: &str) {}

    fn finished(&self, _family: &str, _outcome: &Outcome<'_>) {}

    fn batch_ran(&self, _family: &str, _rows: usize, _correction: f64) {}

    fn module_ran(&self, _family: &str, _module: &str, _time: Duration) {
        assert!(!self.panics.swap(false, Ordering::Relaxed), "as it was told to");
    }

    fn module_corrected(&self, _family: &str, module: &str, ratio: f64) {
        self.corrections.lock().expect("no panic").insert(module.to_owned(), ratio);
    }

    fn residency_changed(&self, _family: &str, _residency: &Residency) {}

    fn queue_changed(&self, _family: &str, _change: i64) {}

    fn connections_changed(&self, _protocol: &str, _change: i64) {}

    fn connection_refused(&self, _protocol: &str) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_workers_answer_as_one_does_and_a_panic_fails_one_request() {
    let watching = Arc::new(Watching::default());
    let config = ServiceConfig { num_workers: 3, ..CONFIG };
    let families = Box::new(Families);
    let (repository, _threads) =
        start_with(config, Registry::default(), watching.clone(), families);
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
    watching.panics.store(true, Ordering::Relaxed);
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
    let watching = Arc::new(Watching::default());
    let (repository, _thread) = start(Registry::default(), watching.clone(), Box::new(Families));
    repository.load("fashion").expect("loaded");
    let state = ApiState::new(repository, metrics(), Arc::new(String::new));
    let app = router(state, &ApiConfig::default());
    let infer = || send(&app, "POST", "/v2/models/fashion/infer", request(None));
    let expected = infer().await.expect(200)["outputs"].clone();
    watching.panics.store(true, Ordering::Relaxed);
    let error = infer().await.expect(500);
    assert_eq!(error["error"], "internal error");
    for _ in 0..3 {
        assert_eq!(infer().await.expect(200)["outputs"], expected);
    }
}

/// Loads the family of images with a profile in which one feed-forward part takes six times as long
/// as it does.
struct Misjudging;

const MISJUDGED: &str = "l.block.1.mlp";
const JUDGED: &str = "l.block.1.attn";

impl Loader for Misjudging {
    fn names(&self) -> Result<Vec<String>, String> {
        Ok(vec!["fashion".to_owned()])
    }

    fn stamps(&self, _name: &str) -> Option<Stamps> {
        None
    }

    fn load(&self, _name: &str) -> Result<LoadedFamily, String> {
        let family = fashion_family();
        let mut profile = computed(&family);
        let modules = family.graph.modules().iter();
        let index = modules.map(|module| &*module.name).position(|name| name == MISJUDGED);
        let latency = index.and_then(|index| profile.latency_mut(ModuleId(index)));
        let latency = latency.ok_or("no such module")?;
        *latency = latency.scale(6.0).map_err(|error| error.to_string())?;
        loaded(family, profile)
    }
}

#[tokio::test]
async fn a_module_that_was_measured_wrongly_is_corrected_by_itself() {
    let watching = Arc::new(Watching::default());
    let (repository, _thread) = start(Registry::default(), watching.clone(), Box::new(Misjudging));
    repository.load("fashion").expect("loaded");
    let state = ApiState::new(repository, metrics(), Arc::new(String::new));
    let app = router(state, &ApiConfig::default());
    let mut body: Value = serde_json::from_str(&request(None)).expect("JSON");
    body["parameters"]["plan"] = "l[0..6]".into();
    let body = body.to_string();
    for _ in 0..600 {
        send(&app, "POST", "/v2/models/fashion/infer", body.clone()).await.expect(200);
    }
    let ratios = watching.corrections.lock().expect("no panic");
    let (misjudged, judged) = (ratios[MISJUDGED], ratios[JUDGED]);
    assert!(misjudged < 0.5 * judged, "{misjudged} {judged}");
}

/// Async threads that were slow lately are a guess about the next request, not time that has
/// passed. That may pass indeed, so that not every request has to be answered.
#[tokio::test]
async fn an_idle_server_does_not_refuse_for_slow_async_threads() {
    let _turn = TURN.lock().await;
    let observer = Arc::new(Watching::default());
    let (repository, _thread) = start(Registry::default(), observer, Box::new(Families));
    repository.load("fashion").expect("loaded");
    let family = repository.registry().family("fashion").expect("served");
    let state = ApiState::new(repository, metrics(), Arc::new(String::new));
    let app = router(state, &ApiConfig::default());
    let infer = |parameters: Value| {
        let body = request_with(NUM_IMAGES, &parameters);
        send(&app, "POST", "/v2/models/fashion/infer", body)
    };
    let mut replies = Vec::new();
    for _ in 0..5 {
        for _ in 0..20 {
            let mut answer = std::pin::pin!(infer(json!({"plan": SLOW_PLAN})));
            // Nothing else is done meanwhile, also no answer written.
            while tokio::time::timeout(Duration::ZERO, &mut answer).await.is_err() {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "a slow async thread is the subject"
                )]
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let budget_ms = 1.05 * least_budget_ms(&family);
        let reply = infer(json!({"latency_budget_ms": budget_ms, "plan": SLOW_PLAN})).await;
        if reply.status == 200 {
            return;
        }
        replies.push(reply);
    }
    panic!("{replies:?}");
}

/// A budget that has passed on an idle server is neither refused as one that no plan meets nor for
/// the sake of others.
#[tokio::test]
async fn a_budget_that_has_passed_on_an_idle_server_is_a_deadline_exceeded() {
    let _turn = TURN.lock().await;
    let observer = Arc::new(Watching::default());
    let (repository, _thread) = start(Registry::default(), observer, Box::new(Families));
    repository.load("fashion").expect("loaded");
    let family = repository.registry().family("fashion").expect("served");
    let budget = Duration::from_secs(5);
    let ask = |since_arrival: Duration| {
        let image =
            Tensor::new(vec![1, 1, 28, 28], TensorData::F32(vec![0.5; 784])).expect("an image");
        family.infer(InferRequest {
            inputs: vec![("pixel_values".to_owned(), image)],
            budget: Budget { latency: Some(budget), ..Budget::default() },
            priority: 100,
            arrival: Instant::now().checked_sub(since_arrival).expect("a running clock"),
        })
    };
    ask(Duration::ZERO).await.expect("in time");
    let late = ask(2 * budget).await.map(|answer| answer.report);
    assert!(matches!(late, Err(ServeError::DeadlineExceeded { .. })), "{late:?}");
}

/// A plan, and a number of images for which it takes long, but which are still one batch.
const SLOW_PLAN: &str = "l[0..6]";
const NUM_IMAGES: usize = 4;

/// Returns the least latency budget that the plan meets now, in milliseconds.
fn least_budget_ms(family: &FamilyService) -> f64 {
    let (mut least, mut most) = (0.0, 1e4);
    while most > 1.001 * least {
        let middle = f64::midpoint(least, most);
        let latency = Some(Duration::from_secs_f64(middle / 1e3));
        let plan = Some(SLOW_PLAN.to_owned());
        match family
            .choose(Shape::new(NUM_IMAGES, 1), &Budget { latency, plan, ..Budget::default() })
        {
            Ok(_) => most = middle,
            Err(_) => least = middle,
        }
    }
    most
}
