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
	// DefaultAddress is the address of the daemon if neither [Options] nor the environment name one.
	DefaultAddress = "unix:///run/milo-discovery/discovery.sock"
	// AddressVariable is the environment variable that names the daemon's address.
	AddressVariable = "MILO_DISCOVERY_ADDRESS"
	// actAsVariable states to the exec plugin which user a kubeconfig acts as.
	actAsVariable = "MILO_DISCOVERY_ACT_AS"

	// sun_path of Linux has 108 bytes, the last of which is a NUL.
	longestSocketPath = 107
	socketScheme      = "unix://"
)

// ErrInvalidAddress is the error of an address that is neither unix:///path nor HOST:PORT.
var ErrInvalidAddress = errors.New("invalid address")

var hostAndPort = regexp.MustCompile(`^(?:\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~-]+)?\]|[A-Za-z0-9._-]+):([0-9]{1,5})$`)

// target returns a valid address. If it is empty, the address from the environment is used, or else the default.
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

// grpcTarget returns the target for gRPC, which parses it as a URL, whereas the path of a socket and the zone of an IPv6
// address are literal.
func grpcTarget(address string) string {
	if path, ok := strings.CutPrefix(address, socketScheme); ok {
		return (&url.URL{Scheme: "unix", Path: path}).String()
	}
	return (&url.URL{Scheme: "dns", Path: "/" + address}).String()
}
