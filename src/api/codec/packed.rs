//! Compressed bodies and messages; unpacked off the async threads, within the limit of bodies.

use std::io::{self, BufRead, Read};

use axum::http::{HeaderMap, header};
use bytes::Bytes;
use flate2::bufread::{MultiGzDecoder, ZlibDecoder};

use crate::{api::error::ApiError, tensor::ByteSize};

/// Compression of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    /// Members of gzip (RFC 1952), one after the other.
    Gzip,
    /// Zlib (RFC 1950), which HTTP calls deflate.
    Deflate,
}

impl Coding {
    /// Returns the compression of a body with these `headers`, or None if it is not compressed.
    ///
    /// # Errors
    ///
    /// Fails on an unknown coding, and on several codings.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Option<Self>, ApiError> {
        let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
        let Some(value) = values.next() else {
            return Ok(None);
        };
        if values.next().is_some() {
            return Err(ApiError::Encoding);
        }
        let name = value.to_str().map_err(|_| ApiError::Encoding)?.trim().to_ascii_lowercase();
        match name.as_str() {
            "" | "identity" => Ok(None),
            "gzip" | "x-gzip" => Ok(Some(Self::Gzip)),
            "deflate" => Ok(Some(Self::Deflate)),
            _ => Err(ApiError::Encoding),
        }
    }

    /// Unpacks `packed` to at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// Fails on data that is not of this coding to its end. Fails on data of more than `limit`
    /// bytes, before it is unpacked beyond the limit.
    pub(crate) fn unpack(self, packed: &[u8], limit: ByteSize) -> Result<Bytes, ApiError> {
        if packed.is_empty() {
            return Ok(Bytes::new());
        }
        let unpacked = match self {
            Self::Gzip => read(MultiGzDecoder::new(packed), limit),
            Self::Deflate => {
                let mut decoder = ZlibDecoder::new(packed);
                read(&mut decoder, limit).and_then(|unpacked| {
                    // If the data is too large, its end was not reached.
                    unpacked.as_ref().map_or(Ok(()), |_| check_end(decoder.into_inner()))?;
                    Ok(unpacked)
                })
            }
        };
        let unpacked = unpacked.map_err(|reason| ApiError::Packed { reason })?;
        unpacked.map(Bytes::from).ok_or(ApiError::BodyTooLarge { limit })
    }
}

/// Reads at most `limit` bytes; returns None if there are more.
fn read(decoder: impl Read, limit: ByteSize) -> io::Result<Option<Vec<u8>>> {
    let mut unpacked = Vec::new();
    decoder.take(limit.0.saturating_add(1)).read_to_end(&mut unpacked)?;
    Ok((unpacked.len() <= limit.as_usize()).then_some(unpacked))
}

fn check_end(mut rest: impl BufRead) -> io::Result<()> {
    match rest.fill_buf()? {
        [] => Ok(()),
        rest => {
            let message = format!("{} bytes follow its end", rest.len());
            Err(io::Error::new(io::ErrorKind::InvalidData, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use axum::http::HeaderValue;
    use flate2::{
        Compression,
        write::{GzEncoder, ZlibEncoder},
    };

    use super::*;

    const LIMIT: ByteSize = ByteSize(1 << 20);

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).expect("written");
        encoder.finish().expect("written")
    }

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).expect("written");
        encoder.finish().expect("written")
    }

    #[test]
    fn codings_are_known_in_any_case() {
        for (names, expected) in [
            (&[][..], Ok(None)),
            (&["identity"][..], Ok(None)),
            (&["gzip"][..], Ok(Some(Coding::Gzip))),
            (&[" GZip "][..], Ok(Some(Coding::Gzip))),
            (&["X-GZIP"][..], Ok(Some(Coding::Gzip))),
            (&["Deflate"][..], Ok(Some(Coding::Deflate))),
            (&["zstd"][..], Err(())),
            (&["gzip, deflate"][..], Err(())),
            (&["gzip", "gzip"][..], Err(())),
        ] {
            let mut headers = HeaderMap::new();
            for name in names {
                headers.append(header::CONTENT_ENCODING, HeaderValue::from_static(name));
            }
            assert_eq!(Coding::of(&headers).map_err(|_| ()), expected, "{names:?}");
        }
    }

    #[test]
    fn whole_bodies_are_unpacked() {
        let members = [gzip(b"one "), gzip(b""), gzip(b"body")].concat();
        let unpacked = Coding::Gzip.unpack(&members, LIMIT).expect("gzip");
        assert_eq!(unpacked, "one body");
        let unpacked = Coding::Deflate.unpack(&zlib(b"one body"), LIMIT).expect("zlib");
        assert_eq!(unpacked, "one body");
        assert!(Coding::Gzip.unpack(b"", LIMIT).expect("nothing").is_empty());
    }

    #[test]
    fn what_is_not_compressed_to_its_end_is_refused() {
        let (gzip, zlib) = (gzip(b"a body"), zlib(b"a body"));
        for (coding, packed) in [
            (Coding::Gzip, b"not gzip".to_vec()),
            (Coding::Gzip, gzip[..gzip.len() - 1].to_vec()),
            (Coding::Gzip, [&gzip[..], b"junk"].concat()),
            (Coding::Gzip, [&gzip[..], &gzip[..5]].concat()),
            (Coding::Deflate, b"not zlib".to_vec()),
            (Coding::Deflate, zlib[..zlib.len() - 1].to_vec()),
            (Coding::Deflate, [&zlib[..], b"junk"].concat()),
        ] {
            let error = coding.unpack(&packed, LIMIT).expect_err("refused");
            assert!(matches!(error, ApiError::Packed { .. }), "{error}");
        }
    }

    #[test]
    fn a_bomb_is_no_larger_than_a_body_may_be() {
        let exact = vec![0; LIMIT.as_usize()];
        assert_eq!(Coding::Gzip.unpack(&gzip(&exact), LIMIT).expect("the limit"), exact);
        let more = vec![0; 64 * LIMIT.as_usize()];
        for (coding, packed) in [(Coding::Gzip, gzip(&more)), (Coding::Deflate, zlib(&more))] {
            let error = coding.unpack(&packed, LIMIT).expect_err("too large");
            assert!(matches!(error, ApiError::BodyTooLarge { .. }), "{error}");
        }
    }
}
