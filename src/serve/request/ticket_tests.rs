//! Tests of tickets and answers, without a runtime.

use super::*;
use crate::{
    plan::Budget,
    serve::{
        admission::queue::{Next, Patience},
        request::DEFAULT_PRIORITY,
        support_tests::{Endings, service},
    },
    tensor::TensorData,
};

fn request(name: &str) -> InferRequest {
    let image = Tensor::new(vec![1, 1, 28, 28], TensorData::F32(vec![0.0; 784])).expect("an image");
    InferRequest {
        inputs: vec![(name.to_owned(), image)],
        prompt_name: None,
        budget: Budget::default(),
        priority: DEFAULT_PRIORITY,
        arrival: Instant::now(),
    }
}

fn ended(endings: &Endings) -> Vec<Option<ErrorCode>> {
    endings.ended.lock().expect("no panic").clone()
}

#[tokio::test]
async fn a_request_ends_once_however_it_ends() {
    use ErrorCode::{Cancelled, InvalidArgument};
    let (service, receiver, endings) = service();
    drop(service.arrive());
    service.arrive().refuse(InvalidArgument);
    let wrong = service.arrive().submit(request("pixels")).await;
    assert_eq!(wrong.expect_err("no such input").code(), InvalidArgument);
    let waiting = service.arrive().submit(request("pixel_values")).await.expect("queued");
    assert_eq!(ended(&endings).len(), 3, "it waits");
    drop(waiting);
    assert!(matches!(receiver.next(Patience::None), Next::Nothing), "no one waits for it");
    let codes = [Cancelled, InvalidArgument, InvalidArgument, Cancelled].map(Some);
    assert_eq!(ended(&endings), codes);
    assert_eq!(*endings.num_accepted.lock().expect("no panic"), 4);
    assert_eq!(service.statistics().failed.count, 3, "what was never read is not counted");
}

#[tokio::test]
async fn a_request_whose_handler_panics_has_failed() {
    let (service, _receiver, endings) = service();
    let ticket = service.arrive();
    let handler = tokio::spawn(async move {
        let _ticket = ticket;
        panic!("as the test wants");
    });
    assert!(handler.await.is_err_and(|error| error.is_panic()));
    assert_eq!(ended(&endings), [Some(ErrorCode::Internal)]);
}

#[tokio::test]
async fn an_answer_starts_gives_its_outputs_and_ends() {
    let (service, receiver, endings) = service();
    let mut answer = service.arrive().submit(request("pixel_values")).await.expect("queued");
    let Next::Batch(batch) = receiver.next(Patience::None) else { panic!("a job waits") };
    let chosen = batch.chosen.expect("a plan");
    let plan = chosen.summary.plan.clone();
    for job in batch.jobs {
        let logits = Tensor::new(vec![1, 10], TensorData::F32(vec![0.5; 10])).expect("logits");
        let (before, queue, compute) = (job.before, Duration::ZERO, Duration::ZERO);
        let (outputs, routed, chosen) = (vec![logits], Vec::new(), chosen.clone());
        let done = Done { outputs, routed, before, queue, compute, chosen };
        job.reply.send(Ok(done)).expect("the client waits");
    }
    let next = answer.next().await.expect("an event");
    assert!(matches!(next, Some(Event::Started(started)) if started.plan == plan));
    let next = answer.next().await.expect("an event");
    assert!(matches!(next, Some(Event::Output(outputs)) if outputs[0].0 == "logits"));
    let next = answer.next().await.expect("an event");
    assert!(matches!(next, Some(Event::Ended(report)) if report.plan.plan == plan));
    assert!(answer.next().await.expect("the end").is_none());
    drop(answer);
    assert_eq!(ended(&endings), [None], "answered, and not cancelled as well");
    assert_eq!(service.statistics().answered.count, 1);
}

#[tokio::test]
async fn threads_that_end_fail_what_waits() {
    let (service, receiver, endings) = service();
    let answer = service.arrive().submit(request("pixel_values")).await.expect("queued");
    drop(receiver);
    let error = answer.whole().await.expect_err("no thread is left");
    assert!(matches!(error, ServeError::WorkerGone));
    assert_eq!(ended(&endings), [Some(error.code())]);
}
