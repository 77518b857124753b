//! Outputs of batches, which are concatenated and split among requests. This module is pure.

use std::ops::Range;

use crate::{
    input::ModelInput,
    plan::Shape,
    serve::request::inputs::are_finite,
    tensor::{Tensor, TensorData},
};

/// Outputs of one request or one run: the family's output, then the further outputs of its heads.
pub(crate) type Outputs = Vec<Tensor>;

/// Concatenates the outputs of runs. Outputs with a row for each token are padded with zeros to the
/// longest sequence.
pub(crate) fn concatenate(mut runs: Vec<Outputs>) -> Outputs {
    if runs.len() == 1 {
        return runs.swap_remove(0);
    }
    let count = runs.iter().map(Vec::len).min().unwrap_or(0);
    let longest = runs.iter().flatten().map(tokens).max().unwrap_or(1);
    let joined = |index: usize| {
        let parts = runs.iter().map(|run| rows(&run[index], 0..batch(&run[index]), longest));
        let parts: Vec<Tensor> = parts.collect();
        let mut shape = parts[0].shape().to_vec();
        shape[0] = parts.iter().map(batch).sum();
        let values = parts.iter().flat_map(|part| part.floats());
        tensor(shape, values.copied().collect())
    };
    (0..count).map(joined).collect()
}

/// Splits the outputs of a run among its requests. `shapes` are the requests' sequences and tokens.
pub(crate) fn split(outputs: Outputs, shapes: &[Shape]) -> Vec<Outputs> {
    if let [Shape { tokens: own, .. }] = shapes
        && outputs.iter().all(|output| !has_tokens(output) || tokens(output) == *own)
    {
        return vec![outputs];
    }
    let mut start = 0;
    let own = |Shape { batch, tokens }: &Shape| {
        let end = start + batch;
        let own = outputs.iter().map(|output| rows(output, start..end, *tokens)).collect();
        start = end;
        own
    };
    shapes.iter().map(own).collect()
}

/// Places in sequences that are tokens, not padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Places {
    /// Number of places in a sequence.
    tokens: usize,
    /// Value of each place, sequence by sequence: 1 for a token, 0 for padding.
    mask: Vec<i64>,
}

impl Places {
    /// Returns the places of `input`, or `None` if it has no tokens.
    pub(crate) fn of(input: &ModelInput) -> Option<Self> {
        match input {
            ModelInput::Tokens(encoding) => {
                Some(Self { tokens: encoding.tokens, mask: encoding.attention_mask.clone() })
            }
            ModelInput::Pixels(_) => None,
        }
    }

    /// Returns whether the place `place` of the sequence `sequence` is a token.
    fn is_token(&self, sequence: usize, place: usize) -> bool {
        let index = sequence * self.tokens + place;
        place < self.tokens && self.mask.get(index).is_some_and(|mask| *mask != 0)
    }
}

/// Returns whether every value that belongs to a request is a finite number. Sets values of padding
/// that are not finite to 0. `first` is the request's first sequence among those of `places`.
pub(crate) fn check(outputs: &mut Outputs, first: usize, places: Option<&Places>) -> bool {
    outputs.iter_mut().all(|output| {
        if are_finite(output.floats()) {
            return true;
        }
        let Some(places) = places.filter(|_| has_tokens(output)) else { return false };
        let (shape, num_places) = (output.shape().to_vec(), tokens(output));
        let width = shape.last().copied().unwrap_or(1).max(1);
        let mut values = output.floats().to_vec();
        for (row, values) in values.chunks_exact_mut(width).enumerate() {
            if !are_finite(values) && places.is_token(first + row / num_places, row % num_places) {
                return false;
            }
            values.iter_mut().filter(|value| !value.is_finite()).for_each(|value| *value = 0.0);
        }
        *output = tensor(shape, values);
        true
    })
}

/// Returns the sequences `rows` of an output. Outputs with a row for each token get `length`
/// rows a sequence.
fn rows(output: &Tensor, rows: Range<usize>, length: usize) -> Tensor {
    let values = output.floats();
    let mut shape = output.shape().to_vec();
    shape[0] = rows.len();
    let sequence: usize = output.shape()[1..].iter().product();
    let own = &values[rows.start * sequence..rows.end * sequence];
    if !has_tokens(output) || tokens(output) == length {
        return tensor(shape, own.to_vec());
    }
    let wanted = length * (sequence / tokens(output).max(1));
    let mut cut = Vec::with_capacity(rows.len() * wanted);
    for sequence in own.chunks_exact(sequence.max(1)) {
        cut.extend(sequence.iter().copied().chain(std::iter::repeat(0.0)).take(wanted));
    }
    shape[1] = length;
    tensor(shape, cut)
}

/// Returns whether the shape of `output` is `[batch, tokens, width]`.
fn has_tokens(output: &Tensor) -> bool {
    output.shape().len() == 3
}

fn batch(output: &Tensor) -> usize {
    output.shape()[0]
}

fn tokens(output: &Tensor) -> usize {
    if has_tokens(output) { output.shape()[1] } else { 1 }
}

fn tensor(shape: Vec<usize>, values: Vec<f32>) -> Tensor {
    Tensor::new(shape, TensorData::F32(values)).expect("as many values as the shape says")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(shape: &[usize], first: u8) -> Tensor {
        let values = (first..).map(f32::from).take(shape.iter().product());
        tensor(shape.to_vec(), values.collect())
    }

    #[test]
    fn values_that_are_no_numbers_are_found_but_not_in_padding() {
        let mask = vec![1, 1, 1, 1, 0, 0];
        let places = Places { tokens: 3, mask };
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let pooled = |values: [f32; 2]| vec![tensor(vec![2, 1], values.to_vec())];
            assert!(check(&mut pooled([1.0, f32::MAX]), 0, Some(&places)));
            assert!(!check(&mut pooled([1.0, bad]), 0, Some(&places)));
            assert!(!check(&mut pooled([bad, 1.0]), 0, None));
            // The second sequence has one token, and its request may be shorter than the batch.
            let of_tokens = |place: usize| {
                let mut values = vec![1.0, 2.0];
                values[place] = bad;
                vec![numbered(&[1, 1], 0), tensor(vec![1, 2, 1], values)]
            };
            assert!(!check(&mut of_tokens(0), 1, Some(&places)));
            assert!(!check(&mut of_tokens(1), 0, Some(&places)));
            assert!(!check(&mut of_tokens(1), 1, None));
            let mut padded = of_tokens(1);
            assert!(check(&mut padded, 1, Some(&places)));
            assert_eq!(padded[1], tensor(vec![1, 2, 1], vec![1.0, 0.0]));
        }
    }

    #[test]
    fn rows_go_to_the_requests_that_they_belong_to() {
        let whole = numbered(&[3, 2], 0);
        let parts = split(vec![whole.clone()], &[Shape::new(1, 9), Shape::new(2, 4)]);
        assert_eq!(parts, [vec![numbered(&[1, 2], 0)], vec![numbered(&[2, 2], 2)]]);
        assert_eq!(concatenate(parts), vec![whole.clone()]);
        assert_eq!(split(vec![whole.clone()], &[Shape::new(3, 7)]), vec![vec![whole]]);
    }

    #[test]
    fn rows_of_tokens_are_cut_and_filled_up_to_a_request_s_own_length() {
        let run = vec![numbered(&[2, 3, 1], 1), numbered(&[2, 3, 2], 10)];
        let parts = split(run, &[Shape::new(1, 2), Shape::new(1, 4)]);
        assert_eq!(parts[0], [numbered(&[1, 2, 1], 1), numbered(&[1, 2, 2], 10)]);
        assert_eq!(parts[1][0], tensor(vec![1, 4, 1], vec![4.0, 5.0, 6.0, 0.0]));
        let both = concatenate(parts);
        assert_eq!(both[0], tensor(vec![2, 4, 1], vec![1.0, 2.0, 0.0, 0.0, 4.0, 5.0, 6.0, 0.0]));
        assert_eq!(both[1].shape(), [2, 4, 2]);
    }
}
