//! Exponentials of many numbers, as processors compute several at once.

/// Numbers under which an exponential is 0.
const LEAST: f32 = -87.0;

/// Logarithm of 2 in two parts, so that a multiple of the first is exact.
const LN_2_HIGH: f32 = 355.0 / 512.0;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// Number whose addition rounds to a whole one, which the lowest bits of the sum then are.
const ROUNDING: f32 = 12_582_912.0;

/// Returns the exponential of `number`, which is at most 0, with a relative error under 3e-7.
///
/// The compiler makes instructions for several numbers of it, and none of the library's. The
/// result is the same on every machine.
#[inline]
pub(super) fn exponential(number: f32) -> f32 {
    let rounded = number.max(LEAST) * std::f32::consts::LOG2_E + ROUNDING;
    let power = rounded - ROUNDING;
    let rest = number.max(LEAST) - power * LN_2_HIGH - power * LN_2_LOW;
    let series = 1.0 / 720.0;
    let series = rest * series + 1.0 / 120.0;
    let series = rest * series + 1.0 / 24.0;
    let series = rest * series + 1.0 / 6.0;
    let series = rest * series + 0.5;
    let series = rest * series + 1.0;
    let series = rest * series + 1.0;
    let scaled = f32::from_bits(series.to_bits().wrapping_add(rounded.to_bits() << 23));
    if number < LEAST { 0.0 } else { scaled }
}

/// Returns the sum of `numbers`, as doubles in an order that several additions share.
pub(super) fn sum(numbers: &[f32]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0_f64; LANES];
    let (chunks, rest) = numbers.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, number) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(*number);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|number| f64::from(*number)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_those_of_the_library() {
        for step in 0..43_500_u16 {
            let number = f32::from(step) * -0.002;
            let (found, expected) = (exponential(number), number.exp());
            assert!((found - expected).abs() <= expected * 3e-7, "{number}: {found}, {expected}");
        }
        assert_eq!(exponential(0.0).to_bits(), 1.0_f32.to_bits());
        assert_eq!(exponential(-88.0).to_bits(), 0);
        assert_eq!(exponential(f32::NEG_INFINITY).to_bits(), 0);
    }

    #[test]
    fn a_sum_has_all_numbers() {
        let numbers: Vec<f32> = (1_u8..=19).map(f32::from).collect();
        assert!((sum(&numbers) - 190.0).abs() < 1e-9);
    }
}
