// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"context"
	"errors"
	"strings"
	"testing"

	"k8s.io/klog/v2/ktesting"
)

// TestFileThatCannotBeFollowedIsTrouble: what is in force may then be old.
func TestFileThatCannotBeFollowedIsTrouble(t *testing.T) {
	logger, ctx := ktesting.NewTestContext(t)
	d := &deviceConfig{file: "f", logger: logger}
	d.run(ctx, func(context.Context, []string, func()) error { return errors.New("too many open files") })
	if err := d.Trouble(); err == nil || !strings.Contains(err.Error(), "f is not followed") {
		t.Errorf("trouble is %v, want that the file is not followed", err)
	}
}
