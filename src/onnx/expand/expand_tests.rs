//! Tests of what weights of blocks become.

use super::*;
use crate::onnx::{
    Attribute, GraphBuilder,
    blocks::ALL,
    external::{Place, initializer},
};

const COLUMNS: usize = 256;

/// Weights of two matrices in a file of a folder that ends with this.
struct Weighted {
    folder: tempfile::TempDir,
    block_type: BlockType,
}

impl Weighted {
    fn new(block_type: BlockType) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let bytes = COLUMNS / block_type.elements() * block_type.bytes() * 5;
        let content: Vec<u8> = (0..61).cycle().take(bytes).collect();
        std::fs::write(folder.path().join("w"), content).expect("written");
        Self { folder, block_type }
    }

    /// Returns the rows `rows` as a weight.
    fn weight(&self, rows: std::ops::Range<usize>) -> TensorProto {
        let row = (COLUMNS / self.block_type.elements() * self.block_type.bytes()) as u64;
        let (offset, length) = (row * rows.start as u64, row * rows.len() as u64);
        let place = Place { file: "w".into(), offset, length };
        let dims = vec![rows.len() as i64, COLUMNS as i64];
        let name = format!("weight.{}", rows.start);
        initializer(&name, self.block_type.data_type(), dims, &place)
    }

    /// Returns a graph of the products of one left side with both matrices, as decoders build it.
    fn products(&self) -> ModelProto {
        let mut graph = GraphBuilder::default();
        let left = graph.input("hidden", data_type::FLOAT, &[None, None, Some(COLUMNS as i64)]);
        let mut product = |weight: TensorProto| {
            let weight = graph.weight(weight);
            let to = Attribute::Int(i64::from(data_type::FLOAT));
            let weight = graph.node("Cast", &[&weight], &[("to", to)]);
            let perm = Attribute::Ints(vec![1, 0]);
            let weight = graph.node("Transpose", &[&weight], &[("perm", perm)]);
            graph.node("MatMul", &[&left, &weight], &[])
        };
        let (one, other) = (product(self.weight(0..2)), product(self.weight(2..5)));
        graph.output(&one, "one", &[None, None, Some(2)]);
        graph.finish(&other, "other", &[None, None, Some(3)])
    }
}

fn ops(model: &ModelProto) -> Vec<&str> {
    let graph = model.graph.as_ref().expect("a graph");
    graph.node.iter().map(|node| node.op_type.as_str()).collect()
}

#[test]
fn products_of_one_left_side_become_one() {
    for block_type in ALL {
        let weighted = Weighted::new(block_type);
        let model = expand_blocks(&weighted.products(), weighted.folder.path()).expect("expanded");
        let minima: &[&str] = match block_type.packed_form().has_minima {
            true => &["Reshape", "ReduceSum", "MatMul", "Add"],
            false => &[],
        };
        let expected = [&["MatMulNBits"], minima, &["Split", "Identity", "Identity"]].concat();
        assert_eq!(ops(&model), expected, "{block_type:?}");
        let graph = model.graph.expect("a graph");
        assert!(graph.initializer.iter().all(|t| BlockType::of_data_type(t.data_type).is_none()));
        let stored: usize = graph
            .initializer
            .iter()
            .filter(|tensor| tensor.data_type != data_type::INT64)
            .map(|tensor| tensor.raw_data.as_ref().expect("inside").len())
            .sum();
        let elements = (5 * COLUMNS) as u64;
        assert_eq!(stored as u64, block_type.packed_form().bytes(elements), "{block_type:?}");
    }
}

#[test]
fn a_weight_that_no_product_reads_becomes_its_values() {
    let weighted = Weighted::new(BlockType::Q4K);
    let mut graph = GraphBuilder::default();
    let left = graph.input("hidden", data_type::FLOAT, &[None, None, Some(COLUMNS as i64)]);
    let weight = graph.weight(weighted.weight(0..1));
    let to = Attribute::Int(i64::from(data_type::FLOAT));
    let weight = graph.node("Cast", &[&weight], &[("to", to)]);
    let sum = graph.node("Add", &[&left, &weight], &[]);
    let model = graph.finish(&sum, "output", &[None, None, None]);
    let plain = expand_blocks(&model, weighted.folder.path()).expect("expanded");
    assert_eq!(ops(&plain), ["Cast", "Add", "Identity"]);
    let graph = plain.graph.expect("a graph");
    assert_eq!(graph.initializer[0].data_type, data_type::FLOAT);
    assert_eq!(graph.initializer[0].raw_data.as_ref().expect("inside").len(), COLUMNS * 4);
}

#[test]
fn the_values_of_a_whole_graph_keep_its_nodes() {
    let weighted = Weighted::new(BlockType::Q6K);
    let model = weighted.products();
    let plain = dequantize_blocks(&model, weighted.folder.path()).expect("expanded");
    assert_eq!(ops(&plain), ops(&model));
    let graph = plain.graph.expect("a graph");
    assert!(graph.initializer.iter().all(|tensor| tensor.data_type == data_type::FLOAT));
}

#[test]
fn a_weight_of_another_size_is_refused_by_name() {
    let weighted = Weighted::new(BlockType::Q8_0);
    let mut model = weighted.products();
    model.graph.as_mut().expect("a graph").initializer[0].dims = vec![3, COLUMNS as i64];
    let error = expand_blocks(&model, weighted.folder.path()).expect_err("too short").to_string();
    assert!(error.contains("weight.0"), "{error}");
}
