//! What a service-account token says of itself. None of it is proved.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use mesh_ca::NodeName;
use serde::Deserialize;

use super::{ACCOUNT_PREFIX, Accounts, Refused};
use crate::registry::Origin;

/// Clocks differ by less than this, or the API server says what is wrong.
const SKEW: u64 = 60;

/// The claims that matter here.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Claims {
    #[serde(default)]
    aud: Audiences,
    #[serde(default)]
    sub: String,
    #[serde(default)]
    exp: u64,
    #[serde(rename = "kubernetes.io", default)]
    bound: Bound,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

impl Default for Audiences {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

#[derive(Debug, Default, Deserialize)]
struct Bound {
    #[serde(default)]
    node: Option<Named>,
    #[serde(default)]
    pod: Option<Named>,
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
}

impl Claims {
    /// Reads the middle part of a token.
    pub(super) fn of(token: &str) -> Result<Self, Refused> {
        let mut parts = token.split('.');
        let (Some(_), Some(body), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Refused::Malformed("it has not three parts"));
        };
        let json =
            URL_SAFE_NO_PAD.decode(body).map_err(|_| Refused::Malformed("its claims are not base64"))?;
        serde_json::from_slice(&json).map_err(|_| Refused::Malformed("its claims are not JSON"))
    }

    /// Whether the token could let `node` in, if all that it says is true.
    pub(super) fn check(&self, accounts: &Accounts, node: &NodeName, now: u64) -> Result<(), Refused> {
        let audiences = match &self.aud {
            Audiences::One(one) => std::slice::from_ref(one),
            Audiences::Many(all) => all,
        };
        if !audiences.contains(&accounts.audience) {
            let wanted = accounts.audience.clone();
            return Err(Refused::Audience { found: audiences.join(", "), wanted });
        }
        let account = self.sub.strip_prefix(ACCOUNT_PREFIX).unwrap_or(&self.sub).replacen(':', "/", 1);
        let origin = accounts.origin(&account)?;
        if self.exp.saturating_add(SKEW) < now {
            return Err(Refused::Expired(now - self.exp));
        }
        let Some(pod) = &self.bound.pod else { return Err(Refused::NotAPod) };
        let wanted = node.to_string();
        match (origin, &self.bound.node) {
            (Origin::PodServiceAccount, _) if pod.name != wanted => {
                Err(Refused::OtherPod { found: pod.name.clone(), wanted })
            }
            (Origin::NodeServiceAccount, Some(on)) if on.name != wanted => {
                Err(Refused::OtherNode { found: on.name.clone(), wanted })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            audience: "mesh".to_owned(),
            of_nodes: vec!["sys/proxy".to_owned()],
            of_pods: vec!["sys/gateway".to_owned()],
        }
    }

    fn claims() -> Value {
        json!({ "aud": ["mesh"], "sub": "system:serviceaccount:sys:proxy", "exp": 2000,
            "kubernetes.io": { "pod": { "name": "proxy-x" }, "node": { "name": "edge-a" } } })
    }

    fn checked(claims: &Value) -> Result<(), Refused> {
        let token = format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()));
        Claims::of(&token)?.check(&accounts(), &NodeName::new("edge-a").unwrap(), 1000)
    }

    #[test]
    fn each_refusal_says_what_is_wrong() {
        assert_eq!(checked(&claims()), Ok(()));
        let with = |pointer: &str, value: Value| {
            let mut changed = claims();
            *changed.pointer_mut(pointer).unwrap() = value;
            checked(&changed).unwrap_err()
        };
        assert_eq!(with("/aud", json!("api")).label(), "audience");
        assert_eq!(with("/sub", json!("system:serviceaccount:other:proxy")).label(), "account");
        assert_eq!(with("/sub", json!("admin")).label(), "account");
        assert_eq!(with("/sub", json!("system:serviceaccount:sys:gateway")).label(), "other_pod");
        assert_eq!(with("/kubernetes.io/pod", Value::Null).label(), "no_pod");
        assert_eq!(with("/kubernetes.io/node/name", json!("edge-b")).label(), "other_node");
        assert_eq!(with("/exp", json!(900)), Refused::Expired(100));
        let text = with("/kubernetes.io/node/name", json!("edge-b")).to_string();
        assert!(text.contains("edge-a") && text.contains("edge-b"), "{text}");
    }

    #[test]
    fn what_is_no_token_is_refused_without_asking() {
        for text in ["", "a.b", "a.b.c.d", "a.!!.c", "a.bm8.c", "selvage1.abc"] {
            assert_eq!(Claims::of(text).unwrap_err().label(), "malformed", "{text}");
        }
        // Neither numbers nor names where they do not belong do harm.
        let odd = json!({ "aud": 7 });
        assert_eq!(checked(&odd).unwrap_err().label(), "malformed");
        assert_eq!(checked(&json!({})).unwrap_err().label(), "audience");
    }
}
