//! What went wrong, as people and programs need to know it.

use std::error::Error as _;

use etcd_client::Error;

/// gRPC's numbers of what matters here.
const INVALID_ARGUMENT: i32 = 3;
const PERMISSION_DENIED: i32 = 7;
const RESOURCE_EXHAUSTED: i32 = 8;
const OUT_OF_RANGE: i32 = 11;
const UNAUTHENTICATED: i32 = 16;

/// What follows from an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Somebody else may be able to answer, or the same member later.
    Later,
    /// We may not do this.
    Denied,
    /// It is too much, of one request or of all: nobody else takes it either.
    Refused,
    /// What was asked for is not kept any more.
    Compacted,
}

impl Failure {
    /// Of an error of the store's client.
    #[must_use]
    pub fn of(error: &Error) -> Self {
        let Error::GRpcStatus(status) = error else { return Self::Later };
        match status.code() as i32 {
            PERMISSION_DENIED | UNAUTHENTICATED => Self::Denied,
            INVALID_ARGUMENT if status.message().contains("user name is empty") => Self::Denied,
            INVALID_ARGUMENT | RESOURCE_EXHAUSTED => Self::Refused,
            OUT_OF_RANGE if status.message().contains("compacted") => Self::Compacted,
            _ => Self::Later,
        }
    }

    /// Of an error that has one of the client's in it.
    #[must_use]
    pub fn in_error(error: &anyhow::Error) -> Self {
        error.downcast_ref::<Told>().map_or(Self::Later, |told| told.failure)
    }
}

/// An error of the client, in one line.
#[derive(Debug)]
pub(super) struct Told {
    failure: Failure,
    text: String,
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Told {}

impl From<Error> for Told {
    fn from(error: Error) -> Self {
        Self { failure: Failure::of(&error), text: describe(&error) }
    }
}

/// An error of the client in one line, with its causes.
#[must_use]
pub fn describe(error: &Error) -> String {
    let mut text = match error {
        Error::GRpcStatus(status) => {
            let message = status.message().trim_start_matches("etcdserver: ").to_owned();
            if message.is_empty() { format!("{:?}", status.code()) } else { message }
        }
        other => other.to_string(),
    };
    let mut cause = match error {
        Error::GRpcStatus(status) => status.source(),
        Error::TransportError(e) => e.source(),
        other => other.source(),
    };
    while let Some(why) = cause {
        let why_text = why.to_string();
        if !text.contains(&why_text) {
            text = format!("{text}: {why_text}");
        }
        cause = why.source();
    }
    text
}
