//! Tests of finding articulations and cuts.

use super::*;
use crate::onnx::{
    GraphBuilder,
    proto::{AttributeProto, data_type},
};

/// Creates a graph with the input `x` and a weight `w`.
fn start() -> (GraphBuilder, String, String) {
    let mut graph = GraphBuilder::default();
    let x = graph.input("x", data_type::FLOAT, &[None, Some(4)]);
    let w = graph.floats(vec![4, 4], &[0.5; 16]);
    (graph, x, w)
}

fn finish(graph: GraphBuilder, value: &str) -> ModelProto {
    graph.finish(value, "y", &[None, Some(4)])
}

#[test]
fn residual_blocks_are_cut_after_their_activation() {
    let (mut graph, x, w) = start();
    let stem = graph.node("MatMul", &[&x, &w], &[]);
    let mut value = stem.clone();
    let mut ends = vec![stem];
    for _ in 0..2 {
        let inner = graph.node("MatMul", &[&value, &w], &[]);
        let inner = graph.node("Relu", &[&inner], &[]);
        let inner = graph.node("MatMul", &[&inner, &w], &[]);
        let sum = graph.node("Add", &[&inner, &value], &[]);
        value = graph.node("Relu", &[&sum], &[]);
        ends.push(value.clone());
    }
    let head = graph.node("MatMul", &[&value, &w], &[]);
    let found = articulations(&finish(graph, &head), "x").expect("valid");
    assert_eq!(found.cuts, ends);
    // Inside a block, the residual path keeps any other tensor from being an articulation.
    assert!(!found.all.iter().any(|name| name == "MatMul_3"), "{:?}", found.all);
}

#[test]
fn shapes_and_masks_lead_around_no_cut() {
    let (mut graph, x, w) = start();
    let mask = graph.input("mask", data_type::FLOAT, &[None, Some(4)]);
    let stem = graph.node("MatMul", &[&x, &w], &[]);
    let shape = graph.node("Shape", &[&x], &[]);
    let inner = graph.node("MatMul", &[&stem, &w], &[]);
    let inner = graph.node("Mul", &[&inner, &mask], &[]);
    let block = graph.node("Add", &[&inner, &stem], &[]);
    let again = graph.node("Mul", &[&block, &mask], &[]);
    let head = graph.node("Reshape", &[&again, &shape], &[]);
    let found = articulations(&finish(graph, &head), "x").expect("valid");
    assert_eq!(found.cuts, [stem, block]);
}

#[test]
fn networks_without_residuals_are_cut_before_each_product() {
    let (mut graph, x, w) = start();
    let mut value = x;
    let mut ends = Vec::new();
    for _ in 0..3 {
        value = graph.node("MatMul", &[&value, &w], &[]);
        value = graph.node("Relu", &[&value], &[]);
        ends.push(value.clone());
    }
    let found = articulations(&finish(graph, &value), "x").expect("valid");
    assert_eq!(found.cuts, ends[..2]);
}

#[test]
fn control_flow_is_refused_by_the_node() {
    let (mut graph, x, _) = start();
    let value = graph.node("If", &[&x], &[]);
    let mut model = finish(graph, &value);
    let branch = AttributeProto { g: Some(GraphProto::default()), ..AttributeProto::default() };
    model.graph.as_mut().expect("a graph").node[0].attribute.push(branch);
    let error = articulations(&model, "x").expect_err("control flow").to_string();
    assert!(error.contains("If"), "{error}");
}

#[test]
fn inputs_that_do_not_exist_or_lead_nowhere_are_refused() {
    let (mut graph, x, w) = start();
    let unused = graph.input("unused", data_type::FLOAT, &[None]);
    let value = graph.node("MatMul", &[&x, &w], &[]);
    let model = finish(graph, &value);
    for input in ["z", unused.as_str()] {
        assert!(articulations(&model, input).is_err(), "{input}");
    }
}

#[test]
fn no_cut_comes_before_the_last_reader_of_the_input() {
    // Two branches read the input, as RepVGG's first block does.
    let (mut graph, x, w) = start();
    let left = graph.node("MatMul", &[&x, &w], &[]);
    let right = graph.node("MatMul", &[&x, &w], &[]);
    let stem = graph.node("Add", &[&left, &right], &[]);
    let inner = graph.node("MatMul", &[&stem, &w], &[]);
    let block = graph.node("Add", &[&inner, &stem], &[]);
    let head = graph.node("MatMul", &[&block, &w], &[]);
    let found = articulations(&finish(graph, &head), "x").expect("valid");
    assert_eq!(found.all, [stem.clone(), block.clone(), head]);
    assert_eq!(found.cuts, [stem, block]);
    // The input is read once more behind the first block.
    let (mut graph, x, w) = start();
    let stem = graph.node("MatMul", &[&x, &w], &[]);
    let inner = graph.node("MatMul", &[&stem, &w], &[]);
    let block = graph.node("Add", &[&inner, &stem], &[]);
    let late = graph.node("Add", &[&block, &x], &[]);
    let inner = graph.node("MatMul", &[&late, &w], &[]);
    let end = graph.node("Add", &[&inner, &late], &[]);
    let head = graph.node("MatMul", &[&end, &w], &[]);
    let found = articulations(&finish(graph, &head), "x").expect("valid");
    assert_eq!(found.all, [late, end, head]);
}
