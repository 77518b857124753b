//! Ridge regression from sums of products, so that rows need not be kept.

use faer::{Accum, Mat, MatRef, Par, Side, linalg::matmul::matmul, prelude::Solve};

/// Sums for a regression of `outputs` targets on `inputs` features.
#[derive(Debug)]
pub(super) struct Regression {
    inputs: usize,
    outputs: usize,
    /// Matrix `[1, x]ᵀ[1, x]`, the constant first.
    gram: Mat<f64>,
    /// Matrix `[1, x]ᵀy`.
    cross: Mat<f64>,
    /// Sum `Σ y²` of each target.
    squares: Vec<f64>,
    rows: usize,
}

/// Fitted affine map `y = W x + b`.
#[derive(Debug, Clone)]
pub(super) struct Affine {
    /// Matrix `W`, `[outputs, inputs]`, row by row.
    pub(super) weight: Vec<f32>,
    /// Vector `b`, `[outputs]`.
    pub(super) bias: Vec<f32>,
    pub(super) inputs: usize,
}

impl Affine {
    /// Returns whether every value is finite in f32, and every weight also in f16.
    pub(super) fn is_finite(&self) -> bool {
        let is_finite = |weight: &f32| half::f16::from_f32(*weight).is_finite();
        self.weight.iter().all(is_finite) && self.bias.iter().all(|value| value.is_finite())
    }
}

impl Regression {
    pub(super) fn new(inputs: usize, outputs: usize) -> Self {
        Self {
            inputs,
            outputs,
            gram: Mat::zeros(inputs + 1, inputs + 1),
            cross: Mat::zeros(inputs + 1, outputs),
            squares: vec![0.0; outputs],
            rows: 0,
        }
    }

    /// Returns the number of rows added.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Adds rows of features `[rows, inputs]` and targets `[rows, outputs]`.
    pub(super) fn add(&mut self, features: &[f32], targets: &[f32]) {
        let rows = features.len() / self.inputs;
        let x = MatRef::from_row_major_slice(features, rows, self.inputs);
        let y = MatRef::from_row_major_slice(targets, rows, self.outputs);
        let mut gram = Mat::<f32>::zeros(self.inputs, self.inputs);
        let mut cross = Mat::<f32>::zeros(self.inputs, self.outputs);
        let par = Par::rayon(0);
        matmul(gram.as_mut(), Accum::Replace, x.transpose(), x, 1.0, par);
        matmul(cross.as_mut(), Accum::Replace, x.transpose(), y, 1.0, par);
        self.add_products(&gram, &cross);
        for row in 0..rows {
            for input in 0..self.inputs {
                let value = f64::from(x[(row, input)]);
                self.gram[(0, input + 1)] += value;
                self.gram[(input + 1, 0)] += value;
            }
            for output in 0..self.outputs {
                let value = f64::from(y[(row, output)]);
                self.cross[(0, output)] += value;
                self.squares[output] += value * value;
            }
            self.gram[(0, 0)] += 1.0;
        }
        self.rows += rows;
    }

    /// Solves with the ridge `regularization`, relative to the mean of the features' squares. The
    /// constant is not penalised. Returns `None` if the equations have no solution.
    pub(super) fn solve(&self, regularization: f64) -> Option<Affine> {
        let n = self.inputs + 1;
        #[expect(clippy::cast_precision_loss, reason = "features are few")]
        let mean = (1..n).map(|i| self.gram[(i, i)]).sum::<f64>() / self.inputs as f64;
        let mut gram = self.gram.clone();
        (1..n).for_each(|i| gram[(i, i)] += regularization * mean);
        let solution = gram.llt(Side::Lower).ok()?.solve(&self.cross);
        #[expect(clippy::cast_possible_truncation, reason = "weights are kept in f32")]
        let at = |row: usize, column: usize| solution[(row, column)] as f32;
        Some(Affine {
            weight: (0..self.outputs)
                .flat_map(|output| (1..n).map(move |input| (input, output)))
                .map(|(input, output)| at(input, output))
                .collect(),
            bias: (0..self.outputs).map(|output| at(0, output)).collect(),
            inputs: self.inputs,
        })
    }

    /// Returns the fraction of these rows' variance that `map` explains, over all targets. It is 0
    /// if the targets do not vary.
    pub(super) fn explained(&self, map: &Affine) -> f64 {
        let n = self.inputs + 1;
        let weights = Mat::from_fn(n, self.outputs, |row, output| {
            f64::from(match row {
                0 => map.bias[output],
                _ => map.weight[output * self.inputs + row - 1],
            })
        });
        let projected = &self.gram * &weights;
        let mut residual = 0.0;
        let mut total = 0.0;
        for output in 0..self.outputs {
            let explained: f64 = (0..n)
                .map(|row| {
                    weights[(row, output)]
                        * (projected[(row, output)] - 2.0 * self.cross[(row, output)])
                })
                .sum();
            residual += self.squares[output] + explained;
            total += self.squares[output] - self.cross[(0, output)].powi(2) / self.gram[(0, 0)];
        }
        if total == 0.0 { 0.0 } else { 1.0 - residual / total }
    }

    fn add_products(&mut self, gram: &Mat<f32>, cross: &Mat<f32>) {
        for column in 0..self.inputs {
            for row in 0..self.inputs {
                self.gram[(row + 1, column + 1)] += f64::from(gram[(row, column)]);
            }
        }
        for column in 0..self.outputs {
            for row in 0..self.inputs {
                self.cross[(row + 1, column)] += f64::from(cross[(row, column)]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_that_overflow_give_no_map_and_those_that_do_not_vary_explain_nothing() {
        for (target, is_finite) in [(f32::NAN, false), (3e38, false), (2.0, true)] {
            let mut regression = Regression::new(1, 1);
            regression.add(&[1.0, 2.0, 3.0], &[target; 3]);
            let map = regression.solve(1e-3).expect("solvable");
            assert_eq!(map.is_finite(), is_finite, "{target}");
            if is_finite {
                assert!(regression.explained(&map).abs() < f64::EPSILON);
            }
        }
    }

    #[test]
    fn an_affine_map_is_found_again() {
        let mut regression = Regression::new(2, 1);
        let points = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [-1.0, 3.0]];
        let features: Vec<f32> = points.iter().flatten().copied().collect();
        let targets: Vec<f32> = points.iter().map(|[a, b]| 3.0 * a - 2.0 * b + 5.0).collect();
        regression.add(&features, &targets);
        let map = regression.solve(1e-9).expect("solvable");
        for (found, expected) in map.weight.iter().chain(&map.bias).zip([3.0, -2.0, 5.0]) {
            assert!((found - expected).abs() < 1e-4, "{found} is not {expected}");
        }
        assert!(regression.explained(&map) > 0.999_99);
    }
}
