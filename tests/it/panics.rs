//! A panic anywhere on a request's way ends that request alone, and gives back what it held.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use axum::Router;
use serde_json::{Value, json};
use tessera::{
    runtime::Residency,
    serve::{Observer, Outcome, ServiceConfig},
};

use crate::support::{CONFIG, Families, Served, http::send};

/// Place at which an [`Faulty`] observer panics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A request has arrived; the async task is at work.
    Arrival,
    /// A request has been given a plan and enters the queue.
    Queueing,
    /// A request leaves the queue; the inference thread is at work.
    Leaving,
    /// A module has run.
    Module,
    /// A plan has run.
    Batch,
    /// A module's latency is learned.
    Learning,
    /// A request has ended and is counted.
    End,
}

/// Observer that panics once at a place, and counts.
#[derive(Debug, Default)]
struct Faulty {
    place: Mutex<Option<Place>>,
    num_open: AtomicI64,
    num_queued: AtomicI64,
}

impl Faulty {
    fn panic_at(&self, place: Place) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
    }

    fn is_armed(&self) -> bool {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn pass(&self, place: Place) {
        let is_here = {
            let mut wanted = self.place.lock().unwrap_or_else(PoisonError::into_inner);
            wanted.take_if(|wanted| *wanted == place).is_some()
        };
        assert!(!is_here, "as the test wants at {place:?}");
    }
}

impl Observer for Faulty {
    fn accepted(&self, _: &str) {
        self.pass(Place::Arrival);
        self.num_open.fetch_add(1, Ordering::Relaxed);
    }

    fn finished(&self, _: &str, _: &Outcome<'_>) {
        self.num_open.fetch_sub(1, Ordering::Relaxed);
        self.pass(Place::End);
    }

    fn batch_ran(&self, _: &str, _: usize, _: f64) {
        self.pass(Place::Batch);
    }

    fn module_ran(&self, _: &str, _: &str, _: Duration) {
        self.pass(Place::Module);
    }

    fn module_corrected(&self, _: &str, _: &str, _: f64) {
        self.pass(Place::Learning);
    }

    fn residency_changed(&self, _: &str, _: &Residency) {}

    fn queue_changed(&self, _: &str, change: i64) {
        if change > 0 {
            self.pass(Place::Queueing);
        }
        self.num_queued.fetch_add(change, Ordering::Relaxed);
        if change < 0 {
            self.pass(Place::Leaving);
        }
    }

    fn connections_changed(&self, _: &str, _: i64) {}

    fn connection_refused(&self, _: &str) {}
}

async fn ask(app: &Router) -> (u16, Value) {
    let input = json!({"name": "pixel_values", "shape": [1, 1, 28, 28], "datatype": "FP32",
                       "data": vec![0.5; 784]});
    let body = json!({"inputs": [input]}).to_string();
    let reply = send(app, "POST", "/v2/models/fashion/infer", body).await;
    (reply.status, reply.json())
}

/// Asks until the observer has panicked; returns the last answer.
async fn ask_until_panic(app: &Router, faulty: &Faulty) -> (u16, Value) {
    loop {
        let answer = ask(app).await;
        if !faulty.is_armed() {
            return answer;
        }
        assert_eq!(answer.0, 200, "{}", answer.1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_ends_one_request_and_gives_its_place_back() {
    let faulty = Arc::new(Faulty::default());
    // A place that were lost would leave none.
    let config = ServiceConfig { queue_limit: 1, ..CONFIG };
    let app = Served::observed(config, faulty.clone(), Families::images()).app();
    assert_eq!(ask(&app).await.0, 200);
    for (place, status) in [
        (Place::Arrival, 500),
        (Place::Queueing, 500),
        (Place::Leaving, 500),
        (Place::Module, 500),
        (Place::Batch, 500),
        (Place::Learning, 200),
        (Place::End, 500),
    ] {
        faulty.panic_at(place);
        let (found, body) = ask_until_panic(&app, &faulty).await;
        assert_eq!(found, status, "{place:?}: {body}");
        assert!(!body.to_string().contains("as the test wants"), "{place:?}: {body}");
        for _ in 0..2 {
            let (found, body) = ask(&app).await;
            assert_eq!(found, 200, "after {place:?}: {body}");
        }
        assert_eq!(faulty.num_open.load(Ordering::Relaxed), 0, "{place:?}: tickets");
        assert_eq!(faulty.num_queued.load(Ordering::Relaxed), 0, "{place:?}: places");
    }
}
