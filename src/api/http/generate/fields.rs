//! Fields that requests for chats and completions share.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    api::error::ApiError,
    input::StopStrings,
    serve::{Grammar, Sampling, SamplingParameters},
    telemetry::GenerationAttributes,
};

/// Most sequences of a request.
const MAX_SEQUENCES: usize = 16;

/// Fields of sampling and of the answer's form.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub(in crate::api) struct Common {
    /// Divisor of the logits, 0 to 2; 0 takes the most likely token.
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    typical_p: Option<f32>,
    repetition_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    /// Amounts added to the logits, by token id.
    logit_bias: Option<BTreeMap<String, f32>>,
    /// Number that the draws follow from; random if it is absent.
    seed: Option<i64>,
    /// Number of answers.
    n: Option<usize>,
    stop: Option<Stop>,
    /// Whether tokens that end an answer count as others.
    ignore_eos: Option<bool>,
    /// JSON schema of the answer.
    guided_json: Option<Value>,
    /// Regular expression that takes the whole answer.
    guided_regex: Option<String>,
    /// Texts of which one is the answer.
    guided_choice: Option<Vec<String>>,
    /// Grammar of the answer, in the manner of Lark.
    guided_grammar: Option<String>,
    /// Whether the answer comes as server-sent events.
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    /// Id of the user, for accounting; it has no effect here.
    #[serde(rename = "user")]
    _user: Option<String>,
}

/// One stop string or several.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "must be a string or an array of strings")]
enum Stop {
    One(String),
    Several(Vec<String>),
}

#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// Names of the keys of [`BudgetsSchema`].
pub(super) const BUDGETS: [&str; 4] = ["memory_budget_mb", "min_quality", "plan", "priority"];

/// Budgets of a request for text.
#[derive(Debug, JsonSchema)]
#[schemars(rename = "GenerationBudgets")]
#[expect(dead_code, reason = "it is a description")]
pub(in crate::api) struct BudgetsSchema {
    /// Most memory of the plan's weights and largest activations, in 10⁶ bytes.
    memory_budget_mb: Option<f64>,
    /// Least quality, 0 to 1.
    min_quality: Option<f64>,
    /// Id of the plan to run, in place of any other.
    plan: Option<String>,
    /// Priority in the queue as in Triton: 1 runs first. 0 stands for none, which counts as 100.
    priority: Option<u64>,
}

/// Form of an answer.
#[derive(Debug, Clone, Copy)]
pub(in crate::api) struct Form {
    /// Whether it comes as server-sent events.
    pub(in crate::api) is_stream: bool,
    /// Whether the events end with the usage.
    pub(in crate::api) has_usage: bool,
    /// Number of alternatives whose probabilities are told; `None` for none, not even the token's.
    pub(in crate::api) logprobs: Option<usize>,
    /// Number of answers that are told.
    pub(super) num_told: usize,
}

impl Common {
    /// Returns the number of answers that are told.
    fn num_told(&self) -> Result<usize, ApiError> {
        let found = self.n.unwrap_or(1);
        match (1..=MAX_SEQUENCES).contains(&found) {
            true => Ok(found),
            false => Err(wrong("n", found, "1 to 16")),
        }
    }

    /// Returns the number of answers, of which `best_of` are made and the best ones told.
    pub(in crate::api) fn num_sequences(&self, best_of: Option<usize>) -> Result<usize, ApiError> {
        let num_told = self.num_told()?;
        match best_of {
            None => Ok(num_told),
            Some(_) if self.stream == Some(true) => {
                Err(wrong("best_of", "there", "absent for a stream"))
            }
            Some(found) if (num_told..=MAX_SEQUENCES).contains(&found) => Ok(found),
            Some(found) => Err(wrong("best_of", found, "at least `n`, and at most 16")),
        }
    }

    /// Returns the divisor of the logits.
    pub(super) fn temperature(&self) -> f32 {
        self.temperature.unwrap_or(SamplingParameters::default().temperature)
    }

    /// Returns the share of the likely tokens that may be drawn.
    pub(super) fn top_p(&self) -> f32 {
        self.top_p.unwrap_or(SamplingParameters::default().top_p)
    }

    /// Checks that there is one answer, and that nothing is asked of its stream.
    ///
    /// # Errors
    ///
    /// Fails with the name of the field.
    pub(super) fn check_single(&self) -> Result<(), ApiError> {
        match (self.n, self.stream_options) {
            (Some(found), _) if found != 1 => Err(wrong("n", found, "1: a response is one answer")),
            (_, Some(_)) => Err(wrong("stream_options", "there", "absent for a response")),
            _ => Ok(()),
        }
    }

    /// Returns whether tokens that end an answer count as others.
    pub(in crate::api) fn ignores_ends(&self) -> bool {
        self.ignore_eos.unwrap_or(false)
    }

    /// Returns the grammar of the answer: `of_format`, or that of a field of vLLM's.
    pub(in crate::api) fn grammar(
        &self,
        of_format: Option<Grammar>,
    ) -> Result<Option<Grammar>, ApiError> {
        if self.guided_choice.as_ref().is_some_and(Vec::is_empty) {
            return Err(wrong("guided_choice", "an empty list", "one text or more"));
        }
        let guided = [
            self.guided_json.clone().map(Grammar::JsonSchema),
            self.guided_regex.clone().map(Grammar::Regex),
            self.guided_choice.clone().map(Grammar::Choice),
            self.guided_grammar.clone().map(Grammar::Lark),
        ];
        let mut found = guided.into_iter().flatten().chain(of_format);
        let first = found.next();
        match found.next() {
            Some(_) => {
                let key = self.guided().unwrap_or("guided_json");
                Err(wrong(key, "one of several", "the only form of the answer"))
            }
            None => Ok(first),
        }
    }

    /// Returns the key of vLLM's by which the answer has a form, if it has one by such a key.
    pub(super) fn guided(&self) -> Option<&'static str> {
        let keys = [
            ("guided_json", self.guided_json.is_some()),
            ("guided_regex", self.guided_regex.is_some()),
            ("guided_choice", self.guided_choice.is_some()),
            ("guided_grammar", self.guided_grammar.is_some()),
        ];
        keys.into_iter().find(|(_, is_set)| *is_set).map(|(key, _)| key)
    }

    /// Returns the strings that end an answer.
    pub(in crate::api) fn stops(&self) -> Result<StopStrings, ApiError> {
        let strings: &[String] = match &self.stop {
            None => &[],
            Some(Stop::One(string)) => std::slice::from_ref(string),
            Some(Stop::Several(strings)) => strings,
        };
        StopStrings::new(strings).map_err(|error| refused("stop", error.to_string()))
    }

    /// Returns what the span of a request to `model` tells, apart from the operation.
    pub(in crate::api) fn attributes<'m>(&self, model: &'m str) -> GenerationAttributes<'m> {
        GenerationAttributes {
            model,
            num_choices: self.n.unwrap_or(1),
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            seed: self.seed,
            ..GenerationAttributes::default()
        }
    }

    /// Returns the form of the answer.
    pub(in crate::api) fn form(&self, logprobs: Option<usize>) -> Result<Form, ApiError> {
        let is_stream = self.stream.unwrap_or(false);
        if self.stream_options.is_some() && !is_stream {
            return Err(wrong("stream_options", "there", "absent without `stream`"));
        }
        let options = self.stream_options.unwrap_or_default();
        let has_usage = options.include_usage.unwrap_or(false);
        Ok(Form { is_stream, has_usage, logprobs, num_told: self.num_told()? })
    }

    /// Returns the choice of tokens for a vocabulary of `num_tokens`.
    pub(in crate::api) fn sampling(
        &self,
        logprobs: Option<usize>,
        num_tokens: usize,
    ) -> Result<Sampling, ApiError> {
        let usual = SamplingParameters::default();
        let top_k = match self.top_k {
            None | Some(-1) => None,
            Some(found) => Some(
                u32::try_from(found)
                    .map_err(|_| wrong("top_k", found, "-1 for all, or an integer from 0 on"))?,
            ),
        };
        let biases = self.logit_bias.iter().flatten().map(|(token, bias)| {
            let id = token.parse::<u32>();
            let wrong = |_| wrong("logit_bias", "for another key", "a map from token ids");
            Ok((id.map_err(wrong)?, *bias))
        });
        let parameters = SamplingParameters {
            temperature: self.temperature(),
            top_k,
            top_p: self.top_p(),
            min_p: self.min_p.unwrap_or(usual.min_p),
            typical_p: self.typical_p.unwrap_or(usual.typical_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(usual.repetition_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(usual.frequency_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(usual.presence_penalty),
            logit_bias: biases.collect::<Result<_, ApiError>>()?,
            logprobs,
            seed: self.seed.map_or_else(rand::random, i64::cast_unsigned),
        };
        Sampling::new(parameters, num_tokens).map_err(|error| refused(error.key, error.to_string()))
    }
}

/// Returns the error for a field with a value that is not valid.
pub(in crate::api) fn wrong(
    name: &str,
    found: impl std::fmt::Display,
    expected: &'static str,
) -> ApiError {
    ApiError::Parameter { name: name.to_owned(), found: found.to_string(), expected }
}

/// Returns the error for a field, in the words of what refused it.
pub(in crate::api) fn refused(name: &str, reason: String) -> ApiError {
    crate::serve::ServeError::Input { name: name.to_owned(), reason }.into()
}
