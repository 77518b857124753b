//! Opening a pretrained network of any known architecture.

use std::path::Path;

use super::{
    ArchError,
    backbone::Backbone,
    decoder::{self, dialects, moduleformer},
    encoder::{bert, mpnet, sentence::Sentence},
    exported::Exported,
    gguf,
    keys::ConfigFile,
    vision::{names, vit::VisionTransformer},
};
use crate::{
    family::{AnchorSpec, Fault},
    pool::{Checkpoint, GgufFile, PoolError, parse_json, read_verified},
    tensor::FileKind,
};

/// Supported values of `model_type`, for errors.
const SUPPORTED: &str = "`bert`, `mpnet`, `vit`, `deit`, `llama`, `mistral`, `qwen2`, `qwen3`, \
                         `gemma3_text`, `mixtral`, `olmoe`, `qwen2_moe`, `qwen3_moe`, \
                         `granitemoe`, `granitemoeshared` and `moduleformer` are supported, and \
                         timm's architectures vit_*, deit_* and deit3_*";

/// Opens the anchor `name` of the family in `folder`.
pub(crate) fn open(
    folder: &Path,
    name: &str,
    spec: &AnchorSpec,
) -> Result<Box<dyn Backbone>, ArchError> {
    if let Some(onnx) = &spec.onnx {
        let sha256 = digest(folder, spec, &onnx.file)?;
        return Ok(Box::new(Exported::open(folder, name, onnx, sha256)?));
    }
    if let Some(file) = &spec.gguf {
        let file = GgufFile::open(folder, file, digest(folder, spec, file)?)?;
        return Ok(Box::new(gguf::open(file, &spec.ignored_keys)?));
    }
    let (config, weights, prefix) = match &spec.part {
        Some(part) => (part.config.clone(), part.file.clone(), part.prefix.as_str()),
        None => {
            let anchor = spec.folder.clone().unwrap_or_default();
            (anchor.join("config.json"), anchor.join("model.safetensors"), "")
        }
    };
    let sha256 = digest(folder, spec, &config)?;
    let text = read_verified(folder, &config, sha256, FileKind::Config)?;
    let text = String::from_utf8_lossy(&text);
    let path = folder.join(&config);
    let index = weights.with_extension("safetensors.index.json");
    let is_whole = spec.sha256.contains_key(&weights) || !folder.join(&index).exists();
    let checkpoint = match is_whole {
        true => Checkpoint::open(folder, &weights, digest(folder, spec, &weights)?)?,
        false => Checkpoint::open_sharded(folder, &index, |file| digest(folder, spec, file))?,
    };
    let checkpoint = match &spec.base {
        Some(base) => checkpoint.over(Checkpoint::open(folder, base, digest(folder, spec, base)?)?),
        None => checkpoint,
    };
    let file = ConfigFile { path: &path, text: &text, ignored: &spec.ignored_keys };
    of_config(file, checkpoint.part(prefix), || Sentence::read(folder, spec))
}

/// Opens an anchor of the architecture that its configuration names.
pub(super) fn of_config(
    file: ConfigFile<'_>,
    checkpoint: Checkpoint,
    sentence: impl FnOnce() -> Result<Sentence, ArchError>,
) -> Result<Box<dyn Backbone>, ArchError> {
    let value: serde_json::Value = parse_json(file.path, file.text)?;
    let architecture = value["architecture"].as_str();
    let is_timm = architecture.is_some_and(|name| {
        ["vit_", "deit_", "deit3_"].iter().any(|known| name.starts_with(known))
    });
    let model_type = value["model_type"].as_str();
    if let Some(dialect) = model_type.and_then(dialects::of_model_type) {
        return Ok(Box::new(decoder::open(file, dialect, checkpoint)?));
    }
    match model_type {
        Some("moduleformer") => Ok(Box::new(moduleformer::open(file, checkpoint)?)),
        Some("bert") => Ok(Box::new(bert::open(file, &checkpoint, sentence()?)?)),
        Some("mpnet") => Ok(Box::new(mpnet::open(file, &checkpoint, sentence()?)?)),
        model_type if matches!(model_type, Some("vit" | "deit")) || is_timm => {
            let (names, shape) = names::read(file, is_timm, &checkpoint)?;
            Ok(Box::new(VisionTransformer::new(shape, names, checkpoint)))
        }
        other => {
            let found = other.or(architecture).unwrap_or_default();
            Err(file.refuse(Fault::new("model_type", found, SUPPORTED)))
        }
    }
}

/// Returns the digest that the manifest has for a file of an anchor.
pub(crate) fn digest<'a>(
    folder: &Path,
    spec: &'a AnchorSpec,
    file: &Path,
) -> Result<&'a str, PoolError> {
    let found = spec.sha256.get(file).map(String::as_str);
    found.ok_or_else(|| PoolError::NoDigest { path: folder.join(file) })
}
