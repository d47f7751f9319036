{{/* Names are fixed: a cluster has one mesh, and its programs know each other by them. */}}

{{- define "mesh.labels" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/part-of: selvage
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What finds the pods of a program; never changes. */}}
{{- define "mesh.selector" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/part-of: selvage
{{- end }}

{{- define "mesh.image" -}}
{{- $image := index .root.Values.image .program -}}
{{- with .root.Values.image.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{ $image }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "mesh.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Annotations by which a Prometheus finds the metrics of a pod that declares no port. */}}
{{- define "mesh.scrapeAnnotations" -}}
prometheus.io/scrape: "true"
prometheus.io/port: {{ .port | quote }}
prometheus.io/path: {{ .path }}
{{- end }}

{{/* Annotations of a pod: `configuration` (text) makes it roll when it changes. */}}
{{- define "mesh.podAnnotations" -}}
checksum/config: {{ .configuration | sha256sum }}
{{- if .root.Values.monitoring.annotations }}
{{ include "mesh.scrapeAnnotations" . }}
{{- end }}
{{- with .own }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Where pods run: nodeSelector, tolerations, affinity, priority, of the part's values. */}}
{{- define "mesh.scheduling" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
nodeSelector:
  {{- toYaml (merge (deepCopy .nodeSelector) (dict "kubernetes.io/os" "linux")) | nindent 2 }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The affinity of the part's values, else replicas apart from each other, and with `.inside` away from edge nodes. */}}
{{- define "mesh.replicaAffinity" -}}
{{- $selector := dict "labelSelector" (dict "matchLabels" (include "mesh.selector" . | fromYaml)) "topologyKey" "kubernetes.io/hostname" -}}
{{- $affinity := dict -}}
{{- if .values.affinity -}}
{{- $affinity = .values.affinity -}}
{{- else -}}
{{- if .inside -}}{{- $affinity = include "mesh.notAtTheEdge" .root | fromYaml -}}{{- end -}}
{{- if eq .values.antiAffinity "required" -}}
{{- $_ := set $affinity "podAntiAffinity" (dict "requiredDuringSchedulingIgnoredDuringExecution" (list $selector)) -}}
{{- else if eq .values.antiAffinity "preferred" -}}
{{- $_ := set $affinity "podAntiAffinity" (dict "preferredDuringSchedulingIgnoredDuringExecution" (list (dict "weight" 100 "podAffinityTerm" $selector))) -}}
{{- end -}}
{{- end -}}
{{- with $affinity -}}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "mesh.notAtTheEdge" -}}
nodeAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    nodeSelectorTerms:
      - matchExpressions:
          - { key: {{ .Values.proxy.edge.nodeLabel }}, operator: DoesNotExist }
{{- end }}

{{/* For programs that need no right on the node. */}}
{{- define "mesh.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "mesh.unprivilegedPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "mesh.controllerService" -}}
mesh-controller.{{ .Release.Namespace }}.svc.{{ .Values.mesh.clusterDomain }}:15012
{{- end }}

{{/* host:port list of the controller. Edge nodes may have no way to a ClusterIP, others need none from outside. */}}
{{- define "mesh.controllers" -}}
{{- $inside := list (include "mesh.controllerService" .root) -}}
{{- $outside := .root.Values.controller.externalAddresses -}}
{{- ternary (concat $outside $inside) (concat $inside $outside) .edge | join "," }}
{{- end }}
