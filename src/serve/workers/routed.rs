//! Report of the experts that a request's tokens took.

use crate::runtime::Routing;

/// Experts that a request's tokens took in one module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutedModule {
    /// Name of the module.
    pub module: String,
    /// Largest number of experts that a token takes.
    pub top_k: usize,
    /// Number of tokens that were routed.
    pub num_tokens: u64,
    /// Number of tokens that took each expert.
    pub taken: Vec<u64>,
}

/// Experts that each sequence of a batch took, by module.
#[derive(Debug, Default)]
pub(super) struct RoutedBatch(Vec<(String, Routing)>);

impl RoutedBatch {
    /// Appends the routing of further sequences in `module`.
    pub(super) fn add(&mut self, module: &str, routing: &Routing) {
        match self.0.iter_mut().find(|(known, _)| known == module) {
            Some((_, known)) => {
                known.taken.extend(&routing.taken);
                known.rows.extend(&routing.rows);
            }
            None => self.0.push((module.to_owned(), routing.clone())),
        }
    }

    /// Returns the sums over `batch` sequences from `start` on, by module.
    pub(super) fn of_rows(&self, start: usize, batch: usize) -> Vec<RoutedModule> {
        let own = |(module, routing): &(String, Routing)| {
            let Routing { num_ways, top_k, taken, rows } = routing;
            let mut sums = vec![0; *num_ways];
            let sequences = taken.chunks_exact((*num_ways).max(1)).skip(start).take(batch);
            for sequence in sequences {
                sums.iter_mut().zip(sequence).for_each(|(sum, count)| *sum += u64::from(*count));
            }
            RoutedModule {
                module: module.clone(),
                top_k: *top_k,
                num_tokens: rows.iter().skip(start).take(batch).copied().map(u64::from).sum(),
                taken: sums,
            }
        };
        self.0.iter().map(own).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_told_of_its_own_tokens() {
        let routing = |taken: &[u32], rows: &[u32]| Routing {
            num_ways: 2,
            top_k: 1,
            taken: taken.to_vec(),
            rows: rows.to_vec(),
        };
        let mut batch = RoutedBatch::default();
        batch.add("a", &routing(&[1, 2, 3, 0], &[3, 3]));
        batch.add("a", &routing(&[0, 5], &[5]));
        let own = batch.of_rows(1, 2);
        let taken = vec![3, 5];
        assert_eq!(own, [RoutedModule { module: "a".into(), top_k: 1, num_tokens: 8, taken }]);
        assert_eq!(batch.of_rows(0, 1)[0].taken, [1, 2]);
    }
}
