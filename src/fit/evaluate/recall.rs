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
        let nearest = nearest(&products(&reference, &reference, width));
        Self { reference, width, nearest }
    }

    /// Returns recall@10 of each text, whose mean is the recall of the plan.
    ///
    /// Each row of `embeddings` finds its ten nearest among the *reference's* embeddings of the
    /// other texts. Recall is the fraction of them that the reference itself finds.
    pub(super) fn recalls(&self, embeddings: &[f32]) -> Vec<f64> {
        self.recalls_of(&products(embeddings, &self.reference, self.width))
    }

    /// Returns recall@10 of each text by the products of its row and those of the reference.
    #[expect(clippy::cast_precision_loss, reason = "counts of texts are small")]
    pub(super) fn recalls_of(&self, products: &Mat<f32>) -> Vec<f64> {
        let found = nearest(products);
        let pairs = found.iter().zip(&self.nearest);
        let recall = |(found, nearest): (&Vec<usize>, &Vec<usize>)| {
            let hits = found.iter().filter(|place| nearest.contains(place)).count();
            hits as f64 / nearest.len().max(1) as f64
        };
        pairs.map(recall).collect()
    }

    /// Returns the reference's embeddings.
    pub(super) fn reference(&self) -> &[f32] {
        &self.reference
    }
}

/// Returns for each query, a column of `products`, the rows with the largest ones. The row at the
/// same position is left out.
pub(super) fn nearest(products: &Mat<f32>) -> Vec<Vec<usize>> {
    let rows = products.nrows();
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

/// Returns the products of the rows of `queries` and `corpus`; those of a query are one column.
pub(super) fn products(queries: &[f32], corpus: &[f32], width: usize) -> Mat<f32> {
    let rows = corpus.len().checked_div(width).unwrap_or(0);
    let view = |values| MatRef::from_row_major_slice(values, rows, width);
    let mut products = Mat::<f32>::zeros(rows, rows);
    matmul(
        products.as_mut(),
        Accum::Replace,
        view(corpus),
        view(queries).transpose(),
        1.0,
        Par::rayon(0),
    );
    products
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
        let recalls = |turn| neighbours.recalls(&circle(100, turn));
        assert!(recalls(0.0).iter().all(|recall| (recall - 1.0).abs() < 1e-9));
        assert!(recalls(std::f32::consts::PI).iter().all(|recall| *recall < 1e-9));
    }
}
