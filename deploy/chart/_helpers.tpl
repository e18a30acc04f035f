{{- /*
The value of a variable of the daemon, by its name; empty if the configuration file has the setting, which the variable
would override.
*/ -}}
{{- define "variable" -}}
{{- $values := (index . 0).Values -}}
{{- $setting := index . 1 | trimPrefix "MILO_DISCOVERYD_" | lower -}}
{{- $default := dict "mode" "project-control-plane" "listen" "$(MILO_DISCOVERY_ADDRESS)" -}}
{{- if $values.kubeconfigSecret -}}
{{- $path := "/etc/milo-discoveryd/kubeconfig/kubeconfig" -}}
{{- $default = merge (dict "mode" "project" "discovery_kubeconfig" $path "project_kubeconfig" $path) $default -}}
{{- end -}}
{{- $inSources := and (hasKey $values.config "sources") (ne $setting "listen") -}}
{{- if not (or (hasKey $values.config $setting) $inSources) -}}
{{- index $values.environment (index . 1) | default (get $default $setting) -}}
{{- end -}}
{{- end -}}
