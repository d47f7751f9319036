//! A request as the rules look at it. Nothing is copied.

use http::{Extensions, HeaderMap, Method, Uri, header};
use mesh_core::RequestView;

/// Borrows the parts of a request.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    method: &'a Method,
    uri: &'a Uri,
    headers: &'a HeaderMap,
    extensions: &'a Extensions,
}

/// Marks a request that came under TLS which ended here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Secure;

impl<'a> View<'a> {
    pub(crate) fn of<B>(request: &'a http::Request<B>) -> Self {
        let (method, uri) = (request.method(), request.uri());
        Self { method, uri, headers: request.headers(), extensions: request.extensions() }
    }
}

/// `:authority`, the authority of an absolute form, or `Host`.
pub(crate) fn authority<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> &'a str {
    match uri.authority() {
        Some(a) => a.as_str(),
        None => headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default(),
    }
}

impl RequestView for View<'_> {
    fn method(&self) -> &str {
        self.method.as_str()
    }

    fn authority(&self) -> &str {
        authority(self.uri, self.headers)
    }

    fn path_and_query(&self) -> &str {
        self.uri.path_and_query().map_or("/", |p| p.as_str())
    }

    fn scheme(&self) -> &str {
        match self.extensions.get::<Secure>() {
            Some(Secure) => "https",
            None => self.uri.scheme_str().unwrap_or("http"),
        }
    }

    fn header_values(&self, name: &str, f: &mut dyn FnMut(&str) -> bool) -> bool {
        match name {
            ":method" => f(self.method()),
            ":path" => f(self.path_and_query()),
            ":authority" | "host" => f(self.authority()),
            ":scheme" => f(self.scheme()),
            _ => self.headers.get_all(name).iter().any(|v| v.to_str().is_ok_and(&mut *f)),
        }
    }
}
