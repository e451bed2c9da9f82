//! Axum's extractors, with their rejections as [`ErrorResponse`](vnet_common::api::ErrorResponse)s.

use axum::body::HttpBody;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use serde::de::DeserializeOwned;

use super::error::response;

/// Of a request: 10,000 load balancers with 10 members each are about 10 MiB of YAML.
pub(super) const BODY_LIMIT: usize = 16 << 20;

/// A JSON body.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        // Axum counts while it reads: what is announced to be too long is not even read.
        if request.body().size_hint().lower() > BODY_LIMIT as u64 {
            let limit = BODY_LIMIT >> 20;
            return Err(response(StatusCode::PAYLOAD_TOO_LARGE, format!("the request is over {limit} MiB: split it")));
        }
        match axum::Json::from_request(request, state).await {
            Ok(axum::Json(body)) => Ok(Self(body)),
            Err(rejection) => Err(response(rejection.status(), rejection.body_text())),
        }
    }
}

/// Parts of the path.
pub(super) struct Path<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(path)) => Ok(Self(path)),
            Err(rejection) => Err(response(rejection.status(), rejection.body_text())),
        }
    }
}

/// The query string.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        match axum::extract::Query::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(query)) => Ok(Self(query)),
            Err(rejection) => Err(response(rejection.status(), rejection.body_text())),
        }
    }
}
