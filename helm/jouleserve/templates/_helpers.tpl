{{- define "jouleserve.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "jouleserve.selector" -}}
app.kubernetes.io/part-of: jouleserve
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "jouleserve.labels" -}}
{{ include "jouleserve.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "jouleserve.image" -}}
{{- if .Values.image.digest }}{{ printf "%s@%s" .Values.image.repository .Values.image.digest }}{{ else }}{{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}{{ end }}
{{- end }}

{{- /* The settings file: what the values say, and what the chart alone knows. */ -}}
{{- define "jouleserve.settings" -}}
{{- $server := dict "host" "0.0.0.0" "run_dir" "/var/lib/jouleserve/run" -}}
{{- if .Values.secrets.apiKeys.name }}{{ $_ := set $server "api_keys_file" "/etc/jouleserve/keys/keys" }}{{ end -}}
{{- if .Values.secrets.adminKeys.name }}{{ $_ := set $server "admin_keys_file" "/etc/jouleserve/admin/keys" }}{{ end -}}
{{- $chart := dict "server" $server "model" (dict "store" "/var/lib/jouleserve/store") -}}
{{- if .Values.secrets.grid.name }}{{ $_ := set $chart "grid" (dict "secret_file" "/etc/jouleserve/grid/secret") }}{{ end -}}
{{- if .Values.secrets.redis.name }}{{ $_ := set $chart "cache" (dict "redis_password_file" "/etc/jouleserve/redis/password") }}{{ end -}}
{{- if .Values.jobs.claim }}{{ $_ := set $chart "jobs" (dict "path" "/var/lib/jouleserve/jobs/jobs.sqlite") }}{{ end -}}
{{- if eq .Values.metering.mode "daemonset" }}{{ $_ := set $chart "energy" (dict "node_dir" (include "jouleserve.nodeDir" .)) }}{{ end -}}
{{- toYaml (mergeOverwrite (deepCopy .Values.settings) $chart) -}}
{{- end }}

{{- define "jouleserve.nodeDir" -}}
{{ .Values.metering.runDir }}/{{ .Release.Namespace }}-{{ include "jouleserve.fullname" . }}
{{- end }}

{{- define "jouleserve.metricsPort" -}}
{{ dig "server" "metrics_port" 9400 .Values.settings | int }}
{{- end }}

{{- define "jouleserve.port" -}}
{{ dig "server" "port" 8000 .Values.settings | int }}
{{- end }}

{{- define "jouleserve.grpcPort" -}}
{{ dig "server" "grpc_port" nil .Values.settings | default "" }}
{{- end }}

{{- /* Answering what was accepted may take the drain timeout; under Ray, another pod may have to take over first. */ -}}
{{- define "jouleserve.leaveSeconds" -}}
{{ add (dig "server" "drain_timeout_s" 20 .Values.settings | int) 15 }}
{{- end }}

{{- /* Then Ray and the meter need some seconds to end. */ -}}
{{- define "jouleserve.gracePeriod" -}}
{{- if eq .Values.mode "RayService" }}{{ add (include "jouleserve.leaveSeconds" . | int) 15 }}{{ else -}}
{{ add (dig "server" "drain_timeout_s" 20 .Values.settings | int) (.Values.preStopSeconds | int) 15 }}{{ end }}
{{- end }}

{{- define "jouleserve.check" -}}
{{- if and .Values.store.claim .Values.store.url }}{{ fail "store: claim and url are both given; leave one out" }}{{ end -}}
{{- if not (or .Values.store.claim .Values.store.url) }}{{ fail "store: give the claim that holds the models, or the url to fetch them from" }}{{ end -}}
{{- if and .Values.keda.enabled (ne .Values.mode "Deployment") }}{{ fail "keda.enabled: KEDA scales Deployments; in RayService mode set settings.server.max_replicas and ray.workers.max" }}{{ end -}}
{{- if and .Values.keda.enabled (gt (.Values.keda.min | int) (.Values.keda.max | int)) }}{{ fail "keda.max: below keda.min; raise it" }}{{ end -}}
{{- if and .Values.keda.enabled (not .Values.monitoring.monitor) }}{{ fail "monitoring.monitor: KEDA goes by the requests in flight that it has Prometheus scrape; set it" }}{{ end -}}
{{- if and .Values.deployment.edge (eq .Values.metering.mode "daemonset") }}{{ fail "metering.mode: edge mode meters in its own process; use pod, or deployment.edge: false" }}{{ end -}}
{{- if and (eq .Values.metering.mode "daemonset") (eq (toString (dig "shaping" "policy" "" .Values.settings)) "budget") }}{{ fail "settings.shaping.policy: budget goes by the pod's own meter; use metering.mode pod" }}{{ end -}}
{{- if and (eq .Values.mode "Deployment") .Values.jobs.claim (or .Values.keda.enabled (gt (.Values.deployment.replicas | int) 1)) }}{{ fail "jobs.claim: one pod owns the jobs; use deployment.replicas 1 without keda, or leave it out" }}{{ end -}}
{{- if eq .Values.mode "RayService" }}
{{- if gt (.Values.ray.workers.min | int) (.Values.ray.workers.max | int) }}{{ fail "ray.workers.max: below ray.workers.min; raise it" }}{{ end -}}
{{- range $name := list "replicas" "max_replicas" }}
{{- $wanted := dig "server" $name 1 $.Values.settings | default 1 | int }}
{{- if gt $wanted ($.Values.ray.workers.max | int) }}{{ fail (printf "ray.workers.max: settings.server.%s asks for %d replicas and a pod holds one; raise it" $name $wanted) }}{{ end -}}
{{- end }}
{{- if and .Values.podDisruptionBudget.enabled (kindIs "string" .Values.podDisruptionBudget.maxUnavailable) }}{{ fail "podDisruptionBudget.maxUnavailable: a share of a Ray cluster is unknown to Kubernetes; give a whole number" }}{{ end -}}
{{- end }}
{{- end }}
