//! Recall of nearest neighbours, a measure of how well a plan's embeddings replace the reference's.

use faer::{Accum, Mat, MatRef, Par, linalg::matmul::matmul};

/// Number of neighbours that are compared.
const NEIGHBOURS: usize = 10;

/// Embeddings of the reference, and the nearest neighbours of each of them.
#[derive(Debug)]
pub(super) struct Neighbours {
    reference: Vec<f32>,
    width: usize,
    nearest: Vec<Vec<usize>>,
}

impl Neighbours {
    /// Finds the neighbours of each row of `reference` among the other rows. Rows have unit length;
    /// the shape is `[texts, width]`.
    pub(super) fn new(reference: Vec<f32>, width: usize) -> Self {
        let nearest = nearest(&reference, &reference, width);
        Self { reference, width, nearest }
    }

    /// Returns recall@10.
    ///
    /// Each row of `embeddings` finds its ten nearest among the *reference's* embeddings of the
    /// other texts. Recall is the mean fraction of them that the reference itself finds.
    #[expect(clippy::cast_precision_loss, reason = "counts of texts are small")]
    pub(super) fn recall(&self, embeddings: &[f32]) -> f64 {
        let found = nearest(embeddings, &self.reference, self.width);
        let hits: usize = found
            .iter()
            .zip(&self.nearest)
            .map(|(found, nearest)| found.iter().filter(|i| nearest.contains(i)).count())
            .sum();
        let wanted: usize = self.nearest.iter().map(Vec::len).sum();
        hits as f64 / wanted.max(1) as f64
    }
}

/// Returns for each row of `queries` the rows of `corpus` with the largest products. The row at the
/// same position is left out.
fn nearest(queries: &[f32], corpus: &[f32], width: usize) -> Vec<Vec<usize>> {
    let rows = corpus.len().checked_div(width).unwrap_or(0);
    let view = |values| MatRef::from_row_major_slice(values, rows, width);
    let mut products = Mat::<f32>::zeros(rows, rows);
    // The product is transposed, so that a query's products are one column.
    matmul(
        products.as_mut(),
        Accum::Replace,
        view(corpus),
        view(queries).transpose(),
        1.0,
        Par::rayon(0),
    );
    (0..rows)
        .map(|query| {
            let column = products.col(query);
            let mut others: Vec<usize> = (0..rows).filter(|row| *row != query).collect();
            let k = NEIGHBOURS.min(others.len());
            if k < others.len() {
                others.select_nth_unstable_by(k, |a, b| column[*b].total_cmp(&column[*a]));
            }
            others.truncate(k);
            others
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns points on a circle, whose neighbours are known.
    fn circle(count: usize, turn: f32) -> Vec<f32> {
        (0..count)
            .flat_map(|i| {
                #[expect(clippy::cast_precision_loss, reason = "small")]
                let angle = turn + i as f32 / count as f32 * std::f32::consts::TAU;
                [angle.cos(), angle.sin()]
            })
            .collect()
    }

    #[test]
    fn the_reference_recalls_itself_and_its_mirror_image_nothing() {
        let neighbours = Neighbours::new(circle(100, 0.0), 2);
        assert!((neighbours.recall(&circle(100, 0.0)) - 1.0).abs() < 1e-9);
        assert!(neighbours.recall(&circle(100, std::f32::consts::PI)) < 1e-9);
    }
}
