//! Compressed messages, unpacked off the async threads before tonic sees them.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{
    Error,
    body::{Body, HttpBody},
    extract::{Request, State},
    http::Response,
    middleware::Next,
};
use bytes::{BufMut, Bytes, BytesMut};
use hyper::body::Frame;
use tokio::task::JoinHandle;

use crate::api::grpc::status::status_of;
use crate::{
    api::{
        codec::{bounds::check, packed::Coding},
        error::ApiError,
    },
    tensor::ByteSize,
};

/// Metadata with the compression of messages.
const ENCODING: &str = "grpc-encoding";

/// Number of bytes before a message: whether it is compressed, and its length in four bytes.
const HEAD_BYTES: usize = 5;

/// Unpacks the messages of a call that are in gzip; tonic refuses other encodings.
pub(crate) async fn unpack(
    State(limit): State<ByteSize>,
    mut request: Request,
    next: Next,
) -> Response<Body> {
    if request.headers().get(ENCODING).is_some_and(|name| name == "gzip") {
        request.headers_mut().remove(ENCODING);
        request = request.map(|body| Body::new(UnpackedBody::new(body, limit)));
    }
    next.run(request).await
}

/// Body of a call whose messages are compressed.
struct UnpackedBody {
    body: Body,
    /// Bytes of messages that are not complete.
    buffer: BytesMut,
    /// Task that unpacks the current message.
    work: Option<JoinHandle<Result<Bytes, ApiError>>>,
    limit: ByteSize,
}

impl UnpackedBody {
    fn new(body: Body, limit: ByteSize) -> Self {
        Self { body, buffer: BytesMut::new(), work: None, limit }
    }

    /// Takes the next message with its head, or returns None if it is not complete.
    fn take_message(&mut self) -> Result<Option<Bytes>, ApiError> {
        let Some([_, length @ ..]) = self.buffer.first_chunk::<HEAD_BYTES>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        check("the message's number of bytes", length, self.limit.as_usize())?;
        let end = length + HEAD_BYTES;
        Ok((self.buffer.len() >= end).then(|| self.buffer.split_to(end).freeze()))
    }

    /// Returns the next frame that can be made without more of the body, or None if it cannot.
    fn next_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ApiError>>> {
        loop {
            if let Some(work) = &mut self.work {
                let done = ready!(Pin::new(work).poll(context));
                self.work = None;
                let lost = |source| Err(ApiError::Interrupted { source: Box::new(source) });
                return Poll::Ready(Some(done.unwrap_or_else(lost).map(Frame::data)));
            }
            match self.take_message() {
                Ok(Some(message)) if message.first() == Some(&1) => {
                    let limit = self.limit;
                    let work = move || unpack_message(&message, limit);
                    self.work = Some(tokio::task::spawn_blocking(work));
                }
                Ok(Some(message)) => return Poll::Ready(Some(Ok(Frame::data(message)))),
                Ok(None) => return Poll::Ready(None),
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }
}

/// Unpacks a message behind its head, and returns it with a new head.
fn unpack_message(message: &[u8], limit: ByteSize) -> Result<Bytes, ApiError> {
    let unpacked = Coding::Gzip.unpack(&message[HEAD_BYTES..], limit)?;
    let length = u32::try_from(unpacked.len()).map_err(|_| ApiError::BodyTooLarge { limit })?;
    let mut whole = BytesMut::with_capacity(HEAD_BYTES + unpacked.len());
    whole.put_u8(0);
    whole.put_u32(length);
    whole.put(unpacked);
    Ok(whole.freeze())
}

impl HttpBody for UnpackedBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        loop {
            if let Some(frame) = ready!(self.next_frame(context)) {
                return Poll::Ready(Some(frame.map_err(|error| Error::new(status_of(&error)))));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => self.buffer.put(bytes),
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                // A message that is cut off by the body's end is left for tonic to refuse.
                None if !self.buffer.is_empty() => {
                    let cut = self.buffer.split().freeze();
                    return Poll::Ready(Some(Ok(Frame::data(cut))));
                }
                end => return Poll::Ready(end),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};
    use http_body_util::BodyExt;
    use tokio_stream::iter;
    use tonic::{Code, Status};

    use super::*;
    use crate::tensor::mutate::feed;

    const LIMIT: ByteSize = ByteSize(1 << 10);

    fn message(is_packed: bool, bytes: &[u8]) -> Vec<u8> {
        let length = u32::try_from(bytes.len()).expect("short").to_be_bytes();
        [&[u8::from(is_packed)][..], &length, bytes].concat()
    }

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).expect("written");
        message(true, &encoder.finish().expect("written"))
    }

    /// Sends `bytes` in parts of `size` bytes, and returns the unpacked bytes.
    async fn unpacked(bytes: &[u8], size: usize) -> Result<Vec<u8>, Status> {
        let parts: Vec<_> =
            bytes.chunks(size).map(|part| Ok::<_, Error>(Bytes::copy_from_slice(part))).collect();
        let body = UnpackedBody::new(Body::from_stream(iter(parts)), LIMIT);
        let collected = body.collect().await.map_err(|error| Status::from_error(error.into()))?;
        Ok(collected.to_bytes().to_vec())
    }

    #[tokio::test]
    async fn messages_are_unpacked_in_whatever_parts_they_come() {
        let sent = [packed(b"one"), message(false, b"two"), packed(b""), packed(&[7; 1024])];
        let expected = [b"one".to_vec(), b"two".to_vec(), Vec::new(), vec![7; 1024]];
        let expected = expected.map(|bytes| message(false, &bytes)).concat();
        for size in [1, 7, 4096] {
            assert_eq!(unpacked(&sent.concat(), size).await.expect("unpacked"), expected);
        }
    }

    #[tokio::test]
    async fn what_is_too_large_or_not_gzip_is_refused() {
        for (sent, code) in [
            (packed(&[0; 1025]), Code::ResourceExhausted),
            (message(true, &[0; 1025]), Code::ResourceExhausted),
            (b"\x01\xff\xff\xff\xff".to_vec(), Code::ResourceExhausted),
            (message(true, b"not gzip"), Code::InvalidArgument),
        ] {
            let status = unpacked(&sent, 4096).await.expect_err("refused");
            assert_eq!(status.code(), code, "{status}");
        }
    }

    #[tokio::test]
    async fn fuzz_frames() {
        let seed = [packed(b"one"), message(false, b"two"), packed(&[7; 1024])].concat();
        let handle = tokio::runtime::Handle::current();
        let work = move || {
            feed(&[seed, packed(&vec![0; 1 << 20])], |frames| {
                drop(handle.block_on(unpacked(&frames, 512)));
            });
        };
        tokio::task::spawn_blocking(work).await.expect("no panic");
    }

    #[tokio::test]
    async fn a_message_that_is_cut_is_handed_over_as_it_is() {
        let cut = &packed(b"one")[..8];
        assert_eq!(unpacked(cut, 3).await.expect("handed over"), cut);
    }
}
