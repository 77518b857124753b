//! Results of a load.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::target::Answer;

/// Longest time that is distinguished from longer ones, in microseconds: an hour.
const LONGEST: u64 = 3_600_000_000;

/// Percentiles; of times, in milliseconds.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Percentiles {
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
}

/// Results of a load, by the clients' clock.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Measured {
    /// Number of requests that were sent.
    pub asked: usize,
    /// Number of requests that were answered.
    pub answered: usize,
    /// Number of requests that were refused with status 429.
    pub refused: usize,
    /// Number of requests that ended otherwise.
    pub failed: usize,
    /// Fraction of requests that were answered within their budget.
    pub attainment: f64,
    /// Fraction of requests that were answered within their budget by the server's clock. That
    /// clock starts at the arrival of the request's head.
    pub server_attainment: f64,
    /// Fraction of answers that took longer than their budget.
    pub violations: f64,
    /// Fraction of answers that took longer than their budget by the server's clock.
    pub server_violations: f64,
    /// Mean quality of the answers.
    pub mean_quality: f64,
    /// Percentiles of the predictions' error, as a fraction of the server's time without the queue.
    pub prediction_error: Percentiles,
    /// Number of answers per second within their budget.
    pub goodput: f64,
    /// Percentiles of the times of answers, in milliseconds.
    pub latency_ms: Percentiles,
    /// Percentiles of the times of refusals, in milliseconds.
    pub refusal_ms: Percentiles,
    /// Percentiles of the delays between the due time of a request and its sending, in
    /// milliseconds.
    pub lag_ms: Percentiles,
}

/// Collector of the outcomes of requests.
#[derive(Debug)]
pub(super) struct Tally {
    measured: Measured,
    num_in_budget: usize,
    num_in_server_budget: usize,
    quality: f64,
    latency: Histogram<u64>,
    refusal: Histogram<u64>,
    lag: Histogram<u64>,
    /// Errors of predictions. An error of 1 counts as a millisecond, so that the resolution is a
    /// thousandth.
    prediction: Histogram<u64>,
}

impl Tally {
    pub(super) fn new() -> Self {
        let histogram =
            || Histogram::new_with_bounds(1, LONGEST, 3).expect("three digits from 1 are allowed");
        Self {
            measured: Measured::default(),
            num_in_budget: 0,
            num_in_server_budget: 0,
            quality: 0.0,
            latency: histogram(),
            refusal: histogram(),
            lag: histogram(),
            prediction: histogram(),
        }
    }

    /// Counts the `answer` to a request that was sent `lag` after it was due.
    pub(super) fn add(&mut self, answer: &Answer, budget: Duration, lag: Duration) {
        self.measured.asked += 1;
        record(&mut self.lag, lag);
        match answer.status {
            Some(200) => {
                self.measured.answered += 1;
                self.quality += answer.quality.unwrap_or(0.0);
                self.num_in_budget += usize::from(answer.time <= budget);
                let is_in_time = answer.server_time.is_some_and(|time| time <= budget);
                self.num_in_server_budget += usize::from(is_in_time);
                record(&mut self.latency, answer.time);
                if let Some(prediction) = answer.prediction {
                    let error = Duration::from_secs_f64((prediction - 1.0).abs().min(1e3) / 1e3);
                    record(&mut self.prediction, error);
                }
            }
            Some(429) => {
                self.measured.refused += 1;
                record(&mut self.refusal, answer.time);
            }
            _ => self.measured.failed += 1,
        }
    }

    /// Returns the results of a load of length `length`.
    pub(super) fn finish(mut self, length: Duration) -> Measured {
        self.measured.attainment = ratio(self.num_in_budget, self.measured.asked);
        self.measured.server_attainment = ratio(self.num_in_server_budget, self.measured.asked);
        let answered = self.measured.answered;
        self.measured.violations = ratio(answered - self.num_in_budget, answered);
        self.measured.server_violations = ratio(answered - self.num_in_server_budget, answered);
        self.measured.prediction_error = percentiles(&self.prediction);
        self.measured.mean_quality = self.quality * ratio(1, self.measured.answered);
        self.measured.goodput = ratio(self.num_in_budget, 1) / length.as_secs_f64();
        self.measured.latency_ms = percentiles(&self.latency);
        self.measured.refusal_ms = percentiles(&self.refusal);
        self.measured.lag_ms = percentiles(&self.lag);
        self.measured
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn record(histogram: &mut Histogram<u64>, time: Duration) {
    let microseconds = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    histogram.saturating_record(microseconds.clamp(1, LONGEST));
}

fn percentiles(histogram: &Histogram<u64>) -> Percentiles {
    let at = |quantile| {
        let microseconds = histogram.value_at_quantile(quantile);
        f64::from(u32::try_from(microseconds).unwrap_or(u32::MAX)) / 1e3
    };
    Percentiles { p50: at(0.5), p90: at(0.9), p95: at(0.95), p99: at(0.99), p999: at(0.999) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_answers_in_time_count() {
        let ms = Duration::from_millis;
        let answer = |status, time| Answer {
            status,
            time: ms(time),
            server_time: Some(ms(time - 1)),
            quality: Some(0.5),
            prediction: Some(0.8),
        };
        let mut tally = Tally::new();
        for (status, time) in
            [(Some(200), 9), (Some(200), 11), (Some(200), 30), (Some(429), 1), (None, 5)]
        {
            tally.add(&answer(status, time), ms(10), ms(0));
        }
        let measured = tally.finish(Duration::from_secs(2));
        assert_eq!((measured.asked, measured.answered), (5, 3));
        assert_eq!((measured.refused, measured.failed), (1, 1));
        assert!((measured.attainment - 0.2).abs() < 1e-9);
        assert!((measured.server_attainment - 0.4).abs() < 1e-9);
        assert!((measured.mean_quality - 0.5).abs() < 1e-9);
        assert!((measured.goodput - 0.5).abs() < 1e-9);
        assert!((measured.latency_ms.p50 - 11.0).abs() < 0.02);
    }
}
