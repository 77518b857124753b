//! Streams whose messages are refused, wait or panic.

use prost::Message;
use tokio::sync::{Notify, oneshot};
use tokio_stream::iter;
use tonic::Code;

use super::*;
use crate::{api::triton::messages::ModelInferRequest, serve::ServeError};

/// Source that refuses messages, waits or panics, as their ids say.
#[derive(Default)]
struct Fake {
    has_text: bool,
    goes_on: Arc<Notify>,
    /// Sender that is dropped with the answer that waits.
    waits: std::sync::Mutex<Option<oneshot::Sender<()>>>,
}

impl Asking for Fake {
    fn has_text(&self, _: &Encoded) -> bool {
        self.has_text
    }

    async fn answers(&self, message: Encoded) -> Result<Answers, ApiError> {
        let id = message.open()?.id;
        if id == "wait" {
            let _waits = self.waits.lock().expect("no panic").take();
            self.goes_on.notified().await;
        }
        assert_ne!(id, "panic", "as the test wants");
        Err(ServeError::Input { name: id, reason: "as the test wants".to_owned() }.into())
    }
}

fn message(id: &str) -> Result<Encoded, Status> {
    let message = ModelInferRequest { id: id.to_owned(), ..ModelInferRequest::default() };
    Ok(Encoded::new(message.encode_to_vec().into()))
}

/// Returns the id of a refusal, which names it, and says that it is the last.
fn refused(item: Item) -> String {
    let ModelStreamInferResponse { error_message, infer_response } = item.expect("a response");
    let response = infer_response.expect("an id");
    assert_eq!(error_message, format!("input `{}`: as the test wants", response.id));
    let last = response.parameters[FINAL].parameter_choice.clone();
    assert_eq!(last, Some(ParameterChoice::BoolParam(true)));
    response.id
}

#[tokio::test]
async fn errors_have_the_ids_of_their_messages_in_their_order() {
    let responses = stream(Fake::default(), iter(["a", "b", "c"].map(message)));
    let ids: Vec<String> = responses.map(refused).collect().await;
    assert_eq!(ids, ["a", "b", "c"]);
}

#[tokio::test]
async fn texts_are_answered_beside_each_other_and_others_after_one_another() {
    for (has_text, expected) in [(true, ["after", "wait"]), (false, ["wait", "after"])] {
        let fake = Fake { has_text, ..Fake::default() };
        let goes_on = fake.goes_on.clone();
        let mut responses = stream(fake, iter(["wait", "after"].map(message)));
        let mut ids = Vec::new();
        if has_text {
            ids.extend(responses.next().await.map(refused));
        }
        goes_on.notify_one();
        while let Some(response) = responses.next().await {
            ids.push(refused(response));
        }
        assert_eq!(ids, expected);
    }
}

#[tokio::test]
async fn a_message_that_cannot_be_read_and_an_answer_that_panics_end_the_stream() {
    for has_text in [true, false] {
        let cut = Err(Status::invalid_argument("cut"));
        for (last, code) in [(cut, Code::InvalidArgument), (message("panic"), Code::Internal)] {
            let fake = Fake { has_text, ..Fake::default() };
            let mut responses = stream(fake, iter([last]));
            let status = responses.next().await.expect("a status").expect_err("an error");
            assert_eq!(status.code(), code);
            assert!(responses.next().await.is_none());
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_answers() {
    for has_text in [true, false] {
        let (begun, ends) = oneshot::channel();
        let fake = Fake { has_text, waits: Some(begun).into(), ..Fake::default() };
        let responses = stream(fake, iter([message("wait")]).chain(tokio_stream::pending()));
        drop(responses);
        assert!(ends.await.is_err(), "nobody waits any more");
    }
}
