//! Balanced k-means: groups of equal size (EMoE, section 3).

use faer::{Accum, Mat, MatRef, Par, linalg::matmul::matmul};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};

/// Maximum number of rounds, each of which computes new centres.
const MAX_ROUNDS: usize = 30;
/// Maximum number of exchange sweeps in a round.
const MAX_SWEEPS: usize = 10;

/// Matrix whose rows have equal width.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    /// Values of all rows, one row after another.
    pub(super) values: &'a [f32],
    /// Number of values in a row.
    pub(super) width: usize,
}

impl<'a> Rows<'a> {
    /// Returns the number of rows.
    pub(super) fn count(self) -> usize {
        self.values.len() / self.width.max(1)
    }

    fn row(self, index: usize) -> &'a [f32] {
        &self.values[index * self.width..][..self.width]
    }

    /// Returns the mean of each group of rows.
    pub(super) fn means(self, groups: &[Vec<usize>]) -> Vec<f32> {
        let mean = |group: &Vec<usize>| {
            let mut sum = vec![0.0_f64; self.width];
            for row in group {
                let row = self.row(*row).iter();
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
            }
            #[expect(clippy::cast_possible_truncation, reason = "weights are kept in f32")]
            #[expect(clippy::cast_precision_loss, reason = "groups are small")]
            sum.into_iter().map(|sum| (sum / group.len() as f64) as f32).collect::<Vec<_>>()
        };
        groups.iter().flat_map(mean).collect()
    }
}

/// Splits the positions of `count` rows at random into `num_groups` groups of equal size.
pub(super) fn random_groups(count: usize, num_groups: usize, seed: u64) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..count).collect();
    order.shuffle(&mut StdRng::seed_from_u64(seed));
    ascending(order.chunks(count / num_groups.max(1)).map(<[usize]>::to_vec).collect())
}

/// Splits rows of unit length into `num_groups` groups of equal size. The rows of a group lie near
/// its mean. `round` is called after every round.
pub(super) fn balanced_groups(
    rows: Rows<'_>,
    num_groups: usize,
    seed: u64,
    round: &dyn Fn(),
) -> Vec<Vec<usize>> {
    let mut groups = random_groups(rows.count(), num_groups, seed);
    let mut centres = spread_centres(rows, num_groups, seed);
    let mut best = f64::NEG_INFINITY;
    for _ in 0..MAX_ROUNDS {
        let products = products(rows, &centres);
        let mut next = assign(&products, rows.count() / num_groups);
        exchange(&products, &mut next);
        centres = rows.means(&next);
        let nearness = nearness(&centres);
        round();
        if nearness <= best * (1.0 + 1e-6) {
            break;
        }
        (best, groups) = (nearness, next);
    }
    ascending(groups)
}

/// Returns the largest number of rounds that [`balanced_groups`] can take.
pub(super) fn max_rounds() -> u64 {
    MAX_ROUNDS as u64
}

fn ascending(mut groups: Vec<Vec<usize>>) -> Vec<Vec<usize>> {
    groups.iter_mut().for_each(|group| group.sort_unstable());
    groups
}

/// Chooses rows that are far from one another as the first centres (k-means++).
fn spread_centres(rows: Rows<'_>, num_groups: usize, seed: u64) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut distances = vec![f32::MAX; rows.count()];
    let mut next = random.random_range(0..rows.count().max(1));
    let mut centres = Vec::with_capacity(num_groups * rows.width);
    for _ in 0..num_groups {
        let centre = rows.row(next);
        centres.extend_from_slice(centre);
        for (row, least) in distances.iter_mut().enumerate() {
            let apart = rows.row(row).iter().zip(centre).map(|(a, b)| (a - b) * (a - b));
            *least = least.min(apart.sum());
        }
        let mut left = random.random_range(0.0..1.0) * distances.iter().sum::<f32>();
        let farther = distances.iter().position(|distance| {
            left -= distance;
            left <= 0.0
        });
        next = farther.unwrap_or(0);
    }
    centres
}

/// Returns the product of every centre with every row, `[groups, rows]`.
///
/// For groups of equal size, the largest sum of products gives the least sum of squared distances.
fn products(rows: Rows<'_>, centres: &[f32]) -> Mat<f32> {
    let view = |values: &[f32]| values.len() / rows.width.max(1);
    let (count, num_groups) = (rows.count(), view(centres));
    let mut products = Mat::zeros(num_groups, count);
    let rows_view = MatRef::from_row_major_slice(rows.values, count, rows.width);
    let centres = MatRef::from_row_major_slice(centres, num_groups, rows.width);
    let (target, par) = (products.as_mut(), Par::rayon(0));
    matmul(target, Accum::Replace, centres, rows_view.transpose(), 1.0, par);
    products
}

/// Fills groups of `size` with the rows of the largest products, the largest product first.
fn assign(products: &Mat<f32>, size: usize) -> Vec<Vec<usize>> {
    let (num_groups, count) = (products.nrows(), products.ncols());
    let pairs = (0..count).flat_map(|row| (0..num_groups).map(move |group| (group, row)));
    let mut pairs: Vec<(usize, usize)> = pairs.collect();
    pairs.sort_by(|a, b| products[*b].total_cmp(&products[*a]).then(a.cmp(b)));
    let mut groups = vec![Vec::with_capacity(size); num_groups];
    let mut is_taken = vec![false; count];
    for (group, row) in pairs {
        if !is_taken[row] && groups[group].len() < size {
            is_taken[row] = true;
            groups[group].push(row);
        }
    }
    groups
}

/// Exchanges rows between groups as long as that brings rows nearer to their centres.
fn exchange(products: &Mat<f32>, groups: &mut [Vec<usize>]) {
    for _ in 0..MAX_SWEEPS {
        let mut is_changed = false;
        for one in 0..groups.len() {
            for other in one + 1..groups.len() {
                is_changed |= exchange_pair(products, groups, [one, other]);
            }
        }
        if !is_changed {
            return;
        }
    }
}

/// Exchanges rows between two groups, largest gain first. Returns whether it exchanged any.
fn exchange_pair(products: &Mat<f32>, groups: &mut [Vec<usize>], [one, other]: [usize; 2]) -> bool {
    let gains = |from: usize, to: usize| {
        let gain = |row: &usize| products[(to, *row)] - products[(from, *row)];
        let rows = groups[from].iter().enumerate();
        let mut gains: Vec<(usize, f32)> = rows.map(|(place, row)| (place, gain(row))).collect();
        gains.sort_by(|a, b| b.1.total_cmp(&a.1));
        gains
    };
    let pairs: Vec<[usize; 2]> = gains(one, other)
        .into_iter()
        .zip(gains(other, one))
        .take_while(|((_, a), (_, b))| a + b > 1e-6)
        .map(|((a, _), (b, _))| [a, b])
        .collect();
    for [a, b] in &pairs {
        let row = groups[one][*a];
        groups[one][*a] = groups[other][*b];
        groups[other][*b] = row;
    }
    !pairs.is_empty()
}

/// Returns the sum of the squared lengths of `means`.
///
/// For groups of equal size, a larger sum means that rows of unit length lie nearer to their means.
fn nearness(means: &[f32]) -> f64 {
    means.iter().map(|value| f64::from(*value) * f64::from(*value)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates rows of unit length around `num_groups` corners, in turn.
    fn corners(count: usize, num_groups: usize) -> Vec<f32> {
        let mut random = StdRng::seed_from_u64(5);
        let row = |index: usize| {
            let mut row: Vec<f32> = (0..num_groups)
                .map(|axis| {
                    let corner = f32::from(u8::from(axis == index % num_groups));
                    corner + random.random_range(-0.1..0.1)
                })
                .collect();
            let length = row.iter().map(|value| value * value).sum::<f32>().sqrt();
            row.iter_mut().for_each(|value| *value /= length);
            row
        };
        (0..count).flat_map(row).collect()
    }

    #[test]
    fn groups_are_equally_large_and_hold_every_row_once() {
        let values = corners(96, 8);
        for groups in [
            balanced_groups(Rows { values: &values, width: 8 }, 6, 1, &|| ()),
            random_groups(96, 6, 1),
        ] {
            assert!(groups.iter().all(|group| group.len() == 16), "{groups:?}");
            let mut all: Vec<usize> = groups.into_iter().flatten().collect();
            all.sort_unstable();
            assert_eq!(all, (0..96).collect::<Vec<_>>());
        }
    }

    #[test]
    fn rows_of_one_corner_come_together() {
        let values = corners(64, 4);
        let groups = balanced_groups(Rows { values: &values, width: 4 }, 4, 7, &|| ());
        for group in groups {
            assert!(group.iter().all(|row| row % 4 == group[0] % 4), "{group:?}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_groups() {
        let values = corners(60, 5);
        let groups = || balanced_groups(Rows { values: &values, width: 5 }, 10, 3, &|| ());
        assert_eq!(groups(), groups());
    }

    #[test]
    fn means_are_those_of_rows_as_they_are() {
        let rows = Rows { values: &[3.0, 0.0, 1.0, 4.0, 10.0, 2.0], width: 2 };
        assert_eq!(rows.means(&[vec![0, 1], vec![2]]), [2.0, 2.0, 10.0, 2.0]);
    }
}
