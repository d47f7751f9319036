//! Follows one kind for ever.

use std::{collections::HashSet, sync::Arc, time::Duration};

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

use super::{Gone, Health, Op, Sync, Wanted, pauses::Pauses};

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
    pub(super) wanted: Arc<Wanted>,
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
            Ok(Some(resource)) => {
                let end = match self.kind {
                    Kind::ConfigMap => self.config_maps(&resource).await,
                    _ => self.watch(Api::all_with(self.client.clone(), &resource), &resource, None).await,
                };
                match end {
                    End::NotServed => Ok(()),
                    End::Gone => Err(Gone),
                }
            }
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
        if !kind.is_custom() {
            return Ok(Some(resource(kind, kind.versions()[0])));
        }
        let Some(group) = self.group(kind.group()).await? else { return Ok(None) };
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

    /// A group of kinds; `None` when the server has none of that name.
    async fn group(&self, name: &str) -> Result<Option<APIGroup>, kube::Error> {
        let path = format!("/apis/{name}");
        let get = http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        match self.client.request(get).await {
            Err(error) if is_not_found(&error) => Ok(None),
            other => other.map(Some),
        }
    }

    /// All ConfigMaps where policies of Gateway API may refer to them; else the one with Istio's settings: whoever has
    /// no Gateway API need not grant us the others.
    async fn config_maps(&self, resource: &ApiResource) -> End {
        let group = istio_compat::gateway_api::objects::GROUP;
        let installed = || async { matches!(self.group(group).await, Ok(Some(_))) };
        if self.wanted.gateway_api && installed().await {
            return self.watch(Api::all_with(self.client.clone(), resource), resource, None).await;
        }
        let api = Api::namespaced_with(self.client.clone(), &self.wanted.root_namespace, resource);
        let only = format!("metadata.name={}", istio_compat::mesh_config::CONFIG_MAP);
        let comes = async {
            loop {
                tokio::time::sleep(CRD_POLL).await;
                if self.wanted.gateway_api && installed().await {
                    return;
                }
            }
        };
        tokio::select! {
            end = self.watch(api, resource, Some(&only)) => end,
            // What was read so far is read again with the rest.
            () = comes => End::NotServed,
        }
    }

    /// Follows the objects, or those that the field selector `only` chooses.
    async fn watch(&self, api: Api<DynamicObject>, resource: &ApiResource, only: Option<&str>) -> End {
        // "Any" lists are answered from the API server's cache; what is missing follows as events.
        let mut config = watcher::Config::default().any_semantic();
        config.field_selector = only.map(str::to_owned);
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
                        // Without the right to read them all but the settings and CA certificates in them works: it is said,
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
