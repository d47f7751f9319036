//! What is wrong with objects when they are looked at together: references to what does not exist, rules that conflict or
//! never apply, names that hide a protocol. The codes, names and texts are those of Istio's analysis, so that what users
//! know of `istioctl analyze` holds here; `SLV…` codes are ours and say what this mesh does not honour.

mod annotations;
mod catalogue;
mod conditions;
mod deployment;
mod deprecation;
mod destination_rule;
mod envoy_filter;
mod gateway;
mod gateway_secret;
mod hosts;
mod injection;
mod judge;
mod mesh;
mod ours;
mod policy;
mod proxy_image;
mod reach;
mod report;
mod schema;
mod service;
mod service_entry;
mod sidecar;
mod telemetry;
mod virtual_service;
mod virtual_service_gateway;
mod webhook;
mod workload;
mod world;

pub use catalogue::{CODES, Code};
pub use judge::{Judgement, judge};
pub use ours::not_honoured;
pub use report::{Level, Message};
pub use world::{Kind, Name, Object, Options, World};

use report::Report;

/// One check.
pub struct Analyzer {
    /// Name of the check, as Istio's where it is one of Istio's.
    pub name: &'static str,
    /// Whether it runs unless asked for by name.
    pub by_default: bool,
    run: fn(&World, &mut Report),
}

const fn check(name: &'static str, run: fn(&World, &mut Report)) -> Analyzer {
    Analyzer { name, by_default: true, run }
}

/// All checks.
pub static ANALYZERS: &[Analyzer] = &[
    check("annotations.K8sAnalyzer", annotations::kubernetes),
    Analyzer { name: "maturity.AlphaAnalyzer", by_default: false, run: annotations::alpha },
    check("authn.BlockedCIDRsAnalyzer", policy::blocked_cidrs),
    check("authz.AuthorizationPoliciesAnalyzer", policy::authorization),
    check("conditions.ConditionAnalyzer", conditions::negative),
    check("deployment.ServiceAssociationAnalyzer", deployment::services),
    check("deployment.ApplicationUIDAnalyzer", deployment::user_id),
    check("destinationrule.CaCertificateAnalyzer", destination_rule::ca_certificates),
    check("destinationrule.PodNotSelectedAnalyzer", destination_rule::subsets),
    check("deprecation.FieldAnalyzer", deprecation::fields),
    check("envoyfilter.EnvoyPatchAnalyzer", envoy_filter::patches),
    check("externalcontrolplane.ExternalControlPlaneAnalyzer", webhook::external_control_plane),
    check("gateway.IngressGatewayPortAnalyzer", gateway::ports),
    check("gateway.CertificateAnalyzer", gateway::certificates),
    check("gateway.SecretAnalyzer", gateway_secret::secrets),
    check("gateway.ConflictingGatewayAnalyzer", gateway::conflicts),
    check("injection.Analyzer", injection::namespaces),
    check("injection.ImageAnalyzer", proxy_image::mismatch),
    check("injection.ImageAutoAnalyzer", injection::image_auto),
    check("k8sgateway.SelectorAnalyzer", policy::kubernetes_gateway_selectors),
    check("k8sgateway.CRDVersionAnalyzer", mesh::crd_versions),
    check("multicluster.MeshNetworksAnalyzer", mesh::networks),
    check("service.PortNameAnalyzer", service::port_names),
    check("sidecar.SelectorAnalyzer", sidecar::selectors),
    check("virtualservice.ConflictingMeshGatewayHostsAnalyzer", virtual_service::conflicting_hosts),
    check("virtualservice.DestinationHostAnalyzer", virtual_service::destination_hosts),
    check("virtualservice.DestinationRuleAnalyzer", virtual_service::subsets),
    check("virtualservice.GatewayAnalyzer", virtual_service_gateway::gateways),
    check("virtualservice.JWTClaimRouteAnalyzer", virtual_service_gateway::jwt_claims),
    check("serviceentry.ProtocolAddressesAnalyzer", service_entry::addresses),
    check("serviceentry.ConflictingServiceEntryProtocolAnalyzer", service_entry::protocols),
    check("webhook.Analyzer", webhook::overlaps),
    check("telemetry.ProviderAnalyzer", telemetry::providers),
    check("telemetry.SelectorAnalyzer", telemetry::selectors),
    check("telemetry.DefaultSelectorAnalyzer", telemetry::without_selector),
    check("telemetry.LightstepAnalyzer", telemetry::lightstep),
    check("schemaValidation.CollectionValidationAnalyzer", schema::validation),
    check("selvage.SupportAnalyzer", ours::support),
];

/// Everything that the default checks say.
pub fn analyze(world: &World) -> Vec<Message> {
    run(world, |a| a.by_default)
}

/// What the checks that `wanted` picks say.
pub fn run(world: &World, wanted: impl Fn(&Analyzer) -> bool) -> Vec<Message> {
    let mut report = Report::default();
    for analyzer in ANALYZERS.iter().filter(|a| wanted(a)) {
        (analyzer.run)(world, &mut report);
    }
    report.finish()
}

#[cfg(test)]
mod tests;
