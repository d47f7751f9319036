{{/* Configuration files: what values say, then the free part, which wins. A value that an older chart did not have is read with a
default: `helm upgrade --reuse-values` brings that chart's values alone. */}}

{{- define "mesh.controllerConfig" -}}
{{- $caDays := dig "certificates" "caDays" 3650 .Values.mesh -}}
{{- $nodeHours := dig "certificates" "nodeHours" 24 .Values.mesh -}}
{{- if lt (mul 24 $caDays) (mul 9 $nodeHours) -}}
{{- fail (printf "mesh.certificates: caDays is %v, and has to be at least 9 times nodeHours (%v)" $caDays $nodeHours) -}}
{{- end -}}
{{- $pods := list -}}
{{- if .Values.relay.enabled -}}{{- $pods = append $pods (printf "%s/mesh-relay" .Release.Namespace) -}}{{- end -}}
{{- if .Values.gateway.enabled -}}{{- $pods = append $pods (printf "%s/mesh-gateway" .Release.Namespace) -}}{{- end -}}
{{- $own := dict
  "source" "kube"
  "stateStore" "kube"
  "namespace" .Release.Namespace
  "stateOwner" "mesh-state"
  "enrolServiceAccounts" (list (printf "%s/mesh-proxy" .Release.Namespace))
  "enrolPodServiceAccounts" $pods
  "listen" "0.0.0.0:15012"
  "metricsListen" "0.0.0.0:15014"
  "webhookListen" "0.0.0.0:15017"
  "webhookConfiguration" "selvage-validator"
  "webhookService" (printf "%s/mesh-webhook" .Release.Namespace)
  "gatewayApi" .Values.gatewayApi.enabled
  "writeStatus" .Values.controller.writeStatus
  "leaseNamespace" .Release.Namespace
  "trustDomain" .Values.mesh.trustDomain
  "clusterDomain" .Values.mesh.clusterDomain
  "rootNamespace" .Values.mesh.rootNamespace
  "outbound" .Values.mesh.outbound
  "caCertificateTtl" (mul 86400 $caDays)
  "nodeCertificateTtl" (mul 3600 $nodeHours)
  "logFormat" .Values.controller.logFormat
  "logLevel" .Values.controller.logLevel
-}}
{{- toYaml (mustMergeOverwrite $own (deepCopy .Values.controller.config)) }}
{{- end }}

{{/* Arguments: root, edge (bool). */}}
{{- define "mesh.proxyConfig" -}}
{{- $v := .root.Values.proxy -}}
{{- $own := dict
  "stateDir" "/var/lib/selvage/mesh-proxy"
  "controller" (include "mesh.controllers" .)
  "trustDomain" .root.Values.mesh.trustDomain
  "identity" (dict "serviceAccountTokenFile" "/var/run/selvage/token" "caFile" "/var/run/selvage/ca.crt")
  "drainSeconds" $v.drainSeconds
  "stayAfterHandover" true
  "logFormat" $v.logFormat
  "logLevel" $v.logLevel
  "capture" (dict "enabled" $v.capture.enabled "podDns" $v.capture.podDns)
  "dns" (dict "enabled" $v.dns.enabled "listen" (printf "%s:53" $v.dns.address) "upstreams" $v.dns.upstreams)
-}}
{{- $free := deepCopy $v.config -}}
{{- if .edge -}}{{- $free = mustMergeOverwrite $free (deepCopy $v.edge.config) -}}{{- end -}}
{{- toYaml (mustMergeOverwrite $own $free) }}
{{- end }}

{{/* A proxy that captures nothing: a relay or a gateway. Arguments: root, values, own (dict). */}}
{{- define "mesh.standaloneConfig" -}}
{{- $own := dict
  "stateDir" "/var/lib/selvage/mesh-proxy"
  "controller" (include "mesh.controllers" (dict "root" .root "edge" false))
  "trustDomain" .root.Values.mesh.trustDomain
  "identity" (dict "serviceAccountTokenFile" "/var/run/selvage/token" "caFile" "/var/run/selvage/ca.crt")
  "drainSeconds" .root.Values.proxy.drainSeconds
  "logFormat" .root.Values.proxy.logFormat
  "logLevel" .root.Values.proxy.logLevel
  "capture" (dict "enabled" false)
  "dns" (dict "enabled" false)
-}}
{{- toYaml (mustMergeOverwrite $own .own (deepCopy .values.config)) }}
{{- end }}
