//! Tokenizer and template of chats of an anchor in the Hugging Face layout.
//!
//! Beside `tokenizer.json`, `tokenizer_config.json` has the special tokens by role and often the
//! template, which newer folders have as `chat_template.jinja`. `generation_config.json` has the
//! tokens that end an answer.

use std::{
    collections::BTreeMap,
    fmt::Display,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;

use crate::{
    arch::{ArchError, open},
    family::AnchorSpec,
    input::{ChatTemplate, Language, TextCoder},
    pool::{PoolError, parse_json, read_verified},
    tensor::FileKind,
};

/// Special tokens by role, as `tokenizer_config.json` names them.
const ROLES: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];

/// Key of `generation_config.json` that is read: one id or several.
#[derive(Debug, Deserialize)]
struct GenerationConfig {
    eos_token_id: Option<Ids>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Several(Vec<u32>),
}

/// Files of an anchor.
struct Files<'a> {
    folder: &'a Path,
    spec: &'a AnchorSpec,
}

/// Returns the language of an anchor, or `None` if it has no tokenizer.
///
/// # Errors
///
/// Fails on a file that is wrong or has another digest.
pub(super) fn read(folder: &Path, spec: &AnchorSpec) -> Result<Option<Language>, ArchError> {
    let Some(tokenizer) = &spec.tokenizer else { return Ok(None) };
    let files = Files { folder, spec };
    let beside = |name: &str| tokenizer.with_file_name(name);
    let json = files.read(tokenizer, FileKind::Tokenizer)?;
    let mut coder =
        TextCoder::from_json(&json).map_err(|error| files.malformed(tokenizer, &error))?;
    let config: Value = files.json(&beside("tokenizer_config.json"))?.unwrap_or_default();
    let named = |role: &&str| {
        let token = &config[*role];
        let text = token.as_str().or_else(|| token["content"].as_str());
        Some(((*role).to_owned(), text?.to_owned()))
    };
    let tokens: BTreeMap<String, String> = ROLES.iter().filter_map(named).collect();
    let ends: Option<GenerationConfig> = files.json(&beside("generation_config.json"))?;
    let ids = match ends.and_then(|config| config.eos_token_id) {
        Some(Ids::One(id)) => vec![id],
        Some(Ids::Several(ids)) => ids,
        None => tokens.get("eos_token").and_then(|token| coder.id_of(token)).into_iter().collect(),
    };
    if !ids.is_empty() {
        let ids: Vec<u32> = coder.ends().iter().copied().chain(ids).collect();
        coder = coder.with_ends(&ids);
    }
    let path = beside("chat_template.jinja");
    let source = match files.text(&path)? {
        Some(source) => Some(source),
        None => config["chat_template"].as_str().map(str::to_owned),
    };
    let template = source.map(|source| ChatTemplate::new(&source, tokens)).transpose();
    let template = template.map_err(|error| files.malformed(&path, &error))?;
    Ok(Some(Language { coder, template }))
}

impl Files<'_> {
    fn read(&self, file: &Path, kind: FileKind) -> Result<Vec<u8>, PoolError> {
        read_verified(self.folder, file, open::digest(self.folder, self.spec, file)?, kind)
    }

    /// Returns a text file, or `None` if the anchor does not list it.
    fn text(&self, file: &Path) -> Result<Option<String>, ArchError> {
        if !self.spec.sha256.contains_key(file) {
            return Ok(None);
        }
        let bytes = self.read(file, FileKind::Config)?;
        let text = String::from_utf8(bytes).map_err(|error| self.malformed(file, &error))?;
        Ok(Some(text))
    }

    /// Returns a JSON file, or `None` if the anchor does not list it.
    fn json<T: serde::de::DeserializeOwned>(&self, file: &Path) -> Result<Option<T>, ArchError> {
        let Some(text) = self.text(file)? else { return Ok(None) };
        Ok(Some(parse_json(&self.folder.join(file), &text)?))
    }

    fn malformed(&self, file: &Path, error: &dyn Display) -> ArchError {
        let path: PathBuf = self.folder.join(file);
        PoolError::Malformed { path, message: error.to_string() }.into()
    }
}
