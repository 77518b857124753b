//! Scales of 8-bit caches, learned from the levels that a sequence leaves in one.

use ort::value::DynValue;

use crate::{
    module::CacheSpec,
    runtime::{RuntimeError, activation::handed_over},
};

/// Largest level of a channel.
const MAX_LEVEL: f32 = 127.0;

/// Factors on the largest key and value that were seen, since other texts have larger ones. A value
/// that is cut off costs more than a coarser scale (docs/GENERATION.md).
const KEY_MARGIN: f32 = 1.25;
const VALUE_MARGIN: f32 = 2.0;

/// Factor on a scale whose levels were too small for the values.
const GROWTH: f32 = 8.0;

/// Level of a channel of which only zeros were seen; the true one is smaller.
const BELOW_ONE: f32 = 0.5;

/// Largest relative change of a scale that has settled, and the smallest scale.
const SETTLED: f32 = 0.02;
const LEAST: f32 = 1e-6;

/// Scales of a cache's channels as inputs of its module, `[heads · head width]`.
#[derive(Debug)]
pub(in crate::runtime) struct Scales {
    pub(in crate::runtime) keys: DynValue,
    pub(in crate::runtime) values: DynValue,
}

/// Scales of the channels of each head of a cache.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::runtime) struct ChannelScales {
    spec: CacheSpec,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl ChannelScales {
    /// Creates scales to begin with.
    pub(in crate::runtime) fn new(spec: CacheSpec) -> Self {
        Self { spec, keys: vec![1.0; spec.width()], values: vec![1.0; spec.width()] }
    }

    /// Returns the scales as inputs.
    pub(in crate::runtime) fn to_values(&self) -> Result<Scales, RuntimeError> {
        let value = |scales: &[f32]| handed_over(vec![scales.len()], scales.to_vec());
        Ok(Scales { keys: value(&self.keys)?, values: value(&self.values)? })
    }

    /// Fits the scales to the levels that a sequence has left: those of each head's keys, and then
    /// those of each head's values. Returns whether they hardly changed.
    pub(in crate::runtime) fn learn(&mut self, levels: &[Vec<i8>]) -> bool {
        let spec = self.spec;
        let (keys, values) = levels.split_at(spec.num_heads.min(levels.len()));
        // At other positions a key's pairs are turned by other angles, so the pair's length counts.
        let key = |row: &[i8], channel: usize| {
            f32::from(row[channel]).hypot(f32::from(row[spec.partner(channel)]))
        };
        let value = |row: &[i8], channel: usize| f32::from(row[channel]).abs();
        let width = spec.head_width;
        let are_settled = [
            fitted(self.keys.chunks_exact_mut(width).zip(keys), KEY_MARGIN, key),
            fitted(self.values.chunks_exact_mut(width).zip(values), VALUE_MARGIN, value),
        ];
        are_settled.iter().all(|is_settled| *is_settled)
    }
}

/// Fits the scales of each head to its levels, of which `size` returns the size in a channel.
/// Returns whether the scales hardly changed.
fn fitted<'a>(
    heads: impl Iterator<Item = (&'a mut [f32], &'a Vec<i8>)>,
    margin: f32,
    size: impl Fn(&[i8], usize) -> f32,
) -> bool {
    let mut is_settled = true;
    for (scales, levels) in heads {
        let width = scales.len();
        for (channel, scale) in scales.iter_mut().enumerate() {
            let sizes = levels.chunks_exact(width).map(|row| size(row, channel));
            let largest = sizes.fold(0.0, f32::max);
            let factor = match largest >= MAX_LEVEL {
                true => GROWTH,
                false => largest.max(BELOW_ONE) * margin / MAX_LEVEL,
            };
            let next = (*scale * factor).max(LEAST);
            is_settled &= (next / *scale - 1.0).abs() <= SETTLED;
            *scale = next;
        }
    }
    is_settled
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{family::CacheType, module::Pairs};

    const SPEC: CacheSpec = CacheSpec {
        num_heads: 1,
        head_width: 4,
        cache_type: CacheType::Int8,
        pairs: Pairs::Halves,
    };

    /// Returns the levels of a position with these keys and values.
    #[expect(clippy::cast_possible_truncation, reason = "levels are clamped")]
    fn levels(scales: &ChannelScales, keys: [f32; 4], values: [f32; 4]) -> Vec<Vec<i8>> {
        let level =
            |(value, scale): (f32, &f32)| (value / scale).round().clamp(-128.0, 127.0) as i8;
        [(keys, &scales.keys), (values, &scales.values)]
            .map(|(row, scales)| row.into_iter().zip(scales).map(level).collect())
            .to_vec()
    }

    #[test]
    fn scales_settle_with_a_margin_above_the_largest_value() {
        let (keys, values) = ([3.0, 300.0, -4.0, 0.0], [0.001, -2.0, 1e6, 0.0]);
        let mut scales = ChannelScales::new(SPEC);
        let num_passes = (1..30).find(|_| scales.learn(&levels(&scales, keys, values)));
        assert!(num_passes.is_some_and(|num| num <= 12), "{num_passes:?} {scales:?}");
        // Keys 0 and 2 turn together and have the length 5; those of 1 and 3 the length 300.
        let near = |scale: f32, most: f32| (scale * MAX_LEVEL / most - 1.0).abs() < 0.02;
        let lengths = [5.0, 300.0, 5.0, 300.0].into_iter().zip(&scales.keys);
        assert!(lengths.into_iter().all(|(length, scale)| near(*scale, length * KEY_MARGIN)));
        let sizes = [0.001, 2.0, 1e6].into_iter().zip(&scales.values);
        assert!(sizes.into_iter().all(|(size, scale)| near(*scale, size * VALUE_MARGIN)));
    }
}
