//! Codec of messages, with a bound on messages that are decoded as they arrive.

pub(super) mod encoded;
pub(super) mod unpacked;

use std::marker::PhantomData;

use bytes::{Buf, Bytes};
use prost::Message;
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder},
};
use tonic_prost::ProstEncoder;

use super::status::status_of;
use crate::api::{codec::bounds::check, error::ApiError};
use encoded::Encoded;

/// Most bytes of a message that an async thread decodes; enough for names and a few parameters.
const MAX_SMALL_BYTES: usize = 64 << 10;

/// Codec that writes messages `T` and reads messages `U`.
#[derive(Debug)]
pub(in crate::api) struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + 'static, U: Readable> Codec for BoundedCodec<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = Reader<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Reader<U> {
        Reader(PhantomData)
    }
}

/// Decoder of messages that arrive in one piece.
#[derive(Debug)]
pub(in crate::api) struct Reader<U>(PhantomData<U>);

impl<U: Readable> Decoder for Reader<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        U::read(bytes).map(Some).map_err(|error| status_of(&error))
    }
}

/// Message that can be read as it arrives.
pub(in crate::api) trait Readable: Sized + Send + 'static {
    /// Reads a message.
    ///
    /// # Errors
    ///
    /// Fails on too many bytes, and on bytes that are not a message.
    fn read(bytes: Bytes) -> Result<Self, ApiError>;
}

impl<M: Message + Default + 'static> Readable for M {
    fn read(bytes: Bytes) -> Result<Self, ApiError> {
        check("the message's number of bytes", bytes.len(), MAX_SMALL_BYTES)?;
        Self::decode(bytes).map_err(|error| ApiError::Message { reason: error.to_string() })
    }
}

impl Readable for Encoded {
    fn read(bytes: Bytes) -> Result<Self, ApiError> {
        Ok(Self::new(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::triton::messages::{ModelReadyRequest, RepositoryModelLoadRequest};

    #[test]
    fn small_messages_are_read_and_large_ones_refused() {
        let asked = ModelReadyRequest { name: "text".to_owned(), version: "1".to_owned() };
        let read = ModelReadyRequest::read(asked.encode_to_vec().into()).expect("small");
        assert_eq!(read, asked);
        // Empty parameters have two bytes each, and take hundreds once they are decoded.
        let many = [0x1a, 0].repeat(1 << 20);
        let error = RepositoryModelLoadRequest::read(many.into()).expect_err("large");
        assert!(error.to_string().contains("is 2097152, over the limit of 65536"), "{error}");
        let error = ModelReadyRequest::read(Bytes::from_static(b"\x0a\x7f")).expect_err("cut");
        assert!(matches!(error, ApiError::Message { .. }), "{error}");
    }
}
