//! Inference requests as they arrived, counted before they are decoded.

use bytes::Bytes;
use prost::Message;

use crate::api::grpc::wire::{Field, Fields, Payload, Width};
use crate::api::{
    codec::{
        bounded::{MAX_PARAMETERS, MAX_TENSORS},
        bounds::{Bounds, check},
    },
    error::ApiError,
    triton::messages::ModelInferRequest,
};

/// Most fields of a message itself; further fields are refused before they are read.
const MAX_FIELDS: usize = 1024;

/// Inference request that is not decoded yet.
#[derive(Debug, Clone, Default)]
pub(in crate::api) struct Encoded(Bytes);

/// Fields of a request that are needed before it is decoded.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Envelope {
    /// Name of the model.
    pub(crate) model_name: String,
    /// Version of the model; empty for the current one.
    pub(crate) model_version: String,
    /// Id of the request, which the answer repeats.
    pub(crate) id: String,
    /// Number of bytes of raw tensors, which are not decoded.
    pub(crate) num_raw_bytes: usize,
}

impl Encoded {
    /// Wraps the bytes of a message.
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// Returns the number of bytes of the message.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Reads the fields beside the tensors, in a time that does not depend on the tensors.
    ///
    /// # Errors
    ///
    /// Fails on bytes that are not a message, and on a message with more fields than any request
    /// has.
    pub(crate) fn open(&self) -> Result<Envelope, ApiError> {
        let mut envelope = Envelope::default();
        let [mut parameters, mut inputs, mut outputs, mut raw] = [0; 4];
        for (index, field) in Fields::of(&self.0).enumerate() {
            check("the number of the message's fields", index + 1, MAX_FIELDS)?;
            let Field { number, payload: Payload::Bytes(bytes) } = field? else {
                continue;
            };
            match number {
                1 => envelope.model_name = text("model_name", bytes)?,
                2 => envelope.model_version = text("model_version", bytes)?,
                3 => envelope.id = text("id", bytes)?,
                4 => parameters += 1,
                5 => inputs += 1,
                6 => outputs += 1,
                7 => {
                    raw += 1;
                    envelope.num_raw_bytes += bytes.len();
                }
                _ => {}
            }
        }
        check("the number of parameters", parameters, MAX_PARAMETERS)?;
        check("the number of inputs", inputs, MAX_TENSORS)?;
        check("the number of outputs", outputs, MAX_TENSORS)?;
        check("the number of raw_input_contents", raw, MAX_TENSORS)?;
        Ok(envelope)
    }

    /// Decodes a request that [`open`](Self::open) accepted.
    ///
    /// # Errors
    ///
    /// Fails on bytes that are not a message. Fails on a message that holds more than `bounds`
    /// allow, before memory is allocated for it.
    pub(crate) fn decode(self, bounds: &Bounds) -> Result<ModelInferRequest, ApiError> {
        let mut census = Census::default();
        for field in Fields::of(&self.0) {
            match field? {
                Field { number: 5, payload: Payload::Bytes(input) } => census.add_input(input)?,
                Field { number: 6, payload: Payload::Bytes(output) } => {
                    census.add_parameters(output, 2)?;
                }
                _ => {}
            }
        }
        bounds.check_texts(census.texts)?;
        bounds.check_values(census.numbers)?;
        ModelInferRequest::decode(self.0)
            .map_err(|error| ApiError::Message { reason: error.to_string() })
    }
}

/// Number of elements in the tensors of a request.
#[derive(Debug, Default)]
struct Census {
    texts: usize,
    numbers: usize,
}

impl Census {
    fn add_input(&mut self, input: &[u8]) -> Result<(), ApiError> {
        self.add_parameters(input, 4)?;
        for field in Fields::of(input) {
            match field? {
                Field { number: 3, payload } => {
                    self.numbers += payload.num_elements(Width::Varying);
                }
                Field { number: 5, payload: Payload::Bytes(contents) } => {
                    self.add_contents(contents)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn add_contents(&mut self, contents: &[u8]) -> Result<(), ApiError> {
        for field in Fields::of(contents) {
            let Field { number, payload } = field?;
            match number {
                1..=5 => self.numbers += payload.num_elements(Width::Varying),
                6 => self.numbers += payload.num_elements(Width::Fixed(4)),
                7 => self.numbers += payload.num_elements(Width::Fixed(8)),
                8 => self.texts += 1,
                _ => {}
            }
        }
        Ok(())
    }

    /// Checks the number of parameters of a tensor; `number` is the number of their field.
    fn add_parameters(&mut self, tensor: &[u8], number: usize) -> Result<(), ApiError> {
        let mut found = 0;
        for field in Fields::of(tensor) {
            found += usize::from(field?.number == number);
        }
        check("the number of a tensor's parameters", found, MAX_PARAMETERS)?;
        Ok(())
    }
}

fn text(name: &str, bytes: &[u8]) -> Result<String, ApiError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(ApiError::Message { reason: format!("{name} is not UTF-8") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::triton::messages::{
        InferTensorContents, model_infer_request::InferInputTensor,
    };

    const BOUNDS: Bounds = Bounds { texts: 64, numbers: 1024 };

    fn encoded(fields: &[&[u8]]) -> Encoded {
        Encoded::new(fields.concat().into())
    }

    /// Returns the field `number` with `payload`.
    fn field(number: u8, payload: &[u8]) -> Vec<u8> {
        let mut field = vec![number << 3 | 2];
        prost::encode_length_delimiter(payload.len(), &mut field).expect("room");
        field.extend_from_slice(payload);
        field
    }

    fn refusal(message: &Encoded) -> String {
        let refused = match message.open() {
            Ok(_) => message.clone().decode(&BOUNDS).err(),
            Err(error) => Some(error),
        };
        refused.expect("refused").to_string()
    }

    #[test]
    fn what_stands_beside_the_tensors_is_read_without_decoding_them() {
        let request = ModelInferRequest {
            model_name: "text".to_owned(),
            model_version: "1".to_owned(),
            id: "7".to_owned(),
            raw_input_contents: vec![vec![0; 9].into(), vec![0; 3].into()],
            ..ModelInferRequest::default()
        };
        let encoded = Encoded::new(request.encode_to_vec().into());
        let envelope = encoded.open().expect("well-formed");
        let expected = Envelope {
            model_name: "text".to_owned(),
            model_version: "1".to_owned(),
            id: "7".to_owned(),
            num_raw_bytes: 12,
        };
        assert_eq!(envelope, expected);
        assert_eq!(encoded.decode(&BOUNDS).expect("within its bounds"), request);
    }

    #[test]
    fn as_many_elements_as_a_model_takes_are_decoded() {
        let contents = InferTensorContents { int64_contents: vec![-1; 1024], ..Default::default() };
        let input = InferInputTensor { contents: Some(contents), ..Default::default() };
        let request = ModelInferRequest { inputs: vec![input], ..Default::default() };
        let encoded = Encoded::new(request.encode_to_vec().into());
        assert_eq!(encoded.decode(&BOUNDS).expect("within its bounds"), request);
    }

    #[test]
    fn every_repeated_field_is_bounded_before_it_is_decoded() {
        let empty = |number: u8, count: usize| [number << 3 | 2, 0].repeat(count);
        let many = 1 << 18;
        let in_contents = |contents: &[u8]| field(5, &field(5, contents));
        for (message, reason) in [
            (empty(4, 65), "the number of parameters is 65, over the limit of 64"),
            (empty(5, 65), "the number of inputs is 65, over the limit of 64"),
            (empty(6, 65), "the number of outputs is 65, over the limit of 64"),
            (empty(7, 65), "the number of raw_input_contents is 65, over the limit of 64"),
            (empty(5, many), "the number of the message's fields is 1025, over the limit of 1024"),
            (empty(15, many), "the number of the message's fields"),
            (field(5, &empty(4, 65)), "the number of a tensor's parameters is 65"),
            (field(6, &empty(2, 65)), "the number of a tensor's parameters is 65"),
            (field(5, &field(3, &vec![0; many])), "the number of values in the body"),
            (field(5, &[3 << 3, 1].repeat(many)), "the number of values in the body"),
            (in_contents(&empty(8, many)), "the number of strings in the body is 262144"),
            (in_contents(&field(1, &vec![1; many])), "the number of values in the body is 262144"),
            (in_contents(&field(5, &vec![1; many])), "the number of values in the body is 262144"),
            (in_contents(&[2 << 3, 1].repeat(many)), "the number of values in the body is 262144"),
            (in_contents(&field(6, &vec![0; 4 * many])), "the number of values in the body"),
            (in_contents(&field(7, &vec![0; 8 * many])), "the number of values in the body"),
        ] {
            let refused = refusal(&encoded(&[&message]));
            assert!(refused.contains(reason), "{reason}: {refused}");
        }
    }

    #[test]
    fn what_is_not_a_message_is_refused() {
        for message in [&b"\xff\xff\xff\xff"[..], b"\x3a\x7fshort", b"\x2a\x02\x0b\x0c"] {
            let refused = refusal(&encoded(&[message]));
            assert!(refused.contains("is malformed"), "{refused}");
        }
        let refused = refusal(&encoded(&[b"\x0a\x01\xff"]));
        assert!(refused.contains("model_name is not UTF-8"), "{refused}");
    }
}
