package natssource

import (
	"fmt"
	"net/url"
	"strings"
)

// publisherSubject is that of the message that each publisher writes again every 10 s.
const publisherSubject = "milo.publisher"

// none is the token of a source without a name, and of no namespace.
const none = "_"

// subject is what a message is about: a scope, or an object of it.
type subject struct {
	scope    scopeKey
	isObject bool
	object   place
}

// scopeKey is one kind in one cluster.
type scopeKey struct {
	cluster string // its name, with that of its source: SOURCE#NAME
	kind    kindTokens
}

type place struct{ namespace, name string }

// parse returns what a subject is about: milo.objects.SOURCE.CLUSTER.GROUP.RESOURCE.state, or ….NAMESPACE.NAME.
func parse(text string) (subject, error) {
	tokens := strings.Split(text, ".")
	isScope := len(tokens) == 7 && tokens[6] == "state"
	if !isScope && len(tokens) != 8 || tokens[0] != "milo" || tokens[1] != "objects" {
		return subject{}, fmt.Errorf("%q is the subject of no scope or object", text)
	}
	found := subject{scope: scopeKey{kind: kindTokens{tokens[4], tokens[5]}}, isObject: !isScope}
	isNamed, isNamespaced := tokens[2] != none, found.isObject && tokens[6] != none // a hostile namespace may have that name
	for i, encoded := range tokens {
		decoded, err := url.PathUnescape(encoded)
		if err != nil {
			return subject{}, fmt.Errorf("%q is the subject of no scope or object: %w", text, err)
		}
		tokens[i] = decoded
	}
	found.scope.cluster = tokens[3]
	if isNamed {
		found.scope.cluster = tokens[2] + "#" + tokens[3]
	}
	if found.isObject {
		found.object.name = tokens[7]
		if isNamespaced {
			found.object.namespace = tokens[6]
		}
	}
	return found, nil
}

// clusterTokens returns the two tokens of a cluster.
func clusterTokens(key string) string {
	source, name, isNamed := strings.Cut(key, "#")
	if !isNamed {
		return none + "." + token(key)
	}
	return token(source) + "." + token(name)
}

// token encodes as in a URL, dots too, which names may have anywhere.
func token(text string) string {
	if text == "" {
		return none
	}
	var encoded strings.Builder
	for _, each := range []byte(text) {
		switch {
		case each >= 'a' && each <= 'z', each >= 'A' && each <= 'Z', each >= '0' && each <= '9',
			strings.IndexByte("-_~:", each) >= 0:
			encoded.WriteByte(each)
		default:
			fmt.Fprintf(&encoded, "%%%02X", each)
		}
	}
	return encoded.String()
}
