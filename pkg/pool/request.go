// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"math"
	"strings"
	"unicode"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// Options are what the scheduler's arguments say about requests.
type Options struct {
	NoOversize   bool // only the smallest adequate profile, never a larger one
	StrictMemory bool // compare with NVML's memory instead of the file's

	// Policy is that of pods whose annotations name none.
	Policy Policy
	// Expected are requests that scores reckon with at the start; all profiles
	// alike where there are none. Learn says whether real ones change that.
	Expected []Expected
	Learn    bool

	Names    v1alpha1.Resources // the zero value is HAMi's names
	Defaults v1alpha1.RequestDefaults
}

// Resources are the names in force.
func (o Options) Resources() v1alpha1.Resources {
	if o.Names == (v1alpha1.Resources{}) {
		return v1alpha1.DefaultResources()
	}
	return o.Names
}

// memoryFactor is how many MiB one unit of memory asked for is.
func (o *Options) memoryFactor() int { return max(int(o.Defaults.MemoryFactor), 1) }

// InUnits is the largest amount of memory, as pods ask for it, within so many MiB.
func (o *Options) InUnits(memoryMiB int) int { return memoryMiB / o.memoryFactor() }

// mostDevices bounds what one pod may ask for, above what any node can hold: so no pod
// takes much memory, or time, of a scheduler that reads it again and again.
const mostDevices = 1024

// Request is what a pod asks for. It is parsed once and never changed.
type Request struct {
	Pod     types.NamespacedName
	UID     types.UID
	MIG     bool            // a MIG instance would do
	Share   bool            // a software share would do
	Devices []geometry.Want // what each device must be as a MIG instance
	Shares  []ShareWant     // what each device must be as a software share
	Select  Selectors
	Policy  Policy

	// Containers lists for each container with devices, by name, the indexes
	// into Devices in the order of the allocation.
	Containers map[string][]int

	// Remark is a sentence on what may not be meant and is no mistake; empty where
	// there is nothing.
	Remark string

	unshared bool   // the mode allows shares, and something else rules them out
	joint    []bool // by device: a container has it together with others
	prices   *Prices
	tables   *tableCache
	verdicts *verdicts
}

// InvalidError is a mistake in a pod. Its text names the field and the remedy.
type InvalidError struct{ Problem string }

func (e *InvalidError) Error() string { return e.Problem }

func invalid(format string, args ...any) error {
	return &InvalidError{Problem: fmt.Sprintf(format, args...)}
}

// Wants reports whether a pod asks for any of our resources. It is cheap: most
// pods of a cluster do not.
func (o Options) Wants(pod *v1.Pod) bool {
	names := o.Resources()
	for _, list := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if asks(&list[i], &names) {
				return true
			}
		}
	}
	return false
}

func asks(c *v1.Container, n *v1alpha1.Resources) bool {
	for _, name := range []v1.ResourceName{n.Count, n.Memory, n.MemoryPercentage, n.Cores} {
		if quantity(c, name) > 0 {
			return true
		}
	}
	return false
}

// quantity reads a limit, or the request where there is no limit. Absent is 0.
func quantity(c *v1.Container, name v1.ResourceName) int64 {
	if q, ok := c.Resources.Limits[name]; ok {
		return q.Value()
	}
	q := c.Resources.Requests[name]
	return q.Value()
}

// given reports whether a container says anything of a resource, be it 0.
func given(c *v1.Container, name v1.ResourceName) bool {
	_, limit := c.Resources.Limits[name]
	_, request := c.Resources.Requests[name]
	return limit || request
}

// Parse reads a pod's request; nil when it asks for none of our resources. The
// error is an *InvalidError: the pod must be changed.
//
// Kubelet hands the slots of a plain init container on to the containers after it,
// in the order of the spec, init containers first; what a sidecar or app container
// has taken stays with it (kubernetes pkg/kubelet/cm/devicemanager/manager.go:
// 388-432). Devices follow the slots, so each is made large enough for all
// containers that have it in turn.
func Parse(pod *v1.Pod, opts Options) (*Request, error) {
	if !opts.Wants(pod) {
		return nil, nil
	}
	r := &Request{
		Pod:        types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name},
		UID:        pod.UID,
		Containers: map[string][]int{},
		tables:     new(tableCache),
		verdicts:   new(verdicts),
	}
	if err := checkLists(pod.Annotations); err != nil {
		return nil, err
	}
	if err := r.parseMode(pod.Annotations[v1alpha1.AnnotationMode]); err != nil {
		return nil, err
	}
	if err := r.Select.parse(pod.Annotations); err != nil {
		return nil, err
	}
	r.Policy = opts.Policy
	if err := r.Policy.parse(pod.Annotations); err != nil {
		return nil, err
	}
	b := requestBuilder{request: r, opts: opts, profile: pod.Annotations[v1alpha1.AnnotationProfile]}
	if err := b.addAll(pod); err != nil {
		return nil, err
	}
	if err := b.limitShares(); err != nil {
		return nil, err
	}
	return r, nil
}

// parseMode accepts the modes that exist. HAMi tests "the annotation contains the
// mode", so that a list in any notation names several; text that contains none is
// a mistake and refused.
func (r *Request) parseMode(text string) error {
	if text == "" {
		r.MIG, r.Share = true, true
		return nil
	}
	r.MIG = strings.Contains(text, v1alpha1.ModeMIG)
	r.Share = strings.Contains(text, v1alpha1.ModeHAMiCore)
	if !r.MIG && !r.Share {
		return invalid("annotation %s is %q; use %q, %q or both",
			v1alpha1.AnnotationMode, text, v1alpha1.ModeMIG, v1alpha1.ModeHAMiCore)
	}
	for _, word := range strings.FieldsFunc(text, func(c rune) bool { return c != '-' && !unicode.IsLetter(c) && !unicode.IsDigit(c) }) {
		if word != v1alpha1.ModeMIG && word != v1alpha1.ModeHAMiCore {
			r.Remark = fmt.Sprintf("annotation %s is %q, and %q is no mode of dynamig: what counts is which of %q and %q the text contains, as in HAMi",
				v1alpha1.AnnotationMode, text, word, v1alpha1.ModeMIG, v1alpha1.ModeHAMiCore)
			break
		}
	}
	return nil
}

type requestBuilder struct {
	request  *Request
	opts     Options
	profile  string
	asked    int64    // devices of all containers so far, at most mostDevices
	reusable []int    // devices that earlier plain init containers have had
	last     []string // by device: the container that has it last
	inits    []string // plain init containers with devices
}

func (b *requestBuilder) addAll(pod *v1.Pod) error {
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		taken, err := b.add(c)
		if err != nil {
			return err
		}
		if !sidecar(c) {
			b.reusable = append(taken, b.reusable...)
			b.inits = append(b.inits, c.Name)
		}
	}
	for i := range pod.Spec.Containers {
		if _, err := b.add(&pod.Spec.Containers[i]); err != nil {
			return err
		}
	}
	return nil
}

func sidecar(c *v1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways
}

// add gives a container its devices, reusable ones first, and takes these out of
// the reusable ones.
func (b *requestBuilder) add(c *v1.Container) ([]int, error) {
	want, count, err := b.parse(c)
	if err != nil || count == 0 {
		return nil, err
	}
	reused := min(count, len(b.reusable))
	taken := append([]int(nil), b.reusable[:reused]...)
	b.reusable = b.reusable[reused:]
	share := shareWant(want)
	for _, i := range taken {
		b.request.Devices[i] = larger(b.request.Devices[i], want)
		b.request.Shares[i] = b.request.Shares[i].larger(share)
		b.last[i] = c.Name
	}
	for len(taken) < count {
		taken = append(taken, len(b.request.Devices))
		b.request.add(want, share)
		b.last = append(b.last, c.Name)
	}
	for _, i := range taken {
		b.request.joint[i] = b.request.joint[i] || count > 1
	}
	b.request.Containers[c.Name] = taken
	return taken, nil
}

// add is one more device.
func (r *Request) add(w geometry.Want, s ShareWant) {
	r.Devices = append(r.Devices, w)
	r.Shares = append(r.Shares, s)
	r.joint = append(r.joint, false)
}

// larger is a want that satisfies both, by the rule that all that is set must hold.
func larger(a, b geometry.Want) geometry.Want {
	a.MemoryMiB = max(a.MemoryMiB, b.MemoryMiB)
	a.Percent = max(a.Percent, b.Percent)
	a.Cores = max(a.Cores, b.Cores)
	a.Full = a.Full || b.Full
	return a
}

// parse reads one container: what each of its devices must be, and how many.
func (b *requestBuilder) parse(c *v1.Container) (geometry.Want, int, error) {
	var none geometry.Want
	n := b.opts.Resources()
	if !asks(c, &n) {
		return none, 0, nil
	}
	count := quantity(c, n.Count)
	memory := quantity(c, n.Memory)
	percent := quantity(c, n.MemoryPercentage)
	cores := quantity(c, n.Cores)
	factor := int64(b.opts.memoryFactor())
	switch {
	case count <= 0:
		return none, 0, invalid("container %q asks for %s without %s; add the limit %s: 1",
			c.Name, firstAsked(c, &n), n.Count, n.Count)
	case count > mostDevices-b.asked:
		return none, 0, invalid("container %q: %s is %d, with which the pod asks for more than %d devices in all; lower it, or use several pods",
			c.Name, n.Count, count, mostDevices)
	case percent > 100:
		return none, 0, invalid("container %q: %s is %d; use 1 to 100", c.Name, n.MemoryPercentage, percent)
	case cores > 100:
		return none, 0, invalid("container %q: %s is %d; use 0 to 100", c.Name, n.Cores, cores)
	case quantity(c, n.Priority) > 1:
		return none, 0, invalid("container %q: %s is %d; use 0, which is high, or 1", c.Name, n.Priority, quantity(c, n.Priority))
	case memory > math.MaxInt32/factor:
		return none, 0, invalid("container %q: %s is %d MiB; no GPU has that much (the unit is MiB, without a suffix)",
			c.Name, n.Memory, memory)
	}
	b.asked += count
	want := geometry.Want{Strict: b.opts.StrictMemory, Oversize: !b.opts.NoOversize}
	if memory == 0 && percent == 0 {
		memory, factor = int64(b.opts.Defaults.MemoryMiB), 1
	}
	if !given(c, n.Cores) && (memory > 0 || percent > 0) && percent < 100 {
		cores = int64(b.opts.Defaults.Cores)
	}
	switch {
	case b.profile != "":
		want.Profile = b.profile
	case memory > 0:
		want.MemoryMiB, want.Cores = int(memory*factor), int(cores)
	case percent > 0:
		want.Percent, want.Cores = int(percent), int(cores)
	case cores > 0 && cores < 100:
		want.Cores = int(cores)
	default:
		want.Full = true
	}
	return want, int(count), nil
}

func firstAsked(c *v1.Container, n *v1alpha1.Resources) v1.ResourceName {
	for _, name := range n.RequestOnly() {
		if quantity(c, name) > 0 {
			return name
		}
	}
	return n.Count
}

// wholeGPUs counts the devices that nothing can be beside.
func (r *Request) wholeGPUs() int {
	n := 0
	for _, w := range r.Devices {
		if w.Full || w.Percent == 100 {
			n++
		}
	}
	return n
}

// aWholeGPU describes a device that nothing can be beside.
const aWholeGPU = "a whole GPU"

// Describe says in words what one device must be, with no percent sign: kube-scheduler
// takes the text of a FailedScheduling event, with our reasons in it, for a format.
func Describe(w geometry.Want) string {
	if w.Profile != "" {
		return "profile " + w.Profile
	}
	var parts []string
	add := func(asked bool, format string, args ...any) {
		if asked {
			parts = append(parts, fmt.Sprintf(format, args...))
		}
	}
	add(w.Full, aWholeGPU)
	add(w.MemoryMiB > 0, "%d MiB", w.MemoryMiB)
	add(w.Percent > 0, "%d percent of a GPU's memory", w.Percent)
	add(w.Cores > 0 && !w.Full, "%d percent of a GPU's cores", w.Cores)
	return strings.Join(parts, " and ")
}
