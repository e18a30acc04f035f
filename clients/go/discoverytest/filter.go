package discoverytest

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"

	pb "go.miloapis.com/discovery/v1"
)

type predicate = func(*pb.Cluster) bool

// requirement is one term of a label selector: key, !key, key=value, key!=value, key in (...), key notin (...).
var requirement = regexp.MustCompile(
	`^\s*(?:(!)?\s*([\w./-]+)|([\w./-]+)\s*(==?|!=)\s*([\w.-]*)|([\w./-]+)\s+(in|notin)\s*\(([^()]*)\))\s*(?:,|$)`)

// filter returns a predicate that reports whether a cluster matches a filter.
func filter(filter *pb.ClusterFilter) (predicate, error) {
	terms, err := selector(filter.GetLabelSelector())
	if err != nil {
		return nil, err
	}
	return func(cluster *pb.Cluster) bool {
		return oneOf(filter.GetNames(), cluster.GetName()) &&
			oneOf(filter.GetOrganizations(), cluster.GetOrganization()) &&
			oneOf(filter.GetSources(), cluster.GetSource()) &&
			!slices.ContainsFunc(terms, func(term predicate) bool { return !term(cluster) })
	}, nil
}

func oneOf(wanted []string, value string) bool {
	return len(wanted) == 0 || slices.Contains(wanted, value)
}

func selector(text string) (terms []predicate, err error) {
	for rest := text; strings.TrimSpace(rest) != ""; {
		match := requirement.FindStringSubmatch(rest)
		if match == nil {
			return nil, Error(codes.InvalidArgument, "INVALID_REQUEST",
				fmt.Sprintf("filter.label_selector: cannot parse %q", rest))
		}
		rest = rest[len(match[0]):]
		switch {
		case match[2] != "":
			terms = append(terms, exists(match[2], match[1] == ""))
		case match[3] != "":
			terms = append(terms, isIn(match[3], []string{match[5]}, match[4] != "!="))
		default:
			values := strings.Split(match[8], ",")
			for i := range values {
				values[i] = strings.TrimSpace(values[i])
			}
			terms = append(terms, isIn(match[6], values, match[7] == "in"))
		}
	}
	return terms, nil
}

func exists(key string, wanted bool) predicate {
	return func(cluster *pb.Cluster) bool {
		_, ok := cluster.GetLabels()[key]
		return ok == wanted
	}
}

// isIn returns a predicate: if wanted, the label has one of the values; otherwise, it has none of them or is missing.
func isIn(key string, values []string, wanted bool) predicate {
	return func(cluster *pb.Cluster) bool {
		value, ok := cluster.GetLabels()[key]
		return (ok && slices.Contains(values, value)) == wanted
	}
}
