// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/test/stack"
)

// TestSchedulerFollowsDeviceConfig: a mistake changes nothing and shows in the
// metric; new defaults of requests hold without a restart.
func TestSchedulerFollowsDeviceConfig(t *testing.T) {
	file := st.SchedulerFile("device-config.yaml")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write := func(text, stale string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		awaitMetric(t, "dynamig_device_config_stale "+stale)
	}
	const mistake = "nvidia: {defaultMemory: 4Gi}\n"
	t.Cleanup(func() {
		write(mistake, "1") // so that the 0 is of what comes next
		write(string(good), "0")
	})
	write(mistake, "1")
	runs(t, newPod("before", "gpu=1 gpumem=4000"))
	write("nvidia: {defaultMemory: 4000}\n", "0")
	pod := runs(t, newPod("after", "gpu=1"))
	a, err := v1alpha1.DecodeAllocation(pod.Annotations[v1alpha1.AnnotationAllocation])
	if err != nil {
		t.Fatal(err)
	}
	if got := a.Containers["main"][0].MIG; got == nil || got.Profile != "1g.5gb" {
		t.Errorf("with defaultMemory 4000 a pod that asks for nothing else got %+v, want 1g.5gb", got)
	}
}

// awaitMetric waits for a line of the scheduler's metrics.
func awaitMetric(t *testing.T, line string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	err := stack.Until(ctx, "the metric "+line, func() (bool, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, st.Monitor()+"/metrics", nil)
		if err != nil {
			return false, err
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			return false, nil // the next time
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		return strings.Contains("\n"+string(text), "\n"+line+"\n"), err
	})
	if err != nil {
		t.Fatal(err)
	}
}
