package objects

import (
	"errors"
	"fmt"
	"regexp"
	"slices"

	"k8s.io/apimachinery/pkg/labels"
)

// Kind is a kind of object to follow in all clusters, and the fields that are kept.
type Kind struct {
	// Resource is GROUP/VERSION/PLURAL, or VERSION/PLURAL for the core group.
	Resource string
	// Fields are the dotted paths of the fields that are kept; without any, objects have only what identifies them. [*]
	// stands for the elements of a list, and \. for a dot in a key: spec.placements[*].cityCodes. If all of them are of
	// the metadata, the API server is asked for the metadata alone.
	Fields []string
	// LabelSelector selects objects. It is evaluated here, so that an object that leaves it is told apart from a deleted
	// one.
	LabelSelector string
	// Secrets is required for Secrets: their annotations alone may have their data.
	Secrets bool
}

var resourceForm = regexp.MustCompile(`^(?:([a-z0-9.-]+)/)?(v[a-z0-9]+)/([a-z0-9.-]+)$`)

// kind is a Kind that was checked.
type kind struct {
	resource     string
	path         []string // of the collection
	projection   *field
	selector     labels.Selector
	metadataOnly bool
}

func (k Kind) check() (*kind, error) {
	form := resourceForm.FindStringSubmatch(k.Resource)
	if form == nil {
		return nil, fmt.Errorf("%q does not name a resource: write GROUP/VERSION/PLURAL, or VERSION/PLURAL for the core group", k.Resource)
	}
	group, version, plural := form[1], form[2], form[3]
	if group == "" && plural == "secrets" && !k.Secrets {
		return nil, fmt.Errorf("%s: Secrets are not followed unless their Kind has Secrets: true: their annotations alone may have their data", k.Resource)
	}
	selector, err := labels.Parse(k.LabelSelector)
	if err != nil {
		return nil, fmt.Errorf("%s: the label selector %q: %w", k.Resource, k.LabelSelector, err)
	}
	projection := &field{}
	for _, path := range k.Fields {
		if err := projection.add(path); err != nil {
			return nil, fmt.Errorf("%s: field %q: %w", k.Resource, path, err)
		}
	}
	path := []string{"api", version, plural}
	if group != "" {
		path = []string{"apis", group, version, plural}
	}
	return &kind{
		resource: k.Resource, path: path, projection: projection, selector: selector, metadataOnly: projection.isOnly(metadataField),
	}, nil
}

func checkKinds(given []Kind) ([]*kind, error) {
	kinds := make([]*kind, 0, len(given))
	for _, each := range given {
		checked, err := each.check()
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(kinds, func(other *kind) bool { return other.resource == checked.resource }) {
			return nil, fmt.Errorf("%s is given twice", each.Resource)
		}
		kinds = append(kinds, checked)
	}
	if len(kinds) == 0 {
		return nil, errors.New("there are no Kinds to follow")
	}
	return kinds, nil
}
