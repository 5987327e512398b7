{{- /* Environment of every container that runs Python of ours. */ -}}
{{- define "jouleserve.env" -}}
- {name: HOME, value: /tmp}
- {name: TMPDIR, value: /tmp}
- {name: PYTHONDONTWRITEBYTECODE, value: "1"}
{{- end }}

{{- /* Ray's lean settings, as `jouleserve up` would set them: files/ray-environment.yaml, made from server/pod.py. */ -}}
{{- define "jouleserve.rayEnv" -}}
{{- range $name, $value := .Files.Get "files/ray-environment.yaml" | fromYaml }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{- define "jouleserve.mounts" -}}
- {name: run, mountPath: /var/lib/jouleserve/run}
- name: store
  mountPath: /var/lib/jouleserve/store
  readOnly: true
  {{- if and .Values.store.claim .Values.store.subPath }}
  subPath: {{ .Values.store.subPath }}
  {{- end }}
{{- if eq .Values.metering.mode "daemonset" }}
- {name: node, mountPath: {{ include "jouleserve.nodeDir" . }}}
{{- end }}
{{ include "jouleserve.settingsMounts" . }}
{{- end }}

{{- /* What the settings file names must be there for whoever reads it. */ -}}
{{- define "jouleserve.settingsMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: config, mountPath: /etc/jouleserve/config, readOnly: true}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- if .Values.secrets.apiKeys.name }}
- {name: keys, mountPath: /etc/jouleserve/keys, readOnly: true}
{{- end }}
{{- if .Values.secrets.adminKeys.name }}
- {name: admin, mountPath: /etc/jouleserve/admin, readOnly: true}
{{- end }}
{{- if .Values.secrets.grid.name }}
- {name: grid, mountPath: /etc/jouleserve/grid, readOnly: true}
{{- end }}
{{- if .Values.secrets.redis.name }}
- {name: redis, mountPath: /etc/jouleserve/redis, readOnly: true}
{{- end }}
{{- end }}

{{- define "jouleserve.volumes" -}}
- {name: tmp, emptyDir: {sizeLimit: {{ .Values.scratch.tmp }}}}
- {name: run, emptyDir: {sizeLimit: {{ .Values.scratch.run }}}}
- {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ .Values.sharedMemory }}}}
- name: config
  configMap: {name: {{ include "jouleserve.fullname" . }}}
- name: store
  {{- if .Values.store.claim }}
  persistentVolumeClaim: {claimName: {{ .Values.store.claim }}, readOnly: true}
  {{- else }}
  emptyDir: {sizeLimit: {{ .Values.store.size }}}
  {{- end }}
{{- with .Values.secrets.apiKeys }}{{ if .name }}
- name: keys
  secret: {secretName: {{ .name }}, defaultMode: 0440, items: [{key: {{ .key }}, path: keys}]}
{{- end }}{{ end }}
{{- with .Values.secrets.adminKeys }}{{ if .name }}
- name: admin
  secret: {secretName: {{ .name }}, defaultMode: 0440, items: [{key: {{ .key }}, path: keys}]}
{{- end }}{{ end }}
{{- with .Values.secrets.grid }}{{ if .name }}
- name: grid
  secret: {secretName: {{ .name }}, defaultMode: 0440, items: [{key: {{ .key }}, path: secret}]}
{{- end }}{{ end }}
{{- with .Values.secrets.redis }}{{ if .name }}
- name: redis
  secret: {secretName: {{ .name }}, defaultMode: 0440, items: [{key: {{ .key }}, path: password}]}
{{- end }}{{ end }}
{{- if eq .Values.metering.mode "daemonset" }}
- name: node
  hostPath: {path: {{ include "jouleserve.nodeDir" . }}, type: Directory}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Brings the models, if they are not on a claim, and verifies every digest: a pod that may not serve does not start. */ -}}
{{- define "jouleserve.modelsContainer" -}}
- name: models
  image: {{ include "jouleserve.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  {{- if .Values.store.url }}
  args: [models, fetch, {{ .Values.store.url | quote }}, --config, /etc/jouleserve/config/jouleserve.yaml]
  {{- else }}
  args: [models, verify, --config, /etc/jouleserve/config/jouleserve.yaml]
  {{- end }}
  env:
    {{- include "jouleserve.env" . | nindent 4 }}
  {{- with .Values.store.envFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- toYaml .Values.securityContext | nindent 4 }}
  resources:
    requests: {cpu: 100m, memory: 256Mi}
    limits: {memory: 1Gi}
  volumeMounts:
    {{- include "jouleserve.settingsMounts" . | nindent 4 }}
    - name: store
      mountPath: /var/lib/jouleserve/store
      {{- if .Values.store.claim }}
      readOnly: true
      {{- with .Values.store.subPath }}
      subPath: {{ . }}
      {{- end }}
      {{- end }}
{{- end }}

{{- /* The meters of a pod under KubeRay, where nobody runs `jouleserve up`. */ -}}
{{- define "jouleserve.nodeContainer" -}}
- name: node
  image: {{ include "jouleserve.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [python, -m, server.node]
  args:
    {{- include "jouleserve.nodeArguments" (dict "root" . "dir" "/var/lib/jouleserve/run") | nindent 4 }}
  env:
    {{- include "jouleserve.env" . | nindent 4 }}
  ports:
    - {name: metrics, containerPort: {{ include "jouleserve.metricsPort" . }}}
  {{- include "jouleserve.nodeProbes" . | nindent 2 }}
  lifecycle:
    preStop:
      exec:
        command: [python, -m, server.node.outlast, --within={{ include "jouleserve.leaveSeconds" . }}, --port={{ include "jouleserve.metricsPort" . }}]
  securityContext:
    {{- toYaml .Values.securityContext | nindent 4 }}
  resources:
    {{- toYaml .Values.metering.resources | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: run, mountPath: /var/lib/jouleserve/run}
    {{- with .Values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{- define "jouleserve.nodeArguments" -}}
- --run-dir={{ .dir }}
- --host=0.0.0.0
- --port={{ include "jouleserve.metricsPort" .root }}
- --root-pid=0
- --source={{ dig "energy" "source" "auto" .root.Values.settings }}
- --pue={{ dig "energy" "pue" 1 .root.Values.settings }}
- --tick-seconds={{ dig "energy" "tick_s" 1 .root.Values.settings }}
{{- with dig "energy" "cpu_family" "" .root.Values.settings }}
- --cpu-family={{ . }}
{{- end }}
{{- with dig "energy" "calibration" "" .root.Values.settings }}
- --calibration={{ . }}
{{- end }}
{{- end }}

{{- /* No readiness: a pod whose meter is stuck goes on answering, until the meter is restarted. */ -}}
{{- define "jouleserve.nodeProbes" -}}
livenessProbe:
  httpGet: {path: /healthz, port: metrics}
  periodSeconds: 20
  timeoutSeconds: 5
  failureThreshold: 6
{{- end }}

{{- /* What all pods that serve have in common. */ -}}
{{- define "jouleserve.podCommon" -}}
terminationGracePeriodSeconds: {{ include "jouleserve.gracePeriod" . }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "jouleserve.spread" -}}
{{- if .Values.topologySpread.enabled }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: {{ .Values.topologySpread.topologyKey }}
    whenUnsatisfiable: {{ .Values.topologySpread.whenUnsatisfiable }}
    # A control plane that takes no pods would count as a machine without one, and a roll-out wait for it for ever.
    nodeTaintsPolicy: Honor
    labelSelector:
      matchLabels:
        {{- include "jouleserve.selector" . | nindent 8 }}
        app.kubernetes.io/component: server
{{- end }}
{{- end }}

{{- define "jouleserve.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if gt (.Values.gpu.count | int) 0 }}
{{- $limits := deepCopy (default dict $resources.limits) -}}
{{- $_ := set $limits .Values.gpu.resource .Values.gpu.count -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{- define "jouleserve.podMeta" -}}
{{- /* New settings are new pods; under KubeRay they are a new serveConfigV2, which needs no new cluster. */ -}}
{{- $checksum := dict "checksum/settings" (include "jouleserve.settings" .root | sha256sum) -}}
{{- if eq .root.Values.mode "RayService" }}
{{- $checksum = dict -}}
{{- /* But what is fetched is fetched once, as a pod starts. */ -}}
{{- if .root.Values.store.url }}{{ $checksum = dict "checksum/model" (printf "%s %s" .root.Values.store.url (toYaml .root.Values.settings.model) | sha256sum) }}{{ end -}}
{{- end }}
{{- $annotations := merge (deepCopy .root.Values.podAnnotations) $checksum -}}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
labels:
  {{- include "jouleserve.labels" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .component }}
  {{- with .root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
