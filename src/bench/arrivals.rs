//! Arrival times of requests.

use std::{path::Path, time::Duration};

use rand::{SeedableRng, rngs::StdRng};
use rand_distr::{Distribution, Exp1, Gamma};

use super::BenchError;
use crate::tensor::{FileKind, read_text};

/// Length of a pattern of bursts.
const BURST_PERIOD: Duration = Duration::from_secs(4);

/// Change of the request rate over time. The mean rate is that of the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// Half a second of every four at four times the mean rate.
    Bursts,
    /// A day: the rate rises from nothing to twice the mean and falls again, once in the load.
    Day,
    /// Half of the requests all the time, and the others from one client that sends them in a
    /// twelfth of the time, which makes 6.5 times the mean rate.
    Flood,
}

/// Distribution of the times between requests.
#[derive(Debug, Clone, PartialEq)]
pub enum Arrivals {
    /// Gamma distribution with this squared coefficient of variation; 1 is a Poisson process, a
    /// larger value is burstier.
    Gamma {
        /// Variance over squared mean.
        cv2: f64,
    },
    /// Poisson process whose rate follows a pattern.
    Pattern(Pattern),
    /// Recorded times, stretched or compressed to the requested rate.
    Trace(Vec<Duration>),
}

impl Arrivals {
    /// Reads a trace with one time in seconds on each line, ascending. Skips empty lines and lines
    /// that begin with `#`.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be read, or a line is not a time or is before the previous one.
    pub fn read_trace(path: &Path) -> Result<Self, BenchError> {
        let wrap = |source| BenchError::Trace { path: path.to_owned(), source };
        let text = read_text(path, FileKind::Trace).map_err(wrap)?;
        let mut times: Vec<f64> = Vec::new();
        for (index, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let fail = |reason| {
                let path = path.to_owned();
                BenchError::MalformedTrace { path, line: index + 1, reason }
            };
            let time: f64 = line.parse().map_err(|_| fail("this is not a number of seconds"))?;
            if !(0.0..1e9).contains(&time) {
                return Err(fail("a time must lie in [0, 1e9)"));
            }
            if times.last().is_some_and(|last| *last > time) {
                return Err(fail("times must ascend"));
            }
            times.push(time);
        }
        let start = times.first().copied().unwrap_or(0.0);
        let offsets = times.iter().map(|time| Duration::from_secs_f64(time - start)).collect();
        Ok(Self::Trace(offsets))
    }

    /// Returns the arrival times of requests at `rate` per second until `length`. Equal seeds give
    /// equal times.
    pub fn offsets(&self, rate: f64, length: Duration, seed: u64) -> Vec<Duration> {
        match self {
            Self::Gamma { cv2 } => gamma(*cv2, rate, length, seed),
            Self::Pattern(pattern) => pattern.offsets(rate, length, seed),
            Self::Trace(recorded) => {
                let span = recorded.last().copied().unwrap_or_default().as_secs_f64();
                let count = f64::from(u32::try_from(recorded.len()).unwrap_or(u32::MAX));
                if span <= 0.0 || rate <= 0.0 {
                    return Vec::new();
                }
                let stretch = count / span / rate;
                let offsets = recorded.iter().map(|offset| offset.mul_f64(stretch));
                offsets.take_while(|offset| *offset < length).collect()
            }
        }
    }
}

impl Pattern {
    fn offsets(self, rate: f64, length: Duration, seed: u64) -> Vec<Duration> {
        let mut random = StdRng::seed_from_u64(seed);
        let seconds = length.as_secs_f64();
        let mut arrived = 0.0;
        let offsets = std::iter::from_fn(|| {
            let gap: f64 = Exp1.sample(&mut random);
            arrived += gap / (rate * seconds);
            (arrived < 1.0).then(|| length.mul_f64(self.when(arrived, seconds)))
        });
        offsets.collect()
    }

    /// Returns the part of a load of `seconds` in which the fraction `arrived` of the requests
    /// arrives.
    fn when(self, arrived: f64, seconds: f64) -> f64 {
        match self {
            Self::Bursts => {
                let period = BURST_PERIOD.as_secs_f64();
                let whole = (arrived * seconds / period).floor();
                let part = in_crowd(arrived * seconds / period - whole, 0.5, 0.125);
                ((whole + part) * period / seconds).min(1.0)
            }
            Self::Day => bisect(arrived, |time| {
                let turn = std::f64::consts::TAU;
                time - (turn * time).sin() / turn
            }),
            Self::Flood => in_crowd(arrived, 0.5 + 0.5 / 12.0, 1.0 / 12.0),
        }
    }
}

/// Returns when the fraction `arrived` has come, if the share `crowd` of all comes within the share
/// `time` of the time, in the middle of it, and the others evenly before and after.
fn in_crowd(arrived: f64, crowd: f64, time: f64) -> f64 {
    let before = (1.0 - crowd) / 2.0;
    let calm = (1.0 - time) / (1.0 - crowd);
    if arrived < before {
        arrived * calm
    } else if arrived < before + crowd {
        before * calm + (arrived - before) * time / crowd
    } else {
        before * calm + time + (arrived - before - crowd) * calm
    }
}

/// Returns the argument in 0 to 1 at which `function`, which grows from 0 to 1, is `value`.
fn bisect(value: f64, function: impl Fn(f64) -> f64) -> f64 {
    let halve = |(low, high): (f64, f64), _| {
        let middle = (low + high) / 2.0;
        if function(middle) < value { (middle, high) } else { (low, middle) }
    };
    (0..50).fold((0.0, 1.0), halve).0
}

fn gamma(cv2: f64, rate: f64, length: Duration, seed: u64) -> Vec<Duration> {
    let Ok(gaps) = Gamma::new(1.0 / cv2, cv2 / rate) else {
        return Vec::new();
    };
    let mut random = StdRng::seed_from_u64(seed);
    let mut time = 0.0;
    let offsets = std::iter::from_fn(|| {
        time += gaps.sample(&mut random);
        Some(Duration::from_secs_f64(time))
    });
    offsets.take_while(|offset| *offset < length).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn gaps_have_the_mean_and_variation_asked_for() {
        for cv2 in [0.25, 1.0, 4.0] {
            let arrivals = Arrivals::Gamma { cv2 };
            let offsets = arrivals.offsets(1_000.0, Duration::from_secs(100), 7);
            let gaps: Vec<f64> =
                offsets.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
            let count = f64::from(u32::try_from(gaps.len()).expect("few"));
            let mean = gaps.iter().sum::<f64>() / count;
            let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / count;
            assert!((mean * 1_000.0 - 1.0).abs() < 0.05, "{cv2}: mean {mean}");
            assert!((variance / mean.powi(2) / cv2 - 1.0).abs() < 0.1, "{cv2}: {variance}");
            assert_eq!(offsets, arrivals.offsets(1_000.0, Duration::from_secs(100), 7));
            assert_ne!(offsets, arrivals.offsets(1_000.0, Duration::from_secs(100), 8));
        }
    }

    #[test]
    fn patterns_keep_the_mean_rate_and_have_their_peaks() {
        let length = Duration::from_secs(12);
        for (pattern, from, to, peak) in [
            (Pattern::Bursts, 5.75, 6.25, 4.0),
            (Pattern::Day, 5.75, 6.25, 2.0),
            (Pattern::Flood, 5.5, 6.5, 6.5),
        ] {
            let arrivals = Arrivals::Pattern(pattern);
            let offsets = arrivals.offsets(2_000.0, length, 7);
            let count = |from: f64, to: f64| {
                let range = Duration::from_secs_f64(from)..Duration::from_secs_f64(to);
                let count = offsets.iter().filter(|offset| range.contains(*offset)).count();
                f64::from(u32::try_from(count).expect("few")) / 2_000.0 / (to - from)
            };
            assert!(offsets.is_sorted() && offsets[offsets.len() - 1] < length);
            let (mean, highest) = (count(0.0, 12.0), count(from, to));
            assert!((mean - 1.0).abs() < 0.03, "{pattern:?}: mean {mean}");
            assert!((highest / peak - 1.0).abs() < 0.1, "{pattern:?}: peak {highest}");
            assert_eq!(offsets, arrivals.offsets(2_000.0, length, 7));
        }
    }

    #[test]
    fn a_trace_is_replayed_at_the_rate_asked_for() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        write!(file, "# seconds\n10\n10.5\n\n11\n14\n").expect("written");
        let trace = Arrivals::read_trace(file.path()).expect("a trace");
        // The recorded rate is one a second, so the replay is twice as fast.
        let offsets = trace.offsets(2.0, Duration::from_secs(10), 0);
        assert_eq!(offsets, [0, 250, 500, 2_000].map(Duration::from_millis));
        assert_eq!(trace.offsets(2.0, Duration::from_secs(1), 0).len(), 3);
    }

    #[test]
    fn a_line_that_is_no_time_is_named() {
        for (text, line) in [("1\nx\n", 2), ("2\n1\n", 2), ("-1\n", 1), ("nan\n", 1)] {
            let mut file = tempfile::NamedTempFile::new().expect("a file");
            write!(file, "{text}").expect("written");
            let error = Arrivals::read_trace(file.path()).expect_err("no trace");
            assert!(error.to_string().contains(&format!("line {line}:")), "{error}");
        }
    }
}
