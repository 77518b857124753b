//! Assembled paths against the reference implementations.

use tessera::{
    family::{ModuleId, PlanId},
    input::Encoding,
    plan::Plan,
    runtime::{Executor, SideInputs},
    tensor::Tensor,
};

use crate::support::{Reference, assert_close, text_executor};

fn plan_of(executor: &Executor, id: &str) -> Plan {
    PlanId::parse(&executor.family().graph, id).expect("a plan")
}

fn run(executor: &mut Executor, id: &str, encoding: &Encoding) -> Tensor {
    let plan = plan_of(executor, id);
    let sides = SideInputs::of_encoding(encoding.clone()).expect("inputs");
    executor.run(&plan, &sides, &mut ()).expect("runs").remove(0)
}

/// Takes row `row` of `encoding` without its padding.
fn single(encoding: &Encoding, row: usize) -> Encoding {
    let row = row * encoding.tokens..(row + 1) * encoding.tokens;
    let mask = &encoding.attention_mask[row.clone()];
    let tokens = mask.iter().filter(|kept| **kept == 1).count();
    Encoding {
        batch: 1,
        tokens,
        input_ids: encoding.input_ids[row.clone()][..tokens].to_vec(),
        attention_mask: vec![1; tokens],
    }
}

#[test]
fn l6_agrees_with_transformers() {
    let reference = Reference::read("l6");
    let mut executor = text_executor();
    let output = run(&mut executor, "l6[0..6]", &reference.encoding());
    let (shape, expected) = reference.tensor("embeddings");
    assert_eq!(output.shape(), shape);
    assert_close(output.as_f32().expect("f32"), expected, 1e-4, "l6 embeddings");
}

#[test]
fn a_batch_equals_its_texts_one_by_one_and_padding_changes_nothing() {
    let encoding = Reference::read("l6").encoding();
    let mut executor = text_executor();
    for id in ["l6[0..6]", "l6[0..6]{skip.mlp:1,skip.attn:4}"] {
        let batch = run(&mut executor, id, &encoding);
        for row in 0..encoding.batch {
            let alone = run(&mut executor, id, &single(&encoding, row));
            let width = alone.shape()[1];
            let expected: Vec<f64> = batch.as_f32().expect("f32")[row * width..(row + 1) * width]
                .iter()
                .map(|v| f64::from(*v))
                .collect();
            assert_close(alone.as_f32().expect("f32"), &expected, 1e-5, &format!("{id} {row}"));
        }
    }
}

/// Runs a path that may end anywhere and returns the hidden states.
fn hidden(executor: &mut Executor, path: &[ModuleId], encoding: &Encoding) -> Tensor {
    let sides = SideInputs::of_encoding(encoding.clone()).expect("inputs");
    let mut state = None;
    for id in path {
        state = executor.step(*id, state, &sides).expect("runs");
    }
    state.expect("the path computes something").to_tensor().expect("f32")
}

/// Averages the rows of each sequence that the mask keeps and divides by the L2 norm.
fn pool(hidden: &Tensor, mask: &[i64]) -> Vec<f32> {
    let [batch, tokens, width] = hidden.shape() else { panic!("hidden states have three axes") };
    let values = hidden.as_f32().expect("f32");
    let mut pooled = Vec::new();
    for row in 0..*batch {
        let mut sum = vec![0.0_f64; *width];
        for token in (0..*tokens).filter(|token| mask[row * tokens + token] == 1) {
            let state = &values[(row * tokens + token) * width..][..*width];
            sum.iter_mut().zip(state).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        let norm = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
        pooled.extend(sum.iter().map(|value| (value / norm) as f32));
    }
    pooled
}

/// Returns the smallest cosine between rows of `found` and `expected`.
fn smallest_cosine(found: &[f32], expected: &[f64], width: usize) -> f64 {
    let cosine = |(a, b): (&[f32], &[f64])| {
        let dot: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * b).sum();
        let norm =
            |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        dot / norm(&mut a.iter().map(|v| f64::from(*v))) / norm(&mut b.iter().copied())
    };
    found.chunks(width).zip(expected.chunks(width)).map(cosine).fold(1.0, f64::min)
}

#[test]
fn l3_agrees_with_onnxruntime_on_the_original_file() {
    let reference = Reference::read("l3");
    let mut executor = text_executor();
    let mut path = plan_of(&executor, "l3[0..3]").path;
    path.pop();
    let encoding = reference.encoding();
    let hidden = hidden(&mut executor, &path, &encoding);
    let pooled = pool(&hidden, &encoding.attention_mask);
    let (_, expected) = reference.tensor("embeddings");
    assert_close(&pooled, expected, 1e-4, "l3 embeddings");
    let cosine = smallest_cosine(&pooled, expected, 384);
    assert!(cosine >= 0.999_99, "cosine {cosine}");
}

#[test]
fn l6_agrees_with_transformers_after_every_block() {
    let reference = Reference::read("l6");
    let mut executor = text_executor();
    let path = plan_of(&executor, "l6[0..6]").path;
    for text in 0..2 {
        let encoding = single(&reference.encoding(), text);
        for block in 0..=6 {
            let (shape, expected) = reference.tensor(&format!("text{text}.space{block}"));
            let hidden = hidden(&mut executor, &path[..1 + 2 * block], &encoding);
            assert_eq!(&hidden.shape()[1..], shape);
            let what = format!("l6 text {text} after {block} blocks");
            assert_close(hidden.as_f32().expect("f32"), expected, 1e-4, &what);
        }
    }
}

#[test]
fn int8_blocks_stay_close_to_the_reference() {
    let reference = Reference::read("l6");
    let mut executor = text_executor();
    let output = run(&mut executor, "l6[0..6]{int8:0..6}", &reference.encoding());
    let (_, expected) = reference.tensor("embeddings");
    let cosine = smallest_cosine(output.as_f32().expect("f32"), expected, 384);
    println!("int8: smallest cosine {cosine:.4}");
    assert!(cosine > 0.97, "cosine {cosine}");
    assert!(cosine < 0.999_999, "nothing was quantized");
}

#[test]
fn fitted_maps_ignore_padding_as_well() {
    let encoding = Reference::read("l6").encoding();
    let mut executor = text_executor();
    for id in
        ["l3[0..1]>l6[1..6]", "l6[0..0]>l6[5..6]", "l6[0..2+]>l6[4..6]", "l6[0..3]", "l3[0..2]"]
    {
        let batch = run(&mut executor, id, &encoding);
        for row in 0..encoding.batch {
            let alone = run(&mut executor, id, &single(&encoding, row));
            let width = alone.shape()[1];
            let rows = &batch.as_f32().expect("f32")[row * width..(row + 1) * width];
            let expected: Vec<f64> = rows.iter().map(|v| f64::from(*v)).collect();
            assert_close(alone.as_f32().expect("f32"), &expected, 1e-5, &format!("{id} {row}"));
        }
    }
}

#[test]
#[ignore = "reads mpnet, which `make setup-full` fetches"]
fn mpnet_agrees_with_transformers() {
    let mut executor = text_executor();
    let reference = Reference::read("mpnet");
    let mut plain = plan_of(&executor, "mpnet[0..12]").path;
    plain.pop();
    for text in 0..2 {
        let encoding = single(&reference.encoding(), text);
        for block in 0..=12 {
            let (shape, expected) = reference.tensor(&format!("text{text}.space{block}"));
            let hidden = hidden(&mut executor, &plain[..1 + 2 * block], &encoding);
            assert_eq!(&hidden.shape()[1..], shape);
            let what = format!("mpnet text {text} after {block} blocks");
            assert_close(hidden.as_f32().expect("f32"), expected, 1e-4, &what);
        }
    }
    let encoding = reference.encoding();
    let pooled = pool(&hidden(&mut executor, &plain, &encoding), &encoding.attention_mask);
    let (_, expected) = reference.tensor("embeddings");
    assert_close(&pooled, expected, 1e-4, "mpnet embeddings");
    let cosine = smallest_cosine(&pooled, expected, 768);
    println!("mpnet: smallest cosine {cosine:.8}");
    assert!(cosine >= 0.999_99, "cosine {cosine}");
}
