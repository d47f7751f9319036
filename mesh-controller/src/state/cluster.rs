//! State in the objects of a cluster: Secrets for the CA and for join tokens, MeshNodes for the registry. The API server's
//! versions make sure that of several who change an object one succeeds.

use std::{collections::BTreeMap, fmt, path::Path, sync::Arc};

use anyhow::Context;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, ObjectMeta, PostParams, Preconditions},
    core::GroupVersionKind,
};
use mesh_ca::{
    Authority, AuthorityError, Document, Kept, Lives, Put, Shelf, StateStore, Step, StoreError, TokenStore,
    TrustDomain, cluster, renewal::Others,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::{CALL, Place};

/// Steps of the CA at a time, and other writers that are met meanwhile: one or two.
const TRIES: usize = 8;
/// Objects of one answer to a list.
const PAGE: u32 = 500;

/// State in a namespace of a cluster. Its calls block, and must not run on a thread of the runtime.
#[derive(Clone)]
pub struct KubeState {
    place: Place,
    handle: Handle,
}

impl fmt::Debug for KubeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubeState").field("namespace", &self.place.namespace).finish_non_exhaustive()
    }
}

impl KubeState {
    /// The state in `namespace`; what is made belongs to the ConfigMap `owner`, if one is named.
    pub async fn new(client: Client, namespace: &str, owner: &str) -> anyhow::Result<Self> {
        let owner = match owner {
            "" => None,
            name => {
                let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
                let found = api.get(name).await.with_context(|| format!("stateOwner {namespace}/{name}"))?;
                Some(OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "ConfigMap".to_owned(),
                    name: name.to_owned(),
                    uid: found.metadata.uid.unwrap_or_default(),
                    ..OwnerReference::default()
                })
            }
        };
        let place = Place { client, namespace: namespace.to_owned(), owner };
        Ok(Self { place, handle: Handle::current() })
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    fn wait<T>(
        &self,
        operation: &'static str,
        name: &str,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, StoreError> {
        let answered = self.handle.block_on(async { tokio::time::timeout(CALL, call).await });
        match answered {
            Ok(answer) => answer.map_err(|e| StoreError::new(operation, name, e)),
            Err(_) => Err(StoreError::new(operation, name, "the API server does not answer")),
        }
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.place.client.clone(), &self.place.namespace)
    }
}

/// The CA.
impl KubeState {
    fn ca_place(&self) -> String {
        format!("Secret {}/{}", self.place.namespace, cluster::CA)
    }

    /// The Secret of the CA, which is made when there is none.
    fn ca_secret(
        &self,
        trust_domain: &TrustDomain,
        lives: &Lives,
        now: u64,
    ) -> Result<Secret, AuthorityError> {
        let (api, name) = (self.secrets(), cluster::CA);
        if let Some(found) = self.wait("read Secret", name, api.get_opt(name))? {
            return Ok(found);
        }
        let new = Kept::new(trust_domain, lives, now)?;
        let (metadata, data) = (self.place.metadata(name), Some(data_of(&new)));
        let secret = Secret { metadata, data, ..Secret::default() };
        let made = self.wait("create Secret", name, async {
            none_on(409, api.create(&PostParams::default(), &secret).await)
        })?;
        match made {
            Some(made) => Ok(made),
            // Another replica was first: its CA is ours.
            None => Ok(self.wait("read Secret", name, api.get(name))?),
        }
    }

    fn kept(&self, secret: &Secret) -> Result<Kept, AuthorityError> {
        let corrupt = |key: &str, reason: String| AuthorityError::Corrupt {
            path: Path::new(&self.ca_place()).join(key),
            reason,
        };
        let text = |key: &str| -> Result<Option<String>, AuthorityError> {
            let found = secret.data.as_ref().and_then(|data| data.get(key));
            let text = found.map(|bytes| String::from_utf8(bytes.0.clone())).transpose();
            text.map_err(|e| corrupt(key, e.to_string()))
        };
        let (key, certificate) = (text(cluster::CA_KEY)?, text(cluster::CA_CERTIFICATE)?);
        let (Some(key), Some(certificate)) = (key, certificate) else {
            return Err(AuthorityError::Incomplete(self.ca_place().into()));
        };
        let others = match text(cluster::CA_OTHERS)? {
            Some(json) => {
                Others::decode(json.as_bytes()).map_err(|e| corrupt(cluster::CA_OTHERS, e.to_string()))?
            }
            None => Others::default(),
        };
        Ok(Kept { key, certificate, others })
    }
}

fn data_of(kept: &Kept) -> BTreeMap<String, ByteString> {
    let others = kept.others.encode();
    let (key, certificate) = (kept.key.clone().into_bytes(), kept.certificate.clone().into_bytes());
    [(cluster::CA_KEY, key), (cluster::CA_CERTIFICATE, certificate), (cluster::CA_OTHERS, others)]
        .into_iter()
        .map(|(name, bytes)| (name.to_owned(), ByteString(bytes)))
        .collect()
}

impl Place {
    /// Name, label and owner of an object that the controller makes.
    pub(super) fn metadata(&self, name: &str) -> ObjectMeta {
        let (label, value) = cluster::MANAGED_BY;
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(self.namespace.clone()),
            labels: Some(BTreeMap::from([(label.to_owned(), value.to_owned())])),
            owner_references: self.owner.clone().map(|owner| vec![owner]),
            ..ObjectMeta::default()
        }
    }
}

impl StateStore for KubeState {
    fn authority(
        &self,
        trust_domain: &TrustDomain,
        lives: &Lives,
        now: u64,
    ) -> Result<(Authority, Vec<Step>), AuthorityError> {
        let mut steps = Vec::new();
        for _ in 0..TRIES {
            let secret = self.ca_secret(trust_domain, lives, now)?;
            let kept = self.kept(&secret)?;
            let asked =
                secret.metadata.annotations.as_ref().and_then(|all| all.get(cluster::CA_RENEW)?.parse().ok());
            let step = match (kept.step(trust_domain, lives, now)?, asked) {
                (None, Some(asked)) => kept.renewed(trust_domain, lives, asked, now)?,
                (step, _) => step,
            };
            let Some((new, step)) = step else {
                return Ok((Authority::of(&kept, trust_domain, Path::new(&self.ca_place()))?, steps));
            };
            // Of several replicas one changes it; the others look again.
            let changed = Secret { data: Some(data_of(&new)), ..secret };
            let written = self.wait("change Secret", cluster::CA, async {
                none_on(409, self.secrets().replace(cluster::CA, &PostParams::default(), &changed).await)
            })?;
            steps.extend(written.map(|_| step));
        }
        Err(StoreError::new("change Secret", cluster::CA, "it is changed all the time").into())
    }

    fn tokens(&self) -> Result<TokenStore, StoreError> {
        let shelf = ObjectShelf { state: self.clone(), api: self.secrets(), kind: Tokens };
        Ok(TokenStore::on(Arc::new(shelf)))
    }

    fn nodes(&self) -> Result<Arc<dyn Shelf>, StoreError> {
        let api =
            Api::namespaced_with(self.place.client.clone(), &self.place.namespace, &mesh_node_resource());
        Ok(Arc::new(ObjectShelf { state: self.clone(), api, kind: Nodes }))
    }
}

/// The kind of the node registry.
pub(super) fn mesh_node_resource() -> ApiResource {
    let (group, version, kind, plural) = cluster::MESH_NODE;
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
}

/// How documents are written as objects of a kind.
trait Kind: Send + Sync + 'static {
    type Object: Clone + Serialize + DeserializeOwned + fmt::Debug + Send + Sync + 'static;
    const WHAT: &'static str;
    fn object_name(&self, name: &str) -> String;
    fn list_params(&self) -> ListParams;
    fn object(&self, place: &Place, name: &str, content: &[u8], version: Option<&str>) -> Option<Value>;
    fn document(&self, object: &Value) -> Option<(String, Document)>;
}

struct Tokens;

impl Kind for Tokens {
    type Object = Secret;
    const WHAT: &'static str = "Secret";

    fn object_name(&self, name: &str) -> String {
        cluster::token_name(name)
    }

    fn list_params(&self) -> ListParams {
        let (label, value) = cluster::JOIN_TOKEN;
        ListParams::default().labels(&format!("{label}={value}")).limit(PAGE)
    }

    fn object(&self, place: &Place, name: &str, content: &[u8], version: Option<&str>) -> Option<Value> {
        let mut secret = cluster::token_secret(&place.namespace, name, content, version);
        if let Some(owner) = &place.owner {
            secret["metadata"]["ownerReferences"] = json!([owner]);
        }
        Some(secret)
    }

    fn document(&self, object: &Value) -> Option<(String, Document)> {
        cluster::token_of(object)
    }
}

struct Nodes;

impl Kind for Nodes {
    type Object = DynamicObject;
    const WHAT: &'static str = "MeshNode";

    fn object_name(&self, name: &str) -> String {
        name.to_owned()
    }

    fn list_params(&self) -> ListParams {
        ListParams::default().limit(PAGE)
    }

    fn object(&self, place: &Place, name: &str, content: &[u8], version: Option<&str>) -> Option<Value> {
        let (group, group_version, kind, _) = cluster::MESH_NODE;
        let mut metadata = place.metadata(name);
        metadata.resource_version = version.map(str::to_owned);
        let spec: Value = serde_json::from_slice(content).ok()?;
        let api_version = format!("{group}/{group_version}");
        Some(json!({ "apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec }))
    }

    fn document(&self, object: &Value) -> Option<(String, Document)> {
        node_document(object)
    }
}

/// Name and record of a MeshNode.
pub(super) fn node_document(object: &Value) -> Option<(String, Document)> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let content = serde_json::to_vec(object.get("spec")?).ok()?;
    Some((text("/metadata/name")?, Document { content, version: text("/metadata/resourceVersion")? }))
}

/// Documents as objects of one kind.
struct ObjectShelf<K: Kind> {
    state: KubeState,
    api: Api<K::Object>,
    kind: K,
}

impl<K: Kind> fmt::Debug for ObjectShelf<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectShelf")
            .field("kind", &K::WHAT)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl<K: Kind> ObjectShelf<K> {
    fn document(&self, object: &K::Object) -> Option<(String, Document)> {
        self.kind.document(&serde_json::to_value(object).ok()?)
    }

    fn build(&self, name: &str, content: &[u8], version: Option<&str>) -> Result<K::Object, StoreError> {
        let value = self.kind.object(&self.state.place, name, content, version);
        let value = value.ok_or_else(|| StoreError::new("encode", name, "not JSON"))?;
        serde_json::from_value(value).map_err(|e| StoreError::new("encode", name, e))
    }
}

impl<K: Kind> Shelf for ObjectShelf<K> {
    fn get(&self, name: &str) -> Result<Option<Document>, StoreError> {
        let object_name = self.kind.object_name(name);
        let found = self.state.wait("read", &object_name, self.api.get_opt(&object_name))?;
        Ok(found.and_then(|object| self.document(&object)).map(|(_, document)| document))
    }

    fn put(&self, name: &str, content: &[u8], seen: Option<&str>) -> Result<Put, StoreError> {
        let (object, object_name) = (self.build(name, content, seen)?, self.kind.object_name(name));
        let params = PostParams::default();
        let written = self.state.wait("write", &object_name, async {
            match seen {
                None => none_on(409, self.api.create(&params, &object).await),
                // Gone is another state than the one that was seen, too.
                Some(_) => match none_on(409, self.api.replace(&object_name, &params, &object).await) {
                    Err(error) => none_on(404, Err(error)),
                    other => other,
                },
            }
        })?;
        let version = written.and_then(|object| self.document(&object)).map(|(_, d)| d.version);
        Ok(version.map_or(Put::Conflict, Put::Done))
    }

    fn remove(&self, name: &str, seen: Option<&str>) -> Result<bool, StoreError> {
        let object_name = self.kind.object_name(name);
        let preconditions = seen.map(|v| Preconditions { resource_version: Some(v.to_owned()), uid: None });
        let params = DeleteParams { preconditions, ..DeleteParams::default() };
        let removed = self.state.wait("remove", &object_name, async {
            match none_on(404, self.api.delete(&object_name, &params).await.map(drop)) {
                Err(error) => none_on(409, Err(error)),
                other => other,
            }
        })?;
        Ok(removed.is_some())
    }

    fn versions(&self) -> Result<Vec<(String, String)>, StoreError> {
        Ok(self.list()?.into_iter().map(|(name, document)| (name, document.version)).collect())
    }

    fn list(&self) -> Result<Vec<(String, Document)>, StoreError> {
        let mut params = self.kind.list_params();
        let mut out = Vec::new();
        loop {
            let page = self.state.wait("list", K::WHAT, self.api.list(&params))?;
            out.extend(page.items.iter().filter_map(|object| self.document(object)));
            match page.metadata.continue_ {
                Some(token) if !token.is_empty() => params = params.continue_token(&token),
                _ => return Ok(out),
            }
        }
    }
}

/// An answer of this code is no error.
fn none_on<T>(code: u16, answer: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(kube::Error::Api(status)) if status.code == code => Ok(None),
        Err(error) => Err(error),
    }
}
