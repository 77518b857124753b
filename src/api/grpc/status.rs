//! The gRPC status of a failure.

use axum::http::{HeaderMap, HeaderValue};
use tonic::{Code, Status};

use crate::{api::error::ApiError, serve::ErrorCode};

/// Returns the status of a failed request.
pub(super) fn status_of(error: &ApiError) -> Status {
    Status::new(code_of(error.code()), error.message())
}

/// Returns the gRPC code of a failure.
fn code_of(code: ErrorCode) -> Code {
    match code {
        ErrorCode::InvalidArgument => Code::InvalidArgument,
        ErrorCode::Unauthenticated => Code::Unauthenticated,
        ErrorCode::PermissionDenied => Code::PermissionDenied,
        ErrorCode::NotFound => Code::NotFound,
        ErrorCode::TooLarge | ErrorCode::Overloaded => Code::ResourceExhausted,
        ErrorCode::BudgetInfeasible => Code::FailedPrecondition,
        ErrorCode::Cancelled => Code::Cancelled,
        ErrorCode::Internal => Code::Internal,
        ErrorCode::Unavailable => Code::Unavailable,
        ErrorCode::DeadlineExceeded => Code::DeadlineExceeded,
    }
}

/// Gives the status in headers or trailers the code of all failures for size, if it is the one that
/// tonic has for a message over the limit.
pub(super) fn name_too_large(headers: &mut HeaderMap) {
    if let Some(status) = headers.get_mut(Status::GRPC_STATUS)
        && Code::from_bytes(status.as_bytes()) == Code::OutOfRange
    {
        *status = HeaderValue::from(i32::from(Code::ResourceExhausted));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_status() {
        for (code, expected) in [
            (ErrorCode::InvalidArgument, Code::InvalidArgument),
            (ErrorCode::Unauthenticated, Code::Unauthenticated),
            (ErrorCode::PermissionDenied, Code::PermissionDenied),
            (ErrorCode::NotFound, Code::NotFound),
            (ErrorCode::TooLarge, Code::ResourceExhausted),
            (ErrorCode::BudgetInfeasible, Code::FailedPrecondition),
            (ErrorCode::Overloaded, Code::ResourceExhausted),
            (ErrorCode::Cancelled, Code::Cancelled),
            (ErrorCode::Internal, Code::Internal),
            (ErrorCode::Unavailable, Code::Unavailable),
            (ErrorCode::DeadlineExceeded, Code::DeadlineExceeded),
        ] {
            assert_eq!(code_of(code), expected, "{code:?}");
        }
    }

    #[test]
    fn a_message_over_the_limit_has_the_code_of_what_is_too_large() {
        for (found, expected) in [(11, Code::ResourceExhausted), (3, Code::InvalidArgument)] {
            let mut headers = HeaderMap::new();
            headers.insert(Status::GRPC_STATUS, HeaderValue::from(found));
            name_too_large(&mut headers);
            let status = Status::from_header_map(&headers).expect("a status");
            assert_eq!(status.code(), expected);
        }
    }

    #[test]
    fn what_is_internal_is_not_told() {
        let error = ApiError::Panicked { message: "a secret".to_owned() };
        let status = status_of(&error);
        assert_eq!(status.message(), "internal error");
    }
}
