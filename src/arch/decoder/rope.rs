//! Rotary positions (Su et al. 2021): the angle by which each pair of a head's elements turns from
//! one position to the next.
//!
//! A configuration may stretch the angles for longer texts: all by one factor (`linear`), or the
//! long wavelengths only (`llama3`), which GGUF files say by a divisor for each pair. All are
//! constants of the network. Scalings that depend on the
//! length of a text are refused.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    arch::{
        error::ArchError,
        keys::{ConfigFile, Keys},
    },
    family::Fault,
};

/// Angles of rotary positions.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rope {
    /// Base of the wavelengths.
    theta: f64,
    scaling: Scaling,
    /// Divisor of each pair's angle, beside the scaling; empty if there are none.
    divisors: Vec<f32>,
}

/// Change of the angles for longer texts.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Scaling {
    /// No change.
    None,
    /// Division of every angle by a factor.
    Linear(f64),
    /// Division of the angles of long wavelengths.
    Llama3(Llama3),
}

/// Scaling of Llama 3.1 (Grattafiori et al. 2024).
#[derive(Debug, Clone, Copy, PartialEq)]
struct Llama3 {
    /// Divisor of the angles of long wavelengths.
    factor: f64,
    /// Wavelength, in tokens, above which angles are divided by `factor`.
    longest: f64,
    /// Wavelength, in tokens, below which angles are kept.
    shortest: f64,
}

/// Values that a configuration has beside the settings of rotary positions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults {
    /// Base of the wavelengths.
    pub(super) theta: f64,
    /// Maximum number of tokens that the decoder was made for, or `None` if it is not known.
    pub(super) max_tokens: Option<usize>,
}

/// Settings of rotary positions.
#[derive(Debug, Default, Deserialize)]
struct Settings {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    r#type: Option<String>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
}

const KEYS: Keys = Keys {
    honoured: &[
        "factor",
        "high_freq_factor",
        "low_freq_factor",
        "original_max_position_embeddings",
        "rope_theta",
        "rope_type",
        "type",
    ],
    only: &[("partial_rotary_factor", &["1"])],
    ignored: &[],
};

impl Rope {
    /// Reads the settings `found`, which `file` has under the key of the pair.
    ///
    /// # Errors
    ///
    /// Fails on settings that are not supported.
    pub(super) fn read(
        file: ConfigFile<'_>,
        found: Option<(&str, &Map<String, Value>)>,
        defaults: Defaults,
    ) -> Result<Self, ArchError> {
        let (key, settings) = match found {
            Some((key, found)) => (key, file.nested(key, found, &[KEYS])?),
            None => ("rope_theta", Settings::default()),
        };
        let theta = settings.rope_theta.unwrap_or(defaults.theta);
        if !(theta > 0.0 && theta.is_finite()) {
            let fault = Fault::new("rope_theta", theta, "a number above 0 is needed");
            return Err(file.refuse(fault));
        }
        let scaling = settings.scaling(defaults).map_err(|fault| file.refuse(fault.below(key)))?;
        Ok(Self { theta, scaling, divisors: Vec::new() })
    }

    /// Returns the angles divided by `divisors`, one for each pair.
    pub(super) fn divided_by(self, divisors: Vec<f32>) -> Self {
        Self { divisors, ..self }
    }

    /// Returns the angle between neighbouring positions of each of `count` pairs of elements.
    pub(super) fn frequencies(&self, count: usize) -> Vec<f32> {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            reason = "heads are narrow, and frequencies lie in [0, 1]"
        )]
        let frequency = |pair: usize| {
            let angle = self.theta.powf(-(pair as f64) / count as f64);
            let divisor = self.divisors.get(pair).copied().map_or(1.0, f64::from);
            (self.scaling.scaled(angle) / divisor) as f32
        };
        (0..count).map(frequency).collect()
    }
}

impl Scaling {
    fn scaled(self, angle: f64) -> f64 {
        match self {
            Self::None => angle,
            Self::Linear(factor) => angle / factor,
            Self::Llama3(Llama3 { factor, longest, shortest }) => {
                let wavelength = std::f64::consts::TAU / angle;
                // Between both wavelengths, the share of the kept angle falls from 1 to 0.
                let kept = (longest / wavelength - 1.0) / (longest / shortest - 1.0);
                let kept = kept.clamp(0.0, 1.0);
                kept * angle + (1.0 - kept) * angle / factor
            }
        }
    }
}

impl Settings {
    fn scaling(&self, defaults: Defaults) -> Result<Scaling, Fault> {
        let name = self.rope_type.as_deref().or(self.r#type.as_deref()).unwrap_or("default");
        match name {
            "default" => Ok(Scaling::None),
            "linear" => Ok(Scaling::Linear(number("factor", self.factor)?)),
            "llama3" => {
                let low = number("low_freq_factor", self.low_freq_factor)?;
                let high = number("high_freq_factor", self.high_freq_factor)?;
                if high <= low {
                    let expected = format!("it must be above low_freq_factor, {low}");
                    return Err(Fault::new("high_freq_factor", high, expected));
                }
                let made_for = self.original_max_position_embeddings.or(defaults.max_tokens);
                #[expect(clippy::cast_precision_loss, reason = "texts are short")]
                let made_for = made_for.map(|positions| positions as f64);
                let made_for = number("original_max_position_embeddings", made_for)?;
                let factor = number("factor", self.factor)?;
                let (longest, shortest) = (made_for / low, made_for / high);
                Ok(Scaling::Llama3(Llama3 { factor, longest, shortest }))
            }
            other => {
                let expected = "the types `default`, `linear` and `llama3` are supported";
                Err(Fault::new("rope_type", other, expected))
            }
        }
    }
}

/// Returns the `value` of `key`, which must be above 0.
fn number(key: &str, value: Option<f64>) -> Result<f64, Fault> {
    let expected = "a number above 0 is needed";
    let value = value.ok_or_else(|| Fault::new(key, "missing", expected))?;
    match value > 0.0 && value.is_finite() {
        true => Ok(value),
        false => Err(Fault::new(key, value, expected)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    const DEFAULTS: Defaults = Defaults { theta: 100.0, max_tokens: Some(64) };

    fn read(found: Option<(&str, &Value)>) -> Result<Rope, String> {
        let file = ConfigFile { path: Path::new("config.json"), text: "{}", ignored: &[] };
        let found = found.map(|(key, value)| (key, value.as_object().expect("a map")));
        Rope::read(file, found, DEFAULTS).map_err(|error| error.to_string())
    }

    /// Checks the frequencies of four pairs.
    fn check(settings: &Value, expected: [f32; 4]) {
        let found = read(Some(("rope_scaling", settings))).expect("supported");
        for (found, expected) in found.frequencies(4).iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6 * expected, "{settings}: {found} {expected}");
        }
    }

    #[test]
    fn angles_are_those_of_transformers() {
        let plain = read(None).expect("supported").frequencies(2);
        assert_eq!(plain, [1.0, 0.1]);
        check(&json!({"rope_type": "default", "rope_theta": 1e4}), [1.0, 0.1, 0.01, 1e-3]);
        check(
            &json!({"type": "linear", "factor": 4.0}),
            [0.25, 0.079_056_94, 0.025, 0.007_905_694],
        );
        // From `_compute_llama3_parameters` of transformers 5.24.
        let llama = json!({"rope_type": "llama3", "factor": 8, "rope_theta": 1e4,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128});
        check(&llama, LLAMA3);
    }

    #[test]
    fn divisors_of_pairs_are_beside_the_scaling() {
        let settings = json!({"type": "linear", "factor": 2.0, "rope_theta": 1e4});
        let rope = read(Some(("rope_scaling", &settings))).expect("supported");
        assert_eq!(rope.divided_by(vec![1.0, 4.0]).frequencies(2), [0.5, 0.00125]);
    }

    /// Frequencies below, between and above both wavelengths.
    const LLAMA3: [f32; 4] = [1.0, 0.042_751_18, 0.001_25, 0.000_125];

    #[test]
    fn what_depends_on_a_texts_length_is_refused_by_key() {
        for (settings, reason) in [
            (json!({"type": "dynamic", "factor": 2.0}), "`rope_scaling.rope_type` is `dynamic`"),
            (json!({"rope_type": "linear"}), "`rope_scaling.factor` is `missing`"),
            (json!({"rope_type": "linear", "factor": 0}), "`rope_scaling.factor` is `0`"),
            (json!({"mrope_section": [1]}), "`rope_scaling.mrope_section`"),
            (json!({"partial_rotary_factor": 0.5}), "`rope_scaling.partial_rotary_factor`"),
            (json!({"factor": "2"}), "rope_scaling.factor: "),
            (json!({"rope_theta": -1}), "`rope_theta` is `-1`"),
        ] {
            let error = read(Some(("rope_scaling", &settings))).expect_err(reason);
            assert!(error.contains(reason), "{error}");
        }
    }
}
