// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/durable"
)

// journalVersion is the only version of the journal so far.
const journalVersion = 1

// recordState is how far an instance of ours is; see the package's picture.
type recordState string

const (
	creating   recordState = "Creating"   // the hardware may have nothing, a part or all of it
	live       recordState = "Live"       // the hardware has all of it, with the record's UUID
	destroying recordState = "Destroying" // the hardware has less and less of it
)

// record is an instance that is ours.
type record struct {
	State recordState
	UUID  string    // MIG UUID; empty while it is not known
	Owner types.UID // pod; empty when idle
}

// podRecord is what must not be forgotten about a pod of this node.
type podRecord struct {
	UID        types.UID `json:"uid"`
	Namespace  string    `json:"namespace"`
	Name       string    `json:"name"`
	Allocation string    `json:"allocation,omitempty"` // the first valid annotation, as it was
	Prepared   bool      `json:"prepared,omitempty"`   // all its instances existed once
	Refused    string    `json:"refused,omitempty"`    // why, for good
	Warned     bool      `json:"warned,omitempty"`     // of a changed or missing annotation
}

// nodeRecord is the last known Node object, for a start without API server.
type nodeRecord struct {
	UID    types.UID         `json:"uid,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
}

// configRecord counts configurations.
type configRecord struct {
	Generation int64  `json:"generation,omitempty"`
	Digest     string `json:"digest,omitempty"` // of the files' content
}

// content is everything that the journal holds.
type content struct {
	Node   nodeRecord
	Config configRecord

	// Lost says why there was no journal to read; empty when there was. While it
	// is set, unknown instances of a GPU that is not in Adopted, and that a bound
	// pod's allocation names, are taken for ours.
	Lost    string
	Adopted map[string]bool // GPU UUIDs

	Instances map[v1alpha1.Span]record
	Pods      map[types.UID]podRecord
}

func newContent() content {
	return content{
		Adopted:   map[string]bool{},
		Instances: map[v1alpha1.Span]record{},
		Pods:      map[types.UID]podRecord{},
	}
}

// journalFile is the content's form on disk.
type journalFile struct {
	Version   int              `json:"version"`
	Node      nodeRecord       `json:"node"`
	Config    configRecord     `json:"config"`
	Lost      string           `json:"lost,omitempty"`
	Adopted   []string         `json:"adopted,omitempty"`
	Instances []instanceRecord `json:"instances"`
	Pods      []podRecord      `json:"pods"`
}

type instanceRecord struct {
	GPU       string      `json:"gpu"`
	ProfileID int32       `json:"profileID"`
	Start     int32       `json:"start"`
	Size      int32       `json:"size"`
	State     recordState `json:"state"`
	UUID      string      `json:"uuid,omitempty"`
	Owner     types.UID   `json:"owner,omitempty"`
}

// encode returns the file's text. Equal content gives equal text.
func (c *content) encode() ([]byte, error) {
	f := journalFile{
		Version:   journalVersion,
		Node:      c.Node,
		Config:    c.Config,
		Lost:      c.Lost,
		Adopted:   slices.Sorted(maps.Keys(c.Adopted)),
		Instances: []instanceRecord{},
		Pods:      []podRecord{},
	}
	for _, span := range slices.SortedFunc(maps.Keys(c.Instances), compareSpans) {
		r := c.Instances[span]
		f.Instances = append(f.Instances, instanceRecord{
			GPU: span.GPU, ProfileID: span.ProfileID, Start: span.Start, Size: span.Size,
			State: r.State, UUID: r.UUID, Owner: r.Owner,
		})
	}
	for _, uid := range slices.Sorted(maps.Keys(c.Pods)) {
		f.Pods = append(f.Pods, c.Pods[uid])
	}
	text, err := json.Marshal(f)
	if err != nil {
		return nil, fmt.Errorf("encoding journal: %w", err)
	}
	return append(text, '\n'), nil
}

// compareSpans orders by GPU, start and profile.
func compareSpans(a, b v1alpha1.Span) int {
	return cmp.Or(cmp.Compare(a.GPU, b.GPU), cmp.Compare(a.Start, b.Start), cmp.Compare(a.ProfileID, b.ProfileID))
}

// decodeContent accepts what encode writes, and nothing else.
func decodeContent(text []byte) (content, error) {
	var f journalFile
	if err := durable.Decode(text, &f); err != nil {
		return content{}, err
	}
	if f.Version != journalVersion {
		return content{}, fmt.Errorf("version %d is unknown, this program knows %d", f.Version, journalVersion)
	}
	c := newContent()
	c.Node, c.Config, c.Lost = f.Node, f.Config, f.Lost
	for _, gpu := range f.Adopted {
		c.Adopted[gpu] = true
	}
	for i, r := range f.Instances {
		if err := c.addInstance(r); err != nil {
			return content{}, fmt.Errorf("instances[%d]: %w", i, err)
		}
	}
	for i, p := range f.Pods {
		if _, twice := c.Pods[p.UID]; twice || p.UID == "" {
			return content{}, fmt.Errorf("pods[%d]: uid %q is empty or occurs twice", i, p.UID)
		}
		c.Pods[p.UID] = p
	}
	return c, nil
}

func (c *content) addInstance(r instanceRecord) error {
	span := v1alpha1.Span{GPU: r.GPU, ProfileID: r.ProfileID, Start: r.Start, Size: r.Size}
	switch {
	case r.GPU == "" || r.ProfileID < 0 || r.Start < 0 || r.Size <= 0:
		return fmt.Errorf("%+v is no placement", span)
	case r.State != creating && r.State != live && r.State != destroying:
		return fmt.Errorf("state %q is none of %s, %s, %s", r.State, creating, live, destroying)
	}
	if _, twice := c.Instances[span]; twice {
		return fmt.Errorf("%+v occurs twice", span)
	}
	c.Instances[span] = record{State: r.State, UUID: r.UUID, Owner: r.Owner}
	return nil
}
