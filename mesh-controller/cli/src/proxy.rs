//! `meshctl proxy`: what a node's proxy knows, from its admin page.

mod fetch;
mod rows;

use anyhow::Result;
use serde_json::{Value, json};

use crate::{
    Outcome,
    args::{self, ProxyWhat},
    output,
};

/// A page as text.
pub(crate) fn fetch_text(admin: &str, page: &str) -> Result<String> {
    fetch::text(admin, page)
}

/// A page of JSON.
pub(crate) fn fetch(admin: &str, page: &str) -> Result<Value> {
    fetch::get(admin, page)
}

pub(crate) fn run(args: &args::Proxy) -> Result<Outcome> {
    let page = match args.what {
        ProxyWhat::Peers => "/peers",
        _ => "/config_dump",
    };
    let dump = fetch::get(&args.admin, page)?;
    let (value, view) = match &args.what {
        ProxyWhat::Status => {
            let status = rows::status(&dump);
            let view = rows::of_status(&status);
            (status, view)
        }
        ProxyWhat::Peers => {
            let view = rows::of_peers(&dump);
            (dump, view)
        }
        ProxyWhat::Services { filter } => shown(&dump, filter.as_deref(), rows::of_services),
        ProxyWhat::Routes { filter } => shown(&dump, filter.as_deref(), rows::of_routes),
        ProxyWhat::Endpoints { filter } => shown(&dump, filter.as_deref(), rows::of_endpoints),
    };
    output::print(args.format, &value, || output::table(&view.head, &view.rows))?;
    Ok(Outcome::Fine)
}

/// Services whose host contains the filter, and their rows.
fn shown(dump: &Value, filter: Option<&str>, view: fn(&[Value]) -> rows::View) -> (Value, rows::View) {
    let all = dump.get("services").and_then(Value::as_array).cloned().unwrap_or_default();
    let kept = |s: &Value| filter.is_none_or(|f| s["host"].as_str().is_some_and(|h| h.contains(f)));
    let list: Vec<Value> = all.into_iter().filter(kept).collect();
    let view = view(&list);
    (json!(list), view)
}
