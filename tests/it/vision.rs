//! Vision transformers against what timm, transformers and PyTorch compute.

use std::{fs, path::Path, sync::Arc};

use safetensors::{Dtype, tensor::TensorView};
use tessera::{
    assembly::Family,
    family::PlanId,
    input::{ModelInput, Pixels},
    runtime::{Executor, SideInputs},
};

use crate::support::{Folder, Reference, assert_close, fashion_family, names_in, root, runtime};

/// Runs a plan on images `[batch, channels, height, width]`.
fn run(executor: &mut Executor, plan: &str, images: (&[usize], &[f32])) -> Vec<f32> {
    let shape = [images.0[1], images.0[2], images.0[3]];
    let pixels = ModelInput::Pixels(Pixels { shape, values: images.1.to_vec() });
    let sides = SideInputs::of_input(pixels).expect("images");
    let family = executor.family().clone();
    let path = PlanId::parse(&family.graph, plan).unwrap_or_else(|e| panic!("{e}"));
    let output = executor.run(&path, &sides, &mut ()).expect("the plan runs").remove(0);
    output.as_f32().expect("f32").to_vec()
}

fn to_f32(values: &[f64]) -> Vec<f32> {
    values.iter().map(|value| *value as f32).collect()
}

fn check_plans(family: Arc<Family>, reference: &str) {
    let mut executor = Executor::new(runtime(), family);
    let reference = Reference::read(reference);
    let (shape, images) = reference.tensor("pixel_values");
    let images = to_f32(images);
    let plans: Vec<&str> = reference.names().filter_map(|n| n.strip_prefix("logits ")).collect();
    let count = |part: &str| plans.iter().filter(|plan| plan.contains(part)).count();
    assert!(plans.len() >= 43 && count(">") >= 10 && count("{w") >= 20 && count("exit:") >= 10);
    for plan in plans {
        let found = run(&mut executor, plan, (shape, &images));
        let (_, expected) = reference.tensor(&format!("logits {plan}"));
        assert_close(&found, expected, 1e-4, plan);
    }
}

#[test]
fn plans_of_every_kind_are_what_pytorch_computes_with_smaller_networks() {
    check_plans(fashion_family(), "fashion");
}

#[test]
fn plans_of_the_trained_family_are_too() {
    let folder = root().join("models/fashion");
    check_plans(Arc::new(Family::load(&folder).expect("loaded")), "fashion-trained");
}

#[test]
fn a_batch_of_images_is_its_images_one_by_one() {
    let mut executor = Executor::new(runtime(), fashion_family());
    let reference = Reference::read("fashion");
    let (shape, images) = reference.tensor("pixel_values");
    let images = to_f32(images);
    let together = run(&mut executor, "s[0..2]>m[1..6]", (shape, &images));
    for index in 0..4 {
        let image = &images[index * 784..][..784];
        let alone = run(&mut executor, "s[0..2]>m[1..6]", (&[1, 1, 28, 28], image));
        let expected: Vec<f64> =
            together[index * 10..][..10].iter().map(|v| f64::from(*v)).collect();
        assert_close(&alone, &expected, 1e-5, &format!("image {index}"));
    }
}

fn manifest(reference: &str, side: usize, classes: usize) -> String {
    format!(
        "name = \"images\"\ntask = \"image-classification\"\ndescription = \"A test.\"\n\
         license = \"Apache-2.0\"\nreference = \"{reference}\"\n\
         output = {{ name = \"logits\", width = {classes} }}\n\
         quality = {{ metric = \"accuracy\", file = \"quality.json\" }}\n\
         [image]\nchannels = 3\nheight = {side}\nwidth = {side}\n\
         mean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n"
    )
}

#[test]
fn checkpoints_of_timm_and_transformers_give_their_logits() {
    let cases = root().join("tests/references/vit");
    let mut names = names_in(&cases);
    names.retain(|name| name != "snnet");
    assert!(names.len() >= 12, "{names:?}");
    for case in &names {
        let folder = cases.join(case);
        let mut pool = Folder::new("images");
        for file in ["config.json", "model.safetensors"] {
            let content = fs::read(folder.join(file)).expect("the case is there");
            pool.write(&format!("anchors/a/{file}"), &content);
        }
        let anchor = "[anchors.a]\nfolder = \"anchors/a\"\n[anchors.a.sha256]\n\
                      \"anchors/a/config.json\" = \"SHA256 anchors/a/config.json\"\n\
                      \"anchors/a/model.safetensors\" = \"SHA256 anchors/a/model.safetensors\"\n";
        let family = pool.load(&(manifest("a", 12, 5) + anchor));
        let mut executor = Executor::new(runtime(), Arc::new(family));
        let reference = Reference::open(&folder.join("expected.safetensors"));
        let (shape, images) = reference.tensor("pixel_values");
        let found = run(&mut executor, "a[0..2]", (shape, &to_f32(images)));
        assert_close(&found, reference.tensor("logits").1, 1e-4, case);
    }
}

/// Makes weights as `formula` in tools/vision_reference.py does.
fn formula(name: &str, shape: &[usize]) -> Vec<f32> {
    let mut seed = 2_166_136_261_u32;
    for byte in name.bytes() {
        seed = (seed ^ u32::from(byte)).wrapping_mul(16_777_619);
    }
    let fan_in: usize = shape.iter().skip(1).product();
    let scale = if shape.len() > 1 { (2.0 / (fan_in as f64).sqrt()) as f32 } else { 0.2 };
    let offset = f32::from(u8::from(name.contains("norm") && name.ends_with("weight")));
    (0..shape.iter().product::<usize>())
        .map(|index| {
            let mut value = (index as u64).wrapping_mul(2_654_435_761) + u64::from(seed);
            value ^= value >> 15;
            value = value.wrapping_mul(2_246_822_519) & 0xffff_ffff;
            value ^= value >> 13;
            (value as f64 / 4_294_967_296.0 - 0.5) as f32 * scale + offset
        })
        .collect()
}

/// Writes an SN-Net of DeiT-Ti and DeiT-S in the layout of its released checkpoints.
fn snnet(path: &Path) {
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    for (number, width) in [192, 384].into_iter().enumerate() {
        let mut add = |name: &str, shape: &[usize]| {
            shapes.push((format!("anchors.{number}.{name}"), shape.to_vec()));
        };
        add("cls_token", &[1, 1, width]);
        add("pos_embed", &[1, 197, width]);
        add("patch_embed.proj.weight", &[width, 3, 16, 16]);
        add("patch_embed.proj.bias", &[width]);
        for block in 0..12 {
            for (layer, out, inputs) in [
                ("attn.qkv", 3 * width, width),
                ("attn.proj", width, width),
                ("mlp.fc1", 4 * width, width),
                ("mlp.fc2", width, 4 * width),
            ] {
                add(&format!("blocks.{block}.{layer}.weight"), &[out, inputs]);
                add(&format!("blocks.{block}.{layer}.bias"), &[out]);
            }
            for part in ["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"] {
                add(&format!("blocks.{block}.{part}"), &[width]);
            }
        }
        add("norm.weight", &[width]);
        add("norm.bias", &[width]);
        add("head.weight", &[1_000, width]);
        add("head.bias", &[1_000]);
    }
    for window in 0..11 {
        let name = format!("stitch_layers.0.{window}.transform");
        shapes.push((format!("{name}.weight"), vec![384, 192]));
        shapes.push((format!("{name}.bias"), vec![384]));
    }
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let bytes = formula(&name, &shape).iter().flat_map(|v| v.to_le_bytes()).collect();
            (name, shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("as many bytes"))
    });
    safetensors::serialize_to_file(views, None, path).expect("written");
}

#[test]
fn an_official_snnet_checkpoint_leaves_the_final_norm_out_behind_a_stitch() {
    let mut pool = Folder::new("images");
    let weights = pool.path().join("weights");
    snnet(&weights);
    pool.write("snnet.safetensors", &fs::read(&weights).expect("read"));
    for (anchor, architecture) in [("a", "deit_tiny_patch16_224"), ("b", "deit_small_patch16_224")]
    {
        let config = format!("{{\"architecture\": \"{architecture}\"}}");
        pool.write(&format!("{anchor}.json"), config.as_bytes());
    }
    let mut text = manifest("b", 224, 1_000);
    text.push_str(
        "[stitches]\nfile = \"snnet.safetensors\"\nsha256 = \"SHA256 snnet.safetensors\"\n\
         pairs = [[\"a\", \"b\"]]\nfinal_norm = false\n",
    );
    for (number, anchor) in ["a", "b"].into_iter().enumerate() {
        text.push_str(&format!(
            "[anchors.{anchor}]\npart = {{ file = \"snnet.safetensors\", \
             prefix = \"anchors.{number}.\", config = \"{anchor}.json\" }}\n\
             [anchors.{anchor}.sha256]\n\"{anchor}.json\" = \"SHA256 {anchor}.json\"\n\
             \"snnet.safetensors\" = \"SHA256 snnet.safetensors\"\n"
        ));
    }
    let family = Arc::new(pool.load(&text));
    let mut executor = Executor::new(runtime(), family);
    let images: Vec<f32> = formula("pixel_values", &[1, 3, 224, 224]);
    let images: Vec<f32> = images.into_iter().map(|value| value * 20.0).collect();
    let expected = root().join("tests/references/vit/snnet/expected.safetensors");
    let reference = Reference::open(&expected);
    let plans: Vec<&str> = reference.names().filter_map(|n| n.strip_prefix("logits ")).collect();
    assert_eq!(plans.len(), 7);
    for plan in plans {
        let found = run(&mut executor, plan, (&[1, 3, 224, 224], &images));
        let (_, expected) = reference.tensor(&format!("logits {plan}"));
        let largest = expected.iter().fold(1.0_f64, |most, value| most.max(value.abs()));
        assert_close(&found, expected, 1e-4 * largest, plan);
    }
}

#[test]
fn a_narrow_form_can_run_in_8_bit_integers_too() {
    let source = root().join("models/fashion");
    let pool = tempfile::tempdir().expect("a temporary folder");
    let folder = pool.path().join("fashion");
    let status = std::process::Command::new("cp").arg("-r").arg(&source).arg(&folder).status();
    assert!(status.expect("cp runs").success());
    let manifest = fs::read_to_string(source.join("family.toml")).expect("read");
    let (before, last) = manifest.split_once("[anchors.l]").expect("the anchor is there");
    let last = last.replacen("[\"int8\", ", "[\"w33+int8\", \"int8\", ", 1);
    fs::write(folder.join("family.toml"), format!("{before}[anchors.l]{last}")).expect("written");
    let mut executor = Executor::new(runtime(), Arc::new(Family::load(&folder).expect("loaded")));
    let reference = Reference::read("fashion-trained");
    let (shape, images) = reference.tensor("pixel_values");
    let images = to_f32(images);
    let mut logits = |plan: &str| run(&mut executor, plan, (shape, &images));
    let (narrow, both) = (logits("l[0..6]{w33:0..6}"), logits("l[0..6]{w33+int8:0..6}"));
    let spread = narrow.iter().copied().fold(0.0, |most: f32, value| most.max(value.abs()));
    let pairs = || narrow.iter().zip(&both);
    let largest = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("8 bit differs by {largest:.1e} of {spread:.1e}");
    assert!(largest > 0.0, "it runs in 8 bit");
    assert!(largest < 0.05 * spread, "{largest} of {spread}");
}
