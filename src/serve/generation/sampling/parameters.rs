//! Parameters of sampling, and what is valid.

use std::fmt::Display;

/// Most entries of `logit_bias`, as in OpenAI's API.
const MAX_BIASES: usize = 300;

/// Error of a parameter that is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` is {value}; valid {valid}")]
pub struct SamplingError {
    /// Name of the parameter.
    pub key: &'static str,
    /// Value that was given.
    pub value: String,
    /// Description of the valid values, such as `is 0 to 1`.
    pub valid: String,
}

/// Parameters of sampling as a request has them. The default draws from the model's distribution.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParameters {
    /// Divisor of the logits; 0 takes the most probable token.
    pub temperature: f32,
    /// Number of the most probable tokens that may be drawn, and those as probable as the last;
    /// None or 0 for all.
    pub top_k: Option<u32>,
    /// Probability that the tokens have together which may be drawn, the most probable first.
    pub top_p: f32,
    /// Least probability of a token that may be drawn, as a fraction of the greatest.
    pub min_p: f32,
    /// Probability that the tokens have together which may be drawn, those of the most usual
    /// surprise first (locally typical sampling, arXiv 2202.00666).
    pub typical_p: f32,
    /// Divisor of the positive logits, and factor of the negative ones, of tokens that the prompt
    /// or the answer has.
    pub repetition_penalty: f32,
    /// Amount by which a logit falls for each time that the answer has the token.
    pub frequency_penalty: f32,
    /// Amount by which a logit falls if the answer has the token.
    pub presence_penalty: f32,
    /// Amounts added to logits, by token id.
    pub logit_bias: Vec<(u32, f32)>,
    /// Number of alternatives whose probabilities are told with those of the token; None for
    /// neither.
    pub logprobs: Option<usize>,
    /// Number from which, with the position, each draw follows.
    pub seed: u64,
}

impl Default for SamplingParameters {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            logprobs: None,
            seed: 0,
        }
    }
}

/// Parameters of sampling that are valid.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    parameters: SamplingParameters,
}

impl Sampling {
    /// Most alternatives whose probabilities are told, as in OpenAI's API.
    pub const MAX_LOGPROBS: usize = 20;

    /// Checks `parameters` for a model of `num_tokens` tokens.
    ///
    /// # Errors
    ///
    /// Fails with the name of a parameter that is not valid, its value and what would be valid.
    pub fn new(parameters: SamplingParameters, num_tokens: usize) -> Result<Self, SamplingError> {
        let own = &parameters;
        within("temperature", own.temperature, 0.0, 2.0)?;
        above_zero("top_p", own.top_p, 1.0)?;
        within("min_p", own.min_p, 0.0, 1.0)?;
        above_zero("typical_p", own.typical_p, 1.0)?;
        above_zero("repetition_penalty", own.repetition_penalty, 10.0)?;
        within("frequency_penalty", own.frequency_penalty, -2.0, 2.0)?;
        within("presence_penalty", own.presence_penalty, -2.0, 2.0)?;
        if let Some(found) = own.logprobs.filter(|found| *found > Self::MAX_LOGPROBS) {
            return Err(wrong("logprobs", found, format!("is 0 to {}", Self::MAX_LOGPROBS)));
        }
        if own.logit_bias.len() > MAX_BIASES {
            let found = format!("a map of {} tokens", own.logit_bias.len());
            return Err(wrong("logit_bias", found, format!("are up to {MAX_BIASES}")));
        }
        for (token, bias) in &own.logit_bias {
            if *token as usize >= num_tokens {
                let valid = format!("are token ids under {num_tokens}");
                return Err(wrong("logit_bias", format!("for token {token}"), valid));
            }
            if !(-100.0..=100.0).contains(bias) {
                let found = format!("{bias} for token {token}");
                return Err(wrong("logit_bias", found, "is -100 to 100".into()));
            }
        }
        Ok(Self { parameters })
    }

    /// Returns whether the history of an answer counts.
    pub fn has_penalties(&self) -> bool {
        let own = &self.parameters;
        [own.repetition_penalty - 1.0, own.frequency_penalty, own.presence_penalty]
            .iter()
            .any(|penalty| penalty.abs() > 0.0)
    }

    /// Returns the parameters.
    pub fn parameters(&self) -> &SamplingParameters {
        &self.parameters
    }
}

fn wrong(key: &'static str, value: impl Display, valid: String) -> SamplingError {
    SamplingError { key, value: value.to_string(), valid }
}

fn within(key: &'static str, value: f32, least: f32, most: f32) -> Result<(), SamplingError> {
    match (least..=most).contains(&value) {
        true => Ok(()),
        false => Err(wrong(key, value, format!("is {least} to {most}"))),
    }
}

fn above_zero(key: &'static str, value: f32, most: f32) -> Result<(), SamplingError> {
    match value > 0.0 && value <= most {
        true => Ok(()),
        false => Err(wrong(key, value, format!("is over 0, up to {most}"))),
    }
}
