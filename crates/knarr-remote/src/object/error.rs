//! What an object store's answer means to the caller.
//!
//! Constraints: no body, header or address of a request gets into an error, only the code and the
//! message of the store's answer, cut and made printable (H-25, H-06). The code decides before the
//! status, as the stores agree more on codes.

use std::error::Error as _;

use knarr_core::RelPath;
use knarr_core::path::printable;
use object_store::client::{HttpError, HttpErrorKind};

use super::http::BadAnswer;
use super::xml;
use crate::error::{ErrorKind, RemoteError, Retry};

/// How much of a store's message is shown.
const MESSAGE_LIMIT: usize = 300;

/// A request that failed, before it is known what it was for.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    /// The status, if there was an answer.
    pub(super) status: Option<u16>,
    /// The code in the answer, such as `NoSuchKey`.
    pub(super) code: Option<String>,
    /// What was said.
    message: String,
    /// What happened to the connection, if there was no answer.
    transport: Option<HttpErrorKind>,
    /// What is known without an answer.
    kind: Option<ErrorKind>,
    /// Whether the store has other bytes than were sent: then no look at it can turn it into a success.
    corrupt: bool,
}

impl Failure {
    /// An answer that says no.
    pub(super) fn answer(status: u16, body: &[u8]) -> Self {
        let code = xml::find(body, "Code").filter(|code| !code.is_empty());
        let message = xml::find(body, "Message").unwrap_or_default();
        Self {
            status: Some(status),
            code,
            message,
            transport: None,
            kind: None,
            corrupt: false,
        }
    }

    /// No answer.
    pub(super) fn transport(error: &HttpError) -> Self {
        let bad = error
            .source()
            .and_then(|source| source.downcast_ref::<BadAnswer>());
        if let Some(BadAnswer::Checksum { .. }) = bad {
            return Self {
                corrupt: true,
                ..Self::of(ErrorKind::Protocol, deepest(error))
            };
        }
        Self {
            corrupt: false,
            status: None,
            code: None,
            message: deepest(error),
            transport: Some(error.kind()),
            kind: None,
        }
    }

    /// Something that is known on our side.
    pub(super) fn of(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            status: None,
            code: None,
            message: message.into(),
            transport: None,
            kind: Some(kind),
            corrupt: false,
        }
    }

    /// What the adapter reports.
    pub(super) fn store(error: &object_store::Error) -> Self {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        let mut status = None;
        let mut body = None;
        while let Some(current) = cause {
            if let Some(http) = current.downcast_ref::<HttpError>() {
                return Self::transport(http);
            }
            // The type is private to the adapter; its text is not, and begins with the status.
            let text = current.to_string();
            for (marker, known) in [
                ("non-2xx status code: ", None),
                ("Server returned error response: ", Some(200)),
                ("Received redirect without LOCATION", Some(301)),
            ] {
                if let Some((_, said)) = text.split_once(marker) {
                    let read = || said.split([' ', ':']).next()?.parse::<u16>().ok();
                    status = status.or(known).or_else(read);
                    body = said
                        .find('<')
                        .and_then(|at| said.get(at..))
                        .map(str::to_owned)
                        .or(body);
                }
            }
            cause = current.source();
        }
        let mut failure = Self::answer(0, body.unwrap_or_default().as_bytes());
        failure.status = status;
        failure.kind = match error {
            object_store::Error::NotFound { .. } => Some(ErrorKind::NotFound),
            object_store::Error::AlreadyExists { .. }
            | object_store::Error::Precondition { .. } => Some(ErrorKind::Changed),
            object_store::Error::PermissionDenied { .. } => Some(ErrorKind::PermissionDenied),
            object_store::Error::Unauthenticated { .. } => Some(ErrorKind::Authentication),
            object_store::Error::NotSupported { .. }
            | object_store::Error::NotImplemented { .. } => Some(ErrorKind::Unsupported),
            object_store::Error::InvalidPath { .. } => Some(ErrorKind::InvalidName),
            _ => None,
        };
        if failure.message.is_empty() && status.is_none() {
            failure.message = deepest(error);
        }
        if failure.code.is_none()
            && let Some((_, code)) = failure.message.rsplit_once("(code: ")
        {
            failure.code = Some(code.trim_end_matches(')').to_owned());
        }
        failure
    }

    /// Whether the store may have done what was asked all the same.
    pub(super) fn is_unclear(&self) -> bool {
        if self.corrupt {
            return false;
        }
        if self.kind == Some(ErrorKind::Protocol) {
            return true;
        }
        match self.status {
            Some(status) => status < 300 || status >= 500 && status != 501,
            None => matches!(
                self.transport,
                Some(
                    HttpErrorKind::Request
                        | HttpErrorKind::Timeout
                        | HttpErrorKind::Interrupted
                        | HttpErrorKind::Decode
                        | HttpErrorKind::Unknown
                )
            ),
        }
    }

    /// Whether the connection broke before there was an answer.
    pub(super) fn was_cut(&self) -> bool {
        use HttpErrorKind::{Interrupted, Request, Unknown};
        matches!(self.transport, Some(Interrupted | Request | Unknown))
    }

    /// Whether the same request may work a moment later.
    pub(super) fn is_passing(&self) -> bool {
        self.kind.is_none() && self.transport.is_some()
            || matches!(self.status, Some(200..300 | 408 | 429 | 500 | 502..600))
    }

    /// Whether a condition was not met.
    pub(super) fn is_precondition(&self) -> bool {
        self.status == Some(412)
            || self.status == Some(409)
            || self.kind == Some(ErrorKind::Changed)
    }

    /// Whether the store does not know such a request.
    pub(super) fn is_unsupported(&self) -> bool {
        self.status == Some(501)
            || self.code.as_deref() == Some("NotImplemented")
            || self.kind == Some(ErrorKind::Unsupported)
    }

    /// Whether the multipart upload is gone.
    pub(super) fn is_no_such_upload(&self) -> bool {
        self.code.as_deref() == Some("NoSuchUpload")
    }

    /// Whether the store says that the multipart upload which was asked about is gone.
    pub(super) fn is_upload_gone(&self) -> bool {
        self.is_no_such_upload()
            || self.status == Some(404) && self.code.as_deref() != Some("NoSuchBucket")
    }

    /// Whether access was denied. Some stores say so of an upload that is gone.
    pub(super) fn is_denied(&self) -> bool {
        self.status == Some(403) && self.kind() == ErrorKind::PermissionDenied
    }

    /// Whether the object is not there.
    pub(super) fn is_not_found(&self) -> bool {
        self.kind() == ErrorKind::NotFound && self.code.as_deref() != Some("NoSuchBucket")
    }

    /// What the caller may decide by.
    pub(super) fn kind(&self) -> ErrorKind {
        if let Some(kind) = self.code.as_deref().and_then(kind_of_code) {
            return kind;
        }
        match self.status {
            Some(401) => ErrorKind::Authentication,
            Some(403) => ErrorKind::PermissionDenied,
            Some(404) => ErrorKind::NotFound,
            Some(409 | 412) => ErrorKind::Changed,
            Some(429 | 503) => ErrorKind::Throttled,
            Some(501) => ErrorKind::Unsupported,
            Some(507) => ErrorKind::NoSpace,
            _ => match (self.kind, self.transport) {
                (Some(kind), _) => kind,
                (None, Some(_)) => ErrorKind::Unreachable,
                (None, None) => ErrorKind::Other,
            },
        }
    }

    /// The error for the caller.
    pub(super) fn into_remote(self, operation: &str, path: Option<&RelPath>) -> RemoteError {
        let kind = self.kind();
        // The next attempt begins another one.
        let gone = self.is_no_such_upload();
        let mut error = RemoteError::new(kind, operation, self.describe());
        if let Some(path) = path {
            error = error.at(path);
        }
        match (self.transport, self.status) {
            // The connection broke: the server may be fine for the next request.
            (
                Some(HttpErrorKind::Interrupted | HttpErrorKind::Request | HttpErrorKind::Decode),
                _,
            ) => error.with_retry(Retry::Later),
            (None, Some(300..500)) if kind == ErrorKind::Other && !gone => {
                error.with_retry(Retry::Never)
            }
            _ => error,
        }
    }

    fn describe(&self) -> String {
        let mut text = String::new();
        match (&self.code, self.status) {
            (Some(code), Some(status)) if status >= 300 => {
                text.push_str(&format!("the store answered {code} ({status})"));
            }
            (Some(code), _) => text.push_str(&format!("the store answered {code}")),
            (None, Some(status)) if status > 0 => {
                text.push_str(&format!("the store answered with status {status}"));
            }
            _ => {}
        }
        if !self.message.is_empty() {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cut(&self.message));
        }
        if let Some(advice) = self.advice() {
            text.push_str("; ");
            text.push_str(advice);
        }
        if text.is_empty() {
            text.push_str("the request failed");
        }
        text
    }

    fn advice(&self) -> Option<&'static str> {
        Some(match self.code.as_deref() {
            Some("NoSuchBucket") => "check the name of the bucket and the region",
            Some("InvalidAccessKeyId") => "the access key is not known there",
            Some("SignatureDoesNotMatch") => "check the secret access key",
            Some("RequestTimeTooSkewed") => "check the clock of this machine",
            Some("ExpiredToken" | "TokenRefreshRequired") => "log in again",
            Some(
                "PermanentRedirect"
                | "AuthorizationHeaderMalformed"
                | "IllegalLocationConstraintException",
            ) => "set the region in which the bucket is",
            _ => match self.status {
                Some(301 | 307) => "set the region in which the bucket is",
                Some(403) if self.code.is_none() => {
                    "check the access key, its secret and what they are allowed to do"
                }
                _ => return None,
            },
        })
    }
}

fn kind_of_code(code: &str) -> Option<ErrorKind> {
    Some(match code {
        "NoSuchKey" | "NoSuchBucket" | "NoSuchVersion" | "BlobNotFound" | "ContainerNotFound" => {
            ErrorKind::NotFound
        }
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "InvalidToken"
        | "TokenRefreshRequired"
        | "RequestTimeTooSkewed"
        | "AuthenticationFailed"
        | "NotSignedUp"
        | "InvalidSecurity" => ErrorKind::Authentication,
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" | "MethodNotAllowed" => {
            ErrorKind::PermissionDenied
        }
        "SlowDown"
        | "TooManyRequests"
        | "RequestLimitExceeded"
        | "ServiceUnavailable"
        | "Throttling"
        | "ThrottlingException"
        | "ServerBusy" => ErrorKind::Throttled,
        "QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage" | "XAmzQuotaExceeded" => {
            ErrorKind::NoSpace
        }
        "PreconditionFailed"
        | "ConditionalRequestConflict"
        | "OperationAborted"
        | "ConditionNotMet" => ErrorKind::Changed,
        "KeyTooLongError" | "InvalidObjectName" | "XMinioInvalidObjectName" => {
            ErrorKind::InvalidName
        }
        "BadDigest"
        | "InvalidDigest"
        | "XAmzContentSHA256Mismatch"
        | "XAmzContentChecksumMismatch"
        | "IncompleteBody" => ErrorKind::Protocol,
        "NotImplemented" => ErrorKind::Unsupported,
        "NoSuchUpload" => ErrorKind::Other,
        _ => return None,
    })
}

fn deepest(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = cause.to_string();
        source = cause.source();
    }
    text
}

fn cut(message: &str) -> String {
    let text = printable(message.as_bytes()).to_string();
    match text.char_indices().nth(MESSAGE_LIMIT) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

impl From<object_store::Error> for Failure {
    fn from(error: object_store::Error) -> Self {
        Self::store(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(code: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>m\u{1b}[31m</Message></Error>"
        )
    }

    #[test]
    fn r40_each_code_gets_the_kind_by_which_the_caller_decides() {
        for (status, code, kind, retry) in [
            (503, "SlowDown", ErrorKind::Throttled, Retry::Later),
            (429, "TooManyRequests", ErrorKind::Throttled, Retry::Later),
            (500, "InternalError", ErrorKind::Other, Retry::Later),
            (200, "InternalError", ErrorKind::Other, Retry::Later),
            (
                403,
                "AccessDenied",
                ErrorKind::PermissionDenied,
                Retry::Never,
            ),
            (
                403,
                "SignatureDoesNotMatch",
                ErrorKind::Authentication,
                Retry::Never,
            ),
            (404, "NoSuchBucket", ErrorKind::NotFound, Retry::Never),
            (412, "PreconditionFailed", ErrorKind::Changed, Retry::Later),
            (400, "InvalidRequest", ErrorKind::Other, Retry::Never),
            (400, "BadDigest", ErrorKind::Protocol, Retry::Later),
            (301, "PermanentRedirect", ErrorKind::Other, Retry::Never),
        ] {
            let error = Failure::answer(status, body(code).as_bytes()).into_remote("look at", None);
            assert_eq!(
                (error.kind, error.retry),
                (kind, retry),
                "{status} {code}: {error}"
            );
            assert!(!error.to_string().contains('\u{1b}'), "{error}");
        }
    }

    #[test]
    fn r40_only_what_may_have_been_done_is_unclear() {
        for (status, unclear) in [
            (200, true),
            (500, true),
            (503, true),
            (412, false),
            (403, false),
        ] {
            assert_eq!(
                Failure::answer(status, b"").is_unclear(),
                unclear,
                "{status}"
            );
        }
    }

    #[test]
    fn an_endless_message_is_cut() {
        let body = format!(
            "<Error><Code>X</Code><Message>{}</Message></Error>",
            "é".repeat(9_000)
        );
        let error = Failure::answer(400, body.as_bytes()).into_remote("look at", None);
        assert!(error.to_string().len() < 1_000);
    }
}
