//! Proving that no row of a batch changes the answer for another row.
//!
//! A network is run on rows alone and in batches, in several orders and with changing other rows.
//! In batches of equal size, a row's answer at one place may not depend on the other rows at all.
//! Alone or at another place, it may differ by rounding in kernels. If an answer does depend on
//! other rows, the inner tensors are read. The fault lies with the first operator whose elements
//! change with two rows.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
};

use super::{
    FitError, Progress,
    probes::{self, COMPANIES, NUM_ROWS, ORDERS},
};
use crate::{
    arch::ArchError,
    assembly::Family,
    module::Batching,
    offer::network_digest,
    onnx::{
        OnnxError, check_rows, dependent_nodes,
        proto::{ModelProto, NodeProto},
    },
    runtime::{Elements, Runtime, RuntimeError, WholeModel},
    tensor::Tensor,
};

/// Largest relative difference that counts as equal, between batches of the same extents.
const SAME: f64 = 1e-6;

/// Largest relative difference that counts as rounding, between batches of different extents.
const ROUNDED: f64 = 1e-3;

/// Largest difference that counts as rounding in quantized networks, where a last digit can decide
/// between two levels.
const ROUNDED_TO_LEVELS: f64 = 5e-2;

/// Maximum number of nodes whose tensors are held at once during the search for an operator.
const GROUP: usize = 32;

/// Number of tokens of the texts on which networks are tried.
const TOKENS: usize = 6;

/// Proves the networks of `family` that come from outside and whose digest is not in `proven`.
///
/// A proven network gives answers that can be repeated. Its rows are independent or run one at a
/// time. The digests of proven networks are added to `proven`. Returns whether any was added.
///
/// # Errors
///
/// Fails when a network cannot be run, with the operator when it mixes rows, and when `progress` is
/// stopped.
pub(super) fn prove_family(
    runtime: &Runtime,
    family: &Family,
    proven: &mut BTreeSet<String>,
    progress: &dyn Progress,
) -> Result<bool, FitError> {
    let words = family.graph.anchors().iter().map(|anchor| family.vocabulary_size(anchor));
    let words = words.min().unwrap_or(1);
    let mut has_proven = false;
    for index in 0..family.num_networks() {
        let network = family.network(index);
        let digest = network_digest(network);
        if !network.needs_proof() || proven.contains(&digest) {
            continue;
        }
        progress.go_on()?;
        let (name, model) = (family.network_name(index), network.model());
        let Some(graph) = &model.graph else { continue };
        let rows = graph
            .input
            .iter()
            .filter_map(|input| Some((input.name.clone(), probes::rows(input, TOKENS, words)?)));
        let rows: Vec<(String, Tensor)> = rows.collect();
        let output = graph.output.first().map(|o| o.name.as_str()).unwrap_or_default();
        let (folder, one_by_one) = (&*family.folder, network.batching() == Batching::OneByOne);
        let subject = Subject { folder, name, model, output, one_by_one, rows: &rows };
        if let Some(source) = subject.fault(runtime)? {
            let anchor = name.split('.').next().unwrap_or(name).to_owned();
            return Err(ArchError::Onnx { anchor, source }.into());
        }
        has_proven |= proven.insert(digest);
    }
    Ok(has_proven)
}

/// Network to be proven.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    /// Folder of the files that hold the weights.
    pub(super) folder: &'a Path,
    /// Name of the network in errors.
    pub(super) name: &'a str,
    /// Graph of the network.
    pub(super) model: &'a ModelProto,
    /// Name of the tensor whose rows are the answers.
    pub(super) output: &'a str,
    /// Whether rows run one at a time, so that they need not be independent.
    pub(super) one_by_one: bool,
    /// Inputs by name, of [`NUM_ROWS`] rows each.
    pub(super) rows: &'a [(String, Tensor)],
}

/// Dependence of an answer on the other rows of its batch, to be traced to an operator.
#[derive(Debug, Clone)]
enum Dependence {
    /// Batches of which the last equals the first, but gets another answer.
    Chance(Vec<Vec<usize>>),
    /// The row at `place` of `base` gets another answer in `other`.
    Batching { place: usize, base: Vec<usize>, other: Vec<usize> },
    /// Batch in which some row gets another answer than alone.
    Order(Vec<usize>),
}

impl Subject<'_> {
    /// Returns the error for dependent rows or random answers, or `None` if the network has
    /// neither.
    ///
    /// # Errors
    ///
    /// Fails when the network cannot be run.
    pub(super) fn fault(&self, runtime: &Runtime) -> Result<Option<OnnxError>, RuntimeError> {
        let by_rule = if self.one_by_one { None } else { self.by_rule(runtime)? };
        if by_rule.is_some() {
            return Ok(by_rule);
        }
        let Some(dependence) = self.dependence(runtime)? else {
            return Ok(None);
        };
        let graph = self.model.graph.as_ref();
        let last = || {
            let nodes = graph.into_iter().flat_map(|graph| graph.node.iter().rev());
            nodes.into_iter().find(|node| node.output.iter().any(|name| name == self.output))
        };
        let node = self.trace(runtime, &dependence)?.or_else(last);
        let node = node.cloned().unwrap_or_default();
        Ok(Some(match dependence {
            Dependence::Chance(_) => {
                OnnxError::unrepeatable(&node, "gives two answers to the same input")
            }
            Dependence::Batching { .. } => {
                OnnxError::mixes(&node, "an answer changes with the other rows of its batch")
            }
            Dependence::Order(_) => OnnxError::mixes(
                &node,
                "an answer changes with the number of rows, or with the row's place among them",
            ),
        }))
    }

    /// Checks the operators by the extents of all tensors for one row and for two.
    fn by_rule(&self, runtime: &Runtime) -> Result<Option<OnnxError>, RuntimeError> {
        let nodes = self.model.graph.iter().flat_map(|graph| &graph.node);
        let made = nodes.flat_map(|node| &node.output).filter(|name| !name.is_empty());
        let given = self.rows.iter().map(|(name, _)| name);
        let wanted: Vec<String> = made.cloned().collect();
        let mut whole = self.load(runtime, &wanted)?;
        let [one, two] = [vec![0], vec![0, 1]].map(|batch| {
            let inputs = probes::take(self.rows, &batch);
            let mut shapes = whole.shapes(&probes::named(&inputs), &wanted)?;
            shapes.extend(inputs.iter().map(|(_, tensor)| Some(tensor.shape().to_vec())));
            Ok::<_, RuntimeError>(shapes)
        });
        let pairs = wanted.iter().chain(given.clone()).zip(one?.into_iter().zip(two?));
        let extents: HashMap<_, _> =
            pairs.filter_map(|(name, (one, two))| Some((name.clone(), [one?, two?]))).collect();
        let inputs: Vec<&str> = given.map(String::as_str).collect();
        Ok(check_rows(self.model, &inputs, &extents).err())
    }

    /// Runs the network on all probes and returns the first dependence, or `None` if there is none.
    fn dependence(&self, runtime: &Runtime) -> Result<Option<Dependence>, RuntimeError> {
        let mut answers = Answers { whole: self.load(runtime, &[])?, subject: self };
        let repeated: &[&[usize]] = match self.one_by_one {
            true => &[&[0], &[1], &[3], &[0]],
            false => &[&[0, 1, 2], &[3, 5, 6], &[0, 1, 2]],
        };
        let found =
            repeated.iter().map(|batch| answers.of(batch)).collect::<Result<Vec<_>, _>>()?;
        let mut ends = found[0].iter().zip(&found[repeated.len() - 1]);
        if ends.any(|(one, other)| difference(one, other, 0.0) > SAME) {
            let batches = repeated.iter().map(|batch| batch.to_vec()).collect();
            return Ok(Some(Dependence::Chance(batches)));
        }
        if self.one_by_one {
            return Ok(None);
        }
        for company in COMPANIES {
            let base = company.batches[0];
            let expected = answers.of(base)?;
            for other in &company.batches[1..] {
                let found = answers.of(other)?;
                let place = company.place;
                let pair = expected.get(place).zip(found.get(place));
                if pair.is_none_or(|(one, other)| difference(one, other, 0.0) > SAME) {
                    let (base, other) = (base.to_vec(), other.to_vec());
                    return Ok(Some(Dependence::Batching { place, base, other }));
                }
            }
        }
        let mut alone = Vec::new();
        for row in 0..NUM_ROWS {
            alone.push(answers.of(&[row])?.into_iter().next().unwrap_or_default());
        }
        let usual = largest(&alone[0]);
        for order in ORDERS {
            let found = answers.of(order)?;
            let differs = |(place, row): (usize, &usize)| {
                let found = found.get(place);
                found.is_none_or(|f| difference(&alone[*row], f, 1e-3 * usual) > self.rounded())
            };
            if order.iter().enumerate().any(differs) {
                return Ok(Some(Dependence::Order(order.to_vec())));
            }
        }
        Ok(None)
    }

    /// Returns the first node whose elements show `dependence`, or `None` if none is found.
    fn trace(
        &self,
        runtime: &Runtime,
        dependence: &Dependence,
    ) -> Result<Option<&NodeProto>, RuntimeError> {
        match dependence {
            Dependence::Chance(batches) => {
                self.first_node(runtime, batches, |runs| runs[0] != runs[runs.len() - 1])
            }
            Dependence::Batching { place, base, other } => {
                let absent = (0..NUM_ROWS).filter(|row| !base.contains(row)).take(3);
                let own = absent.map(|row| {
                    let mut batch = base.clone();
                    batch[*place] = row;
                    batch
                });
                let own: Vec<Vec<usize>> = own.collect();
                let first_alone = 2 + own.len();
                let alone = base.iter().map(|row| vec![*row]);
                let batches: Vec<Vec<usize>> =
                    [base.clone(), other.clone()].into_iter().chain(own).chain(alone).collect();
                self.first_node(runtime, &batches, |runs| {
                    meets(runs[0], runs[1], &runs[2..first_alone])
                        || self.is_reordered(runs[0], &runs[first_alone..])
                })
            }
            Dependence::Order(order) => {
                let alone = order.iter().map(|row| vec![*row]);
                let batches: Vec<Vec<usize>> = [order.clone()].into_iter().chain(alone).collect();
                self.first_node(runtime, &batches, |runs| self.is_reordered(runs[0], &runs[1..]))
            }
        }
    }

    /// Returns the first node whose output has a fault, or `None` if there is none.
    ///
    /// `is_fault` judges a tensor by its elements in each of `batches`.
    fn first_node(
        &self,
        runtime: &Runtime,
        batches: &[Vec<usize>],
        is_fault: impl Fn(&[&Elements]) -> bool,
    ) -> Result<Option<&NodeProto>, RuntimeError> {
        let inputs: Vec<&str> = self.rows.iter().map(|(name, _)| name.as_str()).collect();
        let nodes = self.model.graph.iter().flat_map(|graph| dependent_nodes(graph, &inputs));
        let nodes: Vec<&NodeProto> = nodes.collect();
        for group in nodes.chunks(GROUP) {
            // Statistics beside an output are overwritten in place unless they are requested.
            let wanted = group.iter().filter_map(|node| Some((*node, node.output.first()?)));
            let wanted: Vec<(&NodeProto, &String)> =
                wanted.filter(|(_, name)| !name.is_empty()).collect();
            let names: Vec<String> = wanted.iter().map(|(_, name)| (*name).clone()).collect();
            let mut whole = self.load(runtime, &names)?;
            let mut runs = Vec::new();
            for batch in batches {
                let inputs = probes::take(self.rows, batch);
                runs.push(whole.elements(&probes::named(&inputs), &names)?);
            }
            for (index, (node, _)) in wanted.iter().enumerate() {
                let each: Option<Vec<&Elements>> =
                    runs.iter().map(|run| run[index].as_ref()).collect();
                if each.is_some_and(|each| is_fault(&each)) {
                    return Ok(Some(node));
                }
            }
        }
        Ok(None)
    }

    /// Returns whether the tensor `whole` differs from the tensors of its rows alone, put together.
    fn is_reordered(&self, whole: &Elements, alone: &[&Elements]) -> bool {
        let agree = |one: &[f64], other: &[f64]| difference(one, other, 0.0) <= self.rounded();
        !probes::consists_of(whole, alone, agree)
    }

    fn load(&self, runtime: &Runtime, wanted: &[String]) -> Result<WholeModel, RuntimeError> {
        WholeModel::load(runtime, self.folder, self.name, self.model, wanted)
    }

    /// Returns the largest difference that counts as rounding.
    fn rounded(&self) -> f64 {
        let mut nodes = self.model.graph.iter().flat_map(|graph| &graph.node);
        let has_levels = |node: &NodeProto| {
            node.op_type.contains("Quantize") || node.op_type.ends_with("Integer")
        };
        if nodes.any(has_levels) { ROUNDED_TO_LEVELS } else { ROUNDED }
    }
}

/// Loaded network that answers batches of rows.
struct Answers<'a> {
    whole: WholeModel,
    subject: &'a Subject<'a>,
}

impl Answers<'_> {
    /// Returns the answer to each row of `batch`; empty if the output has another number of rows.
    fn of(&mut self, batch: &[usize]) -> Result<Vec<Vec<f64>>, RuntimeError> {
        let inputs = probes::take(self.subject.rows, batch);
        let wanted = [self.subject.output.to_owned()];
        let found = self.whole.elements(&probes::named(&inputs), &wanted)?.pop().flatten();
        let Some(Elements { shape, values }) = found else {
            return Ok(Vec::new());
        };
        if shape.first() != Some(&batch.len()) || values.is_empty() {
            return Ok(Vec::new());
        }
        Ok(values.chunks(values.len() / batch.len()).map(<[f64]>::to_vec).collect())
    }
}

/// Returns whether some element of `base` changes both with its own row and with the other rows.
///
/// `other` is a run of the same row beside other rows. `own` are runs of another row beside the
/// same rows. Runs of different shapes count as a change.
fn meets(base: &Elements, other: &Elements, own: &[&Elements]) -> bool {
    if base.shape != other.shape || own.iter().any(|run| run.shape != base.shape) {
        return true;
    }
    let changes =
        |run: &Elements, index: usize| run.values[index].to_bits() != base.values[index].to_bits();
    (0..base.values.len())
        .any(|index| changes(other, index) && own.iter().any(|run| changes(run, index)))
}

/// Returns the largest difference of two answers, relative to the largest of `one`'s values or
/// `least`. It is infinite if only one of two values is a number.
fn difference(one: &[f64], other: &[f64], least: f64) -> f64 {
    if one.len() != other.len() {
        return f64::INFINITY;
    }
    let scale = largest(one).max(least).max(f64::MIN_POSITIVE);
    let pairs = one.iter().zip(other);
    let differences = pairs.map(|(one, other)| {
        let is_same = one.to_bits() == other.to_bits() || (one.is_nan() && other.is_nan());
        let difference = if is_same { 0.0 } else { (one - other).abs() / scale };
        if difference.is_nan() { f64::INFINITY } else { difference }
    });
    differences.fold(0.0, f64::max)
}

/// Returns the largest magnitude among the finite values.
fn largest(values: &[f64]) -> f64 {
    values.iter().map(|value| value.abs()).filter(|value| value.is_finite()).fold(0.0, f64::max)
}
