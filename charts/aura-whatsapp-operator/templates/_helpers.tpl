{{/* The name of the application, for labels. */}}
{{- define "aura-whatsapp-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/*
The beginning of all names. 44 characters: a StatefulSet's name may have 52, because Kubernetes puts its pods' revision
into a label, and the longest suffix of a Service, "-bridge-internal", must fit into 63.
*/}}
{{- define "aura-whatsapp-operator.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 44 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 44 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 44 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/*
Labels that selectors use: they can't change in the life of a Deployment or StatefulSet.
Called with (dict "root" $ "component" "controller"), as all that follow with "component" in them.
*/}}
{{- define "aura-whatsapp-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "aura-whatsapp-operator.name" .root | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{- define "aura-whatsapp-operator.labels" -}}
{{ include "aura-whatsapp-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The ServiceAccount of a role. */}}
{{- define "aura-whatsapp-operator.serviceAccountName" -}}
{{- $account := (index .root.Values .component).serviceAccount }}
{{- if $account.name }}
{{- $account.name }}
{{- else if $account.create }}
{{- printf "%s-%s" (include "aura-whatsapp-operator.fullname" .root) .component }}
{{- else }}
{{- fail (printf "%s.serviceAccount.name: name the ServiceAccount to use, since %s.serviceAccount.create is false" .component .component) }}
{{- end }}
{{- end }}

{{- define "aura-whatsapp-operator.installationKeySecret" -}}
{{- default (printf "%s-installation-key" (include "aura-whatsapp-operator.fullname" .)) .Values.installationKey.secretName }}
{{- end }}

{{/* The ConfigMap in which the controller records how far the journal has got; made by it, and kept at an uninstall. */}}
{{- define "aura-whatsapp-operator.journalRecord" -}}
{{- printf "%s-journal" (include "aura-whatsapp-operator.fullname" .) }}
{{- end }}

{{- define "aura-whatsapp-operator.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{/* The watched namespaces, as a JSON object with one list, which fromJson can read. */}}
{{- define "aura-whatsapp-operator.watchNamespaces" -}}
{{- if .Values.clusterWide }}
{{- dict "namespaces" (list "*") | toJson }}
{{- else }}
{{- dict "namespaces" (default (list .Release.Namespace) .Values.watchNamespaces | uniq) | toJson }}
{{- end }}
{{- end }}

{{/* The installation file. */}}
{{- define "aura-whatsapp-operator.config" -}}
{{- include "aura-whatsapp-operator.check" . }}
{{- $watched := (include "aura-whatsapp-operator.watchNamespaces" . | fromJson).namespaces }}
{{- $config := dict "watchNamespaces" $watched "environments" .Values.environments }}
{{- with .Values.bridge.limits }}
{{- $_ := set $config "bridge" . }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{/* What the schema can't say, or could say only in words that help nobody. */}}
{{- define "aura-whatsapp-operator.check" -}}
{{- if not .Values.environments }}
{{- fail "environments: name at least one environment (which Kernel, which Aura, who may use them); the chart's README.md shows a small one" }}
{{- end }}
{{- if and .Values.clusterWide .Values.watchNamespaces }}
{{- fail "watchNamespaces: must be empty with clusterWide: true, which watches all namespaces" }}
{{- end }}
{{- range $name, $environment := .Values.environments }}
{{- range $field := list "outboundAuth" "inboundAuth" }}
{{- $auth := index $environment.aura $field }}
{{- range $kind := list "apiKeyFile" "bearerFile" }}
{{- include "aura-whatsapp-operator.checkFile" (dict "root" $ "file" (index $auth $kind) "path" (printf "environments.%s.aura.%s.%s" $name $field $kind)) }}
{{- end }}
{{- range $kind := list "certFile" "keyFile" "caFile" }}
{{- $file := index (default dict $auth.mtls) $kind }}
{{- include "aura-whatsapp-operator.checkFile" (dict "root" $ "file" $file "path" (printf "environments.%s.aura.%s.mtls.%s" $name $field $kind)) }}
{{- end }}
{{- end }}
{{- end }}
{{- range $listener, $files := .Values.bridge.limits.tls }}
{{- range $kind, $file := $files }}
{{- include "aura-whatsapp-operator.checkFile" (dict "root" $ "file" $file "path" (printf "bridge.limits.tls.%s.%s" $listener $kind)) }}
{{- end }}
{{- end }}
{{- end }}

{{/* A file that the bridge reads must be mounted. */}}
{{- define "aura-whatsapp-operator.checkFile" -}}
{{- if .file }}
{{- if not (regexMatch "^/etc/aura-whatsapp-operator/credentials/[^/]+/[^/]+$" .file) }}
{{- fail (printf "%s: must be /etc/aura-whatsapp-operator/credentials/<Secret>/<key>, with the Secret named in credentialSecrets; not %s" .path .file) }}
{{- end }}
{{- $secret := .file | dir | base }}
{{- if not (has $secret .root.Values.credentialSecrets) }}
{{- fail (printf "%s: Secret %q is not mounted; add it to credentialSecrets" .path $secret) }}
{{- end }}
{{- end }}
{{- end }}

{{/* The lease's times, as the program checks them: here before a pod is started with them. */}}
{{- define "aura-whatsapp-operator.checkLease" -}}
{{- $lease := .Values.controller.lease }}
{{- $duration := trimSuffix "s" $lease.duration | int64 }}
{{- $renew := trimSuffix "s" $lease.renewDeadline | int64 }}
{{- $retry := trimSuffix "s" $lease.retryPeriod | int64 }}
{{- if le $renew $retry }}
{{- fail (printf "controller.lease.renewDeadline: must be longer than retryPeriod (%s), not %s" $lease.retryPeriod $lease.renewDeadline) }}
{{- end }}
{{- if lt (mul $duration 10) (mul $renew 11) }}
{{- fail (printf "controller.lease.duration: must be longer than renewDeadline (%s) by a tenth or more, not %s" $lease.renewDeadline $lease.duration) }}
{{- end }}
{{- if gt $duration 600 }}
{{- fail (printf "controller.lease.duration: must be at most 600s, not %s" $lease.duration) }}
{{- end }}
{{- end }}

{{/* Metadata of a role's pods. The checksum starts new pods when the configuration changes. */}}
{{- define "aura-whatsapp-operator.podMetadata" -}}
{{- $role := index .root.Values .component -}}
labels:
  {{- include "aura-whatsapp-operator.labels" . | nindent 2 }}
  {{- with $role.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  checksum/config: {{ include "aura-whatsapp-operator.config" .root | sha256sum }}
  kubectl.kubernetes.io/default-container: {{ .component }}
  {{- with $role.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* What the pods of both roles share. */}}
{{- define "aura-whatsapp-operator.podSpec" -}}
{{- $role := index .root.Values .component -}}
serviceAccountName: {{ include "aura-whatsapp-operator.serviceAccountName" . | quote }}
# The accounts themselves mount no token: only these pods ask for it.
automountServiceAccountToken: true
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
# With the containers' own: Pod Security "restricted".
securityContext:
  runAsNonRoot: true
  seccompProfile:
    type: RuntimeDefault
  {{- with .root.Values.podSecurityContext.runAsUser }}
  runAsUser: {{ . | int64 }}
  {{- end }}
  {{- with .root.Values.podSecurityContext.runAsGroup }}
  runAsGroup: {{ . | int64 }}
  {{- end }}
  {{- with .root.Values.podSecurityContext.fsGroup }}
  fsGroup: {{ . | int64 }}
  # A volume that is right already is not walked through at each start.
  fsGroupChangePolicy: OnRootMismatch
  {{- end }}
{{- with $role.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with $role.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $role.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $role.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What the containers of both roles share. */}}
{{- define "aura-whatsapp-operator.container" -}}
{{- $role := index .root.Values .component -}}
image: {{ include "aura-whatsapp-operator.image" .root | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
env:
  - name: POD_NAMESPACE
    valueFrom:
      fieldRef:
        fieldPath: metadata.namespace
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- with $role.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
livenessProbe:
  httpGet: {path: /healthz, port: admin}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}

{{/* Arguments of both roles. */}}
{{- define "aura-whatsapp-operator.args" -}}
- {{ .component }}
- --config=/etc/aura-whatsapp-operator/config/config.yaml
- --log-format={{ .root.Values.log.format }}
- {{ printf "--log-filter=%s" .root.Values.log.filter | quote }}
- --admin-listen=0.0.0.0:9090
{{- end }}
