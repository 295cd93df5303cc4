// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"
	clientrecord "k8s.io/client-go/tools/record"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// Reasons of events.
const (
	reasonPrepared          = "Prepared"          // on a pod: its instances exist
	reasonFailing           = "PreparationFailed" // on a pod: tried again
	reasonRefused           = "Refused"           // on a pod: final
	reasonNotPlaced         = "NotPlaced"         // on a pod: not by dynamig's scheduler
	reasonAllocationChanged = "AllocationChanged" // on a pod: ignored
	reasonUnhealthy         = "DeviceUnhealthy"   // on a pod: the hardware reports an error
	reasonConfigInvalid     = "ConfigInvalid"     // on the node
)

// maxMessage is the longest message of an event, in bytes (k8s.io/kubernetes
// pkg/apis/core/validation/events.go, noteLengthLimit).
const maxMessage = 1024

// events sends events to pods and to the node. Nothing here waits.
type events struct {
	node        string
	broadcaster clientrecord.EventBroadcaster
	recorder    clientrecord.EventRecorder
}

func newEvents(node string) *events {
	b := clientrecord.NewBroadcaster()
	return &events{
		node:        node,
		broadcaster: b,
		recorder:    b.NewRecorder(scheme.Scheme, v1.EventSource{Component: v1alpha1.AgentName, Host: node}),
	}
}

// start sends what is recorded from now on, until stop.
func (e *events) start(client kubernetes.Interface) (stop func()) {
	e.broadcaster.StartRecordingToSink(&typedv1.EventSinkImpl{Interface: client.CoreV1().Events(v1.NamespaceAll)})
	return e.broadcaster.Shutdown
}

// warn of something on a pod.
func (e *events) warn(o *owner, reason, message string) {
	e.recorder.Event(o.reference(), v1.EventTypeWarning, reason, v1alpha1.Shorten(message, maxMessage))
}

// prepared tells what a pod got, and how much memory that really is where the
// configuration promises more.
func (e *events) prepared(o *owner, g *grounds) {
	var devices, notes []string
	for _, span := range o.spans {
		how := "new"
		if o.made[span].reused {
			how = "reused"
		}
		devices = append(devices, fmt.Sprintf("%s (%s)", g.describe(span), how))
		note := g.shortfall(span, o.device(span).MemoryMiB)
		if note != "" && !strings.Contains(strings.Join(notes, ""), note) {
			notes = append(notes, note)
		}
	}
	noun := "MIG instance"
	for _, d := range o.shares {
		noun = "software share"
		devices = append(devices, g.describeShare(d))
	}
	if len(devices) != 1 {
		noun += "s"
	}
	if len(o.spans) > 0 && len(o.shares) > 0 {
		noun = "devices"
	}
	message := fmt.Sprintf("Prepared %d %s in %s: %s", len(devices), noun, lasted(time.Since(o.since)), strings.Join(devices, ", "))
	e.recorder.Event(o.reference(), v1.EventTypeNormal, reasonPrepared, v1alpha1.Shorten(message+strings.Join(notes, ""), maxMessage))
}

// lasted says how long something took: "14 ms", "2.1 s", "3 min 20 s".
func lasted(d time.Duration) string {
	switch d = d.Round(time.Millisecond); {
	case d < time.Millisecond:
		return "less than 1 ms"
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	default:
		return fmt.Sprintf("%d min %d s", d/time.Minute, d%time.Minute/time.Second)
	}
}

// describeShare names a share for people: "8000 MiB, 30% of the cores of GPU 0".
func (g *grounds) describeShare(d v1alpha1.Device) string {
	gpu := d.GPU
	if g != nil {
		if found := g.hardware.GPU(d.GPU); found != nil {
			gpu = fmt.Sprint(found.Index)
		}
	}
	if d.Share.Cores == 0 {
		return fmt.Sprintf("%d MiB of GPU %s", d.Share.MemoryMiB, gpu)
	}
	return fmt.Sprintf("%d MiB, %d%% of the cores of GPU %s", d.Share.MemoryMiB, d.Share.Cores, gpu)
}

// shortfall says how much less memory an instance has than was promised; empty
// when it is not less.
func (g *grounds) shortfall(span v1alpha1.Span, promised int64) string {
	if g == nil {
		return ""
	}
	p := g.profile(span)
	if p == nil || p.MemoryMiB == 0 || p.MemoryMiB >= promised {
		return ""
	}
	return fmt.Sprintf("; %s has %d MiB, the configuration says %d", p.Name, p.MemoryMiB, promised)
}

// configInvalid warns of a configuration on the node.
func (e *events) configInvalid(uid types.UID, message string) {
	ref := &v1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: e.node, UID: uid}
	e.recorder.Event(ref, v1.EventTypeWarning, reasonConfigInvalid, v1alpha1.Shorten(message, maxMessage))
}

func (o *owner) reference() *v1.ObjectReference {
	return &v1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: o.Namespace, Name: o.Name, UID: o.UID}
}
