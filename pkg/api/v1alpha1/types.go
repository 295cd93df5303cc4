// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// GPUNode is what one node's agent reports of its GPUs: what they can be cut
// into, what is cut, and what is wrong. It is named as the Node, owned by it, and
// has no spec: nobody asks through it. Only that node's agent writes it. There is
// no heartbeat in it; a dead agent shows as capacity 0 of nvidia.com/gpu.
//
// +genclient
// +genclient:nonNamespaced
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=gpun,categories=dynamig
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Mode",type=string,JSONPath=`.status.summary.mode`,description="Modes in force"
// +kubebuilder:printcolumn:name="GPUs",type=string,JSONPath=`.status.summary.gpus`,description="Number and model of managed GPUs"
// +kubebuilder:printcolumn:name="Instances",type=string,JSONPath=`.status.summary.instances`,description="Instances in use and live"
// +kubebuilder:printcolumn:name="Free",type=string,JSONPath=`.status.summary.freeMemorySlices`,description="Free memory slices of all"
// +kubebuilder:printcolumn:name="Largest",type=string,JSONPath=`.status.summary.largestFreeProfile`,description="Largest profile that still fits"
// +kubebuilder:printcolumn:name="Last Report",type=string,JSONPath=`.status.summary.health`,description="OK, or what was wrong when the agent last reported; whether it still runs is not known here"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type GPUNode struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Status GPUNodeStatus `json:"status,omitempty"`
}

// GPUNodeList is a list of GPUNodes.
//
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
// +kubebuilder:object:root=true
type GPUNodeList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []GPUNode `json:"items"`
}

// GPUNodeStatus is the whole report. Lists are sorted, so that an unchanged node
// gives an unchanged object.
//
// +kubebuilder:validation:XValidation:rule="!has(self.gpus) || self.gpus.all(g, has(self.models) && self.models.exists(m, m.model == g.model))",message="each of gpus must name a model of models"
type GPUNodeStatus struct {
	// NodeUID is the Node that the report is about. A recreated Node of the same
	// name has another UID and inherits nothing.
	// +optional
	NodeUID types.UID `json:"nodeUID,omitempty"`

	// DriverVersion is that of the NVIDIA kernel driver.
	// +optional
	DriverVersion string `json:"driverVersion,omitempty"`

	// ConfigGeneration counts the configurations that this agent has put in
	// force since it first ran on the node.
	// +optional
	// +kubebuilder:validation:Minimum=0
	ConfigGeneration int64 `json:"configGeneration,omitempty"`

	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// Models says once for each GPU model of the node what it can be cut into.
	// +optional
	// +listType=map
	// +listMapKey=model
	// +kubebuilder:validation:MaxItems=16
	Models []GPUModel `json:"models,omitempty"`

	// +optional
	// +listType=map
	// +listMapKey=uuid
	// +kubebuilder:validation:MaxItems=64
	GPUs []GPU `json:"gpus,omitempty"`

	// Pods lists the bound pods with an allocation that are not simply at rest.
	// +optional
	// +listType=map
	// +listMapKey=uid
	// +kubebuilder:validation:MaxItems=4096
	Pods []PodPreparation `json:"pods,omitempty"`

	// Summary is what the printer columns show.
	// +optional
	Summary Summary `json:"summary,omitempty"`
}

// Rule is how a model's instances are chosen (docs/design.md section 4).
// +kubebuilder:validation:Enum=Templates;Allowlist;Hardware
type Rule string

// The three rules, in order of precedence.
const (
	RuleTemplates Rule = "Templates"
	RuleAllowlist Rule = "Allowlist"
	RuleHardware  Rule = "Hardware"
)

// GPUModel is one model's catalogue: NVML's profiles, narrowed by configuration.
//
// +kubebuilder:validation:XValidation:rule="(self.rule == 'Templates') == (has(self.templates) && size(self.templates) > 0)",message="templates belong to rule Templates and only to it"
// +kubebuilder:validation:XValidation:rule="(self.rule == 'Allowlist') == (has(self.allowed) && size(self.allowed) > 0)",message="allowed belongs to rule Allowlist and only to it"
// +kubebuilder:validation:XValidation:rule="!has(self.profiles) || self.profiles.all(p, p.starts.all(s, s >= 0 && s + p.size <= self.grid.memorySlices))",message="each start of a profile must lie on the grid"
type GPUModel struct {
	// Model is the NVML product name.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	Model string `json:"model"`

	// Grid is the size of a GPU in slices.
	Grid Grid `json:"grid"`

	Rule Rule `json:"rule"`

	// Profiles are all that NVML reports, by id. Which of them are given is said
	// by the rule.
	// +optional
	// +listType=map
	// +listMapKey=id
	// +kubebuilder:validation:MaxItems=32
	Profiles []Profile `json:"profiles,omitempty"`

	// Allowed are the ids of the profiles given; only with rule Allowlist.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=32
	Allowed []int32 `json:"allowed,omitempty"`

	// Templates in the order of the file; only with rule Templates.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Templates []Template `json:"templates,omitempty"`
}

// Grid is the size of a GPU in slices.
type Grid struct {
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=64
	MemorySlices int32 `json:"memorySlices"`
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=64
	ComputeSlices int32 `json:"computeSlices"`
}

// Profile is a GPU instance profile as NVML reports it.
type Profile struct {
	// ID is NVML's reported id, unique within the model.
	// +kubebuilder:validation:Minimum=0
	ID int32 `json:"id"`
	// Name is for people.
	// +kubebuilder:validation:MinLength=1
	Name string `json:"name"`
	// MemoryMiB of one instance; 0 when unknown.
	// +optional
	// +kubebuilder:validation:Minimum=0
	MemoryMiB int64 `json:"memoryMiB,omitempty"`
	// SMs of one instance; 0 when unknown.
	// +optional
	// +kubebuilder:validation:Minimum=0
	SMs int32 `json:"sms,omitempty"`
	// +kubebuilder:validation:Minimum=1
	ComputeSlices int32 `json:"computeSlices"`
	// Max is the number of instances of this profile that one GPU can hold.
	// +kubebuilder:validation:Minimum=1
	Max int32 `json:"max"`
	// Size in memory slices.
	// +kubebuilder:validation:Minimum=1
	Size int32 `json:"size"`
	// Starts are the possible first memory slices, ascending.
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	Starts []int32 `json:"starts"`
}

// Template is one whole-GPU layout of knownMigGeometries.
type Template struct {
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	Entries []TemplateEntry `json:"entries"`
}

// TemplateEntry is one line of a template.
type TemplateEntry struct {
	// +kubebuilder:validation:Minimum=0
	ProfileID int32 `json:"profileID"`
	// +kubebuilder:validation:Minimum=1
	Count int32 `json:"count"`
	// MemoryMiB as the file says: the operator's contract with users, compared
	// with requests in place of the profile's own.
	// +kubebuilder:validation:Minimum=1
	MemoryMiB int64 `json:"memoryMiB"`
	// Cores in percent as the file says; 0 when it does not.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	Cores int32 `json:"cores,omitempty"`
}

// GPUMode says what a GPU is used for.
type GPUMode struct {
	// Wanted by configuration: mig or hami-core.
	Wanted string `json:"wanted"`
	// Current is what is in force: mig or hami-core.
	Current string `json:"current"`
	// Pending is true while a change of mode waits for a GPU reset.
	// +optional
	Pending bool `json:"pending,omitempty"`
}

// GPUHealth of one GPU.
// +kubebuilder:validation:Enum=Healthy;Unhealthy
type GPUHealth string

// Health of a GPU.
const (
	Healthy   GPUHealth = "Healthy"
	Unhealthy GPUHealth = "Unhealthy"
)

// GPU is one managed physical GPU.
type GPU struct {
	// UUID as NVML prints it, "GPU-...". The identity.
	// +kubebuilder:validation:MinLength=1
	UUID string `json:"uuid"`
	// Index in NVML's order, for people.
	Index int32 `json:"index"`
	// Model is the NVML product name: one of status.models, unless the GPU cannot
	// be cut and is in mode hami-core.
	// +kubebuilder:validation:MaxLength=128
	Model string `json:"model"`
	// MemoryMiB in all.
	// +optional
	MemoryMiB int64     `json:"memoryMiB,omitempty"`
	Mode      GPUMode   `json:"mode"`
	Health    GPUHealth `json:"health"`
	// Reason says in one sentence why the GPU takes no new work, if it does not.
	// +optional
	Reason string `json:"reason,omitempty"`
	// NUMA node, -1 where unknown.
	// +optional
	NUMA int32 `json:"numa,omitempty"`
	// Shares says what software shares the GPU takes in mode hami-core; absent
	// where it takes none.
	// +optional
	Shares *ShareCapacity `json:"shares,omitempty"`
	// Instances that exist in hardware, by start.
	// +optional
	// +listType=map
	// +listMapKey=start
	// +listMapKey=profileID
	// +kubebuilder:validation:MaxItems=64
	Instances []Instance `json:"instances,omitempty"`
}

// ShareCapacity is what a GPU offers to software shares, all together. Memory and
// cores may be more than the hardware has (deviceMemoryScaling, deviceCoreScaling).
type ShareCapacity struct {
	// Count of shares at one time.
	// +kubebuilder:validation:Minimum=1
	Count int32 `json:"count"`
	// +kubebuilder:validation:Minimum=1
	MemoryMiB int64 `json:"memoryMiB"`
	// Cores in percent of the GPU's SMs.
	// +kubebuilder:validation:Minimum=1
	Cores int32 `json:"cores"`
}

// InstanceState of an instance in hardware.
// +kubebuilder:validation:Enum=Live;Idle;Foreign;Stuck
type InstanceState string

// States of an instance. Live and Idle do not take slices from the scheduler's
// point of view (pods own those); Foreign and Stuck do.
const (
	// InstanceLive has a pod.
	InstanceLive InstanceState = "Live"
	// InstanceIdle is ours and has no pod: kept warm, destroyed when in the way.
	InstanceIdle InstanceState = "Idle"
	// InstanceForeign was made by somebody else and is never touched.
	InstanceForeign InstanceState = "Foreign"
	// InstanceStuck is ours, has no pod, and could not be destroyed yet.
	InstanceStuck InstanceState = "Stuck"
)

// Instance is one GPU instance in hardware.
type Instance struct {
	// +kubebuilder:validation:Minimum=0
	ProfileID int32 `json:"profileID"`
	// Start is the first memory slice.
	// +kubebuilder:validation:Minimum=0
	Start int32 `json:"start"`
	// GI is the driver's GPU instance id.
	GI int32 `json:"gi"`
	// CI is the driver's compute instance id, -1 when there is none.
	CI int32 `json:"ci"`
	// UUID is "MIG-...", empty when there is no compute instance.
	// +optional
	UUID string `json:"uuid,omitempty"`
	// PodUID is the owner of a Live instance.
	// +optional
	PodUID types.UID     `json:"podUID,omitempty"`
	State  InstanceState `json:"state"`
}

// PodPhase says how far the agent is with a pod's devices.
// +kubebuilder:validation:Enum=Preparing;Prepared;Failing;Refused
type PodPhase string

// Phases. Preparing and Failing are retried; Refused is final, the pod can never
// start and holds no slices any more.
const (
	PodPreparing PodPhase = "Preparing"
	PodPrepared  PodPhase = "Prepared"
	PodFailing   PodPhase = "Failing"
	PodRefused   PodPhase = "Refused"
)

// MaxReason is the longest PodPreparation.Reason, so that no pod can fill a report.
const MaxReason = 1024

// PodPreparation is the agent's word on one bound pod.
type PodPreparation struct {
	UID   types.UID `json:"uid"`
	Phase PodPhase  `json:"phase"`
	// Reason says in one sentence why the pod is not prepared.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Reason string `json:"reason,omitempty"`
}

// Summary is what kubectl get gpunodes prints.
type Summary struct {
	// Mode, such as "mig" or "mig 6, hami-core 2".
	// +optional
	Mode string `json:"mode,omitempty"`
	// GPUs, such as "2x A100-SXM4-40GB".
	// +optional
	GPUs string `json:"gpus,omitempty"`
	// Instances, such as "3 used, 1 idle".
	// +optional
	Instances string `json:"instances,omitempty"`
	// FreeMemorySlices, such as "9/16".
	// +optional
	FreeMemorySlices string `json:"freeMemorySlices,omitempty"`
	// LargestFreeProfile that could still be created on some GPU, such as
	// "3g.20gb"; "-" when nothing fits.
	// +optional
	LargestFreeProfile string `json:"largestFreeProfile,omitempty"`
	// Health, "OK" or what is wrong in few words.
	// +optional
	Health string `json:"health,omitempty"`
}

// LastGoodInForce is the last sentence, without its end, of a GPUNode's condition
// ConfigInvalid where an earlier configuration is in force; those before it are the mistakes.
const LastGoodInForce = "The last good configuration stays in force"

// Condition types of a GPUNode. Each is True when something needs an operator,
// except Ready and ConfigRemarks.
const (
	// ConditionReady: the agent has reported and the node offers GPUs.
	ConditionReady = "Ready"
	// ConditionConfigInvalid: the newest configuration does not parse or does
	// not apply, and the last good one is in force.
	ConditionConfigInvalid = "ConfigInvalid"
	// ConditionConfigMismatch: parts of the configuration are left out, because this
	// hardware has no such thing (a missing profile, a layout that cannot be cut).
	ConditionConfigMismatch = "ConfigMismatch"
	// ConditionConfigRemarks: the configuration is in force and says something else
	// than the hardware (less memory than the file promises, a model that no entry
	// names). That is normal with published files: it is True and nothing is wrong.
	ConditionConfigRemarks = "ConfigRemarks"
	// ConditionForeignInstances: somebody else has cut instances.
	ConditionForeignInstances = "ForeignInstances"
	// ConditionHardwareFailing: a GPU cannot be used (lost, or an XID error of the
	// whole GPU), or an instance reports an error.
	ConditionHardwareFailing = "HardwareFailing"
	// ConditionJournalLost: the agent began without a journal, and there are
	// instances of which it cannot tell whose they are.
	ConditionJournalLost = "JournalLost"
	// ConditionLibraryUnusable: GPUs are to be shared in software, and HAMi-core's
	// library is missing or broken.
	ConditionLibraryUnusable = "LibraryUnusable"
	// ConditionModePending: a MIG mode change waits for a GPU reset.
	ConditionModePending = "ModePending"
)
