//! Fuzz tests: many wrong ONNX files, each of which must be read or refused (`make fuzz`).

use std::{collections::HashMap, path::Path};

use prost::Message;

use super::{
    Attribute, CutPoint, Extents, GraphBuilder, articulations, check_operators, check_repeatable,
    check_rows, cut, embed_weights,
    external::{Place, initializer},
    fix_shapes,
    proto::{ModelProto, data_type},
    quantize_weights, read_model, shape_reads, take_rows,
};
use crate::tensor::mutate::feed_file;

const FILE: &str = "model.onnx";

/// Returns a network, and points at which it can be cut.
fn network() -> (ModelProto, [CutPoint; 3]) {
    let mut graph = GraphBuilder::default();
    let x = graph.input("x", data_type::FLOAT, &[None, Some(4)]);
    let weight = graph.floats(vec![4, 4], &[0.5; 16]);
    let stem = graph.node("MatMul", &[&x, &weight], &[]);
    let inner = graph.node("Relu", &[&stem], &[]);
    let shape = graph.node("Shape", &[&x], &[]);
    let sum = graph.node("Add", &[&inner, &stem], &[]);
    let mean = graph.node("Softmax", &[&sum], &[("axis", Attribute::Int(-1))]);
    let table = graph.floats(vec![4, 2], &[0.25; 8]);
    let chosen = graph.ints(&[3, 0, 1, 2]);
    let rows = graph.node("Gather", &[&table, &chosen], &[("axis", Attribute::Int(0))]);
    let taken = graph.node("MatMul", &[&mean, &rows], &[]);
    let joined = graph.node("Concat", &[&taken, &taken], &[("axis", Attribute::Int(1))]);
    let last = graph.node("Reshape", &[&joined, &shape], &[]);
    let model = graph.finish(&last, "y", &[None, Some(4)]);
    let points = [stem, sum, "y".to_owned()];
    (model, points.map(|tensor| CutPoint { tensor, shape: vec![None, Some(4)] }))
}

/// Does with `model` all that is done with a network from outside.
fn use_model(mut model: ModelProto, points: &[CutPoint], folder: &Path) {
    let names = points.iter().map(|point| point.tensor.as_str()).chain(["x"]);
    let extents: HashMap<String, Extents> =
        names.map(|name| (name.to_owned(), [vec![1, 4], vec![2, 4]])).collect();
    drop(check_repeatable(&model));
    drop(check_operators(&model, &["x"]));
    drop(check_rows(&model, &["x"], &extents));
    drop(articulations(&model, "x"));
    drop(cut(&model, points, Some("x")));
    drop(shape_reads(&model));
    drop(take_rows(&model, folder));
    drop(quantize_weights(&model, folder, 127));
    drop(fix_shapes(&mut model.clone(), "x", &extents));
    drop(embed_weights(&mut model, folder));
}

#[test]
fn onnx_files() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (model, points) = network();
    let (path, again) = (folder.path().join(FILE), folder.path().join("again.onnx"));
    feed_file(&[model.encode_to_vec()], &path, || {
        let Ok(model) = read_model(folder.path(), Path::new(FILE)) else { return };
        // A file that is written over takes milliseconds.
        drop(std::fs::remove_file(&again));
        std::fs::write(&again, model.encode_to_vec()).expect("written");
        let read = read_model(folder.path(), Path::new("again.onnx")).expect("as written");
        // Floats that are not equal to themselves have equal bytes.
        assert_eq!(read.encode_to_vec(), model.encode_to_vec());
        use_model(model, &points, folder.path());
    });
}

#[test]
fn places_of_weights() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("weights.bin"), [0; 96]).expect("written");
    let (mut model, points) = network();
    let graph = model.graph.as_mut().expect("a graph");
    for (index, tensor) in graph.initializer.iter_mut().take(2).enumerate() {
        let place = Place {
            file: "weights.bin".to_owned(),
            offset: 32 * index as u64,
            length: 64 / (1 + index as u64),
        };
        *tensor = initializer(&tensor.name, tensor.data_type, tensor.dims.clone(), &place);
    }
    let path = folder.path().join(FILE);
    feed_file(&[model.encode_to_vec()], &path, || {
        if let Ok(model) = read_model(folder.path(), Path::new(FILE)) {
            use_model(model, &points, folder.path());
        }
    });
}
