//! Checking a request's input tensors.

use super::ServeError;
use crate::{
    arch::{ATTENTION_MASK, Encoding, INPUT_IDS},
    family::Limits,
    tensor::{DataType, Tensor, TensorData, TensorSpec},
};

/// The input of texts.
pub(super) const TEXT: &str = "text";

/// A request's inputs, checked.
#[derive(Debug, Clone)]
pub(super) enum Inputs {
    /// Texts to be tokenized.
    Texts(Vec<String>),
    /// Token ids.
    Tokens(Encoding),
}

/// Returns what inputs there are.
pub(super) fn specs() -> Vec<TensorSpec> {
    let spec = |name: &str, data_type, rank| TensorSpec {
        name: name.into(),
        data_type,
        shape: vec![None; rank],
    };
    vec![
        spec(TEXT, DataType::Bytes, 1),
        spec(INPUT_IDS, DataType::I64, 2),
        spec(ATTENTION_MASK, DataType::I64, 2),
    ]
}

impl Inputs {
    /// Checks `tensors`: `text` alone, or `input_ids` with or without `attention_mask`.
    pub(super) fn parse(
        tensors: Vec<(String, Tensor)>,
        limits: &Limits,
    ) -> Result<Self, ServeError> {
        let (mut text, mut ids, mut mask) = (None, None, None);
        for (name, tensor) in tensors {
            let slot = match name.as_str() {
                TEXT => &mut text,
                INPUT_IDS => &mut ids,
                ATTENTION_MASK => &mut mask,
                _ => {
                    return Err(refuse(
                        &name,
                        "there is no such input; there are text, input_ids and attention_mask",
                    ));
                }
            };
            if slot.replace(tensor).is_some() {
                return Err(refuse(&name, "it is given twice"));
            }
        }
        match (text, ids, mask) {
            (Some(text), None, None) => texts(text, limits),
            (None, Some(ids), mask) => tokens(ids, mask, limits),
            (Some(_), _, _) => Err(refuse(TEXT, "it excludes input_ids and attention_mask")),
            (None, None, Some(_)) => Err(refuse(INPUT_IDS, "it is missing beside attention_mask")),
            (None, None, None) => Err(refuse(TEXT, "it is missing; give text, or input_ids")),
        }
    }

    /// Returns the inputs where they do not depend on a vocabulary.
    pub(super) fn for_other_vocabulary(self, anchor: &str) -> Result<Self, ServeError> {
        match self {
            Self::Texts(_) => Ok(self),
            Self::Tokens(_) => Err(refuse(
                INPUT_IDS,
                &format!("anchor `{anchor}` has another vocabulary; give text instead"),
            )),
        }
    }
}

fn texts(tensor: Tensor, limits: &Limits) -> Result<Inputs, ServeError> {
    let found = tensor.data_type();
    let (shape, TensorData::Bytes(texts)) = tensor.into_parts() else {
        return Err(refuse(TEXT, &format!("it is {found}, but BYTES is needed")));
    };
    // A trailing axis of one is what many clients send for a list of strings.
    if !matches!(shape[..], [_] | [_, 1]) {
        return Err(refuse(TEXT, &format!("its shape is {shape:?}, but [batch] is needed")));
    }
    check_batch(texts.len(), limits)?;
    let text = |bytes: Vec<u8>| {
        check_limit("a text's number of bytes", bytes.len(), limits.max_text_bytes)?;
        String::from_utf8(bytes).map_err(|_| refuse(TEXT, "it is no valid UTF-8"))
    };
    texts.into_iter().map(text).collect::<Result<_, _>>().map(Inputs::Texts)
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
    Ok(Inputs::Tokens(encoding))
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

/// Checks that every token id is one that the tokenizer makes.
pub(super) fn check_vocabulary(encoding: &Encoding, size: usize) -> Result<(), ServeError> {
    let is_known = |id: &i64| usize::try_from(*id).is_ok_and(|id| id < size);
    match encoding.input_ids.iter().find(|id| !is_known(id)) {
        Some(id) => {
            Err(refuse(INPUT_IDS, &format!("{id} is no token id; they are 0 to {}", size - 1)))
        }
        None => Ok(()),
    }
}

/// Every row must be ones, at least one, then zeros: padding stands at the end.
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

fn refuse(name: &str, reason: &str) -> ServeError {
    ServeError::Input { name: name.into(), reason: reason.into() }
}
