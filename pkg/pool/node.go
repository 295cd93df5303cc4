// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// Node is the compact form of a GPUNode that decisions are made from. Immutable.
type Node struct {
	// What decides about most pods stands together: for Filter each line of the
	// processor's cache is a miss.
	runs   []run
	one    [1]run // of runs, where it is the only one
	simple bool   // takes instances only, and avoids none
	offers bool   // takes new instances
	avoids bool   // some place is avoided: see Pool.Avoid

	Name string
	UID  types.UID // of the Node object
	GPUs []GPU

	index   map[string]int // GPU UUID to position in GPUs
	devices int            // see Devices
	refused map[types.UID]struct{}

	noLibrary bool // GPUs are to be shared, and HAMi-core's library cannot be used

	idle *View // without any pod
	bare *View // without any pod and without instances of others
}

// GPU is one GPU of a Node.
type GPU struct {
	ID        string // UUID
	Index     int32  // for people
	Model     string // NVML product name
	NUMA      int32  // node, -1 where unknown
	Catalogue *geometry.Catalogue
	Offered   bool   // takes new MIG instances
	Reason    string // why it takes no new work, in the agent's words

	// Shares is what the GPU offers to software shares; nil where it takes none.
	Shares *v1alpha1.ShareCapacity

	blocked geometry.Occupancy // Foreign and Stuck instances
	avoided []geometry.Placed  // not to be chosen, though free: see Pool.Avoid

	avoidsShares bool // the same for shares
}

// takes says in which mode the GPU takes new work, empty for none.
func (g *GPU) takes() string {
	switch {
	case g.Offered:
		return "in mode " + v1alpha1.ModeMIG
	case g.Shares != nil:
		return "in mode " + v1alpha1.ModeHAMiCore
	default:
		return ""
	}
}

// AvoidsShares reports whether no new shares are to be chosen though they may fit:
// see Pool.Avoid.
func (g *GPU) AvoidsShares() bool { return g.avoidsShares }

// Avoided lists the placements that are not to be chosen though they may be free:
// see Pool.Avoid.
func (g *GPU) Avoided() []geometry.Placed { return g.avoided }

// Describes reports whether the node's report is of this Node object, not of an
// earlier or later one of its name.
func (n *Node) Describes(object *v1.Node) bool { return n.UID == "" || n.UID == object.UID }

// run is a range of neighbouring GPUs with one catalogue.
type run struct {
	catalogue *geometry.Catalogue
	from, to  int // positions in GPUs; to is the first behind
}

// divide finds the runs, and what decisions need to know of the node without pods.
func (n *Node) divide() {
	n.runs, n.simple, n.avoids, n.offers, n.devices = n.one[:0], true, false, false, 0
	blocked := false
	for i := range n.GPUs {
		g := &n.GPUs[i]
		n.offers = n.offers || g.Offered
		n.devices += g.devices()
		n.avoids = n.avoids || len(g.avoided) > 0 || g.avoidsShares
		blocked = blocked || g.blocked.Mask != 0
		n.simple = n.simple && g.Shares == nil && len(g.avoided) == 0
		if last := len(n.runs) - 1; last >= 0 && n.runs[last].catalogue == g.Catalogue {
			n.runs[last].to++
		} else {
			n.runs = append(n.runs, run{g.Catalogue, i, i + 1})
		}
	}
	n.bare = regardless(n, n.nothing())
	n.idle = n.bare
	if blocked {
		n.idle = regardless(n, n.blocked())
	}
}

// NewNode is a node with these GPUs, for fleets without a cluster. The error says
// which UUID occurs twice.
func NewNode(name string, gpus []GPU) (*Node, error) {
	n := &Node{Name: name, GPUs: gpus, index: make(map[string]int, len(gpus)), refused: map[types.UID]struct{}{}}
	for i := range gpus {
		if _, twice := n.index[gpus[i].ID]; twice {
			return nil, fmt.Errorf("building node %s: GPU %s occurs twice", name, gpus[i].ID)
		}
		n.index[gpus[i].ID] = i
	}
	n.divide()
	return n, nil
}

// NodeOf reads a GPUNode. The error names the object and the field; such a node
// offers nothing.
func NodeOf(obj *v1alpha1.GPUNode, catalogues *Catalogues) (*Node, error) {
	n := &Node{
		Name:    obj.Name,
		UID:     obj.Status.NodeUID,
		GPUs:    make([]GPU, 0, len(obj.Status.GPUs)),
		index:   make(map[string]int, len(obj.Status.GPUs)),
		refused: map[types.UID]struct{}{},

		noLibrary: meta.IsStatusConditionTrue(obj.Status.Conditions, v1alpha1.ConditionLibraryUnusable),
	}
	for i := range obj.Status.GPUs {
		g, err := gpuOf(&obj.Status, &obj.Status.GPUs[i], catalogues)
		if err != nil {
			return nil, fmt.Errorf("reading GPUNode %s: status.gpus[%d]: %w", obj.Name, i, err)
		}
		if _, twice := n.index[g.ID]; twice {
			return nil, fmt.Errorf("reading GPUNode %s: status.gpus[%d]: uuid %s occurs twice", obj.Name, i, g.ID)
		}
		n.index[g.ID] = len(n.GPUs)
		n.GPUs = append(n.GPUs, g)
	}
	n.divide()
	for _, p := range obj.Status.Pods {
		if p.Phase == v1alpha1.PodRefused {
			n.refused[p.UID] = struct{}{}
		}
	}
	return n, nil
}

func gpuOf(status *v1alpha1.GPUNodeStatus, in *v1alpha1.GPU, catalogues *Catalogues) (GPU, error) {
	catalogue, err := catalogueOf(status, in, catalogues)
	if err != nil {
		return GPU{}, err
	}
	g := GPU{ID: in.UUID, Index: in.Index, Model: in.Model, NUMA: in.NUMA, Catalogue: catalogue, Reason: in.Reason}
	switch offers(in) {
	case v1alpha1.ModeMIG:
		g.Offered = true
	case v1alpha1.ModeHAMiCore:
		g.Shares = in.Shares
	}
	for _, inst := range in.Instances {
		if inst.State != v1alpha1.InstanceForeign && inst.State != v1alpha1.InstanceStuck {
			continue
		}
		profile, ok := catalogue.Model().Profile(geometry.ProfileID(inst.ProfileID))
		if !ok {
			return GPU{}, fmt.Errorf("instances: profile id %d is not in model %s", inst.ProfileID, in.Model)
		}
		g.blocked = catalogue.Model().Block(g.blocked, geometry.Placement{Start: int(inst.Start), Size: profile.Size})
	}
	return g, nil
}

// catalogueOf is what a GPU can be cut into: nothing where it is in mode hami-core
// and its model is not in the report.
func catalogueOf(status *v1alpha1.GPUNodeStatus, in *v1alpha1.GPU, catalogues *Catalogues) (*geometry.Catalogue, error) {
	model := status.Model(in.Model)
	switch {
	case model != nil:
		return catalogues.Of(model)
	case in.Mode.Current == v1alpha1.ModeHAMiCore:
		return catalogues.Nothing(in.Model), nil
	default:
		return nil, fmt.Errorf("model %q is not in status.models", in.Model)
	}
}

// offers says in which mode a GPU takes new work, empty for none.
func offers(in *v1alpha1.GPU) string {
	switch {
	case in.Health != v1alpha1.Healthy, in.Reason != "",
		in.Mode.Current != in.Mode.Wanted || in.Mode.Pending,
		in.Mode.Current == v1alpha1.ModeHAMiCore && in.Shares == nil:
		return ""
	default:
		return in.Mode.Current
	}
}

// avoiding is the node that avoids the holders' placements; the node itself when
// there are none.
func (n *Node) avoiding(holders []*Holder) *Node {
	if len(holders) == 0 {
		return n
	}
	out := *n
	out.GPUs = slices.Clone(n.GPUs)
	for _, h := range holders {
		for _, s := range h.Spans {
			switch i, ok := n.index[s.GPU]; {
			case !ok:
			case s.IsShare():
				out.GPUs[i].avoidsShares = true
			default:
				out.GPUs[i].avoided = append(out.GPUs[i].avoided, s.Placed)
			}
		}
	}
	out.divide()
	return &out
}

// Refused reports whether the node's agent has given a pod up.
func (n *Node) Refused(uid types.UID) bool {
	_, ok := n.refused[uid]
	return ok
}

// WholeGPUs is how many GPUs take new work.
func (n *Node) WholeGPUs() int {
	sum := 0
	for i := range n.GPUs {
		if n.GPUs[i].Offered || n.GPUs[i].Shares != nil {
			sum++
		}
	}
	return sum
}

// Devices is the largest number of devices that the node can hold at once.
func (n *Node) Devices() int { return n.devices }

// devices is the largest number of them that the GPU can hold at once.
func (g *GPU) devices() int {
	sum := 0
	if g.Offered {
		sum = Devices(g.Catalogue)
	}
	if g.Shares != nil {
		sum += int(g.Shares.Count)
	}
	return sum
}
