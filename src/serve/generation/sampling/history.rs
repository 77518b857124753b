//! Tokens that a prompt and its answer have, for penalties.

use std::collections::HashMap;

use super::parameters::SamplingParameters;

/// Tokens of a prompt and its answer, counted.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Number of times that the answer has each token; 0 for one of the prompt alone.
    tokens: HashMap<u32, u32>,
}

impl History {
    /// Creates the history of an answer to `prompt`.
    #[must_use]
    pub fn new(prompt: &[u32]) -> Self {
        Self { tokens: prompt.iter().map(|token| (*token, 0)).collect() }
    }

    /// Adds a token of the answer.
    pub fn push(&mut self, token: u32) {
        *self.tokens.entry(token).or_default() += 1;
    }

    /// Changes `logits` by the penalties of `parameters`.
    pub(super) fn penalize(&self, parameters: &SamplingParameters, logits: &mut [f32]) {
        let repetition = parameters.repetition_penalty;
        for (token, generated) in &self.tokens {
            let Some(logit) = logits.get_mut(*token as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            if *generated > 0 {
                #[expect(clippy::cast_precision_loss, reason = "answers have under 2^24 tokens")]
                let times = *generated as f32;
                *logit -= parameters.frequency_penalty * times + parameters.presence_penalty;
            }
        }
    }
}
