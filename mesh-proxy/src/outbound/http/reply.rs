//! Answers that the proxy gives by itself.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use mesh_core::actions::CorsOutcome;

use super::{super::failure::FailureClass, record::Record, response::ResponseBody};

/// Whether a content type says gRPC.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|v| {
        let v = v.as_bytes();
        v.starts_with(b"application/grpc") && matches!(v.get(16), None | Some(b'+' | b';'))
    })
}

/// The answer to a call that failed.
pub(crate) fn failed(class: FailureClass, mut record: Box<Record>) -> Response<ResponseBody> {
    let a = class.appearance();
    record.flags = record.flags.with(a.flags);
    record.details = a.details;
    let mut response = if record.grpc && !a.close {
        trailers_only(a.grpc, a.body, record)
    } else {
        record.code = a.status;
        let body = Bytes::from_static(a.body.as_bytes());
        let mut response = with_body(a.status, body, record);
        if !a.body.is_empty() {
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        response
    };
    if a.close {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if class == FailureClass::Overflow {
        response.headers_mut().insert("x-envoy-overloaded", HeaderValue::from_static("true"));
    }
    response
}

/// A gRPC answer that is only a status.
fn trailers_only(status: u16, message: &'static str, mut record: Box<Record>) -> Response<ResponseBody> {
    record.code = 200;
    record.grpc_status = Some(status);
    let mut response = with_body(200, Bytes::new(), record);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(status));
    if !message.is_empty() {
        // All of our texts are plain ASCII, so nothing needs to be percent-encoded.
        headers.insert("grpc-message", HeaderValue::from_static(message));
    }
    response
}

/// An answer with a status and a body.
pub(crate) fn with_body(status: u16, body: Bytes, mut record: Box<Record>) -> Response<ResponseBody> {
    record.code = status;
    let mut response = Response::new(ResponseBody::local(body, record));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

/// A redirect.
pub(crate) fn redirect(code: u16, location: &str, mut record: Box<Record>) -> Response<ResponseBody> {
    record.details = "direct_response";
    let mut response = with_body(code, Bytes::new(), record);
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// The answer to a cross-origin preflight.
pub(crate) fn preflight(cors: &CorsOutcome<'_>, mut record: Box<Record>) -> Response<ResponseBody> {
    record.details = "cors_preflight";
    let mut response = with_body(200, Bytes::new(), record);
    if let CorsOutcome::Preflight(list) = cors {
        set(response.headers_mut(), list);
    }
    response
}

/// Sets headers whose names are known.
pub(crate) fn set(headers: &mut HeaderMap, list: &[(&'static str, std::borrow::Cow<'_, str>)]) {
    for (name, value) in list {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}
