//! Families with something wrong are refused with the reason, and do not keep others from serving.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use prost::Message;
use tessera::{
    arch::{Family, FitRecords},
    family::PlanId,
    onnx::proto::{GraphProto, ModelProto, NodeProto, OperatorSetId, ValueInfoProto, data_type},
    runtime::Executor,
    tensor::MappedFile,
};

use crate::support::{root, runtime};

/// A copy of the text family that may be broken; large files are links.
struct Copy {
    _pool: tempfile::TempDir,
    folder: PathBuf,
}

impl Copy {
    fn new(name: &str) -> Self {
        let pool = tempfile::tempdir_in(root().join("target")).expect("a folder");
        let folder = pool.path().join(name);
        copy_folder(&root().join("models/text"), &folder);
        let copy = Self { _pool: pool, folder };
        copy.edit("name = \"text\"", &format!("name = \"{name}\""));
        copy
    }

    /// Replaces `from`, which must be there, in the manifest.
    fn edit(&self, from: &str, to: &str) {
        let path = self.folder.join("family.toml");
        let text = fs::read_to_string(&path).expect("read");
        assert!(text.contains(from), "the manifest has {from}");
        fs::write(path, text.replace(from, to)).expect("written");
    }

    /// Replaces a file without touching what it was linked to.
    fn replace(&self, file: &str, content: &[u8]) {
        let path = self.folder.join(file);
        drop(fs::remove_file(&path));
        fs::write(path, content).expect("written");
    }

    /// Replaces a file and its digest in the manifest.
    fn replace_rightly(&self, file: &str, content: &[u8]) {
        let old = MappedFile::open(&self.folder.join(file)).expect("mapped").sha256();
        self.replace(file, content);
        let new = MappedFile::open(&self.folder.join(file)).expect("mapped").sha256();
        self.edit(&old, &new);
    }

    fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.folder.join(file)).expect("read")
    }

    /// Returns why the family does not load, sources included.
    fn refusal(&self) -> String {
        let error = anyhow::Error::new(Family::load(&self.folder).expect_err("refused"));
        format!("{error:#}")
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("created");
    for entry in fs::read_dir(from).expect("listed") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy_folder(&path, &target);
            continue;
        }
        // Small files are edited in place, so they must not be links.
        let is_small = path.extension().is_some_and(|e| e == "toml" || e == "json");
        if is_small || fs::hard_link(&path, &target).is_err() {
            fs::copy(&path, &target).expect("copied");
        }
    }
}

/// A graph of nodes `(operator, input, output)` as an ONNX file.
fn onnx(nodes: &[(&str, &str, &str)]) -> Vec<u8> {
    let node = |(op, input, output): &(&str, &str, &str)| NodeProto {
        op_type: (*op).into(),
        input: vec![(*input).into()],
        output: vec![(*output).into()],
        ..NodeProto::default()
    };
    let shape = [None, None];
    let graph = GraphProto {
        name: "graph".into(),
        node: nodes.iter().map(node).collect(),
        input: vec![ValueInfoProto::tensor("input_ids", data_type::INT64, &shape)],
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

/// Makes `l3` an export of `nodes`, cut at `s`, `a` and `b`, and leaves out every map.
fn with_export(nodes: &[(&str, &str, &str)]) -> Copy {
    let copy = Copy::new("text");
    copy.replace_rightly("anchors/l3/model.onnx", &onnx(nodes));
    let path = copy.folder.join("family.toml");
    let text = fs::read_to_string(&path).expect("read");
    let text = text.split("\n# Stitches").next().expect("a start").to_owned();
    let start = text.find("stem = ").expect("the cuts");
    let end = text[start..].find("\n]\n").expect("their end") + start + 3;
    let cuts = "stem = \"s\"\nblocks = [[\"a\", \"b\"]]\n";
    fs::write(path, format!("{}{cuts}{}", &text[..start], &text[end..])).expect("written");
    copy
}

#[test]
fn the_copy_is_good_before_it_is_broken() {
    Family::load(&Copy::new("text").folder).expect("loads");
}

#[test]
fn truncated_and_altered_weights_are_refused_by_digest() {
    let file = "anchors/l6/model.safetensors";
    let copy = Copy::new("text");
    let mut bytes = copy.read(file);
    bytes.truncate(bytes.len() / 2);
    copy.replace(file, &bytes);
    assert!(copy.refusal().contains("model.safetensors: sha256 is"), "{}", copy.refusal());
    let copy = Copy::new("text");
    let mut bytes = copy.read(file);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    copy.replace(file, &bytes);
    assert!(copy.refusal().contains("model.safetensors: sha256 is"), "{}", copy.refusal());
}

#[test]
fn hostile_safetensors_headers_are_refused() {
    let huge = [u64::MAX.to_le_bytes().as_slice(), b"{}"].concat();
    let outside = br#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;
    let outside = [(outside.len() as u64).to_le_bytes().as_slice(), outside].concat();
    let deep = [b"{\"a\":".as_slice(), &b"[".repeat(100_000)].concat();
    let deep = [(deep.len() as u64).to_le_bytes().as_slice(), &deep].concat();
    for content in [&b""[..], b"1234567", &huge, &outside, &deep] {
        let copy = Copy::new("text");
        copy.replace_rightly("anchors/l6/model.safetensors", content);
        let refusal = copy.refusal();
        assert!(refusal.contains("model.safetensors"), "{refusal}");
    }
}

#[test]
fn a_configuration_that_does_not_fit_the_weights_names_the_tensor() {
    for (from, to, named) in [
        ("\"intermediate_size\": 1536", "\"intermediate_size\": 1537", "intermediate.dense.weight"),
        ("\"num_hidden_layers\": 6", "\"num_hidden_layers\": 7", "encoder.layer.6"),
        ("\"hidden_act\": \"gelu\"", "\"hidden_act\": \"relu\"", "hidden_act"),
        ("\"num_attention_heads\": 12", "\"num_attention_heads\": 7", "num_attention_heads"),
        ("\"model_type\": \"bert\"", "\"model_type\": \"llama\"", "model_type"),
        ("\"vocab_size\": 30522", "\"vocab_size\": \"many\"", "config.json"),
    ] {
        let copy = Copy::new("text");
        let config = String::from_utf8(copy.read("anchors/l6/config.json")).expect("text");
        assert!(config.contains(from), "the configuration has {from}");
        let config = config.replace(from, to);
        copy.replace_rightly("anchors/l6/config.json", config.as_bytes());
        let refusal = copy.refusal();
        assert!(refusal.contains(named), "{to}: {refusal}");
    }
}

#[test]
fn onnx_files_that_are_none_or_have_a_cycle_are_refused() {
    let copy = Copy::new("text");
    copy.replace_rightly("anchors/l3/model.onnx", b"\xff\xff not onnx");
    assert!(copy.refusal().contains("model.onnx"), "{}", copy.refusal());
    let cycle = with_export(&[("Add", "b", "s"), ("Relu", "s", "a"), ("Relu", "a", "b")]);
    assert!(cycle.refusal().contains("reads `b`, which nothing before"), "{}", cycle.refusal());
    let copy = Copy::new("text");
    copy.edit("onnx::Shape_422", "onnx::Shape_999");
    assert!(copy.refusal().contains("no tensor `onnx::Shape_999`"), "{}", copy.refusal());
}

#[test]
fn an_unknown_operator_is_refused_by_module() {
    let copy = with_export(&[("Teapot", "input_ids", "s"), ("Relu", "s", "a"), ("Relu", "a", "b")]);
    let family = Arc::new(Family::load(&copy.folder).expect("the graph itself is in order"));
    let stem = family.graph.modules().iter().position(|m| m.name == "l3.stem").expect("l3");
    let mut executor = Executor::new(runtime(), family);
    let error = executor.load(&[tessera::family::ModuleId(stem)]).expect_err("refused");
    assert!(error.to_string().contains("`l3.stem`"), "{error}");
    assert!(error.to_string().contains("Teapot"), "{error}");
}

#[test]
fn maps_that_lead_nowhere_or_backwards_are_refused() {
    let copy = Copy::new("text");
    copy.edit("to = \"l6.1\"", "to = \"l6.9\"");
    assert!(copy.refusal().contains("no space `l6.9`"), "{}", copy.refusal());
    let copy = Copy::new("text");
    copy.edit("from = \"l6.0\"\nto = \"l6.5\"", "from = \"l6.5\"\nto = \"l6.0\"");
    let (old, new) = ("fits/l6.0-l6.5.safetensors", "fits/l6.5-l6.0.safetensors");
    copy.replace(new, &copy.read(old));
    let records = String::from_utf8(copy.read("fits.json")).expect("text").replace(old, new);
    copy.replace("fits.json", records.as_bytes());
    assert!(copy.refusal().contains("cycle"), "{}", copy.refusal());
}

#[test]
fn stitch_files_of_the_wrong_shape_or_digest_are_refused() {
    let stitch = "fits/l3.1-l6.1.safetensors";
    let copy = Copy::new("text");
    copy.replace(stitch, &copy.read("fits/l6.0-out.safetensors"));
    assert!(copy.refusal().contains(stitch), "{}", copy.refusal());
    assert!(copy.refusal().contains("sha256"), "{}", copy.refusal());
    let copy = Copy::new("text");
    copy.replace(stitch, &copy.read("fits/l6.1+-l6.4.safetensors"));
    let mut records = FitRecords::read(&copy.folder).expect("read");
    let found = MappedFile::open(&copy.folder.join(stitch)).expect("mapped").sha256();
    records.maps.get_mut(stitch).expect("recorded").sha256 = found;
    copy.replace("fits.json", records.to_file().1.as_bytes());
    assert!(copy.refusal().contains("there is no tensor `previous.weight`"), "{}", copy.refusal());
    let copy = Copy::new("text");
    copy.replace("fits.json", b"[]");
    assert!(copy.refusal().contains("fits.json"), "{}", copy.refusal());
}

#[test]
fn unknown_manifest_keys_and_foreign_names_are_refused() {
    let copy = Copy::new("text");
    copy.edit("[limits]", "[limits]\nmax_tokenz = 1");
    assert!(copy.refusal().contains("max_tokenz"), "{}", copy.refusal());
    let copy = Copy::new("text");
    copy.edit("name = \"text\"", "name = \"prose\"");
    assert!(copy.refusal().contains("`name` is `prose`"), "{}", copy.refusal());
}

/// A running server and the address that it listens on.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    /// Starts the program on a free port and waits until it serves.
    fn start(pool: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tessera"))
            .args(["serve", "--port", "0", "--log-format", "json", "--pool"])
            .arg(pool)
            .arg("--cache")
            .arg(pool.join("cache"))
            .current_dir(root())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let mut address = String::new();
        for line in lines.map_while(Result::ok) {
            if let Some((_, rest)) = line.split_once("\"address\":\"") {
                address = rest.split('"').next().expect("an address").to_owned();
                break;
            }
        }
        assert!(!address.is_empty(), "the server told its address");
        Self { child, address }
    }

    fn request(&self, method: &str, path: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("connects");
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n");
        write!(stream, "{head}content-length: {length}\r\n\r\n{body}").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        answer
    }
}

#[test]
fn a_broken_family_does_not_keep_a_good_one_from_serving() {
    let good = Copy::new("good");
    let path = good.folder.join("family.toml");
    let text = fs::read_to_string(&path).expect("read");
    let text = text.split("\n# Stitches").next().expect("a start");
    fs::write(&path, text.replace("[\"int8\", \"skip\"]", "[]")).expect("written");
    let pool = good.folder.parent().expect("the pool");
    fs::create_dir(pool.join("bad")).expect("created");
    fs::write(pool.join("bad/family.toml"), "name = \"bad\"").expect("written");
    let mut server = Server::start(pool);
    let body = r#"{"inputs":[{"name":"text","shape":[1],"datatype":"BYTES","data":["hello"]}]}"#;
    for (method, path, body, status) in [
        ("GET", "/v2/health/ready", "", "200"),
        ("GET", "/v2/models/bad/ready", "", "503"),
        ("POST", "/v2/models/bad/infer", body, "503"),
        ("GET", "/v2/models/good/ready", "", "200"),
        ("POST", "/v2/models/good/infer", body, "200"),
    ] {
        let answer = server.request(method, path, body);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
    }
    let id = server.child.id().to_string();
    assert!(Command::new("kill").arg(&id).status().expect("kill runs").success());
    assert_eq!(server.child.wait().expect("ends").code(), Some(0), "drains and ends in order");
}

#[test]
fn every_measured_plan_of_the_pool_still_exists() {
    let family = crate::support::text_family();
    let text = fs::read_to_string(family.folder.join("quality.json")).expect("read");
    let records: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let plans: BTreeMap<String, f64> =
        serde_json::from_value(records["plans"].clone()).expect("plans");
    assert!(plans.len() >= 12);
    for (id, quality) in plans {
        PlanId::find_path(&family.graph, &id).expect(&id);
        assert!((0.0..=1.0).contains(&quality), "{id}: {quality}");
    }
}
