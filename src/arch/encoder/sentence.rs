//! Files that sentence-transformers writes beside an encoder: `modules.json`, and those it names.
//!
//! A folder without `modules.json` gets the usual head: the mean over tokens, divided by its norm.

use std::{
    collections::BTreeMap,
    fmt::Display,
    io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::texts::TextConfig;
use crate::{
    arch::{
        error::ArchError,
        joint::{
            merging,
            pooling::{Pooling, normalize, pooled},
        },
        keys::{ConfigFile, Keys},
        ops::{extent, float_weight, linear, with_hidden},
    },
    family::{AnchorSpec, Fault},
    input::Prompts,
    module::{Network, Precision},
    onnx::{GraphBuilder, proto::TensorProto},
    pool::{Checkpoint, PoolError, parse_json, read_verified},
    tensor::{FileKind, read_text},
};

/// Most files of one kind that `modules.json` may name.
const MAX_MODULES: usize = 16;

/// Head of an encoder, and the preparation of its texts.
#[derive(Debug)]
pub(crate) struct Sentence {
    pooling: Pooling,
    layers: Vec<Layer>,
    /// Largest number of tokens of a text; longer texts are cut.
    pub(super) max_tokens: Option<usize>,
    /// Texts that may stand before each text.
    pub(super) prompts: Prompts,
}

/// Layer behind the pooling.
#[derive(Debug)]
enum Layer {
    /// Matrix, bias and nonlinearity.
    Dense(Dense),
    /// Division by the L2 norm.
    Normalize,
}

#[derive(Debug)]
struct Dense {
    checkpoint: Checkpoint,
    config: DenseConfig,
}

impl Default for Sentence {
    fn default() -> Self {
        let layers = vec![Layer::Normalize];
        let prompts = Prompts::default();
        Self { pooling: Pooling::Mean, layers, max_tokens: None, prompts }
    }
}

/// Entry of `modules.json`.
#[derive(Debug, Deserialize)]
struct ModuleEntry {
    path: PathBuf,
    #[serde(rename = "type")]
    class: String,
}

const MODULE_KEYS: Keys = Keys {
    honoured: &["path", "type"],
    only: &[],
    ignored: &[("modules stand in their order", &["idx", "name"])],
};

#[derive(Debug, Deserialize)]
struct PoolingConfig {
    pooling_mode: Option<Value>,
    include_prompt: Option<Value>,
    #[serde(flatten)]
    modes: Map<String, Value>,
}

const POOLING_KEYS: Keys = Keys {
    honoured: &[
        "include_prompt",
        "pooling_mode",
        "pooling_mode_cls_token",
        "pooling_mode_lasttoken",
        "pooling_mode_max_tokens",
        "pooling_mode_mean_tokens",
    ],
    only: &[
        ("pooling_mode_mean_sqrt_len_tokens", &["false"]),
        ("pooling_mode_weightedmean_tokens", &["false"]),
    ],
    ignored: &[("the configuration says it", &["embedding_dimension", "word_embedding_dimension"])],
};

/// Keys of `pooling_mode_*`, with the pooling that each turns on.
const MODES: [(&str, Pooling); 4] = [
    ("pooling_mode_cls_token", Pooling::First),
    ("pooling_mode_mean_tokens", Pooling::Mean),
    ("pooling_mode_max_tokens", Pooling::Max),
    ("pooling_mode_lasttoken", Pooling::Last),
];

#[derive(Debug, Deserialize)]
struct DenseConfig {
    in_features: usize,
    out_features: usize,
    bias: bool,
    activation_function: String,
}

const DENSE_KEYS: Keys = Keys {
    honoured: &["activation_function", "bias", "in_features", "out_features"],
    only: &[
        ("module_input_name", &["\"sentence_embedding\""]),
        ("module_output_name", &["\"sentence_embedding\""]),
    ],
    ignored: &[],
};

const NORMALIZE_KEYS: Keys = Keys { honoured: &[], ..DENSE_KEYS };

#[derive(Debug, Default, Deserialize)]
struct TransformerConfig {
    max_seq_length: Option<usize>,
}

const TRANSFORMER_KEYS: Keys = Keys {
    honoured: &["max_seq_length"],
    only: &[
        ("do_lower_case", &["false"]),
        ("module_output_name", &["\"token_embeddings\""]),
        ("transformer_task", &["\"feature-extraction\""]),
    ],
    ignored: &[
        ("texts are the only input", &["modality_config"]),
        ("it chooses an implementation", &["unpad_inputs"]),
    ],
};

#[derive(Debug, Default, Deserialize)]
struct FolderConfig {
    #[serde(default)]
    prompts: Map<String, Value>,
    default_prompt_name: Option<String>,
    similarity_fn_name: Option<String>,
}

/// Name of the file about the whole folder.
const FOLDER_FILE: &str = "config_sentence_transformers.json";

const FOLDER_KEYS: Keys = Keys {
    honoured: &["default_prompt_name", "prompts"],
    only: &[
        ("model_type", &["\"SentenceTransformer\""]),
        ("similarity_fn_name", &["\"cosine\"", "\"dot\"", "\"euclidean\"", "\"manhattan\""]),
    ],
    ignored: &[("they say who wrote the file", &["__version__"])],
};

/// Files of an anchor's folder.
struct Files<'a> {
    /// Folder of the family.
    family: &'a Path,
    spec: &'a AnchorSpec,
    /// Folder of the anchor in that of the family.
    anchor: &'a Path,
}

impl Sentence {
    /// Reads what sentence-transformers wrote into the folder of the anchor `spec`, in the folder
    /// `family`. Returns the usual head if there is no `modules.json`.
    ///
    /// # Errors
    ///
    /// Fails on modules, keys and values that are not supported, and names them.
    pub(crate) fn read(family: &Path, spec: &AnchorSpec) -> Result<Self, ArchError> {
        let Some(anchor) = &spec.folder else { return Ok(Self::default()) };
        let files = Files { family, spec, anchor };
        let Some(text) = files.text(Path::new("modules.json"))? else {
            files.texts()?;
            return Ok(Self::default());
        };
        let path = files.path(Path::new("modules.json"));
        let entries: Vec<Map<String, Value>> = parse_json(&path, &text)?;
        let file = files.config(&path, &text);
        let folder: FolderConfig = files.read(Path::new(FOLDER_FILE), &[FOLDER_KEYS])?;
        let prompts = files.prompts(&folder)?;
        let mut found = Self { layers: Vec::new(), prompts, ..Self::default() };
        let mut has_pooling = false;
        for (index, entry) in entries.iter().take(MAX_MODULES + 1).enumerate() {
            let entry: ModuleEntry = file.nested(&format!("[{index}]"), entry, &[MODULE_KEYS])?;
            let is_first = index == 0;
            match entry.class.rsplit('.').next().unwrap_or_default() {
                "Transformer" if is_first => {
                    if !entry.path.as_os_str().is_empty() {
                        let expected = "the checkpoint is read from the folder of this file";
                        let fault = Fault::new("[0].path", entry.path.display(), expected);
                        return Err(file.refuse(fault));
                    }
                    found.read_transformer(&files)?;
                }
                "Pooling" if index == 1 => {
                    found.pooling = files.pooling(&entry.path, &mut found.prompts)?;
                    has_pooling = true;
                }
                "Dense" if has_pooling && index < MAX_MODULES => {
                    found.layers.push(Layer::Dense(files.dense(&entry.path)?));
                }
                "Normalize" if has_pooling => {
                    files.read::<Map<_, _>>(&entry.path.join("config.json"), &[NORMALIZE_KEYS])?;
                    found.layers.push(Layer::Normalize);
                }
                _ => {
                    let expected = "a Transformer, a Pooling, and then Dense and Normalize are \
                                    supported";
                    let key = format!("[{index}].type");
                    return Err(file.refuse(Fault::new(key, entry.class, expected)));
                }
            }
        }
        if !has_pooling {
            let expected = "a Pooling is needed behind the Transformer";
            return Err(file.refuse(Fault::new("[1].type", "missing", expected)));
        }
        // Vectors that are compared by their angle are given with length 1, as embeddings usually
        // are; with a dot product or a distance, the length is part of the answer.
        let by_angle = folder.similarity_fn_name.as_deref().is_none_or(|name| name == "cosine");
        if by_angle && !matches!(found.layers.last(), Some(Layer::Normalize)) {
            found.layers.push(Layer::Normalize);
        }
        Ok(found)
    }

    /// Reads the files of the module `Transformer`.
    fn read_transformer(&mut self, files: &Files<'_>) -> Result<(), ArchError> {
        let own: TransformerConfig =
            files.read(Path::new("sentence_bert_config.json"), &[TRANSFORMER_KEYS])?;
        let most = files.texts()?.max_tokens();
        self.max_tokens = [own.max_seq_length, most].into_iter().flatten().min();
        Ok(())
    }

    /// Returns the width of the vectors that hidden states of `width` become.
    pub(super) fn width(&self, width: usize) -> usize {
        let dense = self.layers.iter().rev().find_map(|layer| match layer {
            Layer::Dense(dense) => Some(dense.config.out_features),
            Layer::Normalize => None,
        });
        dense.unwrap_or(width)
    }

    /// Returns whether the head can read tokens that were merged.
    pub(super) fn can_merge(&self) -> bool {
        matches!(self.pooling, Pooling::First | Pooling::Mean)
    }

    /// Builds the head. If tokens were merged, it reads their sizes instead of the mask.
    ///
    /// # Shapes
    ///
    /// - hidden: \[batch, tokens, width\]
    /// - output: \[batch, self.width(width)\]
    pub(in crate::arch) fn head(
        &self,
        width: usize,
        is_merged: bool,
    ) -> Result<Network, ArchError> {
        let (mut graph, hidden) = with_hidden(width);
        let mut vector = match (is_merged, self.pooling) {
            (true, Pooling::Mean) => merging::mean_of_sizes(&mut graph, &hidden),
            (_, pooling) => pooled(&mut graph, &hidden, pooling),
        };
        let mut num_columns = width;
        for (index, layer) in self.layers.iter().enumerate() {
            vector = match layer {
                Layer::Normalize => normalize(&mut graph, &vector),
                Layer::Dense(dense) => {
                    let DenseConfig { in_features, out_features, .. } = dense.config;
                    if in_features != num_columns {
                        let expected = format!("the module before it gives {num_columns}");
                        let path = dense.checkpoint.path().with_file_name("config.json");
                        let fault = Fault::new("in_features", in_features, expected);
                        return Err(ArchError::Config { path, fault });
                    }
                    num_columns = out_features;
                    dense.add(&mut graph, &vector, index)?
                }
            };
        }
        let shape = [None, extent(num_columns)];
        Ok(Network::new(graph.finish(&vector, "output", &shape), Precision::F32))
    }
}

impl Dense {
    /// Adds the module `index` behind `vector`, `[batch, in]`.
    fn add(
        &self,
        graph: &mut GraphBuilder,
        vector: &str,
        index: usize,
    ) -> Result<String, PoolError> {
        let DenseConfig { in_features, out_features, bias, .. } = self.config;
        // Every such module calls its tensors alike.
        let weight = |name: &str, shape: &[usize]| -> Result<TensorProto, PoolError> {
            let own = format!("{index}.{name}");
            Ok(TensorProto { name: own, ..self.checkpoint.weight(name, shape)? })
        };
        let mut output =
            linear(graph, vector, weight("linear.weight", &[out_features, in_features])?);
        if bias {
            let bias = weight("linear.bias", &[out_features])?;
            let bias = float_weight(graph, bias);
            output = graph.node("Add", &[&output, &bias], &[]);
        }
        Ok(match self.config.activation_function.ends_with(".Tanh") {
            true => graph.node("Tanh", &[&output], &[]),
            false => output,
        })
    }
}

impl<'a> Files<'a> {
    /// Returns the path of `location` in the anchor's folder.
    fn path(&self, location: &Path) -> PathBuf {
        self.family.join(self.anchor).join(location)
    }

    fn config<'f>(&self, path: &'f Path, text: &'f str) -> ConfigFile<'f>
    where
        'a: 'f,
    {
        ConfigFile { path, text, ignored: &self.spec.ignored_keys }
    }

    /// Returns the text of the file at `location`, or `None` if it does not exist. Its digest is
    /// checked if the manifest has it.
    fn text(&self, location: &Path) -> Result<Option<String>, ArchError> {
        let (own, path) = (self.anchor.join(location), self.path(location));
        if !path.exists() {
            return Ok(None);
        }
        if let Some(sha256) = self.spec.sha256.get(&own) {
            let bytes = read_verified(self.family, &own, sha256, FileKind::Config)?;
            return Ok(Some(String::from_utf8_lossy(&bytes).into_owned()));
        }
        let text = read_text(&path, FileKind::Config);
        text.map(Some).map_err(|source| PoolError::Unreadable { path, source }.into())
    }

    /// Returns the text of the file at `location`.
    fn required(&self, location: &Path) -> Result<String, ArchError> {
        let missing = || PoolError::Unreadable {
            path: self.path(location),
            source: io::ErrorKind::NotFound.into(),
        };
        Ok(self.text(location)?.ok_or_else(missing)?)
    }

    /// Reads the file at `location`, or returns the default if it does not exist.
    fn read<T>(&self, location: &Path, tables: &[Keys]) -> Result<T, ArchError>
    where
        T: Default + serde::de::DeserializeOwned,
    {
        let path = self.path(location);
        match self.text(location)? {
            Some(text) => self.config(&path, &text).read(tables),
            None => Ok(T::default()),
        }
    }

    /// Returns the digest that the manifest has for a file of the family.
    fn digest(&self, file: &Path) -> Result<&str, PoolError> {
        let found = self.spec.sha256.get(file).map(String::as_str);
        found.ok_or_else(|| PoolError::NoDigest { path: self.family.join(file) })
    }

    /// Reads the settings of texts.
    fn texts(&self) -> Result<TextConfig, ArchError> {
        let location = Path::new("tokenizer_config.json");
        let path = self.path(location);
        let text = self.text(location)?.unwrap_or_else(|| "{}".into());
        let tokenizer = match &self.spec.tokenizer {
            Some(location) => {
                let sha256 = self.digest(location)?;
                let bytes = read_verified(self.family, location, sha256, FileKind::Tokenizer)?;
                let text = String::from_utf8_lossy(&bytes);
                parse_json(&self.family.join(location), &text)?
            }
            None => Value::Null,
        };
        TextConfig::read(self.config(&path, &text), &tokenizer)
    }

    /// Reads the module `Pooling`. Leaves out the named prompts that it does not support.
    fn pooling(&self, folder: &Path, prompts: &mut Prompts) -> Result<Pooling, ArchError> {
        let location = folder.join("config.json");
        let path = self.path(&location);
        let text = self.required(&location)?;
        let file = self.config(&path, &text);
        let config: PoolingConfig = file.read(&[POOLING_KEYS])?;
        let refuse = |key: &str, value: &str, expected: &str| {
            Err(file.refuse(Fault::new(key, value, expected)))
        };
        if config.include_prompt == Some(Value::Bool(false)) {
            if !prompts.default.is_empty() {
                let expected = "a prompt before every text is supported as a part of it";
                return refuse("include_prompt", "false", expected);
            }
            prompts.named.retain(|_, prompt| prompt.is_empty());
        }
        if let Some(mode) = &config.pooling_mode {
            // A list of one is written as well.
            let only = mode.as_array().and_then(|modes| <&[Value; 1]>::try_from(&**modes).ok());
            return match only.map_or(mode, |[only]| only).as_str() {
                Some("cls") => Ok(Pooling::First),
                Some("mean") => Ok(Pooling::Mean),
                Some("max") => Ok(Pooling::Max),
                Some("lasttoken") => Ok(Pooling::Last),
                _ => {
                    let expected = "cls, mean, max and lasttoken are supported, one of them";
                    refuse("pooling_mode", &mode.to_string(), expected)
                }
            };
        }
        let is_on = |key: &str| config.modes.get(key).is_some_and(|value| *value == true);
        let on: Vec<_> = MODES.iter().filter(|(key, _)| is_on(key)).collect();
        match on[..] {
            [] => Ok(Pooling::Mean),
            [(_, pooling)] => Ok(*pooling),
            [_, (key, _), ..] => refuse(key, "true", "one way of pooling is supported"),
        }
    }

    fn dense(&self, folder: &Path) -> Result<Dense, ArchError> {
        let location = folder.join("config.json");
        let path = self.path(&location);
        let text = self.required(&location)?;
        let file = self.config(&path, &text);
        let config: DenseConfig = file.read(&[DENSE_KEYS])?;
        let name = config.activation_function.rsplit('.').next().unwrap_or_default();
        if !matches!(name, "Tanh" | "Identity") {
            let expected = "torch's Tanh and Identity are supported";
            let fault = Fault::new("activation_function", &config.activation_function, expected);
            return Err(file.refuse(fault));
        }
        let weights = self.anchor.join(folder).join("model.safetensors");
        let checkpoint = Checkpoint::open(self.family, &weights, self.digest(&weights)?)?;
        Ok(Dense { checkpoint, config })
    }

    /// Returns the texts that may stand before each text.
    fn prompts(&self, folder: &FolderConfig) -> Result<Prompts, ArchError> {
        let refuse = |key: &str, value: &dyn Display, expected: &str| ArchError::Config {
            path: self.path(Path::new(FOLDER_FILE)),
            fault: Fault::new(key, value, expected),
        };
        let named = folder.prompts.iter().map(|(name, prompt)| match prompt {
            Value::String(prompt) => Ok((name.clone(), prompt.clone())),
            // The library reads it so.
            Value::Null => Ok((name.clone(), String::new())),
            _ => Err(refuse(&format!("prompts.{name}"), prompt, "a prompt is a string")),
        });
        let named = named.collect::<Result<BTreeMap<_, _>, _>>()?;
        let Some(name) = &folder.default_prompt_name else {
            return Ok(Prompts { default: String::new(), named });
        };
        let default = named.get(name).cloned();
        let default = default
            .ok_or_else(|| refuse("default_prompt_name", name, "it must be one of `prompts`"))?;
        Ok(Prompts { default, named })
    }
}
