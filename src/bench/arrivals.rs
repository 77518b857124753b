//! Arrival times of requests.

use std::{path::Path, time::Duration};

use rand::{SeedableRng, rngs::StdRng};
use rand_distr::{Distribution, Gamma};

use super::BenchError;
use crate::tensor::{FileKind, read_text};

/// Distribution of the times between requests.
#[derive(Debug, Clone, PartialEq)]
pub enum Arrivals {
    /// Gamma distribution with this squared coefficient of variation; 1 is a Poisson process, a
    /// larger value is burstier.
    Gamma {
        /// Variance over squared mean.
        cv2: f64,
    },
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
