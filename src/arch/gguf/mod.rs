//! Decoders of GGUF files: their keys become a configuration of transformers, and their tensors get
//! the names that transformers uses. `arch::decoder` then reads both.

mod names;
mod settings;
mod vocabulary;

use super::{
    ArchError,
    backbone::{Backbone, Form},
    decoder::{self, Decoder, dialects},
    keys::ConfigFile,
    layout::{Layout, PartId},
};
use crate::{family::Fault, input::Language, module::Body, pool::GgufFile};

/// Key of the architecture.
const ARCHITECTURE: &str = "general.architecture";

/// Architecture of GGUF files.
#[derive(Debug, Clone, Copy)]
struct Architecture {
    /// Name in files.
    name: &'static str,
    /// Name in transformers: its `model_type`.
    model_type: &'static str,
    /// Whether neighbouring elements of a head turn together: the converter orders the rows of
    /// queries and keys so.
    is_interleaved: bool,
    /// Whether a tensor may have divisors of rotary positions' angles.
    has_rope_divisors: bool,
    /// Whether queries and keys have norms.
    has_head_norms: bool,
    /// Whether blocks are Gemma 3's: with a norm of a sub-layer's output, and a window in most.
    is_gemma: bool,
    /// Experts of files that have some, or `None` if they are not supported.
    experts: Option<Experts>,
}

/// Experts of an architecture.
#[derive(Debug, Clone, Copy)]
struct Experts {
    /// Name in transformers of the architecture with experts: its `model_type`.
    model_type: &'static str,
    /// Whether the weights of the chosen experts add up to 1. Files do not say it.
    are_renormalized: bool,
    /// Whether all tokens share an expert.
    are_shared: bool,
}

/// Llama, which the others vary.
const LLAMA: Architecture = Architecture {
    name: "llama",
    model_type: "llama",
    is_interleaved: true,
    has_rope_divisors: true,
    has_head_norms: false,
    is_gemma: false,
    experts: Some(Experts { model_type: "mixtral", are_renormalized: true, are_shared: false }),
};

/// Qwen 2, which the others that turn halves of heads vary.
const QWEN2: Architecture = Architecture {
    name: "qwen2",
    model_type: "qwen2",
    is_interleaved: false,
    has_rope_divisors: false,
    experts: None,
    ..LLAMA
};

/// Supported architectures.
const ALL: [Architecture; 7] = [
    LLAMA,
    QWEN2,
    Architecture { name: "qwen3", model_type: "qwen3", has_head_norms: true, ..QWEN2 },
    Architecture {
        name: "gemma3",
        model_type: "gemma3_text",
        has_head_norms: true,
        is_gemma: true,
        ..QWEN2
    },
    Architecture {
        name: "qwen2moe",
        model_type: "qwen2_moe",
        experts: Some(Experts {
            model_type: "qwen2_moe",
            are_renormalized: false,
            are_shared: true,
        }),
        ..QWEN2
    },
    Architecture {
        name: "qwen3moe",
        model_type: "qwen3_moe",
        has_head_norms: true,
        experts: Some(Experts {
            model_type: "qwen3_moe",
            are_renormalized: true,
            are_shared: false,
        }),
        ..QWEN2
    },
    // The norms of OLMoE are over all heads together, under the same names.
    Architecture {
        name: "olmoe",
        model_type: "olmoe",
        has_head_norms: true,
        experts: Some(Experts { model_type: "olmoe", are_renormalized: false, are_shared: false }),
        ..QWEN2
    },
];

/// Decoder in a GGUF file, with the file's vocabulary.
#[derive(Debug)]
pub(super) struct GgufDecoder {
    decoder: Decoder,
    file: GgufFile,
    ignored: Vec<String>,
}

impl Backbone for GgufDecoder {
    fn layout(&self) -> &Layout {
        self.decoder.layout()
    }

    fn build(&self, part: PartId, form: &Form<'_>) -> Result<Body, ArchError> {
        self.decoder.build(part, form)
    }

    fn language(&self) -> Result<Option<Language>, ArchError> {
        vocabulary::language(&self.file, &self.ignored).map(Some)
    }
}

/// Opens the decoder in `file`, whose keys `ignored` count as absent.
///
/// # Errors
///
/// Fails on an architecture, a key or a tensor that is not supported.
pub(super) fn open(file: GgufFile, ignored: &[String]) -> Result<GgufDecoder, ArchError> {
    let decoder = decoder(&file, ignored)?;
    Ok(GgufDecoder { decoder, file, ignored: ignored.to_vec() })
}

fn decoder(file: &GgufFile, ignored: &[String]) -> Result<Decoder, ArchError> {
    let architecture = architecture(file)?;
    names::check(file, architecture, ignored)?;
    let values = settings::config(file, architecture, ignored)
        .map_err(|fault| ArchError::Config { path: file.path().to_owned(), fault })?;
    let text = values.to_string();
    let config = ConfigFile { path: file.path(), text: &text, ignored: &[] };
    let model_type = values["model_type"].as_str().unwrap_or_default();
    let dialect = dialects::of_model_type(model_type).ok_or_else(|| {
        config.refuse(Fault::new(ARCHITECTURE, model_type, "no decoder has this name"))
    })?;
    let is_ignored = |name: &str| ignored.iter().any(|ignored| ignored == name);
    let known = |name: &str| names::of_transformers(name, architecture);
    let checkpoint = file.checkpoint(|name| known(name).filter(|_| !is_ignored(name)));
    let decoder = decoder::open(config, dialect, checkpoint)?.with_norms_as_stored();
    let decoder = decoder.with_rope_divisors(names::ROPE_DIVISORS)?;
    Ok(if architecture.is_interleaved { decoder.with_interleaved_heads() } else { decoder })
}

fn architecture(file: &GgufFile) -> Result<Architecture, ArchError> {
    let found = file.value(ARCHITECTURE);
    let name = found.and_then(|value| value.as_text()).unwrap_or_default();
    ALL.into_iter().find(|known| known.name == name).ok_or_else(|| {
        let known = ALL.map(|known| format!("`{}`", known.name)).join(", ");
        let shown = found.map_or_else(|| "missing".to_owned(), ToString::to_string);
        let fault = Fault::new(ARCHITECTURE, shown, format!("{known} are supported"));
        ArchError::Config { path: file.path().to_owned(), fault }
    })
}

#[cfg(test)]
#[path = "gguf_tests.rs"]
mod tests;
