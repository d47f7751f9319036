{{/* A DaemonSet of proxies, with its configuration. Arguments: root, name, edge (bool). */}}
{{- define "mesh.proxyDaemonSet" -}}
{{- $root := .root -}}
{{- $v := .root.Values.proxy -}}
{{- $labels := include "mesh.labels" (dict "root" .root "name" "mesh-proxy") -}}
{{- $configuration := include "mesh.proxyConfig" . -}}
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ .name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- $labels | nindent 4 }}
data:
  config.yaml: |
    {{- $configuration | nindent 4 }}
---
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: {{ .name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- $labels | nindent 4 }}
spec:
  # By default the new pod of a node starts beside the old one, takes its sockets over and is ready before the old one goes.
  # For that no port is declared: two pods with a port of the host would not share a node.
  updateStrategy:
    {{- toYaml $v.updateStrategy | nindent 4 }}
  # Until the new process has taken over, the old one answers the new pod's probes: they share the node's ports.
  minReadySeconds: 5
  selector:
    matchLabels:
      {{- include "mesh.selector" (dict "name" "mesh-proxy") | nindent 6 }}
      selvage.dev/daemonset: {{ .name }}
  template:
    metadata:
      labels:
        {{- $labels | nindent 8 }}
        selvage.dev/daemonset: {{ .name }}
        {{- with $v.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        {{- include "mesh.podAnnotations" (dict "root" $root "port" 15020 "path" "/stats/prometheus" "own" $v.podAnnotations "configuration" $configuration) | nindent 8 }}
    spec:
      serviceAccountName: mesh-proxy
      # The proxy asks the API server nothing.
      automountServiceAccountToken: false
      enableServiceLinks: false
      hostNetwork: true
      # Edge nodes may not reach the cluster's DNS before the mesh works.
      dnsPolicy: {{ ternary "Default" "ClusterFirstWithHostNet" .edge }}
      terminationGracePeriodSeconds: {{ add $v.drainSeconds 10 }}
      {{- include "mesh.pullSecrets" $root | nindent 6 }}
      {{- include "mesh.scheduling" $v | nindent 6 }}
      {{- include "mesh.proxyAffinity" . | nindent 6 }}
      securityContext:
        seccompProfile:
          type: RuntimeDefault
      containers:
        - name: mesh-proxy
          image: {{ include "mesh.image" (dict "root" $root "program" "proxy") }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          args: [--config, /etc/mesh-proxy/config.yaml]
          env:
            - name: MESH_PROXY_NODE
              valueFrom: { fieldRef: { fieldPath: spec.nodeName } }
          {{- include "mesh.proxyProbes" $root | nindent 10 }}
          {{- with $v.resources }}
          resources:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          securityContext:
            # Root without the powers of root: rules and marks (NET_ADMIN), sockets with addresses of services (NET_RAW),
            # port 53 (NET_BIND_SERVICE).
            runAsUser: 0
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities:
              drop: [ALL]
              add: [NET_ADMIN, NET_RAW, NET_BIND_SERVICE]
          volumeMounts:
            - { name: config, mountPath: /etc/mesh-proxy, readOnly: true }
            - { name: state, mountPath: /var/lib/selvage/mesh-proxy }
            - { name: tmp, mountPath: /tmp }
            {{- include "mesh.enrolMounts" . | nindent 12 }}
      volumes:
        - name: config
          configMap: { name: {{ .name }} }
        - name: state
          hostPath: { path: {{ $v.stateDir | quote }}, type: DirectoryOrCreate }
        - name: tmp
          emptyDir: {}
        {{- include "mesh.enrolVolumes" . | nindent 8 }}
{{- end }}

{{/* With edge nodes apart, each DaemonSet keeps to its nodes; an affinity of the values comes on top. */}}
{{- define "mesh.proxyAffinity" -}}
{{- $v := .root.Values.proxy -}}
{{- if $v.edge.enabled }}
{{- $apart := dict "key" $v.edge.nodeLabel "operator" (ternary "Exists" "DoesNotExist" .edge) -}}
{{- $affinity := deepCopy $v.affinity -}}
{{- $required := dig "nodeAffinity" "requiredDuringSchedulingIgnoredDuringExecution" "nodeSelectorTerms" (list dict) $affinity -}}
{{- $terms := list -}}
{{- range $required -}}
{{- $terms = append $terms (mustMerge (dict "matchExpressions" (append (.matchExpressions | default list) $apart)) (deepCopy .)) -}}
{{- end -}}
{{- $ours := dict "nodeAffinity" (dict "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" $terms)) -}}
affinity:
  {{- toYaml (mustMergeOverwrite $affinity $ours) | nindent 2 }}
{{- else if $v.affinity }}
affinity:
  {{- toYaml $v.affinity | nindent 2 }}
{{- end }}
{{- end }}

{{- define "mesh.proxyProbes" -}}
startupProbe:
  httpGet: { path: /healthz/live, port: 15021 }
  periodSeconds: 1
  failureThreshold: 60
readinessProbe:
  httpGet: { path: /healthz/ready, port: 15021 }
  periodSeconds: 2
  failureThreshold: 3
livenessProbe:
  httpGet: { path: /healthz/live, port: 15021 }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
{{- end }}

{{/* How a proxy proves itself: a token of its service account for this purpose alone, and the CA that it may trust. */}}
{{- define "mesh.enrolMounts" -}}
- { name: enrol, mountPath: /var/run/selvage, readOnly: true }
{{- end }}
{{- define "mesh.enrolVolumes" -}}
- name: enrol
  projected:
    sources:
      - serviceAccountToken:
          path: token
          audience: mesh-controller.selvage.dev
          expirationSeconds: 3600
      # The controller writes it when it starts; a pod that comes first waits for it.
      - configMap:
          name: mesh-ca
          items: [{ key: ca.crt, path: ca.crt }]
{{- end }}
