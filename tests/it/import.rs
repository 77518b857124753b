//! Taking exports apart: small ones made here, and real ones where TESSERA_EXPORTS names a folder.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use prost::Message;
use tessera::{
    assembly::Family,
    family::Metric,
    fit::{FitError, ImportOptions, import},
    onnx::{
        Attribute, GraphBuilder,
        proto::{GraphProto, ModelProto, StringStringEntry, ValueInfoProto, data_type},
    },
};

use crate::support::runtime;

fn options(files: &[PathBuf]) -> ImportOptions {
    ImportOptions {
        family: "taken".into(),
        files: files.to_vec(),
        cuts: HashMap::new(),
        labels: Vec::new(),
        preprocessor: None,
        license: "Apache-2.0".into(),
        one_by_one: false,
        probes: Vec::new(),
    }
}

/// Makes a small residual network whose head reshapes by its input's shape, as exports do.
fn network(blocks: usize, width: i64, side: i64) -> ModelProto {
    let mut graph = GraphBuilder::default();
    let shape = [None, Some(3), Some(side), Some(side)];
    let images = graph.input("images", data_type::FLOAT, &shape);
    let pads = [("pads", Attribute::Ints(vec![1; 4]))];
    let kernel = |graph: &mut GraphBuilder, inputs: i64, seed: i64| {
        let count = width * inputs * 9;
        let values: Vec<f32> =
            (0..count).map(|i| (((i + seed) * 37 % 101) as f32 - 50.0) / 300.0).collect();
        graph.floats(vec![width, inputs, 3, 3], &values)
    };
    let weight = kernel(&mut graph, 3, 1);
    let mut value = graph.node("Conv", &[&images, &weight], &pads);
    for block in 0..blocks {
        let weight = kernel(&mut graph, width, 7 * block as i64);
        let inner = graph.node("Conv", &[&value, &weight], &pads);
        let sum = graph.node("Add", &[&inner, &value], &[]);
        value = graph.node("Relu", &[&sum], &[]);
    }
    let shape = graph.node("Shape", &[&images], &[]);
    let first = graph.ints(&[0]);
    let batch = graph.node("Gather", &[&shape, &first], &[]);
    let rest = graph.ints(&[-1]);
    let flat = graph.node("Concat", &[&batch, &rest], &[("axis", Attribute::Int(0))]);
    let pooled = graph.node("GlobalAveragePool", &[&value], &[]);
    let logits = graph.node("Reshape", &[&pooled, &flat], &[]);
    graph.finish(&logits, "logits", &[None, Some(width)])
}

fn write(folder: &Path, name: &str, model: &ModelProto) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, model.encode_to_vec()).expect("written");
    path
}

#[test]
fn exports_are_taken_apart_and_stitches_proposed() {
    let pool = tempfile::tempdir().expect("a temporary folder");
    let files = [
        write(pool.path(), "small.onnx", &network(2, 4, 8)),
        write(pool.path(), "large-net.onnx", &network(3, 4, 8)),
    ];
    let reports = import(&runtime(), pool.path(), &options(&files), &()).expect("imported");
    let blocks: Vec<_> = reports.iter().map(|r| (r.anchor.as_str(), r.num_blocks)).collect();
    assert_eq!(blocks, [("small", 2), ("large_net", 3)]);
    let family = Family::load(&pool.path().join("taken")).expect("it loads");
    assert_eq!(family.manifest.reference, "large_net");
    let maps = family.manifest.maps.iter();
    let ends: Vec<_> = maps.map(|map| (map.from.as_str(), map.to.as_str())).collect();
    assert_eq!(ends, [("small.2", "large_net.1"), ("small.2", "large_net.3")]);
    // Blocks that keep the shape of their input can be left out; without labels, plans are judged
    // by how often they agree.
    let skips = family.graph.modules().iter().filter(|module| module.variant.is_some());
    let skips: Vec<_> = skips.map(|module| module.name.as_str()).collect();
    let skip = |(anchor, block)| format!("{anchor}.block.{block}.skip");
    let large = [0, 1, 2].map(|block| skip(("large_net", block)));
    assert_eq!(skips, [&large[..], &[0, 1].map(|block| skip(("small", block)))].concat());
    assert_eq!(family.manifest.quality.metric, Metric::Agreement);
}

#[test]
fn outputs_that_are_left_out_are_named() {
    let pool = tempfile::tempdir().expect("a temporary folder");
    let mut model = network(2, 4, 8);
    let graph = model.graph.as_mut().expect("a graph");
    let pooled = graph.node.iter().find(|node| node.op_type == "GlobalAveragePool");
    let pooled = pooled.expect("a node").output[0].clone();
    graph.output.push(ValueInfoProto::tensor(&pooled, data_type::FLOAT, &[None, Some(4)]));
    let files =
        [write(pool.path(), "two.onnx", &model), write(pool.path(), "one.onnx", &network(2, 4, 8))];
    let reports = import(&runtime(), pool.path(), &options(&files), &()).expect("imported");
    assert_eq!((reports[0].output.as_str(), reports[1].output.as_str()), ("logits", "logits"));
    assert_eq!((&reports[0].left_out, &reports[1].left_out), (&vec![pooled], &Vec::new()));
}

/// Imports and returns what is said of the refusal; nothing may be left behind.
fn refused(pool: &Path, files: &[PathBuf], change: impl Fn(&mut ImportOptions)) -> String {
    let mut options = options(files);
    change(&mut options);
    let error = import(&runtime(), pool, &options, &()).expect_err("refused");
    let left = fs::read_dir(pool).expect("a folder").filter_map(Result::ok);
    let folders = left.filter(|entry| entry.path().is_dir()).count();
    assert_eq!(folders, 0, "something is left behind");
    match error {
        FitError::Arch(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            format!("{error}: {}", source.unwrap_or_default())
        }
        other => other.to_string(),
    }
}

#[test]
fn exports_that_cannot_be_taken_apart_are_refused_by_file_and_reason() {
    let pool = tempfile::tempdir().expect("a temporary folder");
    let folder = pool.path();
    let good = write(folder, "good.onnx", &network(2, 4, 8));
    let mut model = network(2, 4, 8);
    let graph = model.graph.as_mut().expect("a graph");
    let weight = graph.initializer.iter_mut().find(|tensor| tensor.dims.len() == 4);
    let weight = weight.expect("a kernel");
    weight.raw_data = None;
    weight.data_location = Some(1);
    let location = StringStringEntry { key: "location".into(), value: "gone.bin".into() };
    weight.external_data = vec![location];
    let external = write(folder, "external.onnx", &model);
    let mut model = network(2, 4, 8);
    let place = &mut model.graph.as_mut().expect("a graph").initializer[0];
    place.data_location = Some(1);
    place.external_data =
        vec![StringStringEntry { key: "location".into(), value: "../../etc/passwd".into() }];
    let outside = write(folder, "outside.onnx", &model);
    let other_size = write(folder, "other_size.onnx", &network(2, 4, 16));
    let single = write(folder, "single.onnx", &network(0, 4, 8));
    let mut model = network(2, 4, 8);
    model.opset_import[0].version = 99;
    let future = write(folder, "future.onnx", &model);
    let changed = |name: &str, change: &dyn Fn(&mut GraphProto)| {
        let mut model = network(2, 4, 8);
        change(model.graph.as_mut().expect("a graph"));
        write(folder, name, &model)
    };
    let shape = [None, Some(8), Some(8), Some(3)];
    let half = changed("half.onnx", &|graph| {
        let shape = [None, Some(3), Some(8), Some(8)];
        graph.input[0] = ValueInfoProto::tensor("images", data_type::FLOAT16, &shape);
    });
    let last = changed("last.onnx", &|graph| {
        graph.input[0] = ValueInfoProto::tensor("images", data_type::FLOAT, &shape);
    });
    let classes = changed("classes.onnx", &|graph| {
        graph.output[0] = ValueInfoProto::tensor("logits", data_type::INT64, &[None]);
    });
    let noise = folder.join("noise.onnx");
    fs::write(&noise, b"\x08\xffno model").expect("written");
    for (files, reason) in [
        (vec![external], "gone.bin"),
        (vec![outside], "outside the model's folder"),
        (vec![good.clone(), other_size], "maps [3, 16, 16]"),
        (vec![single], "usable cuts"),
        (vec![future], "opset 99"),
        (vec![half], "half.onnx: input `images` is FLOAT16, but FLOAT is needed"),
        (vec![last], "last.onnx: input `images` has 8 channels"),
        (vec![classes], "classes.onnx: output `logits` is INT64, but scores in FLOAT"),
        (vec![noise], "is not an ONNX model"),
        (vec![good.clone(), good.clone()], "which another file gives"),
        (vec![folder.join("none.onnx")], "cannot be read"),
    ] {
        let message = refused(folder, &files, |_| ());
        assert!(message.contains(reason), "no `{reason}` in: {message}");
    }
    let cuts = HashMap::from([("good".to_owned(), vec!["Conv_9".to_owned()])]);
    let message = refused(folder, &[good], |options| options.cuts = cuts.clone());
    assert!(message.contains("`Conv_9` is not a tensor that everything passes"), "{message}");
}

/// Returns a small network whose last layer reads its input again.
fn network_with_late_input() -> ModelProto {
    let mut model = network(2, 4, 8);
    let graph = model.graph.as_mut().expect("a graph");
    let place = |kind: &str| graph.node.iter().position(|node| node.op_type == kind);
    let (pool, join) = (place("GlobalAveragePool"), place("Concat"));
    let (pool, join) = (pool.expect("a node"), join.expect("a node"));
    let mut late = graph.node[pool].clone();
    let pooled = std::mem::replace(&mut late.output[0], "late".into());
    (late.name, late.input[0]) = ("late".into(), "images".into());
    let mut joined = graph.node[join].clone();
    joined.input = vec![pooled, "late".into()];
    (joined.name, joined.output[0]) = ("joined".into(), "joined".into());
    joined.attribute[0].i = Some(1);
    graph.node.last_mut().expect("a node").input[0] = "joined".into();
    graph.node.splice(pool + 1..=pool, [late, joined]);
    let classes = [None, Some(7)];
    graph.output[0] = ValueInfoProto::tensor("logits", data_type::FLOAT, &classes);
    model
}

#[test]
fn an_export_that_reads_its_input_late_is_refused_for_it() {
    let pool = tempfile::tempdir().expect("a temporary folder");
    let file = write(pool.path(), "late.onnx", &network_with_late_input());
    let message = refused(pool.path(), &[file], |_| ());
    let reason = "late.onnx: has 0 usable cuts, but a stem and a block are needed; everything \
                  passes through one of its tensors; its input may be read late";
    assert!(message.contains(reason), "{message}");
}

#[test]
#[ignore = "reads the exports of tools/exports.py in the folder that TESSERA_EXPORTS names"]
fn real_exports_joined_again_are_what_they_were() {
    let folder = std::env::var_os("TESSERA_EXPORTS").expect("TESSERA_EXPORTS names a folder");
    let files = fs::read_dir(folder).expect("a folder").filter_map(Result::ok);
    let files = files.map(|entry| entry.path());
    let mut files: Vec<_> = files.filter(|p| p.extension().is_some_and(|e| e == "onnx")).collect();
    files.sort();
    assert!(!files.is_empty(), "there is no export");
    for file in files {
        let pool = tempfile::tempdir().expect("a temporary folder");
        let start = std::time::Instant::now();
        let reports = import(&runtime(), pool.path(), &options(std::slice::from_ref(&file)), &());
        let reports = reports.unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let report = &reports[0];
        println!(
            "{}: {} nodes, {} blocks, {:.1e}, {:.1} s",
            report.anchor,
            report.num_nodes,
            report.num_blocks,
            report.difference,
            start.elapsed().as_secs_f64()
        );
    }
}
