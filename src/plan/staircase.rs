//! Dominance in two and three dimensions, for sweeps over points sorted by another dimension.
//!
//! A sweep visits points by ascending latency, so whatever it has admitted is at least as fast as
//! the point at hand; what is left to ask is whether an admitted point is also at most as large in
//! the other dimensions. These structures answer that in logarithmic time.

/// The admitted (bytes, loss) points that no other admitted point covers: bytes ascend, losses
/// descend.
#[derive(Debug, Default)]
pub(super) struct Staircase {
    steps: Vec<(u64, f64)>,
}

impl Staircase {
    /// Returns whether an admitted point has at most these bytes and at most this loss.
    pub(super) fn covers(&self, bytes: u64, loss: f64) -> bool {
        let num_smaller = self.steps.partition_point(|step| step.0 <= bytes);
        num_smaller > 0 && self.steps[num_smaller - 1].1 <= loss
    }

    /// Admits a point, unless it is covered, and returns whether it did.
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
/// Activations peak instead of adding up, so few distinct values occur and the tree is shallow.
#[derive(Debug)]
pub(super) struct DominanceTree {
    /// The distinct activations, ascending; a rank is an index into them.
    activations: Vec<u64>,
    /// Node i covers the ranks from i with its lowest set bit cleared up to i, exclusive.
    nodes: Vec<Staircase>,
}

impl DominanceTree {
    /// Returns the empty tree for points with these activations, in any order, repeated or not.
    pub(super) fn new(mut activations: Vec<u64>) -> Self {
        activations.sort_unstable();
        activations.dedup();
        let nodes = (0..=activations.len()).map(|_| Staircase::default()).collect();
        Self { activations, nodes }
    }

    /// Admits a point, unless an admitted one is at most as large in all three, and returns whether
    /// it did.
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
