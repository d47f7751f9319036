{{/* Relay or gateway: a proxy that is no node's, without any right on the node it runs on. Its name in the mesh is its pod's.
Arguments: root, name, values, configuration (text), ports (list of containerPorts). */}}
{{- define "mesh.standalone" -}}
{{- $v := .values -}}
{{- $labels := include "mesh.labels" . -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- $labels | nindent 4 }}
automountServiceAccountToken: false
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- $labels | nindent 4 }}
data:
  config.yaml: |
    {{- .configuration | nindent 4 }}
---
apiVersion: apps/v1
kind: {{ .kind }}
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- $labels | nindent 4 }}
spec:
  replicas: {{ $v.replicas }}
  {{- if eq .kind "StatefulSet" }}
  serviceName: {{ .name }}
  podManagementPolicy: Parallel
  {{- else }}
  strategy:
    type: RollingUpdate
    rollingUpdate:
      maxSurge: 1
      maxUnavailable: 0
  {{- end }}
  selector:
    matchLabels:
      {{- include "mesh.selector" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- $labels | nindent 8 }}
        {{- with .labels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        {{- with $v.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        {{- include "mesh.podAnnotations" (dict "root" .root "port" 15020 "path" "/stats/prometheus" "own" $v.podAnnotations "configuration" .configuration) | nindent 8 }}
    spec:
      serviceAccountName: {{ .name }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ add .root.Values.proxy.drainSeconds 10 }}
      {{- include "mesh.pullSecrets" .root | nindent 6 }}
      {{- include "mesh.scheduling" $v | nindent 6 }}
      {{- include "mesh.replicaAffinity" (dict "root" .root "name" .name "values" (merge (dict "antiAffinity" (default "preferred" $v.antiAffinity)) $v)) | nindent 6 }}
      securityContext:
        {{- include "mesh.unprivilegedPod" . | nindent 8 }}
      containers:
        - name: mesh-proxy
          image: {{ include "mesh.image" (dict "root" .root "program" "proxy") }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          args: [--config, /etc/mesh-proxy/config.yaml]
          env:
            - name: MESH_PROXY_NODE
              valueFrom: { fieldRef: { fieldPath: metadata.name } }
          ports:
            {{- toYaml .ports | nindent 12 }}
          {{- include "mesh.proxyProbes" .root | nindent 10 }}
          {{- with $v.resources }}
          resources:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          securityContext:
            {{- include "mesh.unprivileged" . | nindent 12 }}
          volumeMounts:
            - { name: config, mountPath: /etc/mesh-proxy, readOnly: true }
            - { name: state, mountPath: /var/lib/selvage/mesh-proxy }
            - { name: tmp, mountPath: /tmp }
            {{- include "mesh.enrolMounts" . | nindent 12 }}
      volumes:
        - name: config
          configMap: { name: {{ .name }} }
        - name: state
          emptyDir: {}
        - name: tmp
          emptyDir: {}
        {{- include "mesh.enrolVolumes" . | nindent 8 }}
{{- end }}
