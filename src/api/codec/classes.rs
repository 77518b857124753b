//! The best classes of an answer by name: the protocol's classification extension.

use crate::tensor::{Tensor, TensorData};

/// Returns the `count` best classes of each row of `scores`. A class is written as in Triton:
/// `score:index:label`.
///
/// # Shapes
///
/// - scores: \[batch, classes\] f32
/// - returned: \[batch, count\] BYTES
pub(crate) fn best_classes(scores: &Tensor, count: usize, labels: &[String]) -> Tensor {
    let width = scores.shape().last().copied().unwrap_or(1).max(1);
    let rows = scores.as_f32().unwrap_or_default().chunks(width);
    let mut named = Vec::new();
    for row in rows {
        let mut ranked: Vec<(usize, f32)> = row.iter().copied().enumerate().collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        named.extend(ranked.into_iter().take(count).map(|(index, score)| {
            let label = labels.get(index).map_or("", String::as_str);
            format!("{score:.6}:{index}:{label}").into_bytes()
        }));
    }
    let shape = vec![named.len() / count.max(1), count];
    Tensor::new(shape, TensorData::Bytes(named)).expect("every row has as many classes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_classes_come_first() {
        let scores = TensorData::F32(vec![0.5, 2.0, -1.0, 3.0, 0.0, 3.0]);
        let scores = Tensor::new(vec![2, 3], scores).expect("a tensor");
        let labels = ["cat", "dog", "cow"].map(str::to_owned);
        let named = best_classes(&scores, 2, &labels);
        assert_eq!(named.shape(), [2, 2]);
        let expected = ["2.000000:1:dog", "0.500000:0:cat", "3.000000:0:cat", "3.000000:2:cow"];
        let expected = expected.iter().map(|text| text.as_bytes().to_vec()).collect();
        assert_eq!(named.data(), &TensorData::Bytes(expected));
    }
}
