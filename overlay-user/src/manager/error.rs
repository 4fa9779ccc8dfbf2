//! Constructors for [`ApiError`], and conversions from the errors of the lower layers.

use std::fmt::Display;

use crate::{
    api::{ApiError, ErrorCode},
    model::{InvalidBalance, InvalidName},
    pki::PkiError,
    store::StoreError,
};

pub(super) fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::Invalid, message)
}

pub(super) fn unauthenticated(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::Unauthenticated, message)
}

pub(super) fn forbidden(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::Forbidden, message)
}

pub(super) fn not_found(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::NotFound, message)
}

pub(super) fn conflict(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::Conflict, message)
}

pub(super) fn exhausted(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::Exhausted, message)
}

pub(super) fn unavailable(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::Unavailable, message)
}

pub(super) fn internal(error: impl Display) -> ApiError {
    ApiError::new(ErrorCode::Internal, error.to_string())
}

impl From<InvalidBalance> for ApiError {
    fn from(error: InvalidBalance) -> Self {
        invalid(error.to_string()).hint(error.hint())
    }
}

impl From<InvalidName> for ApiError {
    fn from(error: InvalidName) -> Self {
        invalid(error.to_string())
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::Conflict { .. } => ErrorCode::Unavailable,
            StoreError::Locked(_) => ErrorCode::Conflict,
            StoreError::Corrupt { .. } | StoreError::Format { .. } | StoreError::Backend(_) => {
                ErrorCode::Internal
            }
        };
        Self::new(code, error.to_string())
    }
}

impl From<PkiError> for ApiError {
    fn from(error: PkiError) -> Self {
        match &error {
            PkiError::Request(_) => invalid(error.to_string()),
            PkiError::Io { .. } | PkiError::Damaged { .. } => {
                internal(error).hint("restore the node's pki directory, or join again")
            }
            PkiError::Crypto(_) => internal(error),
        }
    }
}
