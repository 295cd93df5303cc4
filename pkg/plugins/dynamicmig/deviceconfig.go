// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/arguments"
)

// deviceConfig follows the file that the argument deviceConfig names.
//
//	            good, same names: apply
//	in force <-------------------------- file changes ---> trouble
//	    |                                                     ^
//	    +---- invalid, gone, or other names: stays as it was -+
//
// Names of resources hold from the start to the end of the process: pods that ask by
// other names would stop to count, and what they hold would be given away.
type deviceConfig struct {
	file   string
	names  v1alpha1.Resources
	apply  func(v1alpha1.RequestDefaults)
	tell   func(problem string) // an event
	logger klog.Logger

	mu       sync.Mutex // guards what follows
	defaults v1alpha1.RequestDefaults
	trouble  error // why the newest file is not in force, or may not be; nil when it is
}

// run follows the file until ctx ends.
func (d *deviceConfig) run(ctx context.Context, follow func(context.Context, []string, func()) error) {
	if err := follow(ctx, []string{d.file}, d.reload); err != nil {
		d.logger.Error(err, "The device configuration is not followed: a change takes a restart", "file", d.file)
		d.mu.Lock()
		defer d.mu.Unlock()
		d.trouble = fmt.Errorf("deviceConfig: %s is not followed, a change of it takes a restart: %w", d.file, err)
	}
}

// reload takes the newest file, or says why the last good one stays in force.
func (d *deviceConfig) reload() {
	names, defaults, err := arguments.Requests(d.file, os.ReadFile)
	if err == nil && names != d.names {
		err = fmt.Errorf("deviceConfig: %s renames resources, which takes a restart of the scheduler without GPU pods in the cluster; it still goes by %s, %s, %s, %s and %s",
			d.file, d.names.Count, d.names.Memory, d.names.MemoryPercentage, d.names.Cores, d.names.Priority)
	}
	d.mu.Lock()
	before := d.trouble
	d.trouble = err
	news := err == nil && defaults != d.defaults
	if news {
		d.defaults = defaults
	}
	d.mu.Unlock()
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		d.logger.Error(err, "The last good device configuration stays in force", "file", d.file)
		d.tell(err.Error())
	case err == nil && (news || before != nil):
		d.logger.Info("Device configuration is in force", "file", d.file, "defaults", defaults)
		if news {
			d.apply(defaults)
		}
	}
}

// Trouble is why the newest file is not in force; nil where it is, and where there
// is none.
func (d *deviceConfig) Trouble() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.trouble
}

// maxNote is the API's limit of an event's note, in bytes.
const maxNote = 1024

// tellOf writes the problems of configuration as events of this process's own pod,
// which its Deployment names in the environment.
func tellOf(handle fwk.Handle) func(string) {
	pod := &v1.ObjectReference{
		APIVersion: "v1", Kind: "Pod",
		Namespace: os.Getenv("POD_NAMESPACE"), Name: os.Getenv("POD_NAME"), UID: types.UID(os.Getenv("POD_UID")),
	}
	return func(problem string) {
		if pod.Namespace == "" || pod.Name == "" {
			return // a process outside the cluster; the log has it
		}
		note := "The last good device configuration stays in force: " + problem
		note = strings.ToValidUTF8(note[:min(len(note), maxNote)], "")
		handle.EventRecorder().Eventf(pod, nil, v1.EventTypeWarning, reasonConfigInvalid, "Configuring", "%s", note)
	}
}
