package discovery

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
)

const (
	// DefaultAddress is the daemon's address if neither [Options] nor the environment specifies one.
	DefaultAddress = "unix:///run/milo-discovery/discovery.sock"
	// AddressVariable is the environment variable for the daemon's address.
	AddressVariable = "MILO_DISCOVERY_ADDRESS"
	// actAsVariable passes to the exec plugin the user that a kubeconfig impersonates.
	actAsVariable = "MILO_DISCOVERY_ACT_AS"
	// clusterServerVariable passes to the exec plugin the server of a kubeconfig.
	clusterServerVariable = "MILO_DISCOVERY_CLUSTER_SERVER"

	// On Linux, sun_path has 108 bytes, including the terminating NUL.
	longestSocketPath = 107
	socketScheme      = "unix://"
)

// ErrInvalidAddress is returned when an address is not a valid unix:///path or HOST:PORT.
var ErrInvalidAddress = errors.New("invalid address")

var hostAndPort = regexp.MustCompile(`^(?:\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~-]+)?\]|[A-Za-z0-9._-]+):([0-9]{1,5})$`)

// target validates an address and returns it. If it is empty, target returns the address from the environment, or else
// the default.
func target(address string) (string, error) {
	address = cmp.Or(address, os.Getenv(AddressVariable), DefaultAddress)
	if path, ok := strings.CutPrefix(address, socketScheme); ok {
		if !strings.HasPrefix(path, "/") {
			return "", fmt.Errorf("%w %q: the socket path must be absolute, as in %s", ErrInvalidAddress, address, DefaultAddress)
		}
		if len(path) > longestSocketPath {
			return "", fmt.Errorf("%w %q: the socket path must not exceed %d bytes", ErrInvalidAddress, address, longestSocketPath)
		}
		return address, nil
	}
	match := hostAndPort.FindStringSubmatch(address)
	if match == nil {
		return "", fmt.Errorf("%w %q: use unix:///path/to/socket or HOST:PORT", ErrInvalidAddress, address)
	}
	if port, err := strconv.Atoi(match[1]); err != nil || port < 1 || port > 65535 {
		return "", fmt.Errorf("%w %q: the port must be between 1 and 65535", ErrInvalidAddress, address)
	}
	return address, nil
}

// grpcTarget returns the gRPC target for an address. It escapes socket paths and the zones of IPv6 addresses, because
// gRPC parses targets as URLs.
func grpcTarget(address string) string {
	if path, ok := strings.CutPrefix(address, socketScheme); ok {
		return (&url.URL{Scheme: "unix", Path: path}).String()
	}
	return (&url.URL{Scheme: "dns", Path: "/" + address}).String()
}
