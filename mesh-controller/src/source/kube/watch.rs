//! Follows one kind for ever.

use std::{collections::HashSet, time::Duration};

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIGroup;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject},
    core::GroupVersionKind,
    runtime::{WatchStreamExt, watcher},
};
use mesh_index::{Kind, ObjectKey};
use serde_json::{Map, Value};

use super::{Gone, Health, Op, Sync, pauses::Pauses};

/// How often to look whether a CRD has been installed.
const CRD_POLL: Duration = Duration::from_secs(1);
/// After a failed discovery.
const RETRY: Duration = Duration::from_secs(2);
/// A watch that failed and was resumed says nothing until something changes; no further failure for longer than the
/// longest pause between two tries means that it works.
const RECOVERED: Duration = Duration::from_secs(15);
/// Events taken at once when they are there.
const CHUNK: usize = 512;

pub(super) struct Follower {
    pub(super) kind: Kind,
    pub(super) client: Client,
    pub(super) sync: Sync,
    pub(super) health: Health,
}

/// Why a watch has ended.
enum End {
    /// The kind is no longer served in that version.
    NotServed,
    /// Nobody listens any more.
    Gone,
}

impl Follower {
    pub(super) async fn run(self) {
        while self.round().await.is_ok() {}
    }

    async fn round(&self) -> Result<(), Gone> {
        let part = self.kind.label();
        match self.discover().await {
            Ok(Some(resource)) => match self.watch(&resource).await {
                End::NotServed => Ok(()),
                End::Gone => Err(Gone),
            },
            Ok(None) => {
                self.health.waiting(part);
                // With the CRD its objects are gone too.
                self.sync.send(vec![Op::Retain(self.kind, HashSet::new())]).await?;
                self.sync.complete(self.kind).await?;
                tokio::time::sleep(CRD_POLL).await;
                Ok(())
            }
            Err(error) => {
                self.health.problem(part, crate::chain(&error));
                tokio::time::sleep(RETRY).await;
                Ok(())
            }
        }
    }

    /// The newest version that the server has; `None` when it has none.
    async fn discover(&self) -> Result<Option<ApiResource>, kube::Error> {
        let kind = self.kind;
        // Only policies of Gateway API refer to ConfigMaps; whoever has none need not grant us all of them.
        let group =
            if kind == Kind::ConfigMap { istio_compat::gateway_api::objects::GROUP } else { kind.group() };
        if !kind.is_custom() && kind != Kind::ConfigMap {
            return Ok(Some(resource(kind, kind.versions()[0])));
        }
        let path = format!("/apis/{group}");
        let get = http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        let group: APIGroup = match self.client.request(get).await {
            Err(error) if is_not_found(&error) => return Ok(None),
            other => other?,
        };
        if kind == Kind::ConfigMap {
            return Ok(Some(resource(kind, "v1")));
        }
        for version in kind.versions() {
            if !group.versions.iter().any(|v| v.version == *version) {
                continue;
            }
            match self.client.list_api_group_resources(&format!("{}/{version}", kind.group())).await {
                Ok(list) if list.resources.iter().any(|r| r.kind == kind.as_str()) => {
                    return Ok(Some(resource(kind, version)));
                }
                Ok(_) => {}
                Err(error) if is_not_found(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    async fn watch(&self, resource: &ApiResource) -> End {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), resource);
        // "Any" lists are answered from the API server's cache; what is missing follows as events.
        let config = watcher::Config::default().any_semantic();
        let stream = watcher(api, config).backoff(Pauses::new(rand::random::<f64>));
        let mut events = std::pin::pin!(stream.ready_chunks(CHUNK));
        let mut listed = HashSet::new();
        let mut failed = false;
        loop {
            let next = tokio::time::timeout(if failed { RECOVERED } else { Duration::MAX }, events.next());
            let chunk = match next.await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return End::NotServed,
                Err(_quiet) => {
                    self.health.fine(self.kind.label());
                    failed = false;
                    continue;
                }
            };
            let mut ops = Vec::with_capacity(chunk.len());
            let (mut complete, mut said) = (false, false);
            for event in chunk {
                match event {
                    Ok(event) => complete |= self.take(event, resource, &mut listed, &mut ops),
                    Err(error) => {
                        if is_gone(&error) {
                            return End::NotServed;
                        }
                        // Without the right to read them everything but the CA certificates in them works: it is said,
                        // and nobody waits for it.
                        complete |= self.kind == Kind::ConfigMap && is_forbidden(&error);
                        said = true;
                        self.health.problem(self.kind.label(), crate::chain(&error));
                        failed = true;
                    }
                }
            }
            if self.sync.send(ops).await.is_err() {
                return End::Gone;
            }
            if complete {
                if !said {
                    self.health.fine(self.kind.label());
                }
                if self.sync.complete(self.kind).await.is_err() {
                    return End::Gone;
                }
            }
        }
    }

    /// Turns an event into operations; `true` when a list is complete.
    fn take(
        &self,
        event: watcher::Event<DynamicObject>,
        resource: &ApiResource,
        listed: &mut HashSet<ObjectKey>,
        ops: &mut Vec<Op>,
    ) -> bool {
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitApply(object) => {
                listed.insert(self.key(&object));
                ops.push(Op::Apply(manifest(object, resource)));
            }
            watcher::Event::InitDone => {
                ops.push(Op::Retain(self.kind, std::mem::take(listed)));
                return true;
            }
            watcher::Event::Apply(object) => {
                self.health.fine(self.kind.label());
                ops.push(Op::Apply(manifest(object, resource)));
            }
            watcher::Event::Delete(object) => ops.push(Op::Delete(self.key(&object))),
        }
        false
    }

    fn key(&self, object: &DynamicObject) -> ObjectKey {
        let meta = &object.metadata;
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        ObjectKey::new(self.kind, &text(&meta.namespace), &text(&meta.name))
    }
}

fn resource(kind: Kind, version: &str) -> ApiResource {
    let plural = kind.plural();
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(kind.group(), version, kind.as_str()), &plural)
}

/// The object as a manifest. Items of lists do not say their kind; managed fields say nothing to us.
fn manifest(object: DynamicObject, resource: &ApiResource) -> Value {
    let DynamicObject { mut metadata, data, .. } = object;
    metadata.managed_fields = None;
    let mut map = match data {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    map.insert("apiVersion".to_owned(), resource.api_version.clone().into());
    map.insert("kind".to_owned(), resource.kind.clone().into());
    map.insert("metadata".to_owned(), serde_json::to_value(metadata).unwrap_or_default());
    Value::Object(map)
}

fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether the account lacks the right to list or watch the kind.
fn is_forbidden(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.code == 403,
        _ => false,
    }
}

/// Whether the kind itself is not served: a list never answers 404 otherwise.
fn is_gone(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(e)
        | watcher::Error::WatchStartFailed(e)
        | watcher::Error::WatchFailed(e) => is_not_found(e),
        watcher::Error::WatchError(status) => status.code == 404,
        watcher::Error::NoResourceVersion => false,
    }
}
