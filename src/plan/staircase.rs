//! Dominance in two and three dimensions, for sweeps over points sorted by another dimension.
//!
//! A sweep visits points by ascending latency, so every admitted point is at least as fast as the
//! current one. It must then find out whether an admitted point is at most as large in the other
//! dimensions. These structures answer this in logarithmic time.

/// The admitted (bytes, loss) points that no other admitted point covers, by ascending bytes and
/// descending loss.
#[derive(Debug, Default)]
pub(super) struct Staircase {
    steps: Vec<(u64, f64)>,
}

impl Staircase {
    /// Returns whether an admitted point has at most `bytes` and at most `loss`.
    pub(super) fn covers(&self, bytes: u64, loss: f64) -> bool {
        let num_smaller = self.steps.partition_point(|step| step.0 <= bytes);
        num_smaller > 0 && self.steps[num_smaller - 1].1 <= loss
    }

    /// Admits a point unless an admitted point covers it. Returns whether the point was admitted.
    pub(super) fn admit(&mut self, bytes: u64, loss: f64) -> bool {
        if self.covers(bytes, loss) {
            return false;
        }
        let first = self.steps.partition_point(|step| step.0 < bytes);
        let num_covered = self.steps[first..].partition_point(|step| step.1 >= loss);
        self.steps.splice(first..first + num_covered, [(bytes, loss)]);
        true
    }
}

/// The admitted (weights, activations, loss) points: a Fenwick tree of staircases over activations.
///
/// Activations peak instead of adding up, so there are few distinct values and the tree is shallow.
#[derive(Debug)]
pub(super) struct DominanceTree {
    /// Distinct activations in ascending order; a rank is an index into them.
    activations: Vec<u64>,
    /// Staircase of each node. Node i covers the ranks from i with its lowest set bit cleared up to
    /// i, exclusive.
    nodes: Vec<Staircase>,
}

impl DominanceTree {
    /// Creates an empty tree for points with these `activations`, in any order and possibly
    /// repeated.
    pub(super) fn new(mut activations: Vec<u64>) -> Self {
        activations.sort_unstable();
        activations.dedup();
        let nodes = (0..=activations.len()).map(|_| Staircase::default()).collect();
        Self { activations, nodes }
    }

    /// Admits a point unless an admitted point is at most as large in all three dimensions. Returns
    /// whether the point was admitted.
    pub(super) fn admit(&mut self, weights: u64, activations: u64, loss: f64) -> bool {
        let rank = self.activations.partition_point(|known| *known < activations);
        let mut node = rank + 1;
        while node > 0 {
            if self.nodes[node].covers(weights, loss) {
                return false;
            }
            node &= node - 1;
        }
        node = rank + 1;
        while node < self.nodes.len() {
            self.nodes[node].admit(weights, loss);
            node += node & node.wrapping_neg();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::DominanceTree;

    proptest! {
        #[test]
        fn admits_exactly_the_points_that_no_earlier_one_covers(
            points in proptest::collection::vec((0_u64..6, 0_u64..6, any::<i8>()), 0..60),
        ) {
            let mut tree = DominanceTree::new(points.iter().map(|point| point.1).collect());
            for (index, (weights, activations, loss)) in points.iter().enumerate() {
                let covered = points[..index].iter().any(|other| {
                    other.0 <= *weights && other.1 <= *activations && other.2 <= *loss
                });
                prop_assert_eq!(tree.admit(*weights, *activations, f64::from(*loss)), !covered);
            }
        }
    }
}
