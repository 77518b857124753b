//! Tests of sampling, against transformers' processors and the distributions that are asked for.

use serde::Deserialize;

use super::*;

/// A case of `tools/generation_reference.py`.
#[derive(Deserialize)]
struct Case {
    parameters: Changes,
    logits: Vec<f32>,
    history: Vec<u32>,
    kept: Vec<u32>,
    log_probabilities: Vec<f64>,
    raw_log_probabilities: Vec<f32>,
}

#[derive(Deserialize)]
struct Changes {
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    typical_p: Option<f32>,
    repetition_penalty: Option<f32>,
}

impl Changes {
    fn parameters(&self) -> SamplingParameters {
        let own = SamplingParameters::default();
        SamplingParameters {
            temperature: self.temperature.unwrap_or(own.temperature),
            top_k: self.top_k,
            top_p: self.top_p.unwrap_or(own.top_p),
            min_p: self.min_p.unwrap_or(own.min_p),
            typical_p: self.typical_p.unwrap_or(own.typical_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(own.repetition_penalty),
            ..own
        }
    }
}

fn cases() -> Vec<Case> {
    let json = include_str!("../../../../tests/references/sampling/expected.json");
    serde_json::from_str(json).expect("the file of the script")
}

fn checked(parameters: SamplingParameters, num_tokens: usize) -> Sampling {
    Sampling::new(parameters, num_tokens).expect("valid")
}

fn draw(sampling: &Sampling, position: u64) -> Draw<'_> {
    Draw { sampling, history: None, allowed: None, answer: 0, position }
}

#[test]
fn the_tokens_that_may_be_drawn_are_those_of_transformers() {
    for (index, case) in cases().iter().enumerate() {
        let parameters = case.parameters.parameters();
        let mut logits = case.logits.clone();
        History::new(&case.history).penalize(&parameters, &mut logits);
        let greatest = top::greatest(&logits).expect("numbers");
        let mut candidates = filter::Candidates::default();
        let kept = candidates.find(&logits, greatest, &parameters);
        let tokens: Vec<u32> = kept.iter().map(|candidate| candidate.token).collect();
        assert_eq!(tokens, case.kept, "case {index}");
        let total = filter::total(kept);
        for (candidate, expected) in kept.iter().zip(&case.log_probabilities) {
            let found = (f64::from(candidate.weight) / total).ln();
            assert!((found - expected).abs() < 2e-5, "case {index}: {found}, not {expected}");
        }
    }
}

#[test]
fn probabilities_are_those_of_the_model_before_any_change() {
    let mut sampler = Sampler::default();
    for case in cases() {
        let parameters = SamplingParameters {
            logprobs: Some(20),
            logit_bias: vec![(3, 5.0)],
            ..case.parameters.parameters()
        };
        let sampling = checked(parameters, case.logits.len());
        let history = History::new(&case.history);
        let draw = Draw { history: Some(&history), ..draw(&sampling, 5) };
        let sampled = sampler.sample(&case.logits, &draw).expect("a token");
        let expected: Vec<(u32, f32)> =
            case.kept.iter().copied().zip(case.raw_log_probabilities.iter().copied()).collect();
        let of = |token: u32| expected.iter().find(|own| own.0 == token).map(|own| own.1);
        for found in &sampled.top {
            if let Some(expected) = of(found.token) {
                assert!((found.log_probability - expected).abs() < 2e-5);
            }
        }
        let falls = |pair: &[LogProbability]| pair[0].log_probability >= pair[1].log_probability;
        assert_eq!(sampled.top.len(), 20);
        assert!(sampled.top.windows(2).all(falls));
        if let (Some(found), Some(expected)) = (sampled.log_probability, of(sampled.token)) {
            assert!((found - expected).abs() < 2e-5);
        }
    }
}

/// Returns χ² of 4,000 draws from `logits` against the distribution `expected`.
fn chi_square(logits: &[f32], sampling: &Sampling, expected: &[f64]) -> f64 {
    let mut sampler = Sampler::default();
    let mut counts = vec![0_u32; logits.len()];
    for position in 0..4_000 {
        let sampled = sampler.sample(logits, &draw(sampling, position)).expect("a token");
        counts[sampled.token as usize] += 1;
    }
    let terms = counts.iter().zip(expected).map(|(count, probability)| {
        let expected = probability * 4_000.0;
        match expected > 0.0 {
            true => (f64::from(*count) - expected).powi(2) / expected,
            false => f64::from(*count) * 1e9,
        }
    });
    terms.sum()
}

#[test]
fn tokens_are_drawn_as_often_as_they_should() {
    let logits: Vec<f32> = (0_u8..12).map(|token| f32::from(token % 5) * 0.4).collect();
    let exponentials = |scale: f64| -> Vec<f64> {
        let weights: Vec<f64> =
            logits.iter().map(|logit| (f64::from(*logit) * scale).exp()).collect();
        let total: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / total).collect()
    };
    // The 99.9th percentiles of the distributions with 11 and 4 degrees of freedom.
    let plain = checked(SamplingParameters { seed: 3, ..SamplingParameters::default() }, 12);
    assert!(chi_square(&logits, &plain, &exponentials(1.0)) < 31.3);
    let parameters = SamplingParameters { temperature: 0.5, ..SamplingParameters::default() };
    assert!(chi_square(&logits, &checked(parameters, 12), &exponentials(2.0)) < 31.3);
    let parameters = SamplingParameters { top_k: Some(4), ..SamplingParameters::default() };
    let mut kept = exponentials(1.0);
    for (probability, logit) in kept.iter_mut().zip(&logits) {
        if *logit < 1.1 {
            *probability = 0.0;
        }
    }
    let total: f64 = kept.iter().sum();
    kept.iter_mut().for_each(|probability| *probability /= total);
    assert!(chi_square(&logits, &checked(parameters, 12), &kept) < 18.5);
}

#[test]
fn the_most_probable_token_is_the_lowest_of_its_equals() {
    let parameters = SamplingParameters { temperature: 0.0, ..SamplingParameters::default() };
    let sampling = checked(parameters, 40);
    let mut logits = vec![0.0; 40];
    let mut sampler = Sampler::default();
    let mut token = |logits: &[f32]| sampler.sample(logits, &draw(&sampling, 0)).unwrap().token;
    assert_eq!(token(&logits), 0);
    logits[39] = 1.0;
    logits[20] = 1.0;
    assert_eq!(token(&logits), 20);
}

#[test]
fn a_draw_follows_from_seed_answer_and_position() {
    let logits = vec![0.0; 1000];
    let token = |seed: u64, answer: u64, position: u64| {
        let sampling = checked(SamplingParameters { seed, ..SamplingParameters::default() }, 1000);
        let draw = Draw { answer, ..draw(&sampling, position) };
        Sampler::default().sample(&logits, &draw).unwrap().token
    };
    // These are fixed: a text repeats across versions too.
    let tokens = [token(0, 0, 0), token(0, 0, 1), token(0, 1, 0), token(1, 0, 0)];
    assert_eq!(tokens, [615, 520, 530, 198]);
}

#[test]
fn biases_and_penalties_change_what_is_drawn() {
    let greedy = SamplingParameters { temperature: 0.0, ..SamplingParameters::default() };
    let logits = [1.0, 2.0, 1.9, -1.0];
    let token = |parameters: SamplingParameters, prompt: &[u32], answer: &[u32]| {
        let sampling = checked(parameters, 4);
        let mut history = History::new(prompt);
        answer.iter().for_each(|token| history.push(*token));
        let draw = Draw { history: Some(&history), ..draw(&sampling, 0) };
        Sampler::default().sample(&logits, &draw).unwrap().token
    };
    assert_eq!(token(greedy.clone(), &[1], &[1, 1]), 1);
    let bias = SamplingParameters { logit_bias: vec![(3, 100.0)], ..greedy.clone() };
    assert_eq!(token(bias, &[], &[]), 3);
    let presence = SamplingParameters { presence_penalty: 0.2, ..greedy.clone() };
    assert_eq!(token(presence.clone(), &[1], &[]), 1);
    assert_eq!(token(presence, &[], &[1]), 2);
    let frequency = SamplingParameters { frequency_penalty: 0.06, ..greedy.clone() };
    assert_eq!(token(frequency.clone(), &[], &[1]), 1);
    assert_eq!(token(frequency, &[], &[1, 1]), 2);
    let repetition = SamplingParameters { repetition_penalty: 1.5, ..greedy };
    assert_eq!(token(repetition, &[1], &[]), 2);
}

#[test]
fn only_allowed_tokens_are_drawn() {
    let logits: Vec<f32> = (0_u8..70).map(f32::from).collect();
    let mask = [0b100, 0, 0b10];
    let mut sampler = Sampler::default();
    for temperature in [0.0, 1.0, 2.0] {
        let parameters = SamplingParameters { temperature, ..SamplingParameters::default() };
        let sampling = checked(parameters, 70);
        for position in 0..20 {
            let draw = Draw { allowed: Some(AllowMask(&mask)), ..draw(&sampling, position) };
            let token = sampler.sample(&logits, &draw).unwrap().token;
            assert!(token == 2 || token == 65, "{token}");
        }
        let draw = Draw { allowed: Some(AllowMask(&[])), ..draw(&sampling, 0) };
        assert_eq!(sampler.sample(&logits, &draw), Err(SampleError::NothingAllowed));
    }
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    let sampling = checked(SamplingParameters::default(), 3);
    for broken in [f32::NAN, f32::INFINITY] {
        let sampled = Sampler::default().sample(&[0.0, broken, 1.0], &draw(&sampling, 0));
        assert_eq!(sampled, Err(SampleError::NotFinite));
    }
}

#[test]
fn a_parameter_that_is_not_valid_is_named_with_what_would_be() {
    let error = |change: fn(&mut SamplingParameters)| {
        let mut parameters = SamplingParameters::default();
        change(&mut parameters);
        Sampling::new(parameters, 10).expect_err("not valid").to_string()
    };
    assert_eq!(error(|own| own.temperature = 2.5), "`temperature` is 2.5; valid is 0 to 2");
    assert_eq!(error(|own| own.temperature = f32::NAN), "`temperature` is NaN; valid is 0 to 2");
    assert_eq!(error(|own| own.top_p = 0.0), "`top_p` is 0; valid is over 0, up to 1");
    assert_eq!(error(|own| own.typical_p = 1.1), "`typical_p` is 1.1; valid is over 0, up to 1");
    assert_eq!(error(|own| own.min_p = -0.1), "`min_p` is -0.1; valid is 0 to 1");
    assert_eq!(
        error(|own| own.presence_penalty = -3.0),
        "`presence_penalty` is -3; valid is -2 to 2"
    );
    assert_eq!(error(|own| own.logprobs = Some(21)), "`logprobs` is 21; valid is 0 to 20");
    let unknown = error(|own| own.logit_bias = vec![(10, 1.0)]);
    assert_eq!(unknown, "`logit_bias` is for token 10; valid are token ids under 10");
    let large = error(|own| own.logit_bias = vec![(1, 101.0)]);
    assert_eq!(large, "`logit_bias` is 101 for token 1; valid is -100 to 100");
    assert!(error(|own| own.logit_bias = vec![(1, 1.0); 301]).contains("301 tokens"));
    assert!(error(|own| own.repetition_penalty = 0.0).contains("`repetition_penalty`"));
    assert!(error(|own| own.frequency_penalty = f32::INFINITY).contains("`frequency_penalty`"));
}
