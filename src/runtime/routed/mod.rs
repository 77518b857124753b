//! Execution of a routed module, in which each token takes its own ways. The steps are entry,
//! router, dispatch, the ways, combine and exit.

mod dispatch;
pub(super) mod route;

pub use dispatch::dispatch_and_combine;

use ort::value::DynValue;

use super::{
    Activation, Routing, RuntimeError, SideInputs,
    activation::{handed_over, view},
    residents::Lease,
    session::{Outputs, first},
};
use crate::module::{QUERIES, REST, Routed, SCORES, SUM, TOKENS, Ways};
use dispatch::{combine, gather, gather_slots, place};
use route::{Routes, Taken, route};

/// Number of tensors of the hidden states' size held while a way runs: the tokens, the rest and the
/// sum.
pub(super) const HELD: f64 = 3.0;

/// The networks of a family, by their positions.
pub(super) trait Networks {
    /// Leases a session of `network`, loading it if none is free.
    ///
    /// # Errors
    ///
    /// Fails when the network cannot be loaded.
    fn lease(&self, network: usize) -> Result<Lease<'_>, RuntimeError>;

    /// Returns whether `network` has an input `name`.
    fn reads(&self, network: usize, name: &str) -> bool;
}

/// A batch inside a routed module.
struct Inside<'a> {
    networks: &'a dyn Networks,
    module: &'a str,
    routed: &'a Routed<usize>,
    sides: &'a SideInputs,
    state: &'a DynValue,
    entered: Outputs,
}

/// Runs a routed module on `state`.
///
/// # Errors
///
/// Fails when a network cannot be loaded or fails, and when a score is infinite or not a number.
pub(super) fn run(
    networks: &dyn Networks,
    module: &str,
    routed: &Routed<usize>,
    state: &Activation,
    sides: &SideInputs,
) -> Result<Activation, RuntimeError> {
    let entered = networks.lease(routed.entry)?.session().run(&[], Some(state.value()), sides)?;
    let inside = Inside { networks, module, routed, sides, state: state.value(), entered };
    let rest = inside.value(REST).unwrap_or(state.value());
    let (shape, rest_values) = view(rest)?;
    let [batch, tokens, width] = shape[..] else {
        return Err(inside.refuse("its hidden states are not [batch, tokens, width]"));
    };
    let routes = inside.route(batch * tokens)?;
    let routing = inside.count(&routes, batch, tokens);
    let start = match routed.exit {
        Some(exit) if networks.reads(exit, REST) => vec![0.0; rest_values.len()],
        _ => rest_values.to_vec(),
    };
    let sum = inside.take_ways(routes, [batch, tokens, width], start)?;
    let sum = handed_over(shape, sum)?;
    let value = match routed.exit {
        None => sum,
        Some(exit) => {
            let given = [(SUM, &sum), (REST, rest)];
            first(networks.lease(exit)?.session().run(&given, None, sides)?)?
        }
    };
    Ok(Activation { routing: Some(routing), ..Activation::new(value) })
}

impl Inside<'_> {
    /// Returns the entry's output `name`, or `None` if it does not exist.
    fn value(&self, name: &str) -> Option<&DynValue> {
        self.entered.iter().find(|(known, _)| **known == *name).map(|(_, value)| value)
    }

    fn refuse(&self, reason: &'static str) -> RuntimeError {
        RuntimeError::Routed { module: self.module.to_owned(), reason }
    }

    /// Routes the rows that are not padding.
    fn route(&self, num_rows: usize) -> Result<Routes, RuntimeError> {
        let router = &self.routed.router;
        let scores = self.value(SCORES).ok_or_else(|| self.refuse("its entry gives no scores"))?;
        let (_, scores) = view(scores)?;
        if scores.len() != num_rows * router.num_ways {
            return Err(self.refuse("its entry gives another number of scores than it has ways"));
        }
        let mask = self.sides.mask().filter(|mask| mask.len() == num_rows);
        let is_token = |row: usize| mask.is_none_or(|mask| mask[row] == 1);
        route(router, scores, is_token).map_err(|found| RuntimeError::Score {
            module: self.module.to_owned(),
            row: found.row,
            way: found.way,
        })
    }

    /// Counts the rows of each sequence that took each way.
    fn count(&self, routes: &Routes, batch: usize, tokens: usize) -> Routing {
        let num_ways = routes.ways.len();
        let (mut taken, mut rows) = (vec![0; batch * num_ways], vec![0; batch]);
        for (way, all) in routes.ways.iter().enumerate() {
            for Taken { row, slot, .. } in all {
                let sequence = row / tokens.max(1);
                taken[sequence * num_ways + way] += 1;
                rows[sequence] += u32::from(*slot == 0);
            }
        }
        Routing { num_ways, top_k: self.routed.router.top_k, taken, rows }
    }

    /// Adds the outputs of the ways for the rows that take them to `sum`.
    fn take_ways(
        &self,
        routes: Routes,
        [batch, tokens, width]: [usize; 3],
        mut sum: Vec<f32>,
    ) -> Result<Vec<f32>, RuntimeError> {
        let (read_shape, rows) = view(self.value(TOKENS).unwrap_or(self.state))?;
        let read_width = read_shape.last().copied().unwrap_or(0);
        match &self.routed.ways {
            Ways::Experts(experts) => {
                let (group_of, networks) = groups(experts);
                let routes = routes.merged(&group_of, networks.len());
                for (network, taken) in networks.iter().zip(&routes.ways) {
                    self.pass(*network, gather(rows, read_width, taken), taken, |made, _| {
                        combine(&mut sum, width, taken, made);
                    })?;
                }
            }
            Ways::Attention { queries, attend, outputs } => {
                let per_row = self.routed.router.top_k;
                let (mut slots, mut slot_width) = (Vec::new(), 0);
                for (network, taken) in queries.iter().zip(&routes.ways) {
                    self.pass(*network, gather(rows, read_width, taken), taken, |made, width| {
                        slot_width = width;
                        slots.resize(batch * tokens * per_row * width, 0.0);
                        place(&mut slots, per_row, width, taken, made);
                    })?;
                }
                let found =
                    self.attend(*attend, vec![batch, tokens, per_row, slot_width], slots)?;
                let (_, found) = view(&found)?;
                for (network, taken) in outputs.iter().zip(&routes.ways) {
                    let own = gather_slots(found, per_row, slot_width, taken);
                    self.pass(*network, own, taken, |made, _| {
                        combine(&mut sum, width, taken, made);
                    })?;
                }
            }
        }
        Ok(sum)
    }

    /// Runs a way's network on `gathered`, which has a row for each of `taken`. Calls `then` with
    /// the output and its width. Does nothing if `taken` is empty.
    fn pass(
        &self,
        network: usize,
        gathered: Vec<f32>,
        taken: &[Taken],
        then: impl FnOnce(&[f32], usize),
    ) -> Result<(), RuntimeError> {
        if taken.is_empty() {
            return Ok(());
        }
        let shape = vec![taken.len(), gathered.len() / taken.len()];
        let gathered = handed_over(shape, gathered)?;
        let mut lease = self.networks.lease(network)?;
        let made = first(lease.session().run(&[], Some(&gathered), self.sides)?)?;
        let (_, made) = view(&made)?;
        then(made, made.len() / taken.len());
        Ok(())
    }

    /// Runs attention between the queries of all ways, in `slots`, and the shared keys.
    fn attend(
        &self,
        network: usize,
        shape: Vec<usize>,
        slots: Vec<f32>,
    ) -> Result<DynValue, RuntimeError> {
        let queries = handed_over(shape, slots)?;
        let entered = self.entered.iter().map(|(name, value)| (&**name, value));
        let given: Vec<(&str, &DynValue)> = entered.chain([(QUERIES, &queries)]).collect();
        first(self.networks.lease(network)?.session().run(&given, None, self.sides)?)
    }
}

/// Returns the index of each way's network among the networks, and the networks without repetition.
fn groups(ways: &[usize]) -> (Vec<usize>, Vec<usize>) {
    let mut networks: Vec<usize> = Vec::new();
    let group_of = ways.iter().map(|network| {
        let known = networks.iter().position(|known| known == network);
        known.unwrap_or_else(|| {
            networks.push(*network);
            networks.len() - 1
        })
    });
    (group_of.collect(), networks)
}

/// Returns the network that the first way runs first, or the entry if there are no ways.
pub(super) fn first_way(routed: &Routed<usize>) -> usize {
    let ways = match &routed.ways {
        Ways::Experts(experts) => experts,
        Ways::Attention { queries, .. } => queries,
    };
    ways.first().copied().unwrap_or(routed.entry)
}

/// Returns the hidden states of each of `inputs` as all rows, which is the form that a way reads.
pub(super) fn all_rows(
    inputs: &[(SideInputs, Option<Activation>)],
) -> Result<Vec<Activation>, RuntimeError> {
    let rows = inputs.iter().filter_map(|(_, state)| state.as_ref()).map(|state| {
        let (shape, values) = view(state.value())?;
        let width = shape.last().copied().unwrap_or(1).max(1);
        let rows = handed_over(vec![values.len() / width, width], values.to_vec())?;
        Ok(Activation::new(rows))
    });
    rows.collect()
}
