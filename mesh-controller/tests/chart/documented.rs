//! What docs/install.md tells people to type, typed.

use std::time::Instant;

use mesh_testkit::kube::eventually;
use serde_json::json;

use crate::{
    mesh::Report,
    shop::{CLIENT, Shop, deployment, root},
};

/// The images of Istio's sample, by our program: the closed world has no registry.
pub(crate) const STAND_INS: [(&str, &[&str]); 6] = [
    ("istio/examples-bookinfo-productpage-v1:1.20.3", &["serve", "--app", "productpage"]),
    ("istio/examples-bookinfo-details-v1:1.20.3", &["serve", "--app", "details"]),
    ("istio/examples-bookinfo-ratings-v1:1.20.3", &["serve", "--app", "ratings"]),
    ("istio/examples-bookinfo-reviews-v1:1.20.3", &["serve", "--app", "reviews"]),
    ("istio/examples-bookinfo-reviews-v2:1.20.3", &["serve", "--app", "reviews", "--version", "v2"]),
    ("istio/examples-bookinfo-reviews-v3:1.20.3", &["serve", "--app", "reviews", "--version", "v3"]),
];

/// The shell blocks of a section of the page.
fn blocks(page: &str, section: &str) -> Vec<String> {
    let text =
        page.split("\n## ").find(|part| part.starts_with(section)).unwrap_or_else(|| panic!("{section}"));
    let found: Vec<String> =
        text.split("```sh\n").skip(1).filter_map(|b| Some(b.split("```").next()?.to_owned())).collect();
    assert!(!found.is_empty(), "{section}: nothing to type");
    found
}

fn typed(shop: &Shop, page: &str, section: &str) -> String {
    typed_with(shop, page, section, &[])
}

/// The same with names of this cluster in place of the page's.
pub(crate) fn typed_with(shop: &Shop, page: &str, section: &str, names: &[(&str, &str)]) -> String {
    let start = Instant::now();
    let here =
        |block: &String| names.iter().fold(block.clone(), |text, (of_page, own)| text.replace(of_page, own));
    let said: Vec<String> = blocks(page, section)
        .iter()
        .map(here)
        .map(|block| shop.cluster.script(&root(), &block).unwrap_or_else(|e| panic!("{section}: {e}")))
        .collect();
    println!("docs/install.md, {section}: {:.1} s", start.elapsed().as_secs_f64());
    said.concat()
}

/// From a plain cluster to a canary, as the page says, and back.
pub(crate) fn install_to_canary(shop: &Shop) {
    let page = std::fs::read_to_string(root().join("docs/install.md")).unwrap();
    // The chart's own tag, which nobody has pushed anywhere yet.
    for program in ["mesh-proxy", "mesh-controller"] {
        shop.cluster.tag(&format!("selvage/{program}:test"), &format!("selvage/{program}:0.1.0")).unwrap();
    }
    typed(shop, &page, "1. Install");
    typed(shop, &page, "2. Something that calls something");
    let (app, version, node) = CLIENT;
    let client = json!({ "apiVersion": "v1", "kind": "List", "items": [deployment(app, version, node)] });
    shop.cluster.apply(&client.to_string()).unwrap();
    shop.cluster.kubectl(&["rollout", "status", "deployment/client-v1", "--timeout=90s"]).unwrap();
    let limit = std::time::Duration::from_secs(30);
    let versions = |wanted: &'static [&'static str]| {
        move || -> Result<(), Report> {
            let report = shop.call("reviews", 40);
            if report.failed == 0 && report.versions == wanted { Ok(()) } else { Err(report) }
        }
    };
    eventually(limit, std::time::Duration::ZERO, versions(&["v1"])).unwrap();
    let said = typed(shop, &page, "3. A canary");
    assert!(!said.trim().is_empty());
    eventually(limit, std::time::Duration::ZERO, versions(&["v1", "v3"])).unwrap();
    let seen = typed(shop, &page, "4. See it");
    assert!(seen.contains("destination_service_name=\"reviews\""), "{seen}");
    crate::kubeedge::a_node_of_the_edge(shop, &page);
    typed(shop, &page, "Upgrade, roll back, remove");
    for file in ["networking/virtual-service-all-v1.yaml", "networking/destination-rule-all.yaml"] {
        let path = root().join("examples/bookinfo").join(file);
        shop.cluster.kubectl(&["delete", "--ignore-not-found", "-f", path.to_str().unwrap()]).unwrap();
    }
}
