//! Fuzz tests: many wrong ONNX files, each of which must be read or refused (`make fuzz`).

use std::path::Path;

use prost::Message;

use super::{CutPoint, GraphBuilder, articulations, cut, proto::data_type, read_model};
use crate::tensor::mutate::feed_file;

#[test]
#[ignore = "takes minutes: make fuzz"]
fn onnx_files() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut graph = GraphBuilder::default();
    let x = graph.input("x", data_type::FLOAT, &[None, Some(4)]);
    let weight = graph.floats(vec![4, 4], &[0.5; 16]);
    let stem = graph.node("MatMul", &[&x, &weight], &[]);
    let inner = graph.node("Relu", &[&stem], &[]);
    let shape = graph.node("Shape", &[&x], &[]);
    let sum = graph.node("Add", &[&inner, &stem], &[]);
    let last = graph.node("Reshape", &[&sum, &shape], &[]);
    let model = graph.finish(&last, "y", &[None, Some(4)]);
    let points = [stem, sum, "y".to_owned()];
    let points = points.map(|tensor| CutPoint { tensor, shape: vec![None, Some(4)] });
    let name = Path::new("model.onnx");
    feed_file(&[model.encode_to_vec()], &folder.path().join(name), || {
        if let Ok(model) = read_model(folder.path(), name) {
            drop(articulations(&model, "x"));
            drop(cut(&model, &points, Some("x")));
        }
    });
}
