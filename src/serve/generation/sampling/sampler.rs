//! The choice of the next token.

use super::{
    filter::Candidates,
    history::History,
    parameters::{Sampling, SamplingParameters},
    random::uniform,
    top::{Scored, by_logit, find_top, greatest},
};

/// Error of logits from which nothing can be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// A logit that is not a number, or infinite.
    #[error("the model gives a logit that is not a finite number")]
    NotFinite,
    /// Constraints that allow no token.
    #[error("no token is allowed")]
    NothingAllowed,
}

/// Tokens that may be drawn: bit `token % 32` of word `token / 32` is set.
#[derive(Debug, Clone, Copy)]
pub struct AllowMask<'m>(pub &'m [u32]);

impl AllowMask<'_> {
    /// Returns whether `token` may be drawn.
    pub fn allows(&self, token: u32) -> bool {
        self.0.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }
}

/// A draw of one token.
#[derive(Debug, Clone, Copy)]
pub struct Draw<'d> {
    /// Parameters of the request.
    pub sampling: &'d Sampling,
    /// Tokens before this one; needed if the parameters have penalties.
    pub history: Option<&'d History>,
    /// Tokens that may be drawn; None for all.
    pub allowed: Option<AllowMask<'d>>,
    /// Index of the answer among those of the request.
    pub answer: u64,
    /// Index of the token in its answer.
    pub position: u64,
}

/// Token with the natural logarithm of its probability, before any change by parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogProbability {
    /// Id of the token.
    pub token: u32,
    /// Natural logarithm of the probability.
    pub log_probability: f32,
}

/// Token that was drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// Id of the token.
    pub token: u32,
    /// Logarithm of its probability, if the request asks for it.
    pub log_probability: Option<f32>,
    /// The most probable tokens, the most probable first; as many as the request asks for.
    pub top: Vec<LogProbability>,
}

/// Sampler with its room to work in; one serves any number of requests, one after the other.
#[derive(Debug, Default)]
pub struct Sampler {
    logits: Vec<f32>,
    candidates: Candidates,
    best: Vec<Scored>,
}

impl Sampler {
    /// Draws a token from `logits`, one for each token of the vocabulary.
    ///
    /// # Errors
    ///
    /// Fails when a logit is not a finite number, or no token is allowed.
    pub fn sample(&mut self, logits: &[f32], draw: &Draw) -> Result<Sampled, SampleError> {
        let raw = greatest(logits).filter(|greatest| greatest.is_finite());
        let raw = raw.ok_or(SampleError::NotFinite)?;
        let parameters = draw.sampling.parameters();
        let token = if self.change(logits, draw) {
            let greatest = greatest(&self.logits).ok_or(SampleError::NotFinite)?;
            if greatest == f32::NEG_INFINITY {
                return Err(SampleError::NothingAllowed);
            }
            choose(&mut self.candidates, &self.logits, greatest, draw)
        } else {
            choose(&mut self.candidates, logits, raw, draw)
        };
        let mut sampled = Sampled { token, log_probability: None, top: Vec::new() };
        if let Some(count) = parameters.logprobs {
            let total = self.candidates.log_total(logits, raw);
            sampled.log_probability = Some(logits[token as usize] - total);
            find_top(logits, count, &mut self.best);
            self.best.sort_unstable_by(by_logit);
            let top = self.best.iter().map(|(token, logit)| LogProbability {
                token: *token,
                log_probability: logit - total,
            });
            sampled.top = top.collect();
        }
        Ok(sampled)
    }

    /// Copies `logits` with the changes that the request asks for, if any; returns whether it does.
    fn change(&mut self, logits: &[f32], draw: &Draw) -> bool {
        let parameters = draw.sampling.parameters();
        let history = draw.history.filter(|_| draw.sampling.has_penalties());
        if history.is_none() && draw.allowed.is_none() && parameters.logit_bias.is_empty() {
            return false;
        }
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        for (token, bias) in &parameters.logit_bias {
            if let Some(logit) = self.logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        if let Some(history) = history {
            history.penalize(parameters, &mut self.logits);
        }
        if let Some(allowed) = draw.allowed {
            for (token, logit) in (0..).zip(&mut self.logits) {
                if !allowed.allows(token) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        true
    }
}

/// Returns the token that `draw` gives.
fn choose(candidates: &mut Candidates, logits: &[f32], greatest: f32, draw: &Draw) -> u32 {
    let parameters: &SamplingParameters = draw.sampling.parameters();
    if parameters.temperature <= 0.0 {
        return first_of(logits, greatest);
    }
    let number = uniform(parameters.seed, draw.answer, draw.position);
    let drawn = candidates.draw(logits, greatest, parameters, number);
    drawn.unwrap_or_else(|| first_of(logits, greatest))
}

/// Returns the lowest token with the logit `greatest`.
fn first_of(logits: &[f32], greatest: f32) -> u32 {
    let place = logits.iter().position(|logit| *logit >= greatest);
    place.and_then(|place| u32::try_from(place).ok()).unwrap_or(0)
}
