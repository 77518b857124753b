//! Dense feed-forward parts as experts: all of them are the dense part again, and wrong ones are
//! refused.

use std::{fs, sync::Arc};

use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tessera::{
    assembly::Family,
    family::{Manifest, ModuleId, ModuleKind, PlanId},
    fit::{Dataset, ExpertOptions, check_corpora, fit_experts},
    input::{Encoding, ModelInput, Pixels},
    pool::{FamilyWriter, FitRecords},
    runtime::{Activation, Executor, SideInputs},
};

use crate::{
    pool::Pool,
    support::{
        Reference, assert_close,
        experts::{fit, l6, text_pool},
        idle::Idle,
        root, runtime,
        synthetic::{Synthetic, WIDTH},
    },
};

fn executor(pool: &Pool) -> Executor {
    let family = Family::load(&pool.path()).unwrap_or_else(|e| panic!("{e}"));
    Executor::new(runtime(), Arc::new(family))
}

/// Runs the plain path and at every feed-forward part its `variant` as well; returns the largest
/// difference between what the two give.
fn largest_difference(executor: &Executor, variant: &str, sides: &SideInputs) -> f64 {
    let graph = &executor.family().clone().graph;
    let named = |name: &str| graph.modules().iter().position(|m| m.name == name).map(ModuleId);
    let mut largest = 0.0_f64;
    let mut num_compared = 0;
    for anchor in graph.anchors() {
        let last =
            graph.modules().iter().filter(|m| m.name.starts_with(&format!("{anchor}.block")));
        let last = last.filter(|m| m.kind == ModuleKind::Mlp && m.variant.is_none()).count();
        let plan = format!("{anchor}[0..{last}]");
        let stem = named(&format!("{anchor}.stem")).expect(&plan);
        let mut state = executor.step(stem, None, sides).expect("runs");
        for block in 0..last {
            let name = format!("{anchor}.block.{block}");
            let attention = named(&format!("{name}.attn")).expect(&name);
            state = executor.step(attention, state, sides).expect("runs");
            let dense = named(&format!("{name}.mlp")).expect(&name);
            let whole = executor.advance(dense, state.as_ref(), sides).expect("runs");
            if let Some(routed) = named(&format!("{name}.mlp.{variant}")) {
                let parts = executor.advance(routed, state.as_ref(), sides).expect("runs");
                largest = largest.max(difference(parts.as_ref(), whole.as_ref(), sides));
                num_compared += 1;
            }
            state = whole;
        }
    }
    assert!(num_compared > 0, "there is no {variant}");
    println!("{variant}: {num_compared} parts, largest difference {largest:.2e}");
    largest
}

fn difference(one: Option<&Activation>, other: Option<&Activation>, _: &SideInputs) -> f64 {
    let [one, other] = [one, other].map(|state| state.expect("states").to_tensor().expect("f32"));
    let pairs = one.as_f32().expect("f32").iter().zip(other.as_f32().expect("f32"));
    pairs.map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max)
}

/// Returns a text of the reference's batch without its padding.
fn single(encoding: &Encoding, row: usize) -> Encoding {
    let tokens = encoding.attention_mask.chunks(encoding.tokens).nth(row).expect("a row");
    let tokens = tokens.iter().filter(|kept| **kept == 1).count();
    let ids = encoding.input_ids[row * encoding.tokens..][..tokens].to_vec();
    Encoding { batch: 1, tokens, input_ids: ids, attention_mask: vec![1; tokens] }
}

#[test]
fn all_experts_of_l6_are_its_dense_parts() {
    let executor = executor(l6());
    let encoding = Reference::read("l6").encoding();
    for row in 0..encoding.batch {
        let sides = SideInputs::of_encoding(single(&encoding, row)).expect("inputs");
        for variant in ["e16k16", "e8k8"] {
            assert!(largest_difference(&executor, variant, &sides) <= 1e-5);
        }
        assert!(largest_difference(&executor, "e16k4", &sides) > 1e-3, "nothing was left out");
    }
}

#[test]
#[ignore = "reads mpnet, which `make setup-full` fetches"]
fn all_experts_of_mpnet_are_its_dense_parts() {
    let experts = "[[experts]]\nanchor = \"mpnet\"\nnum_experts = 16\ntop_k = [16]\n\
                   router = \"average\"\n";
    let pool = text_pool("mpnet", experts);
    let executor = executor(&pool);
    let sides = SideInputs::of_encoding(single(&Reference::read("mpnet").encoding(), 0));
    let found = largest_difference(&executor, "e16k16", &sides.expect("inputs"));
    assert!(found <= 1e-5);
}

#[test]
fn all_experts_of_vision_transformers_are_their_dense_parts() {
    let source = root().join("tests/pool/fashion");
    let experts = |anchor| {
        format!(
            "[[experts]]\nanchor = \"{anchor}\"\nnum_experts = 8\ntop_k = [2, 8]\n\
             router = \"learned\"\n"
        )
    };
    let manifest = fs::read_to_string(source.join("family.toml")).expect("read");
    let (head, _) = manifest.split_once("[[maps]]").unwrap_or((&manifest, ""));
    let all: String = ["s", "m", "l"].map(experts).concat();
    let pool = Pool::new(&source, head, &all).expect("a pool");
    let images: Vec<u8> = (0..360 * 784_u32).map(|index| (index * 31 % 251) as u8).collect();
    let data = write_images(&pool, &images, 360);
    fit(&pool, &data);
    let executor = executor(&pool);
    let reference = Reference::read("fashion");
    let (shape, values) = reference.tensor("pixel_values");
    let values = values.iter().map(|value| *value as f32).collect();
    let pixels = Pixels { shape: [shape[1], shape[2], shape[3]], values };
    let sides = SideInputs::of_input(ModelInput::Pixels(pixels)).expect("images");
    assert!(largest_difference(&executor, "e8k8", &sides) <= 1e-5);
    assert!(largest_difference(&executor, "e8k2", &sides) > 1e-4, "nothing was left out");
}

/// Returns a pool with a family of images, of which one anchor is to be split.
fn image_pool() -> Pool {
    let source = root().join("tests/pool/fashion");
    let manifest = fs::read_to_string(source.join("family.toml")).expect("read");
    let (head, _) = manifest.split_once("[[maps]]").unwrap_or((&manifest, ""));
    let experts = "[[experts]]\nanchor = \"s\"\nnum_experts = 8\ntop_k = [2]\n\
                   router = \"learned\"\n";
    Pool::new(&source, head, experts).expect("a pool")
}

#[test]
fn too_few_images_are_refused_before_any_work() {
    let pool = image_pool();
    let data = write_images(&pool, &vec![0; 144 * 784], 144);
    let mut writer = FamilyWriter::begin(&pool.path()).expect("nobody else writes");
    let options = ExpertOptions::default();
    let error = fit_experts(&runtime(), &mut writer, &data, &options, &Idle).expect_err("few");
    let expected = "fitting the experts of `s` needs at least 145 images, but there are 144";
    assert_eq!(error.to_string(), expected);
    let check = |data| check_corpora(&[data], &FitRecords::default());
    check(data).expect("20 are enough to evaluate");
    let few = write_images(&pool, &vec![0; 19 * 784], 19);
    let error = check(few).expect_err("19 are not");
    let expected = "evaluation needs at least 20 images, but there are 19";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_router_is_judged_however_few_images_are_asked_for() {
    let pool = image_pool();
    let images: Vec<u8> = (0..160 * 784_u32).map(|index| (index * 31 % 251) as u8).collect();
    let data = write_images(&pool, &images, 160);
    let mut writer = FamilyWriter::begin(&pool.path()).expect("nobody else writes");
    let options = ExpertOptions { max_texts: 16, ..ExpertOptions::default() };
    let count = fit_experts(&runtime(), &mut writer, &data, &options, &());
    assert_eq!(count.expect("ten batches are run"), 1);
}

/// Writes images and labels as IDX files and reads them.
fn write_images(pool: &Pool, pixels: &[u8], count: u32) -> Dataset {
    let images = pool.path().with_file_name("train-images-idx3-ubyte");
    let labels = pool.path().with_file_name("train-labels-idx1-ubyte");
    let mut file = vec![0, 0, 8, 3];
    [count, 28, 28].iter().for_each(|extent| file.extend(extent.to_be_bytes()));
    file.extend_from_slice(pixels);
    fs::write(&images, file).expect("written");
    let mut file = vec![0, 0, 8, 1];
    file.extend(count.to_be_bytes());
    file.extend((0..count).map(|index| (index % 10) as u8));
    fs::write(&labels, file).expect("written");
    let manifest = Manifest::read(&pool.path()).expect("read");
    Dataset::read(&images, Some(&labels), &manifest, None).expect("images")
}

#[test]
fn padding_takes_no_experts_and_changes_nothing() {
    let encoding = Reference::read("l6").encoding();
    let executor = executor(l6());
    for plan in ["l6[0..6]{e16k4.mlp:0..6}", "l6[0..6]{e8k2.mlp:0,e8k2.mlp:3}"] {
        let graph = &executor.family().clone().graph;
        let path = PlanId::parse(graph, plan).expect("a plan");
        assert_eq!(PlanId::of(graph, &path).as_str(), plan);
        let run = |encoding: &Encoding| {
            let sides = SideInputs::of_encoding(encoding.clone()).expect("inputs");
            executor.run(&path, &sides, &mut ()).expect("runs").remove(0)
        };
        let together = run(&encoding);
        for row in 0..encoding.batch {
            let alone = run(&single(&encoding, row));
            let expected = &together.as_f32().expect("f32")[row * 384..][..384];
            let expected: Vec<f64> = expected.iter().map(|value| f64::from(*value)).collect();
            assert_close(alone.as_f32().expect("f32"), &expected, 1e-5, &format!("{plan} {row}"));
        }
    }
}

#[test]
fn groups_are_equally_large_and_average_keys_are_means_of_rows_as_they_are() {
    let pool = l6();
    let fitted = fs::read_dir(pool.path().join("fits")).expect("a folder");
    let name = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let mut fitted = fitted.map(|entry| entry.expect("read"));
    let file = fitted.find(|entry| name(entry).starts_with("l6.experts8")).expect("fitted");
    let bytes = fs::read(file.path()).expect("read");
    let fits = SafeTensors::deserialize(&bytes).expect("valid");
    let weights = fs::read(pool.path().join("anchors/l6/model.safetensors")).expect("fetched");
    let weights = SafeTensors::deserialize(&weights).expect("valid");
    let units = fits.tensor("block.3.units").expect("an assignment");
    assert_eq!((units.dtype(), units.shape()), (Dtype::I32, [8, 192].as_slice()));
    let units: Vec<usize> = units
        .data()
        .chunks_exact(4)
        .map(|b| u32::from_le_bytes(b.try_into().expect("4 bytes")) as usize)
        .collect();
    let mut sorted = units.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..1536).collect::<Vec<_>>());
    let name = ["", "bert."].map(|p| format!("{p}encoder.layer.3.intermediate.dense.weight"));
    let keys = name.iter().find_map(|name| weights.tensor(name).ok()).expect("keys");
    let floats = |view: &TensorView<'_>| -> Vec<f32> {
        let bytes = view.data().chunks_exact(4);
        bytes.map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes"))).collect()
    };
    let (keys, gate) =
        (floats(&keys), floats(&fits.tensor("block.3.gate.weight").expect("a gate")));
    for (expert, group) in units.chunks(192).enumerate() {
        for column in 0..384 {
            let mean = group.iter().map(|unit| keys[unit * 384 + column]).sum::<f32>() / 192.0;
            assert!((mean - gate[expert * 384 + column]).abs() < 1e-6);
        }
    }
    assert!(fits.tensor("block.3.gate.bias").is_err(), "average keys have no bias");
}

/// A small family whose anchor `a` has 16 hidden units, and the file that splits them.
struct Small {
    family: Synthetic,
    num_experts: usize,
}

const FILE: &str = "fits/a.experts4.safetensors";

impl Small {
    fn new(order: &[i32], num_experts: usize) -> Self {
        let small = Self { family: Synthetic::new(), num_experts };
        let entry = format!(
            "\n[[experts]]\nanchor = \"a\"\nnum_experts = {num_experts}\n\
             top_k = [1, {num_experts}]\nrouter = \"average\"\n"
        );
        small.family.write("family.toml", (small.family.text("family.toml") + &entry).as_bytes());
        small.split(order, &[num_experts, order.len() / num_experts]);
        small
    }

    /// Writes and records the file that splits the units so.
    fn split(&self, order: &[i32], shape: &[usize]) {
        let floats = |count: usize| -> Vec<u8> {
            (0..count).flat_map(|i| ((i * 37 % 19) as f32 / 19.0 - 0.5).to_le_bytes()).collect()
        };
        let units: Vec<u8> = order.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let gate = floats(self.num_experts * WIDTH);
        let mut views = Vec::new();
        for block in 0..2 {
            let mut add = |part: &str, dtype, shape: &[usize], bytes| {
                let view = TensorView::new(dtype, shape.to_vec(), bytes).expect("a tensor");
                views.push((format!("block.{block}.{part}"), view));
            };
            let by_width = [self.num_experts, WIDTH];
            add("units", Dtype::I32, shape, &*units);
            add("gate.weight", Dtype::F32, &by_width, &gate);
            add("dropped", Dtype::F32, &by_width, &gate);
        }
        let content = safetensors::serialize(views, None).expect("serialized");
        let sha256: String = Sha256::digest(&content).iter().map(|b| format!("{b:02x}")).collect();
        let file = format!("fits/a.experts{}.safetensors", self.num_experts);
        self.family.write(&file, &content);
        let mut records: Value =
            serde_json::from_str(&self.family.text("fits.json")).expect("records");
        records["experts"][file] = json!({"sha256": sha256, "samples": 1, "held_out_r2": 0.0,
            "data": "none", "date": "2026-01-01"});
        self.family.write("fits.json", records.to_string().as_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn all_experts_of_any_assignment_are_the_dense_part(
        order in Just((0..16).collect::<Vec<i32>>()).prop_shuffle(),
        exponent in 1_u32..=4,
        length in 1_usize..9,
    ) {
        let num_experts = 2_usize.pow(exponent);
        let small = Small::new(&order, num_experts);
        let executor = Executor::new(runtime(), small.family.load());
        let input_ids = (0..length).map(|index| (index * 3 % 10) as i64).collect();
        let encoding =
            Encoding { batch: 1, tokens: length, input_ids, attention_mask: vec![1; length] };
        let sides = SideInputs::of_encoding(encoding).expect("inputs");
        let variant = format!("e{num_experts}k{num_experts}");
        prop_assert!(largest_difference(&executor, &variant, &sides) <= 1e-5);
        let some = format!("e{num_experts}k1");
        prop_assert!(largest_difference(&executor, &some, &sides).is_finite());
    }
}

fn in_order() -> Vec<i32> {
    (0..16).collect()
}

#[test]
fn wrong_entries_are_refused_with_key_and_value() {
    let cases = [
        (
            "num_experts = 4",
            "num_experts = 5",
            "experts (a, 5).num_experts",
            "`5`",
            "divide the 16",
        ),
        ("top_k = [1, 4]", "top_k = [6]", "experts (a, 4).top_k", "`6`", "1 to 4"),
        ("top_k = [1, 4]", "top_k = [0]", "experts (a, 4).top_k", "`0`", "1 to 4"),
        ("top_k = [1, 4]", "top_k = []", "experts (a, 4).top_k", "`[]`", "one number"),
        ("num_experts = 4", "num_experts = 1", "experts (a, 1).num_experts", "`1`", "2 experts"),
        ("top_k = [1, 4]", "top_k = [1]\nblocks = [2]", "experts (a, 4).blocks", "`2`", "2 blocks"),
        ("anchor = \"a\"", "anchor = \"z\"", "experts (z, 4).anchor", "`z`", "an anchor"),
        ("\"average\"", "\"cosine\"", "family.toml", "cosine", "average"),
    ];
    for (from, to, key, value, expected) in cases {
        let small = Small::new(&in_order(), 4);
        let manifest = small.family.text("family.toml");
        let (head, entry) = manifest.split_once("[[experts]]").expect("an entry");
        assert!(entry.contains(from), "{entry}");
        let entry = entry.replacen(from, to, 1);
        small.family.write("family.toml", format!("{head}[[experts]]{entry}").as_bytes());
        let refusal = small.family.refusal();
        for part in [key, value, expected] {
            assert!(refusal.contains(part), "{to}: {refusal} does not say {part}");
        }
    }
}

#[test]
fn assignments_that_are_none_are_refused_by_tensor() {
    let twice: Vec<i32> = [0, 0].into_iter().chain(2..16).collect();
    let outside: Vec<i32> = (1..17).collect();
    let negative: Vec<i32> = (-1..15).collect();
    let wrong = [
        (twice, vec![4, 4], "unit 0 is outside the block's units or there twice"),
        (outside, vec![4, 4], "unit 16 is outside"),
        (negative, vec![4, 4], "unit -1 is outside"),
        (in_order(), vec![2, 8], "[2, 8], but [4, 4] is needed"),
        ((0..8).collect(), vec![4, 2], "[4, 2], but [4, 4] is needed"),
    ];
    for (order, shape, expected) in wrong {
        let small = Small::new(&in_order(), 4);
        small.split(&order, &shape);
        let refusal = small.family.refusal();
        for part in [FILE, "`block.0.units`", expected] {
            assert!(refusal.contains(part), "{refusal} does not say {part}");
        }
    }
    let small = Small::new(&in_order(), 4);
    small.family.write(FILE, b"altered");
    assert!(small.family.refusal().contains("sha256"), "{}", small.family.refusal());
}

#[test]
fn a_family_whose_experts_are_not_fitted_is_served_without_them() {
    let small = Small::new(&in_order(), 4);
    let text = small.family.text("fits.json");
    let mut records: Value = serde_json::from_str(&text).expect("records");
    records.as_object_mut().expect("an object").remove("experts");
    small.family.write("fits.json", records.to_string().as_bytes());
    let family = small.family.load();
    assert!(family.graph.modules().iter().all(|module| !module.name.contains("e4k")));
    assert_eq!(family.split_parts().len(), 2);
}
