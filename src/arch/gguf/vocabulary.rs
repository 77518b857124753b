//! Vocabularies of GGUF files: the keys of the table `tokenizer`.

use std::collections::BTreeMap;

use crate::{
    arch::ArchError,
    family::Fault,
    input::{ChatTemplate, Language, TextCoder, TokenKind, VocabularySpec},
    pool::{GgufFile, GgufValue},
};

/// Keys that say nothing of how texts are encoded here: ids that only other models need, and types
/// that this one's tokens do not have.
const IGNORED: [&str; 6] = [
    "tokenizer.ggml.cls_token_id",
    "tokenizer.ggml.mask_token_id",
    "tokenizer.ggml.seperator_token_id",
    "tokenizer.ggml.token_type_count",
    "tokenizer.ggml.eom_token_id",
    "tokenizer.huggingface.json",
];

/// Returns the tokenizer and the template of chats of `file`.
///
/// # Errors
///
/// Fails on a key that is unknown, or has a value that is not supported.
pub(super) fn language(file: &GgufFile, ignored: &[String]) -> Result<Language, ArchError> {
    let refuse = |fault| ArchError::Config { path: file.path().to_owned(), fault };
    let mut spec = read(file, ignored).map_err(refuse)?;
    let template = spec.chat_template.take();
    let wrong =
        |error: &dyn std::fmt::Display| refuse(Fault::new("tokenizer", "there", error.to_string()));
    let coder = TextCoder::from_vocabulary(&spec).map_err(|error| wrong(&error))?;
    let named = |id: Option<u32>| spec.tokens.get(id? as usize).cloned();
    let tokens: BTreeMap<String, String> = [
        ("bos_token", named(spec.bos_id)),
        ("eos_token", named(spec.eos_id)),
        ("unk_token", named(spec.unknown_id)),
        ("pad_token", named(spec.padding_id)),
    ]
    .into_iter()
    .filter_map(|(name, token)| Some((name.to_owned(), token?)))
    .collect();
    let template = template.map(|source| ChatTemplate::new(&source, tokens)).transpose();
    Ok(Language { coder, template: template.map_err(|error| wrong(&error))? })
}

/// Reads the keys of the vocabulary.
fn read(file: &GgufFile, ignored: &[String]) -> Result<VocabularySpec, Fault> {
    let mut spec = VocabularySpec::default();
    let keys = file.values().filter(|(key, _)| key.starts_with("tokenizer."));
    for (key, value) in keys.filter(|(key, _)| !ignored.iter().any(|other| other == key)) {
        let refuse = |expected: &str| Fault::new(key, value, expected);
        let text = || value.as_text().map(str::to_owned).ok_or_else(|| refuse("a text is needed"));
        let id = || {
            let id = value.as_unsigned().and_then(|id| u32::try_from(id).ok());
            id.map(Some).ok_or_else(|| refuse("the id of a token is needed"))
        };
        let is_set = || value.as_bool().map(Some).ok_or_else(|| refuse("true or false is needed"));
        match key {
            "tokenizer.ggml.model" => spec.model = text()?,
            "tokenizer.ggml.pre" => spec.pre = Some(text()?),
            "tokenizer.chat_template" => spec.chat_template = Some(text()?),
            "tokenizer.ggml.tokens" => spec.tokens = texts(value).ok_or_else(|| refuse(TEXTS))?,
            "tokenizer.ggml.merges" => spec.merges = texts(value).ok_or_else(|| refuse(TEXTS))?,
            "tokenizer.ggml.token_type" => {
                spec.token_kinds = kinds(value).ok_or_else(|| refuse("types are 1 to 6"))?;
            }
            "tokenizer.ggml.scores" => {
                spec.scores = floats(value).ok_or_else(|| refuse("numbers are needed"))?;
            }
            "tokenizer.ggml.bos_token_id" => spec.bos_id = id()?,
            "tokenizer.ggml.eos_token_id" => spec.eos_id = id()?,
            "tokenizer.ggml.eot_token_id" => spec.eot_id = id()?,
            "tokenizer.ggml.unknown_token_id" => spec.unknown_id = id()?,
            "tokenizer.ggml.padding_token_id" => spec.padding_id = id()?,
            "tokenizer.ggml.add_bos_token" => spec.add_bos = is_set()?,
            "tokenizer.ggml.add_space_prefix" => spec.add_space_prefix = is_set()?,
            "tokenizer.ggml.add_eos_token" | "tokenizer.ggml.add_sep_token"
                if value.as_bool() == Some(false) => {}
            _ if IGNORED.contains(&key) => {}
            _ => return Err(refuse("the key is not known; it may change how texts are encoded")),
        }
    }
    Ok(spec)
}

const TEXTS: &str = "a list of texts is needed";

fn texts(value: &GgufValue) -> Option<Vec<String>> {
    let texts = value.as_list()?.texts()?;
    Some(texts.into_iter().map(str::to_owned).collect())
}

fn kinds(value: &GgufValue) -> Option<Vec<TokenKind>> {
    let kind = |value: GgufValue| {
        let code = value.as_unsigned()?;
        TokenKind::from_code(i32::try_from(code).ok()?)
    };
    value.as_list()?.values()?.into_iter().map(kind).collect()
}

fn floats(value: &GgufValue) -> Option<Vec<f32>> {
    #[expect(clippy::cast_possible_truncation, reason = "files hold f32")]
    let float = |value: GgufValue| value.as_float().map(|value| value as f32);
    value.as_list()?.values()?.into_iter().map(float).collect()
}
