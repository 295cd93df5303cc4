// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// owners knows the live pods of this node that ask for GPUs, and which placements
// each owns. Safe for parallel use; no method waits for the disk, the API server
// or a driver.
type owners struct {
	node     string
	resource v1.ResourceName // that counts devices, for messages
	journal  *journal
	events   *events
	changed  func(urgent bool) // called after each change, without the lock

	mu       sync.Mutex // guards what follows
	pods     map[types.UID]*owner
	grounds  *grounds // nil until the hardware is known
	synced   bool     // every pod of the node has been seen
	seen     int      // owners seen so far
	admitted int      // owners admitted so far
	ended    []types.UID
	urgent   bool          // the present change is to be reported at once
	wake     chan struct{} // closed and replaced with each change
}

// owner is one pod. The zero allocation is that of a pod which was not placed by
// dynamig's scheduler.
type owner struct {
	podRecord
	pod        *v1.Pod   // newest seen; nil while it is known from the journal only
	since      time.Time // when it was seen first
	seen       int       // which owner it was to be seen, from 1
	allocation v1alpha1.Allocation
	spans      []v1alpha1.Span   // by GPU and start
	shares     []v1alpha1.Device // by id
	order      int               // which owner it was to be admitted, from 1; 0 = not yet
	made       map[v1alpha1.Span]made
	trouble    map[v1alpha1.Span]trouble
	unplaced   string          // why Prepare refuses a pod without an annotation
	contested  string          // why it is not admitted yet: somebody has its placement
	ailing     string          // likewise: a GPU that is to be shared with it is unhealthy
	told       map[string]bool // failures that the pod has an event of
}

// want is a placement that an owner's allocation names.
type want struct {
	span        v1alpha1.Span
	owner       types.UID
	profile     string // for people
	prepared    bool   // the pod has had it before
	terminating bool   // the pod will not start any more
}

// made is an instance that an owner can use.
type made struct {
	gpuMinor, gi, ci int
	uuid             string
	reused           bool // it was there before the pod
}

// newOwners starts with the pods that the journal knows: until the API server has
// answered they count as alive.
func newOwners(node string, resource v1.ResourceName, j *journal, e *events, changed func(urgent bool)) *owners {
	s := &owners{
		node: node, resource: resource, journal: j, events: e, changed: changed,
		pods: map[types.UID]*owner{}, wake: make(chan struct{}),
	}
	j.read(func(c *content) {
		for _, uid := range slices.Sorted(maps.Keys(c.Pods)) {
			r := c.Pods[uid]
			o := s.add(r)
			if a, err := v1alpha1.DecodeAllocation(r.Allocation); err == nil {
				o.place(a)
			}
		}
	})
	s.admitAll()
	return s
}

// add makes a pod an owner. mu is held.
func (s *owners) add(r podRecord) *owner {
	s.seen++
	o := &owner{
		podRecord: r, since: time.Now(), seen: s.seen,
		made: map[v1alpha1.Span]made{}, trouble: map[v1alpha1.Span]trouble{}, told: map[string]bool{},
	}
	s.pods[r.UID] = o
	return o
}

func (o *owner) place(a v1alpha1.Allocation) {
	o.allocation, o.spans, o.shares = a, a.Spans(), a.Shares()
	slices.SortFunc(o.spans, compareSpans)
}

// placed reports whether the owner has a valid allocation.
func (o *owner) placed() bool { return len(o.allocation.Containers) > 0 }

// holds reports whether the owner owns its placements now.
func (o *owner) holds() bool { return o.order > 0 && o.Refused == "" }

// phase of a placed owner.
func (o *owner) phase() v1alpha1.PodPhase {
	switch {
	case o.Refused != "":
		return v1alpha1.PodRefused
	case o.holds() && len(o.made) == len(o.spans):
		return v1alpha1.PodPrepared
	case o.ailing != "" || slices.ContainsFunc(slices.Collect(maps.Values(o.trouble)), trouble.lasting):
		return v1alpha1.PodFailing
	default:
		return v1alpha1.PodPreparing
	}
}

// reason is why the owner is not prepared: that of its first placement in trouble.
func (o *owner) reason() string {
	if why := cmp.Or(o.Refused, o.contested, o.ailing); why != "" {
		return why
	}
	for _, span := range o.spans {
		if t, ok := o.trouble[span]; ok {
			return t.reason
		}
	}
	return ""
}

// do runs f with the lock held and then tells everybody.
func (s *owners) do(f func()) {
	s.mu.Lock()
	f()
	urgent := s.urgent
	s.urgent = false
	close(s.wake)
	s.wake = make(chan struct{})
	s.mu.Unlock()
	s.changed(urgent)
}

// sync takes the complete list of the node's pods. Owners that are not in it have
// ended while nobody looked.
func (s *owners) sync(pods []*v1.Pod) {
	s.do(func() {
		alive := map[types.UID]bool{}
		for _, pod := range pods {
			alive[pod.UID] = !ended(pod)
		}
		for uid := range s.pods {
			if !alive[uid] {
				s.remove(uid)
			}
		}
		for _, pod := range pods {
			s.see(pod)
		}
		s.synced, s.urgent = true, true
		s.admitAll() // who was contested may be refused now
	})
}

// observe takes the newest state of pods that are bound to this node.
func (s *owners) observe(pods ...*v1.Pod) {
	if !slices.ContainsFunc(pods, asksForGPUs) {
		return
	}
	s.do(func() {
		for _, pod := range pods {
			s.see(pod)
		}
	})
}

// end says that a pod is gone. Idempotent.
func (s *owners) end(uid types.UID) {
	s.mu.Lock()
	_, known := s.pods[uid]
	s.mu.Unlock()
	if known {
		s.do(func() { s.remove(uid) })
	}
}

// remove forgets a pod; its instances become idle. mu is held.
func (s *owners) remove(uid types.UID) {
	if _, known := s.pods[uid]; !known {
		return
	}
	delete(s.pods, uid)
	s.ended = append(s.ended, uid)
	s.journal.change(func(c *content) { delete(c.Pods, uid) })
	s.admitAll()
}

// see is observe with mu held.
func (s *owners) see(pod *v1.Pod) {
	if ended(pod) {
		s.remove(pod.UID)
		return
	}
	if !asksForGPUs(pod) {
		return
	}
	o := s.pods[pod.UID]
	if o == nil {
		o = s.add(podRecord{UID: pod.UID, Namespace: pod.Namespace, Name: pod.Name})
	}
	o.pod = pod
	switch text := pod.Annotations[v1alpha1.AnnotationAllocation]; {
	case o.Refused != "":
	case o.placed():
		s.compare(o, text)
	case text == "" || pod.Spec.SchedulerName != v1alpha1.SchedulerName:
		s.leaveUnplaced(o)
	default:
		s.decide(o, text)
	}
}

// compare reports, once, that a pod's annotation is not any more what counts (I4).
func (s *owners) compare(o *owner, text string) {
	if text == o.Allocation || o.Warned {
		return
	}
	o.Warned = true
	s.keep(o)
	s.events.warn(o, reasonAllocationChanged, fmt.Sprintf(
		"The annotation %s was changed after the pod was bound. The agent acts on the first one and ignores the change; "+
			"delete the pod to have it placed anew.", v1alpha1.AnnotationAllocation))
}

// leaveUnplaced notes that a pod can never get a device.
func (s *owners) leaveUnplaced(o *owner) {
	o.unplaced = notPlaced(o.pod, s.resource)
	s.warnUnplaced(o)
}

// warnUnplaced says so with one event, on a node that takes part: elsewhere the pod's
// devices are somebody else's.
func (s *owners) warnUnplaced(o *owner) {
	if o.unplaced == "" || o.Warned || s.grounds == nil || !s.grounds.configured {
		return
	}
	o.Warned = true
	s.keep(o)
	s.events.warn(o, reasonNotPlaced, o.unplaced)
}

// notPlaced says what to do with a pod that dynamig's scheduler has not placed.
func notPlaced(pod *v1.Pod, asked v1.ResourceName) string {
	name := pod.Namespace + "/" + pod.Name
	switch source := pod.Annotations[annotationConfigSource]; {
	case source != "" && source != "api":
		return fmt.Sprintf("pod %s asks for %s but is a static pod, which no scheduler places; use a Deployment or a DaemonSet instead",
			name, asked)
	case pod.Spec.SchedulerName == v1alpha1.SchedulerName:
		return fmt.Sprintf("pod %s asks for %s but was bound without the annotation %s; do not set spec.nodeName and delete the pod",
			name, asked, v1alpha1.AnnotationAllocation)
	default:
		return fmt.Sprintf("pod %s asks for %s but was not placed by %s; delete it and create it with spec.schedulerName: %s",
			name, asked, v1alpha1.SchedulerName, v1alpha1.SchedulerName)
	}
}

// decide reads a pod's first annotation. One that is not for this pod and node
// refuses it for good: the scheduler writes the right one before it binds.
func (s *owners) decide(o *owner, text string) {
	o.unplaced = ""
	a, err := v1alpha1.DecodeAllocation(text)
	if err == nil {
		err = a.OwnsCounted(o.pod, s.node, s.resource)
	}
	if err != nil {
		s.refuse(o, fmt.Sprintf("%v; delete the pod to have it placed anew", err))
		return
	}
	o.Allocation = text
	o.place(a)
	s.keep(o)
	s.admitAll()
}

// keep records a pod in the journal. The next commit writes it, which comes
// before anything is done for the pod. mu is held.
func (s *owners) keep(o *owner) {
	r := o.podRecord
	s.journal.change(func(c *content) { c.Pods[r.UID] = r })
}

// refuse ends an owner's claim for good. mu is held.
func (s *owners) refuse(o *owner, reason string) {
	if o.Refused != "" {
		return
	}
	o.Refused, o.contested, o.ailing = reason, "", ""
	s.urgent = true
	clear(o.made)
	clear(o.trouble)
	s.keep(o)
	s.events.warn(o, reasonRefused, "The agent refuses the pod for good: "+reason)
}

// refused refuses the owner of a want.
func (s *owners) refused(uid types.UID, reason string) {
	s.do(func() {
		if o := s.pods[uid]; o != nil {
			s.refuse(o, reason)
		}
	})
}

// setGrounds tells what allocations are checked against.
func (s *owners) setGrounds(g *grounds) {
	s.do(func() {
		s.grounds = g
		for _, o := range s.pods {
			s.warnUnplaced(o)
		}
		s.admitAll()
	})
}
