//! The manifest `family.toml`: what a family consists of.

use std::{
    collections::BTreeMap,
    fmt::Display,
    path::{Component, Path, PathBuf},
};

use serde::Deserialize;

use super::FamilyError;

/// A parsed and validated `family.toml`. Unknown keys are errors.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The served name; equal to the folder's.
    pub name: String,
    /// What the family does, such as `sentence-embedding`.
    pub task: String,
    /// One sentence for a person.
    pub description: String,
    /// The SPDX licence of the weights.
    pub license: String,
    /// The anchor whose full path defines the output space and a quality of 1.
    pub reference: String,
    /// What one request may hold.
    #[serde(default)]
    pub limits: Limits,
    /// The output tensor.
    pub output: OutputSpec,
    /// What quality means in this family.
    pub quality: QualitySpec,
    /// The pretrained networks by name.
    pub anchors: BTreeMap<String, AnchorSpec>,
    /// The maps fitted between spaces.
    #[serde(default)]
    pub maps: Vec<MapSpec>,
}

/// What one request may hold.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Tokens per sequence; longer texts are truncated, longer `input_ids` refused.
    pub max_tokens: usize,
    /// Sequences per request.
    pub max_batch: usize,
    /// Bytes per text.
    pub max_text_bytes: usize,
}

/// The output tensor.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputSpec {
    /// The tensor's name.
    pub name: String,
    /// The extent of the last axis.
    pub width: usize,
}

/// What quality means in a family.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QualitySpec {
    /// The metric, in \[0, 1\], 1 for the reference.
    pub metric: String,
    /// Where measured qualities lie.
    pub file: PathBuf,
    /// The least quality of a plan that is offered; an explicit plan may be worse.
    #[serde(default)]
    pub floor: f64,
}

/// A pretrained network.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnchorSpec {
    /// A folder in the Hugging Face layout (`config.json`, `model.safetensors`).
    pub folder: Option<PathBuf>,
    /// An ONNX file and where to cut it.
    pub onnx: Option<OnnxSource>,
    /// The tokenizer (`tokenizer.json`) that the anchor was trained with.
    pub tokenizer: PathBuf,
    /// Whether the family is complete without this anchor, when its files are missing.
    #[serde(default)]
    pub optional: bool,
    /// Parallel modules to offer for each sub-layer: `int8`, `skip`.
    #[serde(default)]
    pub variants: Vec<String>,
    /// The SHA-256 of every file of the anchor, by path.
    pub sha256: BTreeMap<PathBuf, String>,
}

/// An ONNX file and the tensors that separate its modules.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnnxSource {
    /// The file.
    pub file: PathBuf,
    /// The width of the hidden states.
    pub width: usize,
    /// The hidden states before the first block.
    pub stem: String,
    /// The hidden states after each block's attention and after each block, in order.
    pub blocks: Vec<[String; 2]>,
}

/// A map fitted in closed form from one space to another.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapSpec {
    /// The space it starts in, such as `l3.1`.
    pub from: String,
    /// The space it ends in, such as `l6.2`, or `out`.
    pub to: String,
    /// Tells several maps between the same spaces apart.
    pub label: Option<String>,
    /// How it computes.
    pub form: MapForm,
    /// What it sees; nothing more than the block's hidden units and its token for `mlp`.
    #[serde(default)]
    pub features: Vec<Feature>,
    /// A plan on whose hidden states in `from` it is fitted; the anchor's own where there is none.
    pub fitted_on: Option<String>,
    /// Parallel modules to offer: `int8`.
    #[serde(default)]
    pub variants: Vec<String>,
}

/// How a fitted map computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MapForm {
    /// `W · features + b` for every token, then the layer norm before the target, if it has one.
    Tokens,
    /// The feed-forward part of the block that `from` lies in, with its last matrix fitted anew so
    /// that it leads to `to`: `W · [gelu(expand · token), token] + b`.
    Mlp,
    /// `normalize(W · features + b)` once for a sequence.
    Pooled,
}

/// What a fitted map sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feature {
    /// The token itself.
    Token,
    /// The token before it; zero before the first.
    Previous,
    /// The token after it; zero after the last.
    Next,
    /// The first token of the sequence, `[CLS]`.
    First,
    /// The mean over the sequence's tokens.
    Mean,
    /// The largest value over the sequence's tokens.
    Max,
    /// The standard deviation over the sequence's tokens.
    Deviation,
}

impl Feature {
    /// Returns the name that manifests and weight files use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Previous => "previous",
            Self::Next => "next",
            Self::First => "first",
            Self::Mean => "mean",
            Self::Max => "max",
            Self::Deviation => "deviation",
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_tokens: 256, max_batch: 64, max_text_bytes: 262_144 }
    }
}

impl Manifest {
    /// Reads `family.toml` in `folder` and validates it.
    ///
    /// # Errors
    ///
    /// Fails on a file that cannot be read, is no TOML, has unknown keys, or whose values
    /// contradict each other; the error names file, key, value and what would be valid.
    pub fn read(folder: &Path) -> Result<Self, FamilyError> {
        let path = folder.join("family.toml");
        let text = std::fs::read_to_string(&path)
            .map_err(|source| FamilyError::Unreadable { path: path.clone(), source })?;
        let manifest: Self = toml::from_str(&text)
            .map_err(|e| FamilyError::Syntax { path: path.clone(), message: e.to_string() })?;
        let folder_name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        manifest.validate(&path, folder_name)?;
        Ok(manifest)
    }

    fn validate(&self, path: &Path, folder: &str) -> Result<(), FamilyError> {
        let refuse = |key: &str, value: &dyn Display, expected: String| {
            Err(FamilyError::Value {
                path: path.to_owned(),
                key: key.to_owned(),
                value: value.to_string(),
                expected,
            })
        };
        if self.name != folder {
            return refuse("name", &self.name, format!("must be the folder's name, `{folder}`"));
        }
        if !self.anchors.contains_key(&self.reference) {
            let known: Vec<&str> = self.anchors.keys().map(String::as_str).collect();
            let expected = format!("must be an anchor: {}", known.join(", "));
            return refuse("reference", &self.reference, expected);
        }
        let limits = [
            ("limits.max_tokens", self.limits.max_tokens),
            ("limits.max_batch", self.limits.max_batch),
            ("limits.max_text_bytes", self.limits.max_text_bytes),
            ("output.width", self.output.width),
        ];
        if let Some((key, value)) = limits.iter().find(|(_, value)| *value == 0) {
            return refuse(key, value, "must be at least 1".into());
        }
        if !(0.0..=1.0).contains(&self.quality.floor) {
            return refuse("quality.floor", &self.quality.floor, "must lie in [0, 1]".into());
        }
        for (name, anchor) in &self.anchors {
            anchor.validate(name).or_else(|(key, value, expected)| {
                refuse(&format!("anchors.{name}.{key}"), &value, expected)
            })?;
        }
        for map in &self.maps {
            if let Some(label) = map.label.as_ref().filter(|label| !is_plain(label)) {
                let key = format!("maps ({} to {}).label", map.from, map.to);
                return refuse(&key, label, "a label is letters, digits, `_` and `-`".into());
            }
            if let Some(variant) = map.variants.iter().find(|variant| *variant != "int8") {
                let key = format!("maps ({} to {}).variants", map.from, map.to);
                return refuse(&key, variant, "maps have the variant `int8`".into());
            }
        }
        Ok(())
    }
}

impl AnchorSpec {
    /// Checks what the types do not say; an error is the key, its value and what would be valid.
    fn validate(&self, name: &str) -> Result<(), (String, String, String)> {
        let refuse = |key: &str, value: String, expected: &str| {
            Err((key.to_owned(), value, expected.to_owned()))
        };
        let plain = |text: &str| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        if !plain(name) {
            return refuse("", name.into(), "an anchor's name is letters, digits and `_`");
        }
        if self.folder.is_some() == self.onnx.is_some() {
            return refuse("folder", "".into(), "exactly one of `folder` and `onnx` is needed");
        }
        if let Some(variant) = self.variants.iter().find(|v| !matches!(v.as_str(), "int8" | "skip"))
        {
            return refuse("variants", variant.clone(), "variants are `int8` and `skip`");
        }
        let onnx = self.onnx.as_ref().map(|onnx| &onnx.file);
        let paths = self.folder.iter().chain(onnx).chain([&self.tokenizer]);
        for path in paths.chain(self.sha256.keys()) {
            if !path.components().all(|part| matches!(part, Component::Normal(_))) {
                let expected = "paths are relative and stay inside the family's folder";
                return refuse("", path.display().to_string(), expected);
            }
        }
        Ok(())
    }
}

/// Tells whether a label can stand in plan ids and file names.
fn is_plain(label: &str) -> bool {
    !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        name = "tiny"
        task = "sentence-embedding"
        description = "A test."
        license = "Apache-2.0"
        reference = "a"
        output = { name = "embedding", width = 8 }
        quality = { metric = "recall@10", file = "quality.json" }
        [anchors.a]
        folder = "anchors/a"
        tokenizer = "anchors/a/tokenizer.json"
        sha256 = {}
        [[maps]]
        from = "a.1"
        to = "out"
        form = "pooled"
        features = ["mean", "first"]
    "#;

    fn read(text: &str) -> Result<Manifest, FamilyError> {
        let pool = tempfile::tempdir().expect("a temporary folder");
        let folder = pool.path().join("tiny");
        std::fs::create_dir(&folder).expect("created");
        std::fs::write(folder.join("family.toml"), text).expect("written");
        Manifest::read(&folder)
    }

    #[test]
    fn a_manifest_is_read() {
        let manifest = read(GOOD).expect("valid");
        assert_eq!(manifest.limits.max_tokens, 256);
        assert_eq!(manifest.maps[0].form, MapForm::Pooled);
        assert_eq!(manifest.maps[0].features, [Feature::Mean, Feature::First]);
    }

    #[test]
    fn wrong_keys_and_values_are_named() {
        for (from, to, named) in [
            ("task =", "tsak =", "tsak"),
            ("reference = \"a\"", "reference = \"b\"", "`reference` is `b`"),
            ("name = \"tiny\"", "name = \"big\"", "`name` is `big`"),
            ("width = 8", "width = 0", "output.width"),
            ("metric =", "floor = 1.5, metric =", "quality.floor"),
            ("sha256 = {}", "sha256 = {}\nvariants = [\"int4\"]", "int4"),
            ("folder = \"anchors/a\"", "folder = \"../a\"", "../a"),
            ("folder = \"anchors/a\"", "folder = \"/etc\"", "/etc"),
            ("folder = \"anchors/a\"", "", "exactly one of"),
            ("\"mean\"", "\"median\"", "median"),
            ("features", "fetaures", "features"),
            ("name = \"tiny\"", "name = ", "TOML parse error"),
        ] {
            let error = read(&GOOD.replace(from, to)).expect_err(to).to_string();
            assert!(error.contains(named), "{to}: {error}");
        }
    }
}
