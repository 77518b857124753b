//! Estimates of the memory that a batch needs on a path. Pure.

use super::residents::{ledger::Need, sessions::Weights};
use crate::{
    assembly::Family,
    family::{ModuleId, Space},
    module::Compute,
    plan::{Grid, Shape},
};

/// Bytes of activations per byte of a module's larger end, for modules that were never measured.
const GUESS: u64 = 24;

/// Memory needs of a family's modules.
#[derive(Debug)]
pub(super) struct Needs {
    modules: Vec<ModuleNeed>,
}

/// Memory need of a module; zero for the identity.
#[derive(Debug, Default)]
struct ModuleNeed {
    /// Bytes of the largest of the sessions that the module uses one after another.
    weights: u64,
    /// Bytes that creating a session takes, at most.
    loading: u64,
    /// Extents of one row of the module's input, without the batch axis.
    from: Vec<Option<usize>>,
    /// Extents of one row of the module's output, without the batch axis.
    to: Vec<Option<usize>>,
    /// Bytes of activations by batch and tokens; `None` before they are measured.
    activations: Option<Grid>,
}

impl Needs {
    /// Creates the needs of the modules of `family`, whose networks take `weights`.
    pub(super) fn new(family: &Family, weights: &[Weights]) -> Self {
        let graph = &family.graph;
        let need = |index: usize| {
            let module = graph.module(ModuleId(index));
            let networks = || family.networks_of(ModuleId(index)).into_iter();
            let extents = Space::shape;
            match family.compute(ModuleId(index)) {
                None => ModuleNeed::default(),
                Some(Compute::Network(_) | Compute::Routed(_)) => ModuleNeed {
                    weights: networks().map(|index| weights[index].bytes).max().unwrap_or(0),
                    loading: networks()
                        .map(|index| family.network(index).loading_bytes())
                        .max()
                        .unwrap_or(0),
                    from: extents(&graph.spaces()[module.from.0]),
                    to: extents(&graph.spaces()[module.to.0]),
                    activations: None,
                },
            }
        };
        Self { modules: (0..graph.modules().len()).map(need).collect() }
    }

    /// Sets the measured activations of module `id`.
    pub(super) fn measured(&mut self, id: ModuleId, activations: Grid) {
        if let Some(module) = self.modules.get_mut(id.0) {
            module.activations = Some(activations);
        }
    }

    /// Returns the need of `rows` sequences of `tokens` on `path`, whose modules run one by one.
    pub(super) fn of_path(&self, path: &[ModuleId], Shape { batch: rows, tokens }: Shape) -> Need {
        let rows = rows as u64;
        let modules = path.iter().filter_map(|id| self.modules.get(id.0));
        // While a session is created, memory may still be kept for later activations.
        let largest = modules.fold(Need::default(), |need, module| {
            let activations = module.activations_of_row(tokens).saturating_mul(rows);
            let session = module.weights.max(module.loading);
            Need { activations: need.activations.max(activations), total: need.total.max(session) }
        });
        Need { total: largest.total.saturating_add(largest.activations), ..largest }
    }
}

impl ModuleNeed {
    /// Returns the bytes of activations of one sequence of `tokens`. Attention compares all pairs
    /// of tokens, so beyond the measured lengths they grow with the square.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below 1e18")]
    #[expect(clippy::cast_precision_loss, reason = "lengths stay far below 2^53")]
    fn activations_of_row(&self, tokens: usize) -> u64 {
        let Some(grid) = &self.activations else {
            return GUESS.saturating_mul(bytes(&self.from, tokens).max(bytes(&self.to, tokens)));
        };
        let last = grid.tokens().last().copied().unwrap_or(1);
        let beyond = (tokens as f64 / last as f64).max(1.0);
        (grid.peak(1, tokens.min(last)) * beyond * beyond) as u64
    }
}

/// Returns the bytes of one row of f32 values, with `tokens` for each open extent; 0 without
/// extents.
fn bytes(extents: &[Option<usize>], tokens: usize) -> u64 {
    if extents.is_empty() {
        return 0;
    }
    let extents = extents.iter().map(|extent| extent.unwrap_or(tokens) as u64);
    extents.fold(4, u64::saturating_mul)
}

/// Returns the number of `rows` that run at once if each needs `row_bytes` of activations. All of
/// them together fit `most` bytes, but at least one runs.
pub(super) fn rows_within(rows: usize, row_bytes: u64, most: u64) -> usize {
    let fitting = usize::try_from(most / row_bytes.max(1)).unwrap_or(usize::MAX);
    fitting.clamp(1, rows.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(weights: u64, loading: u64, activations: Option<Grid>) -> ModuleNeed {
        ModuleNeed { weights, loading, from: vec![None, Some(10)], to: vec![Some(2)], activations }
    }

    fn grid() -> Grid {
        let grid = Grid::new(vec![1, 4], vec![8, 16], vec![800.0, 2_000.0, 3_200.0, 8_000.0]);
        grid.expect("a grid")
    }

    #[test]
    fn a_path_needs_its_largest_module_while_it_runs_or_is_created() {
        let modules = vec![
            module(100, 300, Some(grid())),
            module(5_000, 15_000, Some(grid())),
            ModuleNeed::default(),
        ];
        let needs = Needs { modules };
        let need = |path: &[usize], shape| {
            let path: Vec<ModuleId> = path.iter().copied().map(ModuleId).collect();
            let need = needs.of_path(&path, shape);
            (need.activations, need.total)
        };
        assert_eq!(need(&[0], Shape::new(1, 8)), (800, 1_100));
        assert_eq!(need(&[0, 2], Shape::new(3, 12)), (4_200, 4_500));
        assert_eq!(need(&[0, 1], Shape::new(1, 8)), (800, 15_800));
        assert_eq!(need(&[0, 1], Shape::new(100, 16)), (200_000, 215_000));
        assert_eq!(
            need(&[0], Shape::new(1, 32)),
            (8_000, 8_300),
            "twice the tokens, four times the scores"
        );
        assert_eq!(need(&[2], Shape::new(9, 99)), (0, 0));
        assert_eq!(need(&[], Shape::new(9, 99)), (0, 0));
    }

    #[test]
    fn what_was_never_measured_is_guessed_from_its_ends() {
        let needs = Needs { modules: vec![module(0, 0, None)] };
        let need = needs.of_path(&[ModuleId(0)], Shape::new(2, 5));
        assert_eq!(need.activations, 2 * GUESS * 4 * 5 * 10);
    }

    #[test]
    fn as_many_rows_run_as_fit_and_one_in_any_case() {
        for (rows, row_bytes, most, expected) in [
            (16, 10, 160, 16),
            (16, 10, 159, 15),
            (16, 10, 1_000, 16),
            (16, 10, 29, 2),
            (16, 10, 9, 1),
            (16, 10, 0, 1),
            (16, 0, 100, 16),
            (1, 10, 5, 1),
            (0, 10, 100, 1),
        ] {
            assert_eq!(rows_within(rows, row_bytes, most), expected, "{rows} {row_bytes} {most}");
        }
    }
}
