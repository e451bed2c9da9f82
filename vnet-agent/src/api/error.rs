//! Why a request was not done, and how HTTP says so.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use vnet_common::api::{ErrorResponse, Fault};

/// A request that was not done.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", .response.error)]
pub struct Refusal {
    /// Whose doing it is.
    pub class: Class,
    /// What the client is told.
    pub response: ErrorResponse,
}

/// Whose doing a [`Refusal`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The request makes no sense (400).
    BadRequest,
    /// It makes sense, but what it contains is wrong (422): faults in files, impossible values.
    Invalid,
    /// What it names is not there (404).
    NotFound,
    /// It contradicts what is there (409).
    Conflict,
    /// The agent could not (500).
    Internal,
}

impl Class {
    fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Conflict => StatusCode::CONFLICT,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl Refusal {
    /// A refusal without faults in files.
    pub fn new(class: Class, error: impl Into<String>) -> Self {
        Self { class, response: ErrorResponse { error: error.into(), faults: Vec::new() } }
    }

    /// See [`Class::BadRequest`].
    pub fn bad_request(error: impl Into<String>) -> Self {
        Self::new(Class::BadRequest, error)
    }

    /// See [`Class::Invalid`].
    pub fn invalid(error: impl Into<String>) -> Self {
        Self::new(Class::Invalid, error)
    }

    /// See [`Class::NotFound`].
    pub fn not_found(error: impl Into<String>) -> Self {
        Self::new(Class::NotFound, error)
    }

    /// See [`Class::Conflict`].
    pub fn conflict(error: impl Into<String>) -> Self {
        Self::new(Class::Conflict, error)
    }

    /// The error with the faults of files, in one line.
    #[must_use]
    pub fn with_faults(&self) -> String {
        let faults = self.response.faults.iter().map(|f| format!("{}:{}: {}", f.file, f.line, f.message));
        [self.response.error.clone()].into_iter().chain(faults).collect::<Vec<_>>().join("; ")
    }

    /// Files with these faults: [`Class::Invalid`].
    pub fn faults(error: impl Into<String>, faults: Vec<Fault>) -> Self {
        Self { class: Class::Invalid, response: ErrorResponse { error: error.into(), faults } }
    }
}

/// What the agent could not do, with all the causes.
impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Class::Internal, format!("{error:#}"))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        if self.class == Class::Internal {
            log::error!("a request failed: {}", self.response.error);
        }
        (self.class.status(), Json(self.response)).into_response()
    }
}

/// An error response of the HTTP layer itself.
pub(super) fn response(status: StatusCode, error: impl Into<String>) -> Response {
    (status, Json(ErrorResponse { error: error.into(), faults: Vec::new() })).into_response()
}
