//! The codes that analysis knows: number, name, level and text of Istio's catalogue, and our own.

use super::Level::{self, Error, Info, Warning};

/// One code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code {
    /// For example `IST0101`.
    pub code: &'static str,
    /// For example `ReferencedResourceNotFound`.
    pub name: &'static str,
    /// How bad it is.
    pub level: Level,
    /// The text, with `%s`, `%d`, `%v` and `%q` for its parts in order.
    pub template: &'static str,
}

const fn code(code: &'static str, level: Level, name: &'static str, template: &'static str) -> Code {
    Code { code, name, level, template }
}

/// All codes, in order.
pub static CODES: &[Code] = &[
    code("IST0001", Error, "InternalError", "Internal error: %v"),
    code("IST0002", Warning, "Deprecated", "Deprecated: %s"),
    code("IST0101", Error, "ReferencedResourceNotFound", "Referenced %s not found: %q"),
    code(
        "IST0102",
        Info,
        "NamespaceNotInjected",
        "The namespace is not enabled for Istio injection. Run 'kubectl label namespace %s istio-injection=enabled' to enable it, or 'kubectl label namespace %s istio-injection=disabled' to explicitly mark it as not needing injection.",
    ),
    code(
        "IST0103",
        Warning,
        "PodMissingProxy",
        "The pod %s is missing the Istio proxy. This can often be resolved by restarting or redeploying the workload.",
    ),
    code("IST0106", Error, "SchemaValidationError", "Schema validation error: %v"),
    code("IST0107", Warning, "MisplacedAnnotation", "Misplaced annotation: %s can only be applied to %s"),
    code("IST0108", Warning, "UnknownAnnotation", "Unknown annotation: %s"),
    code(
        "IST0109",
        Error,
        "ConflictingMeshGatewayVirtualServiceHosts",
        "The VirtualServices %s associated with mesh gateway define the same host %s which can lead to undefined behavior. This can be fixed by merging the conflicting VirtualServices into a single resource.",
    ),
    code(
        "IST0110",
        Error,
        "ConflictingSidecarWorkloadSelectors",
        "The Sidecars %v in namespace %q select the same workload pod %q, which can lead to undefined behavior.",
    ),
    code(
        "IST0111",
        Error,
        "MultipleSidecarsWithoutWorkloadSelectors",
        "The Sidecars %v in namespace %q have no workload selector, which can lead to undefined behavior.",
    ),
    code(
        "IST0112",
        Error,
        "VirtualServiceDestinationPortSelectorRequired",
        "This VirtualService routes to a service %q that exposes multiple ports %v. Specifying a port in the destination is required to disambiguate.",
    ),
    code(
        "IST0116",
        Warning,
        "DeploymentAssociatedToMultipleServices",
        "This deployment %s is associated with multiple services using port %d but different protocols: %v",
    ),
    code(
        "IST0118",
        Info,
        "PortNameIsNotUnderNamingConvention",
        "Port name %s (port: %d, targetPort: %s) doesn't follow the naming convention of Istio port.",
    ),
    code(
        "IST0123",
        Warning,
        "NamespaceMultipleInjectionLabels",
        "The namespace has more than one type of injection labels %v, which may lead to undefined behavior. Make sure only one injection label exists.",
    ),
    code("IST0125", Warning, "InvalidAnnotation", "Invalid annotation %s: %s"),
    code("IST0126", Error, "UnknownMeshNetworksServiceRegistry", "Unknown service registry %s in network %s"),
    code(
        "IST0127",
        Warning,
        "NoMatchingWorkloadsFound",
        "No matching workloads for this resource with the following labels: %s",
    ),
    code(
        "IST0128",
        Warning,
        "NoServerCertificateVerificationDestinationLevel",
        "DestinationRule %s in namespace %s has TLS mode set to %s but no caCertificates are set to validate server identity for host: %s",
    ),
    code(
        "IST0129",
        Warning,
        "NoServerCertificateVerificationPortLevel",
        "DestinationRule %s in namespace %s has TLS mode set to %s but no caCertificates are set to validate server identity for host: %s at port %s",
    ),
    code("IST0130", Warning, "VirtualServiceUnreachableRule", "VirtualService rule %v not used (%s)."),
    code(
        "IST0131",
        Info,
        "VirtualServiceIneffectiveMatch",
        "VirtualService rule %v match %v is not used (duplicate/overlapping match in rule %v).",
    ),
    code(
        "IST0132",
        Warning,
        "VirtualServiceHostNotFoundInGateway",
        "one or more host %v defined in VirtualService %s not found in Gateway %s.",
    ),
    code("IST0133", Warning, "SchemaWarning", "Schema validation warning: %v"),
    code(
        "IST0134",
        Warning,
        "ServiceEntryAddressesRequired",
        "ServiceEntry addresses are required for this protocol.",
    ),
    code(
        "IST0135",
        Info,
        "DeprecatedAnnotation",
        "Annotation %q has been deprecated%s and may not work in future Istio versions.",
    ),
    code(
        "IST0136",
        Info,
        "AlphaAnnotation",
        "Annotation %q is part of an alpha-phase feature and may be incompletely supported.",
    ),
    code(
        "IST0137",
        Warning,
        "DeploymentConflictingPorts",
        "This deployment %s is associated with multiple services %v using targetPort %q but different ports: %v.",
    ),
    code(
        "IST0138",
        Warning,
        "GatewayDuplicateCertificate",
        "Duplicate certificate in multiple gateways %v may cause 404s if clients re-use HTTP2 connections.",
    ),
    code("IST0139", Error, "InvalidWebhook", "%v"),
    code(
        "IST0140",
        Warning,
        "IngressRouteRulesNotAffected",
        "Subset in virtual service %s has no effect on ingress gateway %s requests",
    ),
    code(
        "IST0141",
        Error,
        "InsufficientPermissions",
        "Missing required permission to create resource %v (%v)",
    ),
    code(
        "IST0142",
        Error,
        "UnsupportedKubernetesVersion",
        "The Kubernetes Version %q is lower than the minimum version: %v",
    ),
    code(
        "IST0143",
        Error,
        "LocalhostListener",
        "Port %v is exposed in a Service but listens on localhost. It will not be exposed to other pods.",
    ),
    code(
        "IST0144",
        Warning,
        "InvalidApplicationUID",
        "User ID (UID) 1337 is reserved for the sidecar proxy.",
    ),
    code(
        "IST0145",
        Error,
        "ConflictingGateways",
        "Conflict with gateways %s (workload selector %s, port %s, hosts %v).",
    ),
    code(
        "IST0146",
        Warning,
        "ImageAutoWithoutInjectionWarning",
        "%s %s contains `image: auto` but does not match any Istio injection webhook selectors.",
    ),
    code(
        "IST0147",
        Error,
        "ImageAutoWithoutInjectionError",
        "%s %s contains `image: auto` but does not match any Istio injection webhook selectors.",
    ),
    code(
        "IST0148",
        Info,
        "NamespaceInjectionEnabledByDefault",
        "is enabled for Istio injection, as Istio is installed with enableNamespacesByDefault as true.",
    ),
    code(
        "IST0149",
        Error,
        "JwtClaimBasedRoutingWithoutRequestAuthN",
        "The virtual service uses the JWT claim based routing (key: %s) but found no request authentication for the gateway (%s) pod (%s). The request authentication must first be applied for the gateway pods to validate the JWT token and make the claims available for routing.",
    ),
    code(
        "IST0150",
        Warning,
        "ExternalNameServiceTypeInvalidPortName",
        "Port name for ExternalName service is invalid. Proxy may prevent tcp named ports and unmatched traffic for ports serving TCP protocol from being forwarded correctly",
    ),
    code(
        "IST0151",
        Warning,
        "EnvoyFilterUsesRelativeOperation",
        "This EnvoyFilter does not have a priority and has a relative patch operation set which can cause the EnvoyFilter not to be applied. Using the INSERT_FIRST of ADD option or setting the priority may help in ensuring the EnvoyFilter is applied correctly.",
    ),
    code(
        "IST0152",
        Error,
        "EnvoyFilterUsesReplaceOperationIncorrectly",
        "The REPLACE operation is only valid for HTTP_FILTER and NETWORK_FILTER.",
    ),
    code(
        "IST0153",
        Error,
        "EnvoyFilterUsesAddOperationIncorrectly",
        "The ADD operation will be ignored when applyTo is set to ROUTE_CONFIGURATION, or HTTP_ROUTE.",
    ),
    code(
        "IST0154",
        Error,
        "EnvoyFilterUsesRemoveOperationIncorrectly",
        "The REMOVE operation will be ignored when applyTo is set to ROUTE_CONFIGURATION, or HTTP_ROUTE.",
    ),
    code(
        "IST0155",
        Warning,
        "EnvoyFilterUsesRelativeOperationWithProxyVersion",
        "This EnvoyFilter does not have a priority and has a relative patch operation (NSTERT_BEFORE/AFTER, REPLACE, MERGE, DELETE) and proxyVersion set which can cause the EnvoyFilter not to be applied during an upgrade. Using the INSERT_FIRST or ADD option or setting the priority may help in ensuring the EnvoyFilter is applied correctly.",
    ),
    code(
        "IST0156",
        Error,
        "UnsupportedGatewayAPIVersion",
        "The Gateway API CRD version %v is lower than the minimum version: %v",
    ),
    code(
        "IST0157",
        Warning,
        "InvalidTelemetryProvider",
        "The Telemetry %v in namespace %q with empty providers will be ignored.",
    ),
    code(
        "IST0158",
        Warning,
        "PodsIstioProxyImageMismatchInNamespace",
        "The Istio proxy images of the pods running in the namespace do not match the image defined in the injection configuration (pod names: %v). This often happens after upgrading the Istio control-plane and can be fixed by redeploying the pods.",
    ),
    code(
        "IST0159",
        Error,
        "ConflictingTelemetryWorkloadSelectors",
        "The Telemetries %v in namespace %q select the same workload pod %q, which can lead to undefined behavior.",
    ),
    code(
        "IST0160",
        Error,
        "MultipleTelemetriesWithoutWorkloadSelectors",
        "The Telemetries %v in namespace %q have no workload selector, which can lead to undefined behavior.",
    ),
    code(
        "IST0161",
        Error,
        "InvalidGatewayCredential",
        "The credential referenced by the Gateway %s in namespace %s is invalid, which can cause the traffic not to work as expected.",
    ),
    code(
        "IST0162",
        Warning,
        "GatewayPortNotDefinedOnService",
        "The gateway is listening on a target port (port %d) that is not defined in the Service associated with its workload instances (Pod selector %s). If you need to access the gateway port through the gateway Service, it will not be available.",
    ),
    code(
        "IST0163",
        Warning,
        "InvalidExternalControlPlaneConfig",
        "The hostname (%s) that was provided for the webhook (%s) to reach the ingress gateway on the external control plane cluster %s. Traffic may not flow properly.",
    ),
    code(
        "IST0164",
        Info,
        "ExternalControlPlaneAddressIsNotAHostname",
        "The address (%s) that was provided for the webhook (%s) to reach the ingress gateway on the external control plane cluster is an IP address. This is not recommended for a production environment.",
    ),
    code(
        "IST0165",
        Warning,
        "ReferencedInternalGateway",
        "Gateway reference in VirtualService %s is to an implementation-generated internal Gateway: %s.",
    ),
    code(
        "IST0166",
        Warning,
        "IneffectiveSelector",
        "Ineffective selector on Kubernetes Gateway %s. Use the TargetRef field instead.",
    ),
    code("IST0167", Warning, "IneffectivePolicy", "The policy has no impact: %s."),
    code(
        "IST0168",
        Warning,
        "UnknownUpgradeCompatibility",
        "The configuration %q changed in release %s, but compatibility cannot be automatically detected: %s. Or, install with `--set compatibilityVersion=%s` to retain the old default.",
    ),
    code(
        "IST0169",
        Warning,
        "UpdateIncompatibility",
        "The configuration %q changed in release %s: %s. Or, install with `--set compatibilityVersion=%s` to retain the old default.",
    ),
    code(
        "IST0170",
        Warning,
        "MultiClusterInconsistentService",
        "The service %v in namespace %q is inconsistent across clusters %q, which can lead to undefined behaviors. The inconsistent behaviors are: %v.",
    ),
    code(
        "IST0171",
        Warning,
        "NegativeConditionStatus",
        "A condition with a negative status is present: type=%s, reason=%s, message=%s.",
    ),
    code(
        "IST0172",
        Warning,
        "FutureUnsupportedGatewayAPIVersion",
        "The Gateway API CRD version %v is lower than the minimum version: %v",
    ),
    code(
        "IST0173",
        Error,
        "DestinationRuleSubsetNotSelectPods",
        "The Subset %s defined in the DestinationRule does not select any pods. Which may lead to 503 UH (NoHealthyUpstream).",
    ),
    code(
        "IST0174",
        Warning,
        "UnknownDestinationRuleHost",
        "The host %s defined in the DestinationRule does not match any services in the mesh.",
    ),
    code(
        "IST0175",
        Warning,
        "JwksUriFetchUnrestricted",
        "BLOCKED_CIDRS_IN_JWKS_URIS is not configured but %d RequestAuthentication resource(s) exist (%s). Consider configuring it to restrict JWKS URI fetches to trusted networks.",
    ),
    code(
        "IST0176",
        Warning,
        "GatewayAPICRDVersionBelowMinimum",
        "Gateway API CRD %q is at version %q but Istio requires at least %q; resources of this kind will not be processed. Upgrade the Gateway API CRDs to satisfy the minimum version.",
    ),
    code(
        "IST0177",
        Warning,
        "ConflictingServiceEntryProtocol",
        "Multiple ServiceEntries (%s) define the same host %q and port %d with conflicting protocols (%s).",
    ),
    code("SLV0001", Info, "FieldNotHonoured", "This mesh does not honour the field: %s."),
    code("SLV0002", Warning, "UnknownField", "No field of this name exists; the API server drops it."),
    code("SLV0003", Info, "KindNotHonoured", "This mesh has no %s: %s."),
    code("SLV0004", Error, "SchemaViolation", "The API server refuses the field by its schema: %s."),
];

/// The entry of a code.
pub(super) fn find(code: &str) -> Option<&'static Code> {
    CODES.iter().find(|c| c.code == code)
}
