//! Networks that mix the rows of a batch, each in a way of its own: refused by the operator's name
//! when they are imported and when a family is loaded, and served one row at a time where asked.

use std::{collections::HashMap, fs, path::Path, sync::Arc, time::Duration};

use prost::Message;
use sha2::{Digest, Sha256};
use tessera::{
    assembly::Family,
    family::PlanId,
    fit::{FitError, ImportOptions, ProfileOptions, import, measure_profile},
    input::{ModelInput, Pixels},
    offer::{MachineKey, ProfileCache},
    onnx::proto::{ModelProto, ValueInfoProto, data_type},
    runtime::{Executor, SideInputs, WholeModel},
    tensor::{Tensor, TensorData},
};

use crate::support::{
    runtime,
    ways::{SIDE, WAYS, WIDTH, network, operator},
    ways_apart::{APART, KEEPS},
};

fn options(file: &Path, one_by_one: bool) -> ImportOptions {
    ImportOptions {
        family: "taken".into(),
        files: vec![file.to_owned()],
        cuts: HashMap::new(),
        labels: Vec::new(),
        preprocessor: None,
        license: "Apache-2.0".into(),
        one_by_one,
        probes: Vec::new(),
    }
}

/// Imports a network and returns what is said of a refusal.
fn imported(pool: &Path, model: &ModelProto, one_by_one: bool) -> Result<Arc<Family>, String> {
    let file = pool.join("net.onnx");
    fs::write(&file, model.encode_to_vec()).expect("written");
    import(&runtime(), pool, &options(&file, one_by_one), &()).map_err(|error| told(&error))?;
    Ok(Arc::new(Family::load(&pool.join("taken")).expect("it loads")))
}

fn told(error: &FitError) -> String {
    let source = match error {
        FitError::Arch(error) => std::error::Error::source(error).map(ToString::to_string),
        _ => None,
    };
    format!("{error}: {}", source.unwrap_or_default())
}

/// Writes a family by hand, loads it and measures it; returns what is said of a refusal.
fn made_by_hand(pool: &Path, model: &ModelProto, key: &str) -> Result<Executor, String> {
    let folder = pool.join("made");
    fs::create_dir_all(&folder).expect("a folder");
    let bytes = model.encode_to_vec();
    fs::write(folder.join("model.onnx"), &bytes).expect("written");
    let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let made = |op: &str| -> Vec<String> {
        let nodes = model.graph.iter().flat_map(|graph| &graph.node);
        nodes.filter(|node| node.op_type == op).map(|node| node.output[0].clone()).collect()
    };
    let (stem, blocks) = (&made("Conv")[0], made("LeakyRelu"));
    let shapes = vec![vec![WIDTH, SIDE, SIDE]; 3];
    let manifest = format!(
        "name = \"made\"\ntask = \"image-classification\"\ndescription = \"Made by hand\"\n\
         license = \"MIT\"\nreference = \"a\"\n[image]\nchannels = 3\nheight = {SIDE}\n\
         width = {SIDE}\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\nresize = \"stretch\"\n\
         filter = \"bilinear\"\n[output]\nname = \"logits\"\nwidth = {WIDTH}\n[quality]\n\
         metric = \"accuracy\"\nfile = \"quality.json\"\n[anchors.a.onnx]\n\
         file = \"model.onnx\"\n{key}stem = {stem:?}\nblocks = {blocks:?}\n\
         [anchors.a.onnx.image]\ninput = \"images\"\noutput = \"logits\"\n\
         shapes = {shapes:?}\n[anchors.a.sha256]\n\"model.onnx\" = \"{digest}\"\n"
    );
    fs::write(folder.join("family.toml"), manifest).expect("written");
    let family = Family::load(&folder).map_err(|error| told(&FitError::Arch(error)))?;
    let mut executor = Executor::new(runtime(), Arc::new(family));
    measured(&mut executor).map_err(|error| told(&error))?;
    Ok(executor)
}

fn measured(executor: &mut Executor) -> Result<ProfileCache, FitError> {
    let machine =
        MachineKey { processor: "any".into(), num_threads: 2, spin: false, runtime: "any".into() };
    let mut cache = ProfileCache::empty(machine);
    let options = ProfileOptions {
        batches: vec![1, 4],
        tokens: vec![1],
        time_per_cell: Duration::ZERO,
        min_runs: 1,
        attempts: 1,
    };
    measure_profile(executor, &options, &mut cache, &(), &mut |_| Ok(()))?;
    Ok(cache)
}

#[test]
fn networks_that_mix_rows_are_not_imported_and_the_operator_is_named() {
    assert!(WAYS.len() >= 30);
    let mut wrong = Vec::new();
    for (what, way) in WAYS {
        let pool = tempfile::tempdir().expect("a temporary folder");
        let operator = format!("the operator `{}` (node", operator(way));
        match imported(pool.path(), &network(Some(way)), false) {
            Ok(_) => wrong.push(format!("{what}: taken")),
            Err(message) if message.contains(&operator) => {}
            Err(message) => wrong.push(format!("{what}: {message}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn families_made_by_hand_of_such_networks_are_not_loaded() {
    let mut wrong = Vec::new();
    for (what, way) in WAYS {
        let pool = tempfile::tempdir().expect("a temporary folder");
        let operator = format!("the operator `{}` (node", operator(way));
        match made_by_hand(pool.path(), &network(Some(way)), "") {
            Ok(_) => wrong.push(format!("{what}: loaded")),
            Err(message) if message.contains(&operator) => {}
            Err(message) => wrong.push(format!("{what}: {message}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn networks_that_mix_nothing_are_taken() {
    let pool = tempfile::tempdir().expect("a temporary folder");
    imported(pool.path(), &network(None), false).expect("imported");
    made_by_hand(pool.path(), &network(None), "").expect("loaded");
    for (what, way) in APART {
        let pool = tempfile::tempdir().expect("a temporary folder");
        imported(pool.path(), &network(Some(way)), false).expect(what);
        made_by_hand(pool.path(), &network(Some(way)), "").expect(what);
    }
}

fn images(batch: usize) -> Tensor {
    let shape = vec![batch, 3, SIDE as usize, SIDE as usize];
    let count: usize = shape.iter().product();
    let value = |index: usize| ((index * 37 % 101) as f32 - 50.0) / 20.0 * (1 + index / 108) as f32;
    Tensor::new(shape, TensorData::F32((0..count).map(value).collect())).expect("a tensor")
}

/// Runs the whole network on images as they are given.
fn whole(model: &ModelProto, images: &Tensor) -> Vec<f32> {
    let wanted = ["logits".to_owned()];
    let mut whole = WholeModel::load(&runtime(), Path::new("."), "whole", model, &wanted);
    let whole = whole.as_mut().expect("a session");
    let found = whole.run(&[("images", images)], &wanted).expect("it runs").remove(0);
    found.as_f32().expect("f32").to_vec()
}

/// Runs a family's reference on images as they are given.
fn answered(executor: &Executor, images: &Tensor) -> Vec<f32> {
    let family = executor.family();
    let plan = format!("{}[0..2]", family.manifest.reference);
    let path = PlanId::parse(&family.graph, &plan).expect("a plan");
    let side = SIDE as usize;
    let values = images.as_f32().expect("f32").to_vec();
    let pixels = ModelInput::Pixels(Pixels { shape: [3, side, side], values });
    let sides = SideInputs::of_input(pixels).expect("inputs");
    let found = executor.run(&path, &sides, &mut ()).expect("it runs").remove(0);
    found.as_f32().expect("f32").to_vec()
}

fn farthest(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max)
}

#[test]
fn one_by_one_every_row_is_answered_as_the_export_answers_it_alone() {
    let all = images(3);
    let values = all.as_f32().expect("f32");
    let single = |row: usize| {
        let length = values.len() / 3;
        let values = values[row * length..(row + 1) * length].to_vec();
        Tensor::new(images(1).shape().to_vec(), TensorData::F32(values)).expect("a tensor")
    };
    for what in ["one scale for all", "statistics of the batch", "softmax over the batch"] {
        let way = WAYS.iter().find(|(name, _)| *name == what).map(|(_, way)| way);
        let model = network(way);
        let expected: Vec<f32> = (0..3).flat_map(|row| whole(&model, &single(row))).collect();
        assert!(farthest(&whole(&model, &all), &expected) > 1e-3, "{what} does not mix");
        let pool = tempfile::tempdir().expect("a temporary folder");
        let family = imported(pool.path(), &model, true).expect(what);
        let mut executor = Executor::new(runtime(), family);
        let profile = measured(&mut executor).expect("measured").profile_of(executor.family());
        assert_eq!(profile.expect("a profile").max_batch(), 1, "{what}");
        let by_hand = made_by_hand(pool.path(), &model, "one_by_one = true\n").expect(what);
        for executor in [executor, by_hand] {
            let found = answered(&executor, &all);
            assert!(farthest(&found, &expected) < 1e-5, "{what}: {found:?}, not {expected:?}");
        }
    }
}

#[test]
fn one_by_one_exports_for_one_image_are_taken_and_chance_is_not() {
    let mut model = network(None);
    let dims = |shape: &[i64]| shape.iter().map(|extent| Some(*extent)).collect::<Vec<_>>();
    let graph = model.graph.as_mut().expect("a graph");
    let shape = dims(&[1, 3, SIDE, SIDE]);
    graph.input = vec![ValueInfoProto::tensor("images", data_type::FLOAT, &shape)];
    graph.output = vec![ValueInfoProto::tensor("logits", data_type::FLOAT, &dims(&[1, WIDTH]))];
    let pool = tempfile::tempdir().expect("a temporary folder");
    let message = imported(pool.path(), &model, false).expect_err("refused");
    assert!(message.contains("made for one image; `--one-by-one`"), "{message}");
    let family = imported(pool.path(), &model, true).expect("imported");
    let pool = tempfile::tempdir().expect("a temporary folder");
    let found = answered(&Executor::new(runtime(), family), &images(2));
    assert!(farthest(&found, &whole(&network(None), &images(2))) < 1e-5);
    for what in ["noise added", "noise times", "coins", "dropout as in training"] {
        let way = WAYS.iter().find(|(name, _)| *name == what).map(|(_, way)| way);
        let message = imported(pool.path(), &network(way), true).expect_err("refused");
        assert!(message.contains("draws random numbers"), "{what}: {message}");
    }
    let message = imported(pool.path(), &network(Some(&KEEPS)), true).expect_err("refused");
    let said = "the operator `BatchNormalization` (node";
    assert!(message.contains(said) && message.contains("two answers"), "{message}");
}
