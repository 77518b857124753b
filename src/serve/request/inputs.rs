//! Checks of a request's input tensors.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_STANDARD};

use crate::{
    family::{ImageSpec, Limits, Manifest},
    input::{Encoding, ModelInput, Pixels},
    module::{ATTENTION_MASK, INPUT_IDS, PIXEL_VALUES},
    serve::error::ServeError,
    tensor::{DataType, Tensor, TensorData, TensorSpec},
};

/// Name of the input of texts.
pub(crate) const TEXT: &str = "text";
/// Name of the input of image files.
pub(crate) const IMAGE: &str = "image";

/// Most characters of a prompt's name that an error shows.
const MAX_NAME_CHARS: usize = 100;

/// Checked inputs of a request.
#[derive(Debug, Clone)]
pub(crate) enum Inputs {
    /// Texts to be tokenized.
    Texts(Texts),
    /// Image files to be decoded.
    Pictures(Vec<Vec<u8>>),
    /// Tokens or pixels that plans read as they are.
    Ready(ModelInput),
}

/// Texts of a request.
#[derive(Debug, Clone)]
pub(crate) struct Texts {
    /// Texts as the request has them.
    pub(crate) strings: Arc<[String]>,
    /// Name of the prompt before each text; `None` for the default.
    pub(crate) prompt_name: Option<Arc<str>>,
}

impl FromIterator<String> for Texts {
    fn from_iter<I: IntoIterator<Item = String>>(strings: I) -> Self {
        Self { strings: strings.into_iter().collect(), prompt_name: None }
    }
}

/// Returns the specs of the inputs that a family takes.
pub(crate) fn specs(manifest: &Manifest) -> Vec<TensorSpec> {
    let spec = |name: &str, data_type, shape: &[Option<usize>]| TensorSpec {
        name: name.into(),
        data_type,
        shape: shape.to_vec(),
    };
    match &manifest.image {
        None => {
            let text = reads_text(manifest).then(|| spec(TEXT, DataType::Bytes, &[None]));
            let tokens =
                [INPUT_IDS, ATTENTION_MASK].map(|name| spec(name, DataType::I64, &[None, None]));
            text.into_iter().chain(tokens).collect()
        }
        Some(image) => {
            let [channels, height, width] = extents(image).map(Some);
            vec![
                spec(IMAGE, DataType::Bytes, &[None]),
                spec(PIXEL_VALUES, DataType::F32, &[None, channels, height, width]),
            ]
        }
    }
}

/// Returns whether the family turns texts into tokens itself.
fn reads_text(manifest: &Manifest) -> bool {
    let reference = manifest.anchors.get(&manifest.reference);
    reference.is_some_and(|anchor| anchor.tokenizer.is_some())
}

impl Inputs {
    /// Checks `tensors` against `manifest`. A family of texts takes `text` alone, or `input_ids`
    /// with or without `attention_mask`. Without a tokenizer it does not take `text`. A family of
    /// images takes `image` or `pixel_values`.
    pub(crate) fn parse(
        tensors: Vec<(String, Tensor)>,
        manifest: &Manifest,
    ) -> Result<Self, ServeError> {
        let limits = &manifest.limits;
        let specs = specs(manifest);
        let mut found: Vec<Option<Tensor>> = specs.iter().map(|_| None).collect();
        for (name, tensor) in tensors {
            let Some(index) = specs.iter().position(|spec| spec.name == name) else {
                let known: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
                let reason = format!("there is no such input; there are {}", known.join(", "));
                return Err(refuse(&name, &reason));
            };
            if found[index].replace(tensor).is_some() {
                return Err(refuse(&name, "it is given twice"));
            }
        }
        let mut found = found.into_iter();
        let mut next = || found.next().flatten();
        match &manifest.image {
            None if reads_text(manifest) => text_inputs([next(), next(), next()], limits),
            None => match [next(), next()] {
                [Some(ids), mask] => tokens(ids, mask, limits),
                [None, _] => Err(refuse(INPUT_IDS, "it is missing")),
            },
            Some(image) => image_inputs([next(), next()], image, limits),
        }
    }
}

impl Inputs {
    /// Returns the inputs with the prompt `name` before each text. `known` are the names of the
    /// family's prompts.
    pub(crate) fn behind(self, name: String, known: &[&str]) -> Result<Self, ServeError> {
        let refuse = |reason: String| {
            let found = name.chars().take(MAX_NAME_CHARS).collect();
            Err(ServeError::Prompt { found, reason })
        };
        match self {
            Self::Texts(_) if known.is_empty() => refuse("the model has no prompts".to_owned()),
            Self::Texts(_) if !known.contains(&&*name) => {
                refuse(format!("the prompts are {}", known.join(", ")))
            }
            Self::Texts(Texts { strings, .. }) => {
                Ok(Self::Texts(Texts { strings, prompt_name: Some(name.into()) }))
            }
            Self::Pictures(_) | Self::Ready(_) => {
                refuse(format!("only the input `{TEXT}` takes a prompt"))
            }
        }
    }
}

fn text_inputs(
    [text, ids, mask]: [Option<Tensor>; 3],
    limits: &Limits,
) -> Result<Inputs, ServeError> {
    match (text, ids, mask) {
        (Some(text), None, None) => texts(text, limits),
        (None, Some(ids), mask) => tokens(ids, mask, limits),
        (Some(_), _, _) => Err(refuse(TEXT, "it excludes input_ids and attention_mask")),
        (None, None, Some(_)) => Err(refuse(INPUT_IDS, "it is missing beside attention_mask")),
        (None, None, None) => Err(refuse(TEXT, "it is missing; give text, or input_ids")),
    }
}

fn image_inputs(
    [image, pixels]: [Option<Tensor>; 2],
    spec: &ImageSpec,
    limits: &Limits,
) -> Result<Inputs, ServeError> {
    match (image, pixels) {
        (Some(image), None) => pictures(image, limits),
        (None, Some(values)) => pixel_values(values, spec, limits),
        (Some(_), Some(_)) => Err(refuse(IMAGE, "it excludes pixel_values")),
        (None, None) => Err(refuse(IMAGE, "it is missing; give image, or pixel_values")),
    }
}

/// Accepts image files as they are, or in base64, which JSON needs; see [`image_file`].
fn pictures(tensor: Tensor, limits: &Limits) -> Result<Inputs, ServeError> {
    let files = list_of_bytes(IMAGE, tensor)?;
    check_batch(files.len(), limits)?;
    Ok(Inputs::Pictures(files))
}

/// Returns the image file in `bytes`, which are the file itself or its base64.
///
/// # Errors
///
/// Fails if `bytes` are neither, or if the file is over the limit. A size over the limit is refused
/// before base64 is decoded.
pub(crate) fn image_file(bytes: &[u8], limits: &Limits) -> Result<Vec<u8>, ServeError> {
    let check = |found| check_limit("an image's number of bytes", found, limits.max_image_bytes);
    let is_binary = bytes.iter().take(8).any(|byte| !byte.is_ascii_graphic());
    if is_binary || bytes.is_empty() {
        check(bytes.len())?;
        return Ok(bytes.to_vec());
    }
    // Four characters encode three bytes, of which the last two may be padding.
    check((bytes.len() / 4 * 3).saturating_sub(2))?;
    // The decoder's own error has a byte of the image.
    let refused = |_| refuse(IMAGE, "it is neither an image nor base64");
    let file = BASE64_STANDARD.decode(bytes).map_err(refused)?;
    check(file.len())?;
    Ok(file)
}

fn pixel_values(tensor: Tensor, spec: &ImageSpec, limits: &Limits) -> Result<Inputs, ServeError> {
    let found = tensor.data_type();
    let (shape, TensorData::F32(values)) = tensor.into_parts() else {
        return Err(refuse(PIXEL_VALUES, &format!("it is {found}, but FP32 is needed")));
    };
    let [channels, height, width] = extents(spec);
    if shape.len() != 4 || shape[1..] != [channels, height, width] {
        let needed = format!("[batch, {channels}, {height}, {width}]");
        let reason = format!("its shape is {shape:?}, but {needed} is needed");
        return Err(refuse(PIXEL_VALUES, &reason));
    }
    check_batch(shape[0], limits)?;
    if !are_finite(&values) {
        return Err(refuse(PIXEL_VALUES, "it holds a value that is infinite or not a number"));
    }
    Ok(Inputs::Ready(ModelInput::Pixels(Pixels { shape: [channels, height, width], values })))
}

fn extents(image: &ImageSpec) -> [usize; 3] {
    [image.channels, image.height, image.width]
}

fn texts(tensor: Tensor, limits: &Limits) -> Result<Inputs, ServeError> {
    let texts = list_of_bytes(TEXT, tensor)?;
    check_batch(texts.len(), limits)?;
    let text = |bytes: Vec<u8>| {
        check_limit("a text's number of bytes", bytes.len(), limits.max_text_bytes)?;
        String::from_utf8(bytes).map_err(|_| refuse(TEXT, "it is not valid UTF-8"))
    };
    texts.into_iter().map(text).collect::<Result<_, _>>().map(Inputs::Texts)
}

/// Returns whether all of `values` are finite. Checks whole runs of values, so that one instruction
/// covers several of them.
pub(crate) fn are_finite(values: &[f32]) -> bool {
    const RUN: usize = 1024;
    values.chunks(RUN).all(|run| run.iter().fold(true, |all, value| all & value.is_finite()))
}

/// Returns the elements of a tensor of shape `[batch]`, or `[batch, 1]`, which many clients send.
fn list_of_bytes(name: &str, tensor: Tensor) -> Result<Vec<Vec<u8>>, ServeError> {
    let found = tensor.data_type();
    let (shape, TensorData::Bytes(elements)) = tensor.into_parts() else {
        return Err(refuse(name, &format!("it is {found}, but BYTES is needed")));
    };
    if !matches!(shape[..], [_] | [_, 1]) {
        return Err(refuse(name, &format!("its shape is {shape:?}, but [batch] is needed")));
    }
    Ok(elements)
}

fn tokens(ids: Tensor, mask: Option<Tensor>, limits: &Limits) -> Result<Inputs, ServeError> {
    let (shape, input_ids) = integers(INPUT_IDS, ids)?;
    check_batch(shape[0], limits)?;
    check_limit("the number of tokens", shape[1], limits.max_tokens)?;
    if shape[1] == 0 {
        return Err(refuse(INPUT_IDS, "it holds no token"));
    }
    let attention_mask = match mask {
        None => vec![1; input_ids.len()],
        Some(mask) => {
            let (mask_shape, mask) = integers(ATTENTION_MASK, mask)?;
            if mask_shape != shape {
                let reason = format!("its shape is {mask_shape:?}, but input_ids' is {shape:?}");
                return Err(refuse(ATTENTION_MASK, &reason));
            }
            mask
        }
    };
    check_mask(&attention_mask, shape[1])?;
    let encoding = Encoding { batch: shape[0], tokens: shape[1], input_ids, attention_mask };
    Ok(Inputs::Ready(ModelInput::Tokens(encoding)))
}

fn integers(name: &str, tensor: Tensor) -> Result<([usize; 2], Vec<i64>), ServeError> {
    let found = tensor.data_type();
    let (shape, TensorData::I64(values)) = tensor.into_parts() else {
        return Err(refuse(name, &format!("it is {found}, but INT64 is needed")));
    };
    match shape[..] {
        [batch, tokens] => Ok(([batch, tokens], values)),
        _ => Err(refuse(name, &format!("its shape is {shape:?}, but [batch, tokens] is needed"))),
    }
}

/// Checks that every token id is at least 0 and less than `size`.
pub(crate) fn check_vocabulary(encoding: &Encoding, size: usize) -> Result<(), ServeError> {
    let is_known = |id: &i64| usize::try_from(*id).is_ok_and(|id| id < size);
    match encoding.input_ids.iter().position(|id| !is_known(id)) {
        Some(index) => {
            let reason = format!("element {index} is not a token id; they are 0 to {}", size - 1);
            Err(refuse(INPUT_IDS, &reason))
        }
        None => Ok(()),
    }
}

/// Checks that every row is ones, at least one, then zeros, since padding is at the end.
fn check_mask(mask: &[i64], tokens: usize) -> Result<(), ServeError> {
    if mask.iter().any(|value| !matches!(value, 0 | 1)) {
        return Err(refuse(ATTENTION_MASK, "its values are 1 for a token and 0 for padding"));
    }
    let is_prefix = |row: &[i64]| row[0] == 1 && row.windows(2).all(|pair| pair[0] >= pair[1]);
    if !mask.chunks(tokens).all(is_prefix) {
        return Err(refuse(ATTENTION_MASK, "each row must be ones and then zeros, at least one 1"));
    }
    Ok(())
}

fn check_batch(batch: usize, limits: &Limits) -> Result<(), ServeError> {
    if batch == 0 {
        return Err(ServeError::Input {
            name: "batch".into(),
            reason: "there is nothing in it".into(),
        });
    }
    check_limit("the batch", batch, limits.max_batch)
}

fn check_limit(what: &str, found: usize, limit: usize) -> Result<(), ServeError> {
    if found > limit {
        return Err(ServeError::TooLarge { what: what.into(), found, limit });
    }
    Ok(())
}

/// Returns the error for the input `name` with `reason`.
pub(crate) fn refuse(name: &str, reason: &str) -> ServeError {
    ServeError::Input { name: name.into(), reason: reason.into() }
}

#[cfg(test)]
#[path = "inputs_tests.rs"]
mod tests;
