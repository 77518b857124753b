//! Families with something wrong are refused with the reason, and do not keep others from serving.

use std::{collections::BTreeMap, sync::Arc};

use prost::Message;
use tessera::{
    family::{ModuleId, PlanId},
    input::Encoding,
    onnx::proto::ModelProto,
    runtime::{Executor, RuntimeError, SideInputs},
};

use crate::support::{
    Program, runtime,
    synthetic::{
        CONFIG, EXIT, EXPORT, MLP, Rows, STITCH, Synthetic, TOKENIZER, WEIGHTS, WIDTH, WORDS,
        put_export, to_safetensors, with_export,
    },
    text_family,
};

#[test]
fn the_family_is_good_before_it_is_broken() {
    let synthetic = Synthetic::new();
    let family = synthetic.load();
    let encoding = family.tokenizer("a").expect("a tokenizer").encode(&["the mail servers answer"]);
    let encoding = encoding.expect("encoded");
    assert_eq!(encoding.input_ids, [2, 4, 5, 6, 9, 7, 3]);
    let tokenizers = ["a", "b"].map(|anchor| family.tokenizer(anchor).expect("a tokenizer"));
    assert!(Arc::ptr_eq(tokenizers[0], tokenizers[1]), "a file that both name is read once");
    let executor = Executor::new(runtime(), family.clone());
    let plans = ["a[0..2]", "a[0..1]", "a[0..0+]>a[2..2]", "b[0..1]>a[1..2]", "b[0..1]>a[1..1]"];
    for id in plans {
        let path = PlanId::parse(&family.graph, id).expect(id);
        let sides = SideInputs::of_encoding(encoding.clone()).expect("inputs");
        let output = executor.run(&path, &sides, &mut ()).expect(id).remove(0);
        assert_eq!(output.shape(), [1, WIDTH]);
        let values = output.as_f32().expect("f32");
        let length = values.iter().map(|value| value * value).sum::<f32>().sqrt();
        assert!((length - 1.0).abs() < 1e-5, "{id}: {length}");
    }
}

#[test]
fn truncated_altered_and_missing_files_are_refused_by_name() {
    for file in [WEIGHTS, CONFIG, TOKENIZER, STITCH] {
        let family = Synthetic::new();
        let whole = family.read(file);
        family.write(file, &whole[..whole.len() / 2]);
        assert_refused(&family, &[file, "sha256 is", "truncated or altered"]);
        let mut flipped = whole;
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        family.write(file, &flipped);
        assert_refused(&family, &[file, "sha256 is", "truncated or altered"]);
        std::fs::remove_file(family.folder.join(file)).expect("removed");
        assert_refused(&family, &[file, "cannot be read"]);
    }
    let family = Synthetic::new();
    family.edit("family.toml", &family.sha256(WEIGHTS), &"0".repeat(64));
    assert_refused(&family, &[WEIGHTS, &"0".repeat(64)]);
    let family = Synthetic::new();
    family.edit("family.toml", &format!("\"{CONFIG}\" ="), "\"other\" =");
    assert_refused(&family, &[CONFIG, "has no sha256"]);
}

#[test]
fn hostile_safetensors_files_are_refused_by_name() {
    let f32s = |offsets: &str| format!(r#"{{"dtype":"F32","shape":[4],"data_offsets":{offsets}}}"#);
    let twice = |one: &str, other: &str| format!(r#"{{"a":{},"b":{}}}"#, f32s(one), f32s(other));
    let with_header = |header: &[u8], bytes: usize| {
        [&(header.len() as u64).to_le_bytes(), header, &vec![0; bytes]].concat()
    };
    for (what, content) in [
        ("empty", Vec::new()),
        ("short", b"1234567".to_vec()),
        ("huge header", [&u64::MAX.to_le_bytes()[..], b"{}"].concat()),
        ("header beyond the end", [&1_000_u64.to_le_bytes()[..], b"{}"].concat()),
        ("no JSON", with_header(b"\xff\xfe", 0)),
        ("deep JSON", with_header(&[&b"{\"a\":"[..], &b"[".repeat(100_000)].concat(), 0)),
        ("overlapping", with_header(twice("[0,16]", "[8,24]").as_bytes(), 24)),
        ("a gap", with_header(twice("[0,16]", "[20,36]").as_bytes(), 36)),
        ("backwards", with_header(twice("[16,0]", "[0,16]").as_bytes(), 16)),
        ("out of the file", with_header(twice("[0,16]", "[16,32]").as_bytes(), 16)),
        ("more bytes than shape", with_header(twice("[0,16]", "[16,36]").as_bytes(), 36)),
        ("overflow", with_header(twice("[0,16]", "[16,18446744073709551615]").as_bytes(), 16)),
    ] {
        for file in [WEIGHTS, STITCH] {
            let family = Synthetic::new();
            family.write_signed(file, &content);
            let refusal = family.refusal();
            assert!(refusal.contains(file), "{what}: {refusal}");
            assert!(refusal.contains("is not a valid safetensors file"), "{what}: {refusal}");
        }
    }
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let name = "encoder.layer.1.attention.self.key.weight";
    let family = Synthetic::new();
    family.change(WEIGHTS, |tensors| drop(tensors.remove(name)));
    assert_refused(&family, &[WEIGHTS, &format!("no tensor `{name}`")]);
    let family = Synthetic::new();
    family.change(WEIGHTS, |tensors| {
        tensors.insert(name.into(), (vec![4, 16], vec![0.0; 64]));
    });
    assert_refused(&family, &[WEIGHTS, name, "[4, 16], but [8, 8] is needed"]);
}

#[test]
fn configurations_that_cannot_be_name_the_key() {
    for (from, to, named) in [
        ("\"hidden_act\": \"gelu\"", "\"hidden_act\": \"mish\"", "`hidden_act` is `mish`"),
        (
            "\"num_attention_heads\": 2",
            "\"num_attention_heads\": 3",
            "`num_attention_heads` is `3`",
        ),
        (
            "\"num_attention_heads\": 2",
            "\"num_attention_heads\": 0",
            "`num_attention_heads` is `0`",
        ),
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 0", "`num_hidden_layers` is `0`"),
        ("\"model_type\": \"bert\"", "\"model_type\": \"gpt2\"", "`model_type` is `gpt2`"),
        ("\"vocab_size\"", "\"position_embedding_type\": \"rope\",\"vocab_size\"", "`rope`"),
        ("\"vocab_size\": 10", "\"vocab_size\": \"many\"", "many"),
        ("\"vocab_size\": 10", "\"vocab_size\": -1", "-1"),
        ("\"hidden_size\": 8,", "", "hidden_size"),
        ("}", "", "EOF"),
    ] {
        let family = Synthetic::new();
        family.edit(CONFIG, from, to);
        assert_refused(&family, &[CONFIG, named]);
    }
    for (from, to, tensor) in [
        ("\"intermediate_size\": 16", "\"intermediate_size\": 17", "intermediate.dense"),
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "encoder.layer.2"),
        ("\"max_position_embeddings\": 32", "\"max_position_embeddings\": 33", "position"),
        ("\"vocab_size\": 10", "\"vocab_size\": 11", "word_embeddings"),
    ] {
        let family = Synthetic::new();
        family.edit(CONFIG, from, to);
        assert_refused(&family, &[WEIGHTS, tensor]);
    }
}

#[test]
fn tokenizers_that_are_none_are_refused_by_name() {
    for content in ["", "{}", "[]", r#"{"version":"1.0","model":{"type":"WordPiece"}}"#] {
        let family = Synthetic::new();
        family.write_signed(TOKENIZER, content.as_bytes());
        assert_refused(&family, &[TOKENIZER]);
    }
}

#[test]
fn manifests_that_cannot_be_name_the_key() {
    for (from, to, named) in [
        ("name = \"tiny\"", "name = \"huge\"", "`name` is `huge`"),
        ("task =", "max_tokenz = 1\ntask =", "max_tokenz"),
        ("form = \"mlp\"", "form = \"cubic\"", "cubic"),
        ("reference = \"a\"", "reference = \"c\"", "`reference` is `c`"),
        ("variants = [\"skip\"]", "variants = [\"int2\"]", "int2"),
        ("folder = \"anchors/a\"", "folder = \"../a\"", "../a"),
        ("[anchors.b]", "[anchors.b]\nonnx = {}", "file"),
        ("width = 8", "width = 0", "`output.width` is `0`"),
    ] {
        let family = Synthetic::new();
        family.edit("family.toml", from, to);
        assert_refused(&family, &["family.toml", named]);
    }
}

#[test]
fn parts_that_contradict_one_another_are_refused() {
    let family = Synthetic::new();
    family.edit("family.toml", "max_tokens = 32", "max_tokens = 33");
    assert_refused(&family, &["limits.max_tokens", "33"]);
    let family = with_export(&EXPORT);
    family.edit("family.toml", "width = 8\n\n[quality]", "width = 9\n\n[quality]");
    assert_refused(&family, &["output.width", "9"]);
    let family = Synthetic::with_rows("tiny", Rows { words: WORDS.len() - 1, positions: 32 });
    assert_refused(&family, &[TOKENIZER]);
    let family = Synthetic::new();
    family.edit("family.toml", "to = \"out\"", "to = \"out\"\nlabel = \"../../x,y\"");
    assert_refused(&family, &["label", "../../x,y"]);
}

#[test]
fn maps_that_lead_nowhere_or_backwards_name_their_spaces() {
    for (from, to, named) in [
        ("to = \"a.1\"", "to = \"a.9\"", "from `b.1` to `a.9`: there is no space `a.9`"),
        ("from = \"b.1\"", "from = \"c.1\"", "from `c.1` to `a.1`: there is no space `c.1`"),
        ("to = \"out\"", "to = \"in\"", "there is no space `in`"),
        ("from = \"a.0+\"", "from = \"a.0\"", "the form `mlp` starts inside a block"),
        ("form = \"pooled\"", "form = \"tokens\"", "from `a.1` to `out`"),
        ("[\"mean\", \"first\"]", "[\"mean\", \"token\"]", "`token` does not go with this form"),
    ] {
        let family = Synthetic::new();
        family.edit("family.toml", from, to);
        assert_refused(&family, &[named]);
    }
    for (from, to) in [("a.2", "a.0"), ("a.1", "a.1")] {
        let family = Synthetic::new();
        family.edit("family.toml", "from = \"b.1\"", &format!("from = \"{from}\""));
        family.edit("family.toml", "to = \"a.1\"", &format!("to = \"{to}\""));
        let file = format!("fits/{from}-{to}.safetensors");
        family.write(&file, &to_safetensors(&square_stitch()));
        let old = family.sha256(STITCH);
        family.edit("fits.json", STITCH, &file);
        family.edit("fits.json", &old, &family.sha256(&file));
        assert_refused(&family, &["cycle", "a."]);
    }
}

#[test]
fn stitch_files_that_do_not_fit_name_file_and_tensor() {
    let other_widths = |tensors: &mut BTreeMap<_, _>| *tensors = square_stitch();
    let family = Synthetic::new();
    family.change(STITCH, other_widths);
    assert_refused(&family, &[STITCH, "`token.weight` is [8, 8], but [8, 12] is needed"]);
    let family = Synthetic::new();
    family.change(STITCH, |tensors| drop(tensors.remove("previous.weight")));
    assert_refused(&family, &[STITCH, "no tensor `previous.weight`"]);
    let family = Synthetic::new();
    family.change(EXIT, |tensors| {
        tensors.insert("bias".into(), (vec![9], vec![0.0; 9]));
    });
    assert_refused(&family, &[EXIT, "`bias` is [9], but [8] is needed"]);
    let family = Synthetic::new();
    family.change(MLP, |tensors| {
        tensors.insert("weight".into(), (vec![8, 24], vec![0.0; 192]));
    });
    assert_refused(&family, &[MLP, "`weight` is [8, 24], but [8, 16] is needed"]);
}

#[test]
fn records_of_fits_that_are_none_are_refused_by_name() {
    let family = Synthetic::new();
    let good = family.text("fits.json");
    let unknown = good.replacen("\"samples\"", "\"sample\"", 1);
    for content in ["", "[]", "{", "{\"maps\": 1}", &unknown] {
        family.write("fits.json", content.as_bytes());
        assert_refused(&family, &["fits.json"]);
    }
    family.write("fits.json", &good.replace(&family.sha256(EXIT), "abc").into_bytes());
    assert_refused(&family, &[EXIT, "not abc"]);
}

#[test]
fn an_export_is_good_before_it_is_broken() {
    let synthetic = with_export(&EXPORT);
    let family = synthetic.load();
    let ids = ["b.stem", "b.block.0.attn", "b.block.0.mlp"].map(|name| {
        ModuleId(family.graph.modules().iter().position(|m| m.name == name).expect(name))
    });
    let executor = Executor::new(runtime(), family);
    let encoding =
        Encoding { batch: 1, tokens: 3, input_ids: vec![1, 2, 3], attention_mask: vec![1; 3] };
    let sides = SideInputs::of_encoding(encoding).expect("inputs");
    let mut state = None;
    for id in ids {
        state = executor.step(id, state, &sides).expect("runs");
    }
    assert_eq!(state.expect("a state").to_tensor().expect("f32").shape(), [1, 3, WIDTH]);
}

#[test]
fn onnx_files_that_are_no_ordered_graph_are_refused() {
    let [stem, attention, mlp] = EXPORT;
    for (nodes, named) in [
        // `s` needs `b`, which comes from `s`.
        (vec![("Add", &["x", "b"][..], "s"), attention, mlp], "reads `x`, which nothing before"),
        (vec![stem, ("Add", &["s", "b"], "a"), mlp], "reads `b`, which nothing before it makes"),
        (vec![stem, ("MatMul", &["s", "matrixx"], "a"), mlp], "reads `matrixx`, which nothing"),
        (vec![stem, attention, ("Relu", &["b"], "b")], "reads `b`, which nothing before it makes"),
        (vec![stem, attention, attention, mlp], "the tensor `a` is made twice"),
        (vec![stem, attention], "there is no tensor `b`"),
        (vec![], "there is no tensor `s`"),
        (vec![stem, attention, ("Add", &["a", "s"], "b")], "the weight `table` is used on both"),
    ] {
        assert_refused(&with_export(&nodes), &["anchor `b`", named]);
    }
    let family = with_export(&EXPORT);
    family.edit("family.toml", "stem = \"s\"", "stem = \"z\"");
    assert_refused(&family, &["anchor `b`", "there is no tensor `z`"]);
    for content in [&b""[..], b"\xff\xff no ONNX", &ModelProto::default().encode_to_vec()] {
        let family = with_export(&EXPORT);
        family.write_signed("anchors/b.onnx", content);
        assert_refused(&family, &["anchor `b`", "b.onnx"]);
    }
}

#[test]
fn unknown_operators_are_refused_by_module() {
    let [_, attention, mlp] = EXPORT;
    let synthetic = with_export(&[("Teapot", &["ids"], "s"), attention, mlp]);
    let family = synthetic.load();
    let stem = family.graph.modules().iter().position(|m| m.name == "b.stem").expect("a stem");
    let executor = Executor::new(runtime(), family);
    let error = executor.load(&[ModuleId(stem)]).expect_err("refused");
    assert!(matches!(&error, RuntimeError::Session { module, .. } if module == "b.stem"));
    assert!(error.to_string().contains("Teapot"), "{error}");
}

#[test]
fn malformed_nodes_are_refused_by_module_when_quantized() {
    let [stem, _, mlp] = EXPORT;
    let synthetic = with_export(&[stem, ("MatMul", &["s"], "a"), mlp]);
    synthetic.edit("family.toml", "[anchors.b]", "[anchors.b]\nvariants = [\"int8\"]");
    let family = synthetic.load();
    let name = "b.block.0.attn.int8";
    let module = family.graph.modules().iter().position(|m| m.name == name).expect(name);
    let executor = Executor::new(runtime(), family);
    let error = executor.load(&[ModuleId(module)]).expect_err("refused");
    assert!(error.to_string().contains(name), "{error}");
}

#[test]
fn pieces_that_do_not_read_the_cut_before_them_are_refused_by_their_tensors() {
    let [stem, _, mlp] = EXPORT;
    for product in [("Cast", &[][..], "a"), ("Transpose", &[], "a")] {
        assert_refused(&with_export(&[stem, product, mlp]), &["`s` and `a` are in no order"]);
    }
}

#[test]
fn broken_families_do_not_keep_good_ones_from_serving() {
    let good = Synthetic::new();
    let altered = good.beside("altered");
    altered.write(WEIGHTS, b"altered");
    let no_manifest = good.beside("no_manifest");
    no_manifest.write("family.toml", b"name = ");
    let teapot = good.beside("teapot");
    let [_, attention, mlp] = EXPORT;
    put_export(&teapot, &[("Teapot", &["ids"], "s"), attention, mlp]);
    let unreadable = good.beside("unread_quality");
    unreadable.write("quality.json", b"{");
    let mut server = Program::start(good.pool(), &[]);
    assert_eq!(server.status("GET", "/v2/health/ready", ""), 200);
    assert_eq!(server.status("GET", "/v2/models/tiny/ready", ""), 200);
    assert_eq!(server.status("POST", "/v2/models/tiny/infer", TEXT), 200);
    for name in ["altered", "no_manifest", "teapot", "unread_quality"] {
        assert_eq!(server.status("GET", &format!("/v2/models/{name}/ready"), ""), 503, "{name}");
        assert_eq!(server.status("POST", &format!("/v2/models/{name}/infer"), TEXT), 503, "{name}");
        let family = format!("\"family\":\"{name}\"");
        let told = |line: &String| line.contains("\"ERROR\"") && line.contains(&family);
        assert!(server.log.iter().any(told), "{name}: {:?}", server.log);
    }
    assert_eq!(server.stop(), Some(0), "drains and ends in order");
}

#[test]
fn every_measured_plan_of_the_pool_still_exists() {
    let family = text_family();
    let text = std::fs::read_to_string(family.folder.join("quality.json")).expect("read");
    let records: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let plans: BTreeMap<String, f64> =
        serde_json::from_value(records["plans"].clone()).expect("plans");
    assert!(plans.len() >= 12);
    for (id, quality) in plans {
        PlanId::parse(&family.graph, &id).expect(&id);
        assert!((0.0..=1.0).contains(&quality), "{id}: {quality}");
    }
}

#[test]
fn an_input_that_nothing_gives_is_refused_by_name() {
    let [stem, attention, mlp] = EXPORT;
    let words = ("Gather", stem.1, "words");
    let in_stem = [words, ("Add", ["words", "extra"].as_slice(), "s"), attention, mlp];
    assert_refused(&with_export(&in_stem), &["module `b.stem`", "`extra`", "pixel_values"]);
    let product = ("MatMul", attention.1, "product");
    let in_block = [stem, product, ("Add", ["product", "extra"].as_slice(), "a"), mlp];
    assert_refused(&with_export(&in_block), &["module `b.block.0", "`extra`", "`s`"]);
}

/// A request that the synthetic family answers.
const TEXT: &str =
    r#"{"inputs":[{"name":"text","shape":[1],"datatype":"BYTES","data":["hello server"]}]}"#;

/// Asserts that `family` is refused and that the reason names all of `named`.
fn assert_refused(family: &Synthetic, named: &[&str]) {
    let refusal = family.refusal();
    for part in named {
        assert!(refusal.contains(part), "`{part}` is not in: {refusal}");
    }
}

/// The weights of a stitch between spaces that are both as wide as the output.
fn square_stitch() -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let matrix = (vec![WIDTH, WIDTH], vec![0.5; WIDTH * WIDTH]);
    let names = ["token.weight", "previous.weight"].map(|name| (name.to_owned(), matrix.clone()));
    let bias = ("bias".to_owned(), (vec![WIDTH], vec![0.0; WIDTH]));
    names.into_iter().chain([bias]).collect()
}
