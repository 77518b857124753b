//! Costs as a function of batch size and token count, measured at a few shapes.
//!
//! A grid interpolates and does not measure. It has no unit: one type holds both seconds and bytes.

use serde::{Deserialize, Serialize};

use super::{error::PlanError, limits::MAX_VALUE, shape::Shape};

/// Values at the knots batches × tokens, interpolated between the knots and extrapolated beyond
/// them.
///
/// - Between knots: bilinear interpolation. Below the first knot: the value at the first knot.
/// - Beyond the last token knot: the line through the last two values, but never below the last
///   one.
/// - Beyond the last batch knot: the sum over chunks of at most that size, as callers run them
///   ([`Grid::at`]).
///
/// Deserialization makes the checks of [`Grid::new`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedGrid")]
pub struct Grid {
    batches: Vec<usize>,
    tokens: Vec<usize>,
    values: Vec<f64>,
}

/// A [`Grid`] as read from a file, before its checks.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UncheckedGrid {
    batches: Vec<usize>,
    tokens: Vec<usize>,
    values: Vec<f64>,
}

impl TryFrom<UncheckedGrid> for Grid {
    type Error = PlanError;

    fn try_from(unchecked: UncheckedGrid) -> Result<Self, PlanError> {
        Self::new(unchecked.batches, unchecked.tokens, unchecked.values)
    }
}

impl Grid {
    /// Creates a grid from its knots and the values at them.
    ///
    /// # Shapes
    ///
    /// - values: `[batches, tokens]`, row by row.
    ///
    /// # Errors
    ///
    /// Fails on an axis that is empty, starts below 1 or does not increase strictly. Fails on a
    /// wrong number of values, or a value outside [0, 1e18].
    pub fn new(
        batches: Vec<usize>,
        tokens: Vec<usize>,
        values: Vec<f64>,
    ) -> Result<Self, PlanError> {
        check_axis("batches", &batches)?;
        check_axis("tokens", &tokens)?;
        if batches.len().checked_mul(tokens.len()) != Some(values.len()) {
            return Err(PlanError::WrongNumValues {
                num_batches: batches.len(),
                num_tokens: tokens.len(),
                num_values: values.len(),
            });
        }
        let refused = |value: &f64| !(0.0..=MAX_VALUE).contains(value);
        if let Some(position) = values.iter().position(refused) {
            return Err(PlanError::InvalidValue { position, value: values[position] });
        }
        Ok(Self { batches, tokens, values })
    }

    /// Adds grids knot by knot, for the latencies of modules that run one after another.
    ///
    /// # Errors
    ///
    /// Fails when `grids` is empty, the axes differ, or a sum exceeds 1e18.
    pub fn sum<'a>(grids: impl IntoIterator<Item = &'a Self>) -> Result<Self, PlanError> {
        Self::combine(grids, |left, right| left + right)
    }

    /// Takes the largest value knot by knot, for the activations of modules that run one after
    /// another.
    ///
    /// # Errors
    ///
    /// Fails when `grids` is empty or the axes differ.
    pub fn max<'a>(grids: impl IntoIterator<Item = &'a Self>) -> Result<Self, PlanError> {
        Self::combine(grids, f64::max)
    }

    /// Multiplies every value by `factor`.
    ///
    /// # Errors
    ///
    /// Fails on a product outside [0, 1e18].
    pub fn scale(&self, factor: f64) -> Result<Self, PlanError> {
        let values = self.values.iter().map(|value| value * factor).collect();
        Self::new(self.batches.clone(), self.tokens.clone(), values)
    }

    /// Returns the grid of a module that runs one row at a time. It keeps the first batch knot
    /// only, so that larger batches are chunks.
    #[must_use]
    pub fn of_first_batch(&self) -> Self {
        Self {
            batches: self.batches[..1].to_vec(),
            tokens: self.tokens.clone(),
            values: self.values[..self.tokens.len()].to_vec(),
        }
    }

    /// Returns the batch knots.
    pub fn batches(&self) -> &[usize] {
        &self.batches
    }

    /// Returns the token knots.
    pub fn tokens(&self) -> &[usize] {
        &self.tokens
    }

    /// Returns the values at the knots, in row-major order.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// Returns the value at the smallest shape.
    pub fn first(&self) -> f64 {
        self.values[0]
    }

    /// Returns the value for a whole batch. Beyond the last batch knot it is the sum over the
    /// chunks.
    pub fn at(&self, batch: usize, tokens: usize) -> f64 {
        self.sum_at(&self.locate(batch, tokens))
    }

    /// Returns the value for the largest chunk of a batch. Memory follows it, because chunks run
    /// one after another.
    pub fn peak(&self, batch: usize, tokens: usize) -> f64 {
        self.peak_at(&self.locate(batch, tokens))
    }

    /// Scales the knots around a shape so that the value there becomes about `factor` times as
    /// large. Each knot stays within [1/`most`, `most`] times its value in `measured`. Batches
    /// beyond the last knot change nothing.
    pub fn bend(
        &mut self,
        Shape { batch, tokens }: Shape,
        factor: f64,
        measured: &Self,
        most: f64,
    ) {
        let place = self.locate(batch, tokens);
        if place.num_full > 0.0 || !factor.is_finite() || !self.has_axes_of(measured) {
            return;
        }
        let Cell { row, column } = place.largest;
        let (rows, columns) = (row.parts(), column.parts());
        let parts = || {
            rows.into_iter().flat_map(|(row, part)| {
                columns.into_iter().map(move |(column, other)| (row, column, part * other))
            })
        };
        let squares: f64 = parts().map(|(.., part)| part * part).sum();
        for (row, column, part) in parts().filter(|(.., part)| *part > 0.0) {
            let index = row * self.tokens.len() + column;
            let bounds = (measured.values[index] / most, measured.values[index] * most);
            let value = self.values[index] * factor.powf(part / squares);
            self.values[index] = value.clamp(bounds.0, bounds.1).min(MAX_VALUE);
        }
    }

    /// Returns whether both grids have equal axes, so that a [`Place`] on one is valid on the
    /// other.
    pub(super) fn has_axes_of(&self, other: &Self) -> bool {
        self.batches == other.batches && self.tokens == other.tokens
    }

    /// Returns the place of a shape on the axes, which is valid on all grids with equal axes.
    pub(super) fn locate(&self, batch: usize, tokens: usize) -> Place {
        let largest = self.batches[self.batches.len() - 1];
        let column = locate_on(&self.tokens, tokens);
        let cell = |batch| Cell { row: locate_on(&self.batches, batch), column };
        if batch <= largest {
            return Place { num_full: 0.0, largest: cell(batch), rest: None };
        }
        let rest = batch % largest;
        Place {
            num_full: to_f64(batch / largest),
            largest: cell(largest),
            rest: (rest > 0).then(|| cell(rest)),
        }
    }

    /// Returns the value of [`Grid::at`] for a place on these axes.
    pub(super) fn sum_at(&self, place: &Place) -> f64 {
        let largest = self.value(place.largest);
        if place.num_full > 0.0 {
            return place.num_full * largest + place.rest.map_or(0.0, |cell| self.value(cell));
        }
        largest
    }

    /// Returns the value of [`Grid::peak`] for a place on these axes.
    pub(super) fn peak_at(&self, place: &Place) -> f64 {
        self.value(place.largest)
    }

    /// Returns the value for a batch of at most the last batch knot.
    fn value(&self, Cell { row, column }: Cell) -> f64 {
        let below = self.interpolate_row(row.knot, column);
        if row.fraction > 0.0 {
            let above = self.interpolate_row(row.knot + 1, column);
            return below + (above - below) * row.fraction;
        }
        below
    }

    fn interpolate_row(&self, row: usize, column: Position) -> f64 {
        let start = row * self.tokens.len() + column.knot;
        let left = self.values[start];
        if column.fraction > 0.0 {
            let right = self.values[start + 1];
            let value = left + (right - left) * column.fraction;
            return if column.fraction > 1.0 { value.max(right) } else { value };
        }
        left
    }

    fn combine<'a>(
        grids: impl IntoIterator<Item = &'a Self>,
        operation: impl Fn(f64, f64) -> f64,
    ) -> Result<Self, PlanError> {
        let mut grids = grids.into_iter();
        let mut combined = grids.next().ok_or(PlanError::GridMismatch)?.clone();
        for grid in grids {
            if !grid.has_axes_of(&combined) {
                return Err(PlanError::GridMismatch);
            }
            for (value, other) in combined.values.iter_mut().zip(&grid.values) {
                *value = operation(*value, *other);
            }
        }
        Self::new(combined.batches, combined.tokens, combined.values)
    }
}

/// Place of a batch of sequences on the axes of a grid.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Number of full chunks; 0 for a batch that fits one chunk.
    num_full: f64,
    /// The full chunk, or the whole batch if it fits one chunk.
    largest: Cell,
    /// The rest after the full chunks, or `None` if nothing is left.
    rest: Option<Cell>,
}

/// A point between knots of both axes.
#[derive(Clone, Copy)]
struct Cell {
    row: Position,
    column: Position,
}

/// A point on an axis: a knot and the fraction of the way to the next knot. The fraction exceeds 1
/// beyond the last knot.
#[derive(Clone, Copy)]
struct Position {
    knot: usize,
    fraction: f64,
}

/// Returns the position of `coordinate` on `axis`. The fraction is exactly 0 at a knot and below
/// the first knot.
fn locate_on(axis: &[usize], coordinate: usize) -> Position {
    let num_passed = axis.partition_point(|knot| *knot <= coordinate);
    if num_passed == 0 {
        return Position { knot: 0, fraction: 0.0 };
    }
    let is_at_end = axis.len() == 1 || axis[num_passed - 1] == coordinate;
    if is_at_end {
        return Position { knot: num_passed - 1, fraction: 0.0 };
    }
    let knot = (num_passed - 1).min(axis.len() - 2);
    let distance = to_f64(coordinate - axis[knot]);
    Position { knot, fraction: distance / to_f64(axis[knot + 1] - axis[knot]) }
}

impl Position {
    /// Returns the two knots around the point with their weights in the interpolated value.
    fn parts(self) -> [(usize, f64); 2] {
        let fraction = self.fraction.clamp(0.0, 1.0);
        [(self.knot, 1.0 - fraction), (self.knot + 1, fraction)]
    }
}

fn check_axis(axis: &'static str, knots: &[usize]) -> Result<(), PlanError> {
    if knots.is_empty() {
        return Err(PlanError::EmptyAxis { axis });
    }
    let mut previous = 0;
    for (position, &value) in knots.iter().enumerate() {
        if value <= previous {
            return Err(PlanError::UnorderedAxis { axis, position, value });
        }
        previous = value;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "batches and lengths stay far below 2^53")]
fn to_f64(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, prop_assert, prop_assert_eq, proptest};

    use super::Grid;
    use crate::plan::{PlanError, Shape};

    /// Returns a grid of 1 ms per item plus 10 µs per token of it. Its knots are batches 1, 2 and
    /// 4, and 8, 16 and 32 tokens.
    fn linear_grid() -> Grid {
        let (batches, tokens) = (vec![1, 2, 4], vec![8, 16, 32]);
        let value = |batch: f64, tokens: f64| batch * (1e-3 + 1e-5 * tokens);
        let values = [1.0, 2.0, 4.0]
            .iter()
            .flat_map(|batch| [8.0, 16.0, 32.0].map(|tokens| value(*batch, tokens)))
            .collect();
        Grid::new(batches, tokens, values).expect("the grid is valid")
    }

    fn close(left: f64, right: f64) -> bool {
        (left - right).abs() <= 1e-12 * left.abs().max(right.abs())
    }

    /// Returns grids whose values grow along both axes.
    fn monotone_grids() -> impl Strategy<Value = Grid> {
        let axis = || proptest::collection::btree_set(1_usize..50, 1..5);
        let increments = proptest::collection::vec(0.0..1.0_f64, 16);
        (axis(), axis(), increments).prop_map(|(batches, tokens, increments)| {
            let columns = tokens.len();
            let mut values = vec![0.0_f64; batches.len() * columns];
            for index in 0..values.len() {
                let above = if index < columns { 0.0 } else { values[index - columns] };
                let before = if index % columns == 0 { 0.0 } else { values[index - 1] };
                values[index] = above.max(before) + increments[index];
            }
            Grid::new(batches.into_iter().collect(), tokens.into_iter().collect(), values)
                .expect("the grid is valid")
        })
    }

    #[test]
    fn bending_moves_the_value_of_a_shape_and_leaves_what_is_far() {
        let measured = linear_grid();
        for (batch, tokens) in [(1, 8), (3, 8), (3, 12), (4, 40), (1, 5)] {
            let mut grid = measured.clone();
            for _ in 0..200 {
                let ratio = 1.5 * measured.at(batch, tokens) / grid.at(batch, tokens);
                grid.bend(Shape { batch, tokens }, ratio.powf(0.1), &measured, 4.0);
            }
            let ratio = grid.at(batch, tokens) / measured.at(batch, tokens);
            assert!((ratio - 1.5).abs() < 0.02, "{batch} {tokens}: {ratio}");
            assert!(close(grid.at(2, 16), measured.at(2, 16)) || batch == 3);
        }
        let mut grid = measured.clone();
        grid.bend(Shape::new(9, 8), 2.0, &measured, 4.0);
        assert_eq!(grid, measured);
        grid.bend(Shape::new(1, 8), 1e9, &measured, 4.0);
        assert!(close(grid.at(1, 8), 4.0 * measured.at(1, 8)));
        grid.bend(Shape::new(1, 8), f64::NAN, &measured, 4.0);
        assert!(close(grid.at(1, 8), 4.0 * measured.at(1, 8)));
    }

    proptest! {
        #[test]
        fn a_grid_is_exact_at_its_knots(grid in monotone_grids()) {
            for (row, batch) in grid.batches().iter().enumerate() {
                for (column, tokens) in grid.tokens().iter().enumerate() {
                    let value = grid.values()[row * grid.tokens().len() + column];
                    prop_assert_eq!(grid.at(*batch, *tokens).to_bits(), value.to_bits());
                    prop_assert_eq!(grid.peak(*batch, *tokens).to_bits(), value.to_bits());
                }
            }
        }

        #[test]
        fn a_monotone_grid_stays_monotone_between_and_beyond_its_knots(
            grid in monotone_grids(), batch in 0_usize..120, tokens in 0_usize..120,
        ) {
            let value = grid.at(batch, tokens);
            let tolerance = 1e-12 * value;
            prop_assert!(grid.at(batch, tokens + 1) >= value - tolerance);
            prop_assert!(grid.peak(batch, tokens) <= value + tolerance);
            // Beyond the last token knot, every row extrapolates with its own slope.
            if tokens <= grid.tokens()[grid.tokens().len() - 1] {
                prop_assert!(grid.at(batch + 1, tokens) >= value - tolerance);
            }
        }
    }

    #[test]
    fn a_linear_cost_is_reproduced_between_knots_and_beyond_the_last_token_knot() {
        let grid = linear_grid();
        assert!(close(grid.at(3, 20), 3.0 * 1.2e-3));
        assert!(close(grid.at(2, 132), 2.0 * 2.32e-3));
    }

    #[test]
    fn below_the_first_knot_the_first_value_holds() {
        let grid = linear_grid();
        assert!(close(grid.at(0, 0), grid.first()));
        assert!(close(grid.at(2, 1), grid.at(2, 8)));
    }

    #[test]
    fn a_batch_beyond_the_last_knot_costs_the_sum_of_its_chunks_but_peaks_as_one() {
        let grid = linear_grid();
        assert!(close(grid.at(11, 16), 2.0 * grid.at(4, 16) + grid.at(3, 16)));
        assert!(close(grid.at(8, 16), 2.0 * grid.at(4, 16)));
        assert!(close(grid.peak(11, 16), grid.at(4, 16)));
    }

    #[test]
    fn a_falling_grid_never_extrapolates_below_its_last_value() {
        let grid = Grid::new(vec![1], vec![1, 2], vec![5.0, 3.0]).expect("the grid is valid");
        assert!(close(grid.at(1, 1000), 3.0));
        let single = Grid::new(vec![1], vec![4], vec![5.0]).expect("the grid is valid");
        assert!(close(single.at(1, 1000), 5.0));
    }

    #[test]
    fn grids_add_peak_and_scale_knot_by_knot() {
        let grid = |values| Grid::new(vec![1], vec![1, 2], values).expect("the grid is valid");
        let (left, right) = (grid(vec![1.0, 5.0]), grid(vec![2.0, 3.0]));
        assert_eq!(Grid::sum([&left, &right]), Ok(grid(vec![3.0, 8.0])));
        assert_eq!(Grid::max([&left, &right]), Ok(grid(vec![2.0, 5.0])));
        assert_eq!(left.scale(2.0), Ok(grid(vec![2.0, 10.0])));
        assert!(left.scale(f64::NAN).is_err());
        assert_eq!(Grid::sum([]), Err(PlanError::GridMismatch));
        assert_eq!(Grid::sum([&left, &linear_grid()]), Err(PlanError::GridMismatch));
    }

    #[test]
    fn the_largest_value_at_the_largest_shape_stays_finite() {
        let grid = Grid::new(vec![1], vec![1, 2], vec![0.0, 1e18]).expect("the grid is valid");
        assert!(grid.at(usize::MAX, usize::MAX).is_finite());
    }

    #[test]
    fn malformed_grids_are_refused() {
        let unordered = |axis, position, value| PlanError::UnorderedAxis { axis, position, value };
        let wrong = PlanError::WrongNumValues { num_batches: 1, num_tokens: 2, num_values: 1 };
        let cases = [
            (vec![], vec![1], vec![], PlanError::EmptyAxis { axis: "batches" }),
            (vec![1], vec![0], vec![1.0], unordered("tokens", 0, 0)),
            (vec![2, 2], vec![1], vec![1.0, 1.0], unordered("batches", 1, 2)),
            (vec![1], vec![1, 2], vec![1.0], wrong),
        ];
        for (batches, tokens, values, error) in cases {
            assert_eq!(Grid::new(batches, tokens, values), Err(error));
        }
        for value in [f64::NAN, f64::INFINITY, -1.0, 1e19] {
            let refused = Grid::new(vec![1], vec![1], vec![value]);
            assert!(matches!(refused, Err(PlanError::InvalidValue { position: 0, .. })));
        }
    }

    #[test]
    fn a_grid_survives_json_and_a_malformed_one_is_refused() {
        let grid = linear_grid();
        let text = serde_json::to_string(&grid).expect("grids serialize");
        assert_eq!(serde_json::from_str::<Grid>(&text).expect("grids deserialize"), grid);
        for text in [
            r#"{"batches":[2,1],"tokens":[1],"values":[1.0,1.0]}"#,
            r#"{"batches":[1],"tokens":[1],"values":[-1.0]}"#,
            r#"{"batches":[1],"tokens":[1],"values":[1.0],"unit":"s"}"#,
        ] {
            assert!(serde_json::from_str::<Grid>(text).is_err(), "{text}");
        }
    }
}
