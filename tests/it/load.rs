//! More requests than there is time for: smaller plans first, then refusals.
//!
//! Profiles say that runs take minutes, which really take less than a millisecond. How fast the
//! machine is thus decides nothing. `src/serve/simulation_tests.rs` has hours of traffic on a
//! simulated clock.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::Router;
use serde_json::{Value, json};
use tessera::{
    family::ModuleId,
    plan::{Budget, Shape},
    serve::{FamilyService, InferRequest, ServeError, ServiceConfig},
    tensor::{Tensor, TensorData},
};

use crate::support::{
    CONFIG, Families, Served, computed, fashion_family,
    http::{Reply, get, send},
    watching::Watching,
};

const INFER: &str = "/v2/models/fashion/infer";

/// Factor between the latencies that profiles say and computed ones: ten minutes for a large plan.
const SLOWNESS: f64 = 1e6;

/// Longest wait of a request, which nothing here reaches.
const A_DAY: Duration = Duration::from_secs(86_400);

/// Returns the family of images with each module's computed latency times `factor` of its name.
fn images_with(factor: impl Fn(&str) -> f64) -> Families {
    let family = fashion_family();
    let mut profile = computed(&family);
    for (index, module) in family.graph.modules().iter().enumerate() {
        if let Some(latency) = profile.latency_mut(ModuleId(index)) {
            *latency = latency.scale(factor(&module.name)).expect("latencies");
        }
    }
    Families::with_profile(family, profile)
}

fn request(parameters: &Value) -> String {
    let pixels: Vec<f32> = (0..784).map(|index| (index % 7) as f32 / 7.0).collect();
    let input = json!({
        "name": "pixel_values", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": pixels,
    });
    json!({"inputs": [input], "parameters": parameters}).to_string()
}

async fn infer(app: Router, parameters: Value) -> Reply {
    send(&app, "POST", INFER, request(&parameters)).await
}

const NUM_REQUESTS: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_plans_shrink_before_requests_are_refused() {
    let watching = Arc::new(Watching::default());
    let config = ServiceConfig { max_wait: A_DAY, ..CONFIG };
    let served = Served::observed(config, watching.clone(), images_with(|_| SLOWNESS));
    let app = served.app();
    let front = get(&app, "/v2/models/fashion/plans").await.expect(200);
    let last = front["plans"].as_array().and_then(|plans| plans.last()).expect("a plan").clone();
    let largest_ms = last["predicted_latency_ms"].as_f64().expect("a number");

    // Enough for some of them, and too short for all.
    let budget_ms = largest_ms * 6.0;
    // What was admitted is to be done within the budget, so nobody is told to wait for longer.
    let longest = (budget_ms / 1e3).ceil();

    // All of them arrive while the first runs.
    let hold = watching.hold();
    let first = tokio::spawn(infer(app.clone(), json!({})));
    watching.until(|heard| heard.held == 1).await;
    let budget = json!({"latency_budget_ms": budget_ms});
    let requests: Vec<_> =
        (0..NUM_REQUESTS).map(|_| tokio::spawn(infer(app.clone(), budget.clone()))).collect();
    let heard = watching.until(|heard| heard.queued + heard.finished > NUM_REQUESTS).await;
    assert!(heard.finished > 0 && heard.queued > 1, "{heard:?}");
    drop(hold);

    assert_eq!(first.await.expect("an answer").expect(200)["parameters"]["plan"], last["plan"]);
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
    assert!(num_answered > 0 && num_refused >= heard.finished, "{num_answered} answered");
    let is_smaller = |plan: &Option<String>| plan.as_deref() != last["plan"].as_str();
    assert!(plans.iter().any(is_smaller), "{plans:?}");
    let heard = watching.until(|heard| heard.finished > NUM_REQUESTS).await;
    assert_eq!(heard.finished, NUM_REQUESTS + 1, "every request ends once");

    // Who has time is answered as before.
    let calm = infer(app, json!({})).await.expect(200);
    assert_eq!(calm["parameters"]["plan"], last["plan"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_what_comes_and_keeps_what_it_has() {
    let watching = Arc::new(Watching::default());
    let config = ServiceConfig { queue_limit: 5, ..CONFIG };
    let app = Served::observed(config, watching.clone(), Families::images()).app();
    let hold = watching.hold();
    let first = tokio::spawn(infer(app.clone(), json!({})));
    watching.until(|heard| heard.held == 1).await;
    let requests: Vec<_> = (0..20).map(|_| tokio::spawn(infer(app.clone(), json!({})))).collect();
    let heard = watching.until(|heard| heard.queued + heard.finished == 21).await;
    assert_eq!((heard.queued, heard.finished), (6, 15), "the first runs, five wait");
    drop(hold);
    let mut statuses = vec![first.await.expect("an answer").status];
    for request in requests {
        let reply = request.await.expect("an answer");
        statuses.push(reply.status);
        if reply.status != 200 {
            assert_eq!(reply.expect(429)["code"], "overloaded");
            assert!(reply.header("retry-after").parse::<u64>().expect("seconds") >= 1);
        }
    }
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 6, "{statuses:?}");
    infer(app, json!({})).await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_workers_answer_as_one_does_and_a_panic_fails_one_request() {
    let watching = Arc::new(Watching::default());
    let config = ServiceConfig { num_workers: 3, ..CONFIG };
    let served = Served::observed(config, watching.clone(), Families::images());
    let app = served.app();
    let infer = || tokio::spawn(infer(app.clone(), json!({})));
    let expected = infer().await.expect("an answer").expect(200)["outputs"].clone();
    for _ in 0..10 {
        let together: Vec<_> = (0..12).map(|_| infer()).collect();
        for request in together {
            let reply = request.await.expect("an answer").expect(200);
            assert_eq!(reply["outputs"][0]["shape"], expected[0]["shape"]);
        }
    }
    watching.panic_next();
    let together: Vec<_> = (0..4).map(|_| infer()).collect();
    let mut statuses = Vec::new();
    for request in together {
        statuses.push(request.await.expect("an answer").status);
    }
    // One that panics in a batch of several is answered when it runs again alone.
    assert!(statuses.iter().filter(|status| **status != 200).count() <= 1, "{statuses:?}");
    assert_eq!(infer().await.expect("an answer").expect(200)["outputs"], expected);
    // A family goes while workers are there, and comes back.
    served.repository.unload("fashion").expect("unloaded");
    served.repository.load("fashion").expect("loaded again");
    assert_eq!(infer().await.expect("an answer").expect(200)["outputs"], expected);
}

#[tokio::test]
async fn a_panic_on_the_inference_thread_fails_one_request() {
    let watching = Arc::new(Watching::default());
    let app = Served::observed(CONFIG, watching.clone(), Families::images()).app();
    let infer = || infer(app.clone(), json!({}));
    let expected = infer().await.expect(200)["outputs"].clone();
    watching.panic_next();
    let error = infer().await.expect(500);
    assert_eq!(error["error"], "internal error");
    for _ in 0..3 {
        assert_eq!(infer().await.expect(200)["outputs"], expected);
    }
}

/// Modules whose profiles say far more and far less than they take on any machine.
const MISJUDGED: &str = "l.block.1.mlp";
const FLATTERED: &str = "l.block.1.attn";

#[tokio::test]
async fn a_module_that_was_measured_wrongly_is_corrected_by_itself() {
    let watching = Arc::new(Watching::default());
    let images = images_with(|name| match name {
        MISJUDGED => 1e6,
        FLATTERED => 1e-4,
        _ => 1.0,
    });
    let app = Served::observed(CONFIG, watching.clone(), images).app();
    for _ in 0..60 {
        infer(app.clone(), json!({"plan": PLAN})).await.expect(200);
    }
    let [misjudged, flattered] = [MISJUDGED, FLATTERED].map(|name| watching.correction(name));
    assert!(misjudged < 0.5 * flattered, "{misjudged} {flattered}");
}

/// Checks that delays which are only expected refuse nothing while nothing else is done. What is
/// left of the budget after any delay is too little for the plan, and yet it runs.
#[tokio::test]
async fn an_idle_server_does_not_refuse_for_delays_that_it_expects() {
    let config = ServiceConfig { max_wait: A_DAY, ..CONFIG };
    let observer = Arc::new(Watching::default());
    let served = Served::observed(config, observer, images_with(|_| SLOWNESS));
    let family = served.repository.registry().family("fashion").expect("served");
    // Predictions count loading, but not what is loaded; nothing is learned from a run that loads.
    let unlimited = Budget { latency: None, ..within(A_DAY) };
    ask(&family, unlimited, Duration::ZERO).await.expect("no limit");
    let least = least_budget(&family);
    assert!(least > Duration::from_secs(300), "tests take less than {least:?}");
    assert!(family.choose(Shape::new(1, 1), &within(least - Duration::from_micros(1))).is_err());
    let answer = ask(&family, within(least), Duration::ZERO).await;
    assert_eq!(answer.expect("nothing else is done"), PLAN);
}

/// A budget that has passed on an idle server is neither refused as one that no plan meets nor for
/// the sake of others.
#[tokio::test]
async fn a_budget_that_has_passed_on_an_idle_server_is_a_deadline_exceeded() {
    let served = Served::new(Families::images());
    let family = served.repository.registry().family("fashion").expect("served");
    let hour = Duration::from_secs(3_600);
    ask(&family, within(hour), Duration::ZERO).await.expect("in time");
    let late = ask(&family, within(hour), 2 * hour).await;
    assert!(matches!(late, Err(ServeError::DeadlineExceeded { .. })), "{late:?}");
}

/// The plan of requests that name one.
const PLAN: &str = "l[0..6]";

fn within(latency: Duration) -> Budget {
    Budget { latency: Some(latency), plan: Some(PLAN.to_owned()), ..Budget::default() }
}

/// Asks for one image as if the request had arrived `since` ago. Returns the plan that answered.
async fn ask(
    family: &Arc<FamilyService>,
    budget: Budget,
    since: Duration,
) -> Result<String, ServeError> {
    let image = Tensor::new(vec![1, 1, 28, 28], TensorData::F32(vec![0.5; 784])).expect("an image");
    let request = InferRequest {
        inputs: vec![("pixel_values".to_owned(), image)],
        prompt_name: None,
        budget,
        priority: 100,
        arrival: Instant::now().checked_sub(since).expect("a running clock"),
    };
    family.infer(request).await.map(|answer| answer.report.plan.plan)
}

/// Returns the least latency budget that the plan meets, to a nanosecond.
fn least_budget(family: &FamilyService) -> Duration {
    let (mut least, mut most) = (Duration::ZERO, A_DAY);
    while most > least + Duration::from_nanos(1) {
        let middle = least + (most - least) / 2;
        match family.choose(Shape::new(1, 1), &within(middle)) {
            Ok(_) => most = middle,
            Err(_) => least = middle,
        }
    }
    most
}
