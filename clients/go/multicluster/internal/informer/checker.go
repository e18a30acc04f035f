package informer

import toolscache "k8s.io/client-go/tools/cache"

// checker is a toolscache.DoneChecker.
type checker struct {
	name string
	done chan struct{}
}

func newChecker(name string) checker { return checker{name: name, done: make(chan struct{})} }

func (c checker) Name() string { return c.name }

func (c checker) Done() <-chan struct{} { return c.done }

func (c checker) isSet() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// set is called with the informer's lock held.
func (c checker) set() {
	if !c.isSet() {
		close(c.done)
	}
}

// probe has HasSyncedChecker with the type that client-go has for it. Since client-go 0.36 the interfaces of informers
// have the method; with an older one, whose package has no DoneChecker, the method is that of the deeper struct.
type probe struct {
	toolscache.ResourceEventHandlerRegistration
	deeper
}

type deeper struct{ without }

type without struct{}

func (without) HasSyncedChecker() checker { return checker{} }
