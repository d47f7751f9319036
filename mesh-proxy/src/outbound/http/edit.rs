//! What changes on a request and a response between client and endpoint.

use std::{borrow::Cow, net::SocketAddr};

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, Version, header,
    uri::{Authority, Parts, PathAndQuery, Scheme},
};
use mesh_core::{
    actions,
    route::{HeaderOp, HeaderText, WeightedDestination},
};

use super::{
    said::{self, Call, Kept, Seen},
    view,
};

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
static ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");

/// Applies the rule to a request: path, authority, headers.
pub(crate) fn request<B>(request: &mut Request<B>, to: Option<&WeightedDestination>, call: Call<'_>) {
    let decision = call.decision;
    let Some(rule) = decision.rule else { return };
    let ops = actions::header_ops(decision, to, false);
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
    if let Some(new) = rule.rewritten_path(decision.matched.map(|m| m.1), path) {
        let old = HeaderValue::from_str(path);
        if let Some(uri) = with_path(request.uri(), &new) {
            *request.uri_mut() = uri;
            if let Ok(old) = old {
                request.headers_mut().insert(ORIGINAL_PATH.clone(), old);
            }
        }
    }
    if let Some(new) = rule.rewritten_authority(to)
        && let Ok(value) = HeaderValue::from_str(new)
    {
        request.headers_mut().insert(header::HOST, value);
        if let Some(uri) = with_authority(request.uri(), new) {
            *request.uri_mut() = uri;
        }
    }
    if !said::any_made(ops) {
        return headers(request.headers_mut(), ops, |text, _| Some(Cow::Borrowed(text.text().as_bytes())));
    }
    // The message is changed and looked at by turns.
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let authority = view::authority(&uri, request.headers()).to_owned();
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    headers(request.headers_mut(), ops, |text, map| {
        let seen = Seen::Request { map, method: method.as_str(), path, authority: &authority };
        said::value(text, call, &seen)
    });
}

/// Applies the rule to a response.
pub(crate) fn response<B>(
    response: &mut Response<B>,
    to: Option<&WeightedDestination>,
    call: Call<'_>,
    upstream: Option<SocketAddr>,
    kept: &Kept,
) {
    if call.decision.rule.is_some() {
        let status = response.status().as_u16();
        headers(response.headers_mut(), actions::header_ops(call.decision, to, true), |text, map| {
            said::value(text, call, &Seen::Response { map, status, upstream, kept })
        });
    }
}

/// All removals of both levels first, then what each level sets and adds.
fn headers<'v>(
    map: &mut HeaderMap,
    levels: [Option<&'v HeaderOp>; 2],
    value: impl Fn(&'v HeaderText, &HeaderMap) -> Option<Cow<'v, [u8]>>,
) {
    for op in levels.into_iter().flatten() {
        for name in &op.remove {
            map.remove(&**name);
        }
    }
    for op in levels.into_iter().flatten() {
        for (name, text) in &op.set {
            if let Some((name, value)) = pair(name, value(text, map)) {
                map.insert(name, value);
            }
        }
        for (name, text) in &op.add {
            if let Some((name, value)) = pair(name, value(text, map)) {
                map.append(name, value);
            }
        }
    }
}

fn pair(name: &str, value: Option<Cow<'_, [u8]>>) -> Option<(HeaderName, HeaderValue)> {
    Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_bytes(&value?).ok()?))
}

fn with_path(uri: &Uri, path: &str) -> Option<Uri> {
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path.parse().ok()?);
    Uri::from_parts(parts).ok()
}

fn with_authority(uri: &Uri, authority: &str) -> Option<Uri> {
    uri.authority()?;
    let mut parts = uri.clone().into_parts();
    parts.authority = Some(authority.parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// Takes out what is between two neighbours only.
pub(crate) fn hop_by_hop(map: &mut HeaderMap) {
    if map.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = map
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .filter_map(|n| n.trim().parse().ok())
            // Their loss would change the message itself; nobody may ask for that.
            .filter(|n| ![header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING].contains(n))
            .collect();
        for name in named {
            map.remove(name);
        }
        map.remove(header::CONNECTION);
    }
    map.remove(&KEEP_ALIVE);
    map.remove(&PROXY_CONNECTION);
    map.remove(header::PROXY_AUTHORIZATION);
    map.remove(header::UPGRADE);
    map.remove(header::TRANSFER_ENCODING);
    let keeps = |v: &HeaderValue| v.as_bytes().eq_ignore_ascii_case(b"trailers");
    if map.get(header::TE).is_some_and(|v| !keeps(v)) {
        map.remove(header::TE);
    }
}

/// The protocol that the client wants to change to, if it asks properly.
pub(crate) fn upgrade_wanted<B>(request: &Request<B>) -> Option<HeaderValue> {
    let asks = |v: &HeaderValue| {
        v.to_str().is_ok_and(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case("upgrade")))
    };
    if request.version() != Version::HTTP_11
        || !request.headers().get_all(header::CONNECTION).iter().any(asks)
    {
        return None;
    }
    let wanted = request.headers().get(header::UPGRADE)?;
    // HTTP/2 by upgrade would carry requests past the rules; without the header the client stays with HTTP/1.
    let h2c = |v: &str| v.split(',').any(|t| t.trim().eq_ignore_ascii_case("h2c"));
    if wanted.to_str().map_or(true, h2c) { None } else { Some(wanted.clone()) }
}

/// Asks the endpoint for the change.
pub(crate) fn ask_upgrade(map: &mut HeaderMap, protocol: HeaderValue) {
    map.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    map.insert(header::UPGRADE, protocol);
}

/// Puts a request into the form in which it travels: HTTP/1 has the path in its first line and the authority in
/// `Host`, HTTP/2 has both in its pseudo headers.
pub(crate) fn travel_form<B>(request: &mut Request<B>, h2: bool) {
    let plain = request.uri().authority().is_none() && request.headers().contains_key(header::HOST);
    if plain && !h2 {
        // What almost every HTTP/1 request looks like already.
        *request.version_mut() = Version::HTTP_11;
        return;
    }
    let host = view::authority(request.uri(), request.headers()).to_owned();
    let path = request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let mut parts = Parts::default();
    parts.path_and_query = Some(path);
    if h2 {
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = host.parse::<Authority>().ok().or(Some(Authority::from_static("unknown")));
        request.headers_mut().remove(header::HOST);
        *request.version_mut() = Version::HTTP_2;
    } else {
        // An absolute form or a pseudo header counts, whatever `Host` says beside it.
        if let Ok(value) = HeaderValue::from_str(&host) {
            request.headers_mut().insert(header::HOST, value);
        }
        *request.version_mut() = Version::HTTP_11;
    }
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}
