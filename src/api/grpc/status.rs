//! The gRPC status of a failure.

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
    fn what_is_internal_is_not_told() {
        let error = ApiError::Panicked { message: "a secret".to_owned() };
        let status = status_of(&error);
        assert_eq!(status.message(), "internal error");
    }
}
