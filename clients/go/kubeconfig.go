package discovery

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// ErrUnusableKubeconfig is returned when a kubeconfig is not of the form that the daemon writes. Its message never
// quotes the content.
var ErrUnusableKubeconfig = errors.New("kubeconfig refused")

const execCommand = "milo-discovery"

var pluginVariables = []string{AddressVariable, actAsVariable, clusterServerVariable}

// kubeconfigNames are the names of all fields that the daemon writes. Names are compared exactly, because the JSON
// decoder ignores their case and uses the last of repeated fields: other programs could read another command from the
// same kubeconfig.
var kubeconfigNames = []string{
	"apiVersion", "kind", "current-context", "contexts", "context", "clusters", "cluster", "users", "user", "name",
	"server", "certificate-authority-data", "tls-server-name",
	"token", "client-certificate-data", "client-key-data",
	"exec", "command", "args", "env", "value", "installHint", "interactiveMode", "provideClusterInfo",
	"as", "as-groups", extraField,
}

// extraField contains the extra fields of the impersonated user, with keys of any name.
const extraField = "as-user-extra"

// actingUser has the fields for impersonation.
type actingUser struct {
	User   string              `json:"as"`
	Groups []string            `json:"as-groups"`
	Extra  map[string][]string `json:"as-user-extra"`
}

// kubeconfigFile has the fields that the daemon writes, as JSON with all data inline. All other fields are rejected: a
// server that impersonates the daemon could send a program to run, a file to read, or a proxy.
type kubeconfigFile[User any] struct {
	APIVersion     string `json:"apiVersion"`
	Kind           string `json:"kind"`
	CurrentContext string `json:"current-context"`
	Contexts       []struct {
		Name    string `json:"name"`
		Context struct {
			Cluster string `json:"cluster"`
			User    string `json:"user"`
		} `json:"context"`
	} `json:"contexts"`
	Clusters []struct {
		Name    string `json:"name"`
		Cluster struct {
			Server        string `json:"server"`
			CAData        []byte `json:"certificate-authority-data"`
			TLSServerName string `json:"tls-server-name"`
		} `json:"cluster"`
	} `json:"clusters"`
	Users []struct {
		Name string `json:"name"`
		User User   `json:"user"`
	} `json:"users"`
}

type embeddedUser struct {
	actingUser
	Token           string `json:"token"`
	CertificateData []byte `json:"client-certificate-data"`
	KeyData         []byte `json:"client-key-data"`
}

type execUser struct {
	actingUser
	Exec struct {
		APIVersion string   `json:"apiVersion"`
		Command    string   `json:"command"`
		Args       []string `json:"args"`
		Env        []struct {
			Name  string `json:"name"`
			Value string `json:"value"`
		} `json:"env"`
		InstallHint        string `json:"installHint"`
		InteractiveMode    string `json:"interactiveMode"`
		ProvideClusterInfo bool   `json:"provideClusterInfo"`
	} `json:"exec"`
}

// checkKubeconfig returns an error unless the kubeconfig is of the form that the daemon writes for this format and
// cluster.
func checkKubeconfig(content []byte, format KubeconfigFormat, cluster string) error {
	if format == FormatExec {
		file, err := readKubeconfig[execUser](content)
		if err != nil {
			return err
		}
		user := file.Users[0].User
		if user.Exec.Command != execCommand || !slices.Equal(user.Exec.Args, []string{"credential", "--cluster", cluster}) {
			return fmt.Errorf("%w: it does not run the exec plugin '%s credential --cluster %s'", ErrUnusableKubeconfig, execCommand, cluster)
		}
		for _, variable := range user.Exec.Env {
			if !slices.Contains(pluginVariables, variable.Name) { // others, such as LD_PRELOAD, could run other code
				return fmt.Errorf("%w: it sets an environment variable other than %s",
					ErrUnusableKubeconfig, strings.Join(pluginVariables, ", "))
			}
		}
		return nil
	}
	file, err := readKubeconfig[embeddedUser](content)
	if err != nil {
		return err
	}
	user := file.Users[0].User
	if user.Token == "" && (len(user.CertificateData) == 0 || len(user.KeyData) == 0) {
		return fmt.Errorf("%w: it has neither a token nor a client certificate with its key", ErrUnusableKubeconfig)
	}
	return nil
}

func readKubeconfig[User any](content []byte) (*kubeconfigFile[User], error) {
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.DisallowUnknownFields()
	var file kubeconfigFile[User]
	// The decoder's error is omitted, since it could quote a secret.
	if decoder.Decode(&file) != nil {
		return nil, fmt.Errorf("%w: it is not JSON with the fields that the daemon writes", ErrUnusableKubeconfig)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: there is data after its end", ErrUnusableKubeconfig)
	}
	if !hasExactNames(json.NewDecoder(bytes.NewReader(content)), kubeconfigNames) {
		return nil, fmt.Errorf("%w: it has fields that are repeated, or that the daemon does not write", ErrUnusableKubeconfig)
	}
	if len(file.Contexts) != 1 || len(file.Clusters) != 1 || len(file.Users) != 1 {
		return nil, fmt.Errorf("%w: it does not have exactly one cluster, one user and one context", ErrUnusableKubeconfig)
	}
	context := file.Contexts[0]
	if file.CurrentContext != context.Name || context.Context.Cluster != file.Clusters[0].Name ||
		context.Context.User != file.Users[0].Name {
		return nil, fmt.Errorf("%w: its current context does not refer to its cluster and its user", ErrUnusableKubeconfig)
	}
	if file.Clusters[0].Cluster.Server == "" {
		return nil, fmt.Errorf("%w: it has no server", ErrUnusableKubeconfig)
	}
	return &file, nil
}

// hasExactNames reports whether each object in the next value has only fields with known names, and none of them twice.
// If known is nil, all names are accepted.
func hasExactNames(decoder *json.Decoder, known []string) bool {
	opening, err := decoder.Token()
	if err != nil {
		return false
	}
	if _, ok := opening.(json.Delim); !ok {
		return true
	}
	var names []string
	inside := known
	for decoder.More() {
		if opening == json.Delim('{') {
			token, err := decoder.Token()
			name, ok := token.(string)
			if err != nil || !ok || (known != nil && !slices.Contains(known, name)) || slices.Contains(names, name) {
				return false
			}
			names = append(names, name)
			if inside = known; name == extraField {
				inside = nil
			}
		}
		if !hasExactNames(decoder, inside) {
			return false
		}
	}
	_, err = decoder.Token() // the closing delimiter
	return err == nil
}
