//! The answer as OpenAI's APIs write it, beside its choices.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::{
    fields::Form,
    head::Head,
    texts::{Piece, Texts},
    usage::{Counts, Times, Usage},
};
use crate::{
    input::{CallFormat, Language},
    serve::ServeError,
};

/// An answer that grows.
#[derive(Debug)]
pub(super) struct Answering {
    head: Head,
    texts: Texts,
    pub(super) form: Form,
    /// Form of calls; `None` for an answer in which calls are text.
    pub(super) calls: Option<CallFormat>,
}

/// Fields of a whole answer beside its choices.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct About {
    #[serde(flatten)]
    head: Head,
    usage: Counts,
    timings: Times,
    /// Report of how the request was answered.
    tessera: Value,
}

/// Event of an answer.
#[derive(Debug, Serialize)]
pub(super) struct Chunk {
    #[serde(flatten)]
    head: Head,
    choices: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Counts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timings: Option<Times>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tessera: Option<Value>,
}

impl Answering {
    pub(super) fn new(head: Head, texts: Texts, form: Form) -> Self {
        let calls = texts.calls();
        Self { head, texts, form, calls }
    }

    /// Returns the number of choices.
    pub(super) fn num_choices(&self) -> usize {
        self.texts.num_choices()
    }

    /// Returns the language of the model.
    pub(super) fn language(&self) -> &Language {
        self.texts.language()
    }

    /// Returns the fields of a whole answer beside its choices.
    pub(super) fn about(&self) -> About {
        let Usage { counts, times } = self.usage();
        About { head: self.head.clone(), usage: counts, timings: times, tessera: self.report() }
    }

    /// Returns an event with `choices`.
    pub(super) fn chunk(&self, choices: Value) -> Chunk {
        Chunk { head: self.head.clone(), choices, usage: None, timings: None, tessera: None }
    }

    /// Returns the report of how the request is answered.
    pub(super) fn report(&self) -> Value {
        self.texts.plan_report()
    }

    /// Returns the next part of any choice, or `None` after the last.
    ///
    /// # Errors
    ///
    /// Fails when a sequence does.
    pub(super) async fn next(&mut self) -> Result<Option<Piece>, ServeError> {
        self.texts.next().await
    }

    /// Returns the counts and times of all choices.
    pub(super) fn usage(&self) -> Usage {
        self.texts.usage()
    }
}
