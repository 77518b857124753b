//! Every edge of every kind of family: what a row of a batch gets is what it gets by itself.

use std::{collections::BTreeSet, sync::Arc};

use tessera::{
    assembly::Family,
    family::{ModuleId, ModuleKind, PlanId},
    input::{Encoding, ModelInput, Pixels},
    runtime::{Activation, Executor, SideInputs},
    tensor::{Tensor, TensorData},
};

use crate::support::{Reference, experts, fashion_family, language, root, runtime, text_family};

/// The most that an f32 edge may change with the length of the padding, over the largest value.
const TOLERANCE: f64 = 1e-5;
/// The least cosine of a token behind an int8 edge with itself without padding.
const LEAST_COSINE: f64 = 0.9999;

/// The most that an edge of a decoder may change beside others at equal length, over the largest
/// value. ONNX Runtime sums some of its unpacked products in another order if there are more rows.
const ORDER: f64 = 1e-6;

/// A batch on which edges are tried.
struct Trial {
    executor: Executor,
    input: ModelInput,
    /// The most that an edge may change beside others at equal length, over the largest value.
    beside: f64,
}

impl Trial {
    fn new(family: Arc<Family>, input: ModelInput) -> Self {
        Self { executor: Executor::new(runtime(), family), input, beside: 0.0 }
    }

    /// Walks every edge once and returns what kinds there were.
    fn check(&self) -> BTreeSet<String> {
        let graph = self.executor.family().graph.clone();
        let mut states: Vec<Option<Tensor>> = vec![None; graph.spaces().len()];
        // Where tokens are merged, rows are not those of the input: whole plans are tried for that.
        let is_merged = |index: &usize| {
            graph.modules()[*index].kind == ModuleKind::Merge || {
                let from = graph.modules()[*index].from;
                graph.spaces()[from.0].kind.passed().is_merging()
            }
        };
        let mut due: Vec<usize> =
            (0..graph.modules().len()).filter(|index| !is_merged(index)).collect();
        let mut kinds = BTreeSet::new();
        while !due.is_empty() {
            let is_ready = |index: &usize| {
                let from = graph.modules()[*index].from;
                from == graph.input() || states[from.0].is_some()
            };
            let (ready, rest): (Vec<_>, Vec<_>) = due.into_iter().partition(is_ready);
            assert!(!ready.is_empty(), "every edge is reached");
            for index in ready {
                let module = &graph.modules()[index];
                let output = self.edge(ModuleId(index), states[module.from.0].as_ref());
                states[module.to.0].get_or_insert(output);
                let variant = module.variant.as_deref().unwrap_or("plain");
                kinds.insert(format!("{:?} {variant}", module.kind));
            }
            due = rest;
        }
        kinds
    }

    /// Runs an edge on the batch and on each row, and returns what the batch gives.
    fn edge(&self, id: ModuleId, state: Option<&Tensor>) -> Tensor {
        let module = self.executor.family().graph.module(id);
        let Some(whole) = self.run(id, state, self.input.clone()) else {
            return state.cloned().expect("an edge that does nothing has a state");
        };
        let is_int8 = module.variant.as_deref().is_some_and(|variant| variant.ends_with("int8"));
        for row in 0..self.input.batch() {
            let own = state.map(|state| slice(state, row, None));
            let found = self.run(id, own.as_ref(), padded(&self.input, row)).expect("it computes");
            for (found, whole) in found.iter().zip(&whole) {
                let expected = slice(whole, row, None);
                assert_eq!(found.shape(), expected.shape(), "{}", module.name);
                let is_same =
                    bits(found) == bits(&expected) || far(found, &expected) <= self.beside;
                assert!(
                    is_same,
                    "{}: row {row} by itself: {:.1e}",
                    module.name,
                    far(found, &expected)
                );
            }
            let ModelInput::Tokens(alone) = self.input.rows(row..row + 1) else { continue };
            let tokens = alone.tokens;
            let own = state.map(|state| slice(state, row, Some(tokens)));
            let found = self.run(id, own.as_ref(), ModelInput::Tokens(alone)).expect("it computes");
            for (found, whole) in found.iter().zip(&whole) {
                let has_tokens = whole.shape().get(1) == Some(&self.input.tokens());
                let expected = slice(whole, row, has_tokens.then_some(tokens));
                let (far, cosine) = (far(found, &expected), least_cosine(found, &expected));
                let is_near = if is_int8 { cosine >= LEAST_COSINE } else { far <= TOLERANCE };
                let what = format!("{}: row {row} without padding", module.name);
                assert!(is_near, "{what}: {far:.1e}, cosine {cosine}");
            }
        }
        whole.into_iter().next().expect("an output")
    }

    fn run(&self, id: ModuleId, state: Option<&Tensor>, input: ModelInput) -> Option<Vec<Tensor>> {
        let state = state.cloned().map(|state| Activation::of_tensor(state).expect("f32"));
        let sides = SideInputs::of_input(input).expect("inputs");
        let output = self.executor.advance(id, state.as_ref(), &sides).expect("it runs");
        output.map(|output| output.to_tensors().expect("f32"))
    }
}

/// Takes a row of a batch as it is, padding included.
fn padded(input: &ModelInput, row: usize) -> ModelInput {
    match input {
        ModelInput::Tokens(Encoding { tokens, input_ids, attention_mask, .. }) => {
            let range = row * tokens..(row + 1) * tokens;
            ModelInput::Tokens(Encoding {
                batch: 1,
                tokens: *tokens,
                input_ids: input_ids[range.clone()].to_vec(),
                attention_mask: attention_mask[range].to_vec(),
            })
        }
        pixels @ ModelInput::Pixels(_) => pixels.rows(row..row + 1),
    }
}

/// Takes a row of `[batch, …]`, or its first tokens.
fn slice(tensor: &Tensor, row: usize, tokens: Option<usize>) -> Tensor {
    let mut shape = tensor.shape().to_vec();
    let len = shape[1..].iter().product::<usize>();
    let mut kept = len;
    if let Some(tokens) = tokens {
        kept = len / shape[1] * tokens;
        shape[1] = tokens;
    }
    shape[0] = 1;
    let values = tensor.as_f32().expect("f32")[row * len..][..kept].to_vec();
    Tensor::new(shape, TensorData::F32(values)).expect("a tensor")
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.as_f32().expect("f32").iter().map(|value| value.to_bits()).collect()
}

fn pairs(found: &Tensor, expected: &Tensor) -> Vec<(f64, f64)> {
    assert_eq!(found.shape(), expected.shape());
    let [found, expected] = [found, expected].map(|tensor| tensor.as_f32().expect("f32"));
    found.iter().zip(expected).map(|(a, b)| (f64::from(*a), f64::from(*b))).collect()
}

/// Returns the largest difference over the largest value.
fn far(found: &Tensor, expected: &Tensor) -> f64 {
    let pairs = pairs(found, expected);
    let largest = pairs.iter().map(|(_, b)| b.abs()).fold(f64::MIN_POSITIVE, f64::max);
    pairs.iter().map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / largest
}

/// Returns the least cosine of the vectors along the last axis.
fn least_cosine(found: &Tensor, expected: &Tensor) -> f64 {
    let width = *found.shape().last().expect("an axis");
    let cosine = |pairs: &[(f64, f64)]| {
        let dot = |of: fn(&(f64, f64)) -> f64| pairs.iter().map(of).sum::<f64>();
        dot(|(a, b)| a * b) / (dot(|(a, _)| a * a) * dot(|(_, b)| b * b)).sqrt()
    };
    pairs(found, expected).chunks(width).map(cosine).fold(1.0, f64::min)
}

fn images(reference: &str) -> ModelInput {
    let reference = Reference::read(reference);
    let (shape, values) = reference.tensor("pixel_values");
    let values = values.iter().map(|value| *value as f32).collect();
    ModelInput::Pixels(Pixels { shape: [shape[1], shape[2], shape[3]], values })
}

fn assert_has(kinds: &BTreeSet<String>, wanted: &[&str]) {
    println!("{kinds:?}");
    for kind in wanted {
        assert!(kinds.contains(*kind), "there is no {kind}");
    }
}

#[test]
fn texts_do_not_depend_on_what_is_beside_them() {
    let input = ModelInput::Tokens(Reference::read("l6").encoding());
    let kinds = Trial::new(text_family(), input).check();
    assert_has(
        &kinds,
        &[
            "Stem plain",
            "Attention plain",
            "Mlp plain",
            "Attention int8",
            "Mlp int8",
            "Attention skip",
            "Stitch plain",
            "Stitch int8",
            "Bridge int8",
            "Exit plain",
            "Head plain",
        ],
    );
}

#[test]
fn images_do_not_depend_on_what_is_beside_them() {
    let trained = Family::load(&root().join("models/fashion")).expect("loaded");
    let mut kinds = Trial::new(Arc::new(trained), images("fashion-trained")).check();
    kinds.extend(Trial::new(fashion_family(), images("fashion")).check());
    let wanted =
        ["Stem plain", "Attention int8", "Mlp int8", "Mlp w33", "Stitch plain", "Exit plain"];
    assert_has(&kinds, &wanted);
}

#[test]
fn texts_routed_among_experts_do_not_depend_on_what_is_beside_them() {
    let pool = experts::l6();
    let family = Family::load(&pool.path()).expect("loaded");
    let input = ModelInput::Tokens(Reference::read("l6").encoding());
    let kinds = Trial::new(Arc::new(family), input).check();
    assert!(kinds.iter().any(|kind| kind.starts_with("Mlp e")), "{kinds:?}");
}

#[test]
fn language_models_with_experts_do_not_depend_on_what_is_beside() {
    for name in ["mixtral-sliding", "olmoe", "qwen2_moe", "granitemoeshared", "moduleformer"] {
        let model = language::Model::read(name);
        let family = model.load().expect("loaded");
        let input = ModelInput::Tokens(language::reference(name).encoding());
        let kinds = Trial { beside: ORDER, ..Trial::new(family, input) }.check();
        assert_has(&kinds, &["Stem plain", "Mlp plain", "Head plain"]);
    }
}

/// The answers of whole plans in int8 and of those that merge tokens, at mixed lengths.
#[test]
fn int8_answers_beside_others_are_the_answers_alone() {
    let encoding = Reference::read("l6").encoding();
    let executor = Executor::new(runtime(), text_family());
    for plan in [
        "l6[0..6]{int8:0..6}",
        "l3[0..3]{int8:0..3}",
        "l3[0..1]{int8:0}>l6[1..6]{int8:1..6}",
        "l6[0..3]>l6[3..6]{via:merge3}",
        "n6[0..1]{int8:0}>n6[1..6]{via:merge2,int8:1..6}",
    ] {
        let path = PlanId::parse(&text_family().graph, plan).expect("a plan");
        let answer = |encoding: Encoding| {
            let sides = SideInputs::of_encoding(encoding).expect("inputs");
            executor.run(&path, &sides, &mut ()).expect("runs").remove(0)
        };
        let together = answer(encoding.clone());
        for row in 0..encoding.batch {
            let alone = answer(encoding.rows(row..row + 1));
            let cosine = least_cosine(&alone, &slice(&together, row, None));
            assert!(cosine >= LEAST_COSINE, "{plan}: text {row}: cosine {cosine}");
        }
    }
}
