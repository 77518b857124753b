//! Assembled paths against the reference implementations.

use tessera::{
    arch::Encoding,
    family::{ModuleId, PlanId},
    runtime::{Executor, SideInputs},
    tensor::Tensor,
};

use crate::support::{Reference, assert_close, text_executor};

fn path(executor: &Executor, id: &str) -> Vec<ModuleId> {
    PlanId::find_path(&executor.family().graph, id).expect("a plan")
}

fn run(executor: &mut Executor, id: &str, encoding: &Encoding) -> Tensor {
    let path = path(executor, id);
    let sides = SideInputs::of_encoding(encoding.clone()).expect("inputs");
    executor.run(&path, &sides, &mut ()).expect("runs")
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
