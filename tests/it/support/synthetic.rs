//! A complete family of small random weights, for tests that break one.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use prost::Message;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;
use tempfile::TempDir;
use tessera::{
    assembly::Family,
    onnx::proto::{
        GraphProto, ModelProto, NodeProto, OperatorSetId, TensorProto, ValueInfoProto, data_type,
    },
    tensor::MappedFile,
};

/// The width of the reference anchor `a`, and of the output.
pub(crate) const WIDTH: usize = 8;
/// The width of the other anchor, `b`.
pub(crate) const OTHER_WIDTH: usize = 12;
/// The words of the tokenizer, by id.
pub(crate) const WORDS: [&str; 10] =
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "mail", "server", "answer", "hello", "##s"];

/// The weights of anchor `a`.
pub(crate) const WEIGHTS: &str = "anchors/a/model.safetensors";
/// The configuration of anchor `a`.
pub(crate) const CONFIG: &str = "anchors/a/config.json";
/// The tokenizer of both anchors.
pub(crate) const TOKENIZER: &str = "anchors/tokenizer.json";
/// The map from `b` to `a`.
pub(crate) const STITCH: &str = "fits/b.1-a.1.safetensors";
/// The map from inside the first block of `a` to its end.
pub(crate) const MLP: &str = "fits/a.0+-a.2.safetensors";
/// The map from `a` to the output.
pub(crate) const EXIT: &str = "fits/a.1-out.safetensors";

const OTHER_WEIGHTS: &str = "anchors/b/model.safetensors";
const OTHER_CONFIG: &str = "anchors/b/config.json";
const MAPS: [&str; 3] = [STITCH, MLP, EXIT];

const MANIFEST: &str = r#"name = "NAME"
task = "sentence-embedding"
description = "Small random weights."
license = "Apache-2.0"
reference = "a"

[limits]
max_tokens = POSITIONS

[output]
name = "embedding"
width = 8

[quality]
metric = "recall@10"
file = "quality.json"

[anchors.a]
folder = "anchors/a"
tokenizer = "anchors/tokenizer.json"
variants = ["skip"]

[anchors.a.sha256]
SHA256 anchors/a/config.json
SHA256 anchors/a/model.safetensors
SHA256 anchors/tokenizer.json

[anchors.b]
folder = "anchors/b"
tokenizer = "anchors/tokenizer.json"

[anchors.b.sha256]
SHA256 anchors/b/config.json
SHA256 anchors/b/model.safetensors
SHA256 anchors/tokenizer.json

[[maps]]
from = "b.1"
to = "a.1"
form = "tokens"
features = ["token", "previous"]

[[maps]]
from = "a.0+"
to = "a.2"
form = "mlp"

[[maps]]
from = "a.1"
to = "out"
form = "pooled"
features = ["mean", "first"]
"#;

/// Tensors by name: their shapes and values.
pub(crate) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// How many rows the tables of an anchor have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    /// Token ids.
    pub(crate) words: usize,
    /// Positions.
    pub(crate) positions: usize,
}

/// Two small encoders `a` and `b`, a stitch, a bridge and an exit, in a pool that ends with them.
#[derive(Debug, Clone)]
pub(crate) struct Synthetic {
    /// The family's folder.
    pub(crate) folder: PathBuf,
    rows: Rows,
    pool: Arc<TempDir>,
}

impl Synthetic {
    /// Writes a valid family.
    pub(crate) fn new() -> Self {
        Self::with_rows("tiny", Rows { words: WORDS.len(), positions: 32 })
    }

    /// Writes a valid family `name` whose anchors have tables of `rows`.
    pub(crate) fn with_rows(name: &str, rows: Rows) -> Self {
        Self::write_family(Arc::new(tempfile::tempdir().expect("a folder")), name, rows)
    }

    /// Writes another valid family into the same pool.
    pub(crate) fn beside(&self, name: &str) -> Self {
        Self::write_family(self.pool.clone(), name, self.rows)
    }

    /// Returns the pool's folder.
    pub(crate) fn pool(&self) -> &Path {
        self.pool.path()
    }

    fn write_family(pool: Arc<TempDir>, name: &str, rows: Rows) -> Self {
        let family = Self { folder: pool.path().join(name), rows, pool };
        family.write(CONFIG, config(WIDTH, rows).as_bytes());
        family.write(WEIGHTS, &to_safetensors(&encoder(WIDTH, rows)));
        family.write(OTHER_CONFIG, config(OTHER_WIDTH, rows).as_bytes());
        family.write(OTHER_WEIGHTS, &to_safetensors(&encoder(OTHER_WIDTH, rows)));
        family.write(TOKENIZER, tokenizer().as_bytes());
        for file in MAPS {
            family.write(file, &to_safetensors(&map(file)));
        }
        let record = |file: &str| {
            json!({ "sha256": family.sha256(file), "samples": 1, "regularization": 0.1,
                "held_out_r2": 0.5, "data": "none", "date": "2026-01-01" })
        };
        let maps: BTreeMap<_, _> = MAPS.into_iter().map(|file| (file, record(file))).collect();
        family.write("fits.json", json!({ "maps": maps }).to_string().as_bytes());
        let sign = |line: &str| match line.strip_prefix("SHA256 ") {
            Some(file) => format!("\"{file}\" = \"{}\"\n", family.sha256(file)),
            None => format!("{line}\n"),
        };
        let manifest = MANIFEST.replace("NAME", name);
        let manifest = manifest.replace("POSITIONS", &rows.positions.to_string());
        let manifest: String = manifest.lines().map(sign).collect();
        family.write("family.toml", manifest.as_bytes());
        family
    }

    /// Loads the family.
    pub(crate) fn load(&self) -> Arc<Family> {
        Arc::new(Family::load(&self.folder).expect("loads"))
    }

    /// Returns why the family does not load, sources included.
    pub(crate) fn refusal(&self) -> String {
        let error = Family::load(&self.folder).expect_err("refused");
        format!("{:#}", anyhow::Error::new(error))
    }

    /// Writes a file; what is recorded of its digest stays.
    pub(crate) fn write(&self, file: &str, content: &[u8]) {
        let path = self.folder.join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("created");
        fs::write(path, content).expect("written");
    }

    /// Writes a file and records its digest in the manifest and among the fits.
    pub(crate) fn write_signed(&self, file: &str, content: &[u8]) {
        let old = self.sha256(file);
        self.write(file, content);
        for record in ["family.toml", "fits.json"] {
            let text = self.text(record).replace(&old, &self.sha256(file));
            self.write(record, text.as_bytes());
        }
    }

    /// Replaces `from`, which must be there, in a text file, and signs it.
    pub(crate) fn edit(&self, file: &str, from: &str, to: &str) {
        let text = self.text(file);
        assert!(text.contains(from), "{file} has {from}");
        self.write_signed(file, text.replace(from, to).as_bytes());
    }

    /// Puts `change`d weights into a file, signed.
    pub(crate) fn change(&self, file: &str, change: impl FnOnce(&mut Tensors)) {
        let mut tensors = match file {
            WEIGHTS => encoder(WIDTH, self.rows),
            map_file => map(map_file),
        };
        change(&mut tensors);
        self.write_signed(file, &to_safetensors(&tensors));
    }

    /// Reads a file.
    pub(crate) fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.folder.join(file)).expect("read")
    }

    /// Reads a text file.
    pub(crate) fn text(&self, file: &str) -> String {
        String::from_utf8(self.read(file)).expect("text")
    }

    /// Returns a file's digest.
    pub(crate) fn sha256(&self, file: &str) -> String {
        MappedFile::open(&self.folder.join(file)).expect("mapped").sha256()
    }
}

/// The nodes of an export that is in order: operator, inputs, output. `table` and `matrix` are
/// weights, `s`, `a` and `b` the cuts.
pub(crate) const EXPORT: [Node; 3] =
    [("Gather", &["table", "ids"], "s"), ("MatMul", &["s", "matrix"], "a"), ("Relu", &["a"], "b")];

/// An operator, its inputs and its output.
pub(crate) type Node<'a> = (&'a str, &'a [&'a str], &'a str);

/// A family whose anchor `b` is an export of `nodes`, and which has no maps.
pub(crate) fn with_export(nodes: &[Node<'_>]) -> Synthetic {
    let family = Synthetic::new();
    put_export(&family, nodes);
    family
}

/// Makes anchor `b` an export of `nodes` and leaves out all maps.
pub(crate) fn put_export(family: &Synthetic, nodes: &[Node<'_>]) {
    family.write("anchors/b.onnx", &onnx(nodes));
    let manifest = family.text("family.toml");
    let (kept, _) = manifest.split_once("[anchors.b]").expect("an anchor");
    let (onnx, tokenizer) = (family.sha256("anchors/b.onnx"), family.sha256(TOKENIZER));
    let anchor = format!(
        "[anchors.b]\ntokenizer = \"{TOKENIZER}\"\n\
         [anchors.b.onnx]\nfile = \"anchors/b.onnx\"\nwidth = {WIDTH}\nstem = \"s\"\n\
         blocks = [[\"a\", \"b\"]]\n\
         [anchors.b.sha256]\n\"anchors/b.onnx\" = \"{onnx}\"\n\"{TOKENIZER}\" = \"{tokenizer}\"\n"
    );
    family.write("family.toml", format!("{kept}{anchor}").as_bytes());
}

/// Writes `nodes` as an ONNX file; `ids` stands for the token ids, `extra` for another input.
fn onnx(nodes: &[Node<'_>]) -> Vec<u8> {
    let real =
        |name: &&str| if *name == "ids" { "input_ids".to_owned() } else { (*name).to_owned() };
    let node = |(op, inputs, output): &Node<'_>| NodeProto {
        op_type: (*op).into(),
        name: format!("make {output}"),
        input: inputs.iter().map(real).collect(),
        output: vec![(*output).into()],
        ..NodeProto::default()
    };
    let weight = |name: &str, rows: usize| TensorProto {
        name: name.into(),
        data_type: data_type::FLOAT,
        dims: vec![rows as i64, WIDTH as i64],
        raw_data: Some(0.5_f32.to_le_bytes().repeat(rows * WIDTH).into()),
        ..TensorProto::default()
    };
    let ids = ValueInfoProto::tensor("input_ids", data_type::INT64, &[None, None]);
    let extra = ValueInfoProto::tensor("extra", data_type::FLOAT, &[None, None, None]);
    let reads_extra = nodes.iter().any(|(_, inputs, _)| inputs.contains(&"extra"));
    let graph = GraphProto {
        name: "graph".into(),
        node: nodes.iter().map(node).collect(),
        initializer: vec![weight("table", 10), weight("matrix", WIDTH)],
        input: [ids].into_iter().chain(reads_extra.then_some(extra)).collect(),
        ..GraphProto::default()
    };
    let opset = OperatorSetId { domain: String::new(), version: 17 };
    let model = ModelProto {
        ir_version: 8,
        opset_import: vec![opset],
        graph: Some(graph),
        ..ModelProto::default()
    };
    model.encode_to_vec()
}

/// Writes tensors as a safetensors file.
pub(crate) fn to_safetensors(tensors: &Tensors) -> Vec<u8> {
    let bytes: BTreeMap<&String, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, values))| (name, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = tensors.iter().map(|(name, (shape, _))| {
        (name, TensorView::new(Dtype::F32, shape.clone(), &bytes[name]).expect("a tensor"))
    });
    safetensors::serialize(views, None).expect("serialized")
}

/// Makes the tensors named, with values between −0.5 and 0.5; scales of norms are 1.
pub(crate) fn random(shapes: &[(String, Vec<usize>)]) -> Tensors {
    let mut state = 0x5eed_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        f32::from((state >> 48) as u16) / 65_536.0 - 0.5
    };
    let fill = |(name, shape): &(String, Vec<usize>)| {
        let is_scale = name.ends_with("LayerNorm.weight") || name == "norm.weight";
        let count = shape.iter().product();
        let values = (0..count).map(|_| if is_scale { 1.0 } else { next() }).collect();
        (name.clone(), (shape.clone(), values))
    };
    shapes.iter().map(fill).collect()
}

/// The tensors of a BERT encoder of two blocks.
fn encoder(width: usize, rows: Rows) -> Tensors {
    let mut shapes = Vec::new();
    let mut add = |name: String, shape: &[usize]| shapes.push((name, shape.to_vec()));
    for (table, rows) in [("word", rows.words), ("position", rows.positions), ("token_type", 2)] {
        add(format!("embeddings.{table}_embeddings.weight"), &[rows, width]);
    }
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for block in 0..2 {
        let layer = format!("encoder.layer.{block}");
        let attention =
            ["self.query", "self.key", "self.value", "output.dense"].map(|p| (p, width, width));
        let attention =
            attention.map(|(p, rows, columns)| (format!("attention.{p}"), rows, columns));
        let mlp = [("intermediate", 2 * width, width), ("output", width, 2 * width)];
        let mlp = mlp.map(|(part, rows, columns)| (format!("{part}.dense"), rows, columns));
        for (part, rows, columns) in attention.into_iter().chain(mlp) {
            add(format!("{layer}.{part}.weight"), &[rows, columns]);
            add(format!("{layer}.{part}.bias"), &[rows]);
        }
        norms.push(format!("{layer}.attention.output.LayerNorm"));
        norms.push(format!("{layer}.output.LayerNorm"));
    }
    for norm in norms {
        add(format!("{norm}.weight"), &[width]);
        add(format!("{norm}.bias"), &[width]);
    }
    random(&shapes)
}

/// The tensors of a fitted map.
fn map(file: &str) -> Tensors {
    let norm = [("norm.weight", vec![WIDTH]), ("norm.bias", vec![WIDTH])];
    let mut shapes = vec![("bias", vec![WIDTH])];
    match file {
        STITCH => {
            shapes.push(("token.weight", vec![WIDTH, OTHER_WIDTH]));
            shapes.push(("previous.weight", vec![WIDTH, OTHER_WIDTH]));
            shapes.extend(norm);
        }
        MLP => {
            shapes.push(("token.weight", vec![WIDTH, WIDTH]));
            shapes.push(("weight", vec![WIDTH, 2 * WIDTH]));
            shapes.extend(norm);
        }
        _ => shapes.push(("weight", vec![WIDTH, 2 * WIDTH])),
    }
    let named: Vec<_> = shapes.into_iter().map(|(name, shape)| (name.to_owned(), shape)).collect();
    random(&named)
}

fn config(width: usize, rows: Rows) -> String {
    let config = json!({
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": rows.positions,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "type_vocab_size": 2,
        "vocab_size": rows.words,
    });
    format!("{config:#}")
}

fn tokenizer() -> String {
    let vocabulary: BTreeMap<_, _> = WORDS.into_iter().zip(0..).collect();
    let added: Vec<_> = (0..4)
        .map(|id| {
            json!({ "id": id, "content": WORDS[id], "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false })
        })
        .collect();
    let token = |word: &str| json!({ "SpecialToken": { "id": word, "type_id": 0 } });
    let sequence = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    let special = |word: &str, id: u32| json!({ "id": word, "ids": [id], "tokens": [word] });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": { "type": "BertNormalizer", "clean_text": true,
            "handle_chinese_chars": true, "strip_accents": null, "lowercase": true },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": { "type": "TemplateProcessing",
            "single": [token("[CLS]"), sequence("A"), token("[SEP]")],
            "pair": [token("[CLS]"), sequence("A"), token("[SEP]"), sequence("B")],
            "special_tokens": { "[CLS]": special("[CLS]", 2), "[SEP]": special("[SEP]", 3) } },
        "decoder": null,
        "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary },
    })
    .to_string()
}
