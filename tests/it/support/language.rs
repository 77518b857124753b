//! Families of one small language model, from the committed checkpoints.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tessera::{assembly::Family, runtime::Executor};

use super::{Reference, gguf::Written, root, runtime};

/// The file of a checkpoint that is one.
pub(crate) const WEIGHTS: &str = "model.safetensors";

/// The file of a checkpoint in GGUF.
const GGUF: &str = "model.gguf";

/// Every case but those of ModuleFormer, with its number of blocks.
pub(crate) const CHECKPOINTS: [(&str, usize); 22] = [
    ("llama", 2),
    ("mistral", 2),
    ("mistral-whole", 2),
    ("qwen2", 2),
    ("qwen3", 2),
    ("gemma3", 4),
    ("gemma3-biased", 2),
    ("mixtral", 2),
    ("mixtral-fused", 2),
    ("mixtral-k1-odd", 3),
    ("mixtral-sliding", 2),
    ("mixtral-sharded-bf16", 2),
    ("olmoe", 2),
    ("olmoe-clip", 2),
    ("qwen2_moe", 4),
    ("qwen2_moe-fused", 4),
    ("qwen2_moe-norm", 2),
    ("qwen3_moe", 2),
    ("qwen3_moe-f16", 3),
    ("granitemoe", 3),
    ("granitemoe-fused", 3),
    ("granitemoeshared", 2),
];

/// A family of one language model in a pool that ends with it.
pub(crate) struct Model {
    pool: TempDir,
    /// The anchor's files.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// Number of token ids, if there is no configuration that says it.
    num_words: Option<u64>,
    top_k: Vec<usize>,
    /// Most tokens of a sequence.
    context: usize,
    task: &'static str,
    /// Type of the elements of caches.
    cache: &'static str,
    /// More lines of the anchor's part of the manifest.
    more: String,
}

/// A tensor's element type, shape and bytes.
type Stored = (Dtype, Vec<usize>, Vec<u8>);

fn case(name: &str) -> PathBuf {
    let references = root().join("tests/references");
    let dense = references.join("dense").join(name);
    if dense.exists() { dense } else { references.join("moe").join(name) }
}

/// Reads what a case expects.
pub(crate) fn reference(name: &str) -> Reference {
    Reference::open(&case(name).join("reference.safetensors"))
}

/// Parts of the names of tensors in transformers, and in GGUF.
const GGUF_NAMES: [(&str, &str); 10] = [
    ("model.embed_tokens.", "token_embd."),
    ("model.norm.", "output_norm."),
    ("lm_head.", "output."),
    ("model.layers.", "blk."),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.", "attn_"),
    ("mlp.", "ffn_"),
    ("_proj", ""),
];

/// Returns the name in GGUF of a tensor of transformers; the parts `own` are replaced first.
pub(crate) fn gguf_name(theirs: &str, own: &[(&str, &str)]) -> String {
    let parts = own.iter().chain(&GGUF_NAMES);
    parts.fold(theirs.to_owned(), |name, (theirs, ours)| name.replace(theirs, ours))
}

impl Model {
    /// Returns `file` with the weights of the model, whose bytes are what `written` makes of a
    /// tensor's name and bytes. Parts of names `own` are replaced first.
    pub(crate) fn weights_in(
        &self,
        mut file: Written,
        own: &[(&str, &str)],
        written: impl Fn(&str, &[u8]) -> Vec<u8>,
    ) -> Written {
        let tensors = SafeTensors::deserialize(&self.files[WEIGHTS]).expect("safetensors");
        for (name, view) in tensors.tensors() {
            let extents = view.shape().iter().rev().map(|extent| *extent as u64);
            let extents: Vec<u64> = extents.collect();
            let bytes = written(&name, view.data());
            file = file.tensor(&gguf_name(&name, own), &extents, 0, &bytes);
        }
        file
    }

    /// Reads a case's checkpoint.
    pub(crate) fn read(name: &str) -> Self {
        let entries = fs::read_dir(case(name)).expect("the case is there");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        let files = paths.map(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
            (name, fs::read(&path).expect("read"))
        });
        Self::of_files(files.filter(|(name, _)| name != "reference.safetensors"))
    }

    /// Creates a model of an anchor's files.
    pub(crate) fn of_files(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let pool = tempfile::tempdir().expect("a temporary folder");
        let files = files.into_iter().collect();
        Self {
            pool,
            files,
            num_words: None,
            top_k: Vec::new(),
            context: 20,
            task: "language-model",
            cache: "f32",
            more: String::new(),
        }
    }

    /// Creates a model of a GGUF file with `num_words` token ids.
    pub(crate) fn of_gguf(bytes: Vec<u8>, num_words: u64) -> Self {
        let model = Self::of_files([(GGUF.to_owned(), bytes)]);
        Self { num_words: Some(num_words), ..model }
    }

    /// Adds lines to the anchor's part of the manifest.
    pub(crate) fn more(&mut self, lines: &str) {
        self.more.push_str(lines);
    }

    /// Allows sequences of `context` tokens.
    pub(crate) fn with_context(mut self, context: usize) -> Self {
        self.context = context;
        self
    }

    /// Sets the type of the elements of caches.
    pub(crate) fn with_cache(mut self, cache: &'static str) -> Self {
        self.cache = cache;
        self
    }

    /// Makes the family one that generates text, by the tokenizer beside the anchor.
    pub(crate) fn with_text(mut self) -> Self {
        self.task = "text-generation";
        self.more("tokenizer = \"anchors/a/tokenizer.json\"\n");
        self
    }

    /// Offers other numbers of experts as well.
    pub(crate) fn with_top_k(mut self, top_k: &[usize]) -> Self {
        self.top_k = top_k.to_vec();
        self
    }

    /// Offers some experts of every block by themselves, as `set`.
    pub(crate) fn with_experts(mut self, experts: &[usize]) -> Self {
        self.more = format!("expert_sets = [{{ name = \"set\", experts = {experts:?} }}]\n");
        self
    }

    /// Sets a key of the configuration.
    pub(crate) fn set(&mut self, key: &str, value: Value) {
        let config = self.files.get_mut("config.json").expect("a configuration");
        let mut parsed: Value = serde_json::from_slice(config).expect("JSON");
        parsed[key] = value;
        *config = parsed.to_string().into_bytes();
    }

    /// Changes the tensors of a file.
    pub(crate) fn change(
        &mut self,
        file: &str,
        change: impl FnOnce(&mut BTreeMap<String, Stored>),
    ) {
        let stored = self.files.get_mut(file).expect("a file");
        let parsed = SafeTensors::deserialize(stored).expect("safetensors");
        let tensors = parsed.tensors().into_iter();
        let mut tensors: BTreeMap<String, Stored> = tensors
            .map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
            .collect();
        change(&mut tensors);
        let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor"))
        });
        *stored = safetensors::serialize(views, None).expect("serialized");
    }

    /// Returns the number of token ids, as the configuration says.
    fn num_words(&self) -> u64 {
        if let Some(known) = self.num_words {
            return known;
        }
        let config: Value = serde_json::from_slice(&self.files["config.json"]).expect("JSON");
        config["vocab_size"].as_u64().expect("a number")
    }

    /// Returns the folder of the pool.
    pub(crate) fn pool(&self) -> &Path {
        self.pool.path()
    }

    /// Writes the family and loads it.
    pub(crate) fn load(&self) -> Result<Arc<Family>, String> {
        let folder = self.pool.path().join("language");
        fs::create_dir_all(folder.join("anchors/a")).expect("created");
        let mut digests = String::new();
        for (name, content) in &self.files {
            let digest = Sha256::digest(content);
            let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            digests.push_str(&format!("\"anchors/a/{name}\" = \"{digest}\"\n"));
            fs::write(folder.join("anchors/a").join(name), content).expect("written");
        }
        let manifest = format!(
            "name = \"language\"\ntask = \"{}\"\ndescription = \"Random weights.\"\n\
             license = \"Apache-2.0\"\nreference = \"a\"\n\
             [limits]\nmax_tokens = {}\nmax_batch = 8\n\
             [output]\nname = \"logits\"\nwidth = {}\nper_token = true\n\
             states = \"last_hidden_state\"\n\
             [quality]\nmetric = \"recall@10\"\nfile = \"quality.json\"\n\
             [generation]\ncache = \"{}\"\n\
             [anchors.a]\n{}\ntop_k = {:?}\n{}\
             [anchors.a.sha256]\n{digests}",
            self.task,
            self.context,
            self.num_words(),
            self.cache,
            match self.num_words {
                Some(_) => format!("gguf = \"anchors/a/{GGUF}\""),
                None => "folder = \"anchors/a\"".to_owned(),
            },
            self.top_k,
            self.more,
        );
        fs::write(folder.join("family.toml"), manifest).expect("written");
        let loaded = Family::load(&folder);
        loaded.map(Arc::new).map_err(|error| format!("{:#}", anyhow::Error::new(error)))
    }

    /// Loads the family and creates its executor. The model must outlive it.
    pub(crate) fn executor(&self) -> Executor {
        Executor::new(runtime(), self.load().unwrap_or_else(|e| panic!("{e}")))
    }

    /// Returns the reason why the family does not load.
    pub(crate) fn refusal(&self) -> String {
        self.load().expect_err("it is refused")
    }
}

/// Returns the rows of the tokens that are no padding.
pub(crate) fn rows<T: Copy>(values: &[T], mask: &[i64]) -> Vec<Vec<T>> {
    let width = values.len() / mask.len();
    let rows = values.chunks_exact(width).zip(mask);
    rows.filter(|(_, mask)| **mask == 1).map(|(row, _)| row.to_vec()).collect()
}
