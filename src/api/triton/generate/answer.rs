//! An answer with text: tensors for each piece of it, or for the whole.

use serde_json::{Map, Value, json};
use tracing::{Instrument, debug_span};

use super::{
    question::{Question, Wanted},
    tensors::{
        CUMULATIVE_LOGPROB, FINISH_REASON, LOGPROBS, NUM_INPUT_TOKENS, NUM_OUTPUT_TOKENS,
        TEXT_OUTPUT,
    },
};
use crate::{
    api::{
        access::clients::Permit,
        codec::body::off_thread,
        error::ApiError,
        http::generate::{
            start::{Door, Prompt, tokens_of},
            texts::{Piece, Texts},
        },
    },
    input::TextCoder,
    serve::{Report, Sampled, ServeError},
    tensor::{Tensor, TensorData, signed},
};

/// Reason of a choice that goes on, as vLLM's backend writes it.
const NO_REASON: &str = "None";

/// An answer with text that grows.
#[derive(Debug)]
pub(crate) struct TextAnswer {
    texts: Texts,
    wanted: Wanted,
    is_stream: bool,
    /// Whether probabilities of tokens were asked for.
    has_logprobs: bool,
    choices: Vec<Choice>,
    num_ended: usize,
}

/// A choice: what was added to it since the last part, and what is told of the whole.
#[derive(Debug, Default)]
struct Choice {
    text: String,
    num_tokens: usize,
    logprobs: Vec<Value>,
    /// Reason why it ended, if it did.
    reason: Option<&'static str>,
    /// Logarithm of the probability of all its tokens.
    log_probability: f32,
}

/// Part of an answer.
#[derive(Debug)]
pub(crate) struct Part {
    /// Outputs by name.
    pub(crate) outputs: Vec<(String, Tensor)>,
    /// Report of the request; `None` if more parts follow.
    pub(crate) report: Option<Report>,
}

impl TextAnswer {
    /// Begins the answer to `question`.
    ///
    /// # Errors
    ///
    /// Fails on a value that is not valid, on unknown keys, and where there is no room.
    pub(crate) async fn begin(
        door: Door,
        question: Question,
        permit: &Permit,
    ) -> Result<Self, ApiError> {
        let Question { text, wanted, has_input, is_stream, logprobs, asked } = question;
        let (language, context) = (door.language.clone(), door.model.service.context());
        let input = if has_input { text.clone() } else { String::new() };
        let encode = move || tokens_of(&text, &language, context).map(Prompt::plain);
        let prompt = off_thread(usize::MAX, encode).instrument(debug_span!("preprocess")).await;
        let (texts, _) = door.admit(prompt, asked, permit).await?;
        let choice = || Choice { text: input.clone(), ..Choice::default() };
        let choices = (0..texts.num_choices()).map(|_| choice()).collect();
        let has_logprobs = logprobs.is_some();
        Ok(Self { texts, wanted, is_stream, has_logprobs, choices, num_ended: 0 })
    }

    /// Returns the next part, or `None` after the last. If the text does not come in pieces, there
    /// is one part.
    ///
    /// # Errors
    ///
    /// Fails when a sequence does.
    ///
    /// # Cancel safety
    ///
    /// No text is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Result<Option<Part>, ServeError> {
        while let Some(piece) = self.texts.next().await? {
            let has_text = !piece.parts.is_empty();
            self.push(&piece);
            if self.num_ended == self.choices.len() {
                // Whoever reads the end of the sequences ends the request in the metrics.
                while self.texts.next().await?.is_some() {}
                return Ok(Some(self.take()));
            }
            if has_text && self.is_stream {
                return Ok(Some(self.take()));
            }
        }
        Ok(None)
    }

    /// Returns the report of how the request is answered: the plan and its quality.
    pub(crate) fn plan_report(&self) -> Value {
        self.texts.plan_report()
    }

    fn push(&mut self, piece: &Piece) {
        let reason = piece.reason();
        self.num_ended += usize::from(reason.is_some());
        let choice = &mut self.choices[piece.index];
        choice.text.push_str(&piece.text());
        choice.reason = reason.or(choice.reason);
        if let Some(sampled) = &piece.token {
            choice.num_tokens += 1;
            choice.log_probability += sampled.log_probability.unwrap_or_default();
            if self.wanted.has_logprobs() && self.has_logprobs {
                choice.logprobs.push(logprobs(&self.texts.language().coder, sampled));
            }
        }
    }

    /// Takes what was added since the last part.
    fn take(&mut self) -> Part {
        let choices: Vec<Choice> = self.choices.iter_mut().map(Choice::take).collect();
        let (wanted, has_logprobs) = (self.wanted, self.has_logprobs);
        let logprobs = |choice: &Choice| match has_logprobs {
            true => Value::from(choice.logprobs.clone()).to_string().into_bytes(),
            false => Value::Null.to_string().into_bytes(),
        };
        let sums = || choices.iter().map(|choice| choice.log_probability).collect();
        let counts = || choices.iter().map(|choice| signed(choice.num_tokens)).collect();
        let texts = |of: fn(&Choice) -> &str| {
            TensorData::Bytes(choices.iter().map(|choice| of(choice).into()).collect())
        };
        let outputs = [
            Some((TEXT_OUTPUT, texts(|choice| &choice.text))),
            wanted
                .has_finish_reason()
                .then(|| (FINISH_REASON, texts(|choice| choice.reason.unwrap_or(NO_REASON)))),
            wanted.has_cumulative_logprob().then(|| (CUMULATIVE_LOGPROB, TensorData::F32(sums()))),
            wanted
                .has_logprobs()
                .then(|| (LOGPROBS, TensorData::Bytes(choices.iter().map(logprobs).collect()))),
            wanted.has_num_input_tokens().then(|| {
                (NUM_INPUT_TOKENS, TensorData::I64(vec![signed(self.texts.num_prompt())]))
            }),
            wanted.has_num_output_tokens().then(|| (NUM_OUTPUT_TOKENS, TensorData::I64(counts()))),
        ];
        let outputs = outputs.into_iter().flatten().map(|(name, data)| {
            let tensor = Tensor::new(vec![data.len()], data).expect("the shape is the length");
            (name.to_owned(), tensor)
        });
        Part { outputs: outputs.collect(), report: self.texts.report().cloned() }
    }
}

impl Choice {
    /// Takes what was added; what is told of the whole choice stays.
    fn take(&mut self) -> Self {
        let Self { reason, log_probability, .. } = *self;
        std::mem::replace(self, Self { reason, log_probability, ..Self::default() })
    }
}

/// Returns the probabilities of a token and of the most likely ones, by token id.
fn logprobs(coder: &TextCoder, sampled: &Sampled) -> Value {
    let entry = |token: u32, log_probability: f32, rank: Option<usize>| {
        let text = String::from_utf8_lossy(coder.bytes(token));
        let told = json!({"logprob": log_probability, "rank": rank, "decoded_token": text});
        (token.to_string(), told)
    };
    let rank = sampled.top.iter().position(|top| top.token == sampled.token);
    let own = entry(
        sampled.token,
        sampled.log_probability.unwrap_or_default(),
        rank.map(|rank| rank + 1),
    );
    let top = (1..).zip(&sampled.top);
    let top = top.map(|(rank, top)| entry(top.token, top.log_probability, Some(rank)));
    Value::Object([own].into_iter().chain(top).collect::<Map<_, _>>())
}
