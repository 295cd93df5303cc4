// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/test/kubelet"
)

func TestPodsComeFromKubeletAsTheyAre(t *testing.T) {
	k := kubelet.New(t, shortDir(t))
	defer k.Stop()
	want := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a", UID: "uid-a", Annotations: map[string]string{"key": "value"}},
		Spec:       v1.PodSpec{NodeName: "node1", Containers: []v1.Container{{Name: "main"}}},
	}
	if err := k.Admit(&kubelet.Pod{UID: want.UID, Namespace: want.Namespace, Name: want.Name, Object: want}); err != nil {
		t.Fatal(err)
	}
	got, err := ListPods(t.Context(), k.PodsAPI())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]*v1.Pod{want}, got); diff != "" {
		t.Errorf("ListPods (-want +got):\n%s", diff)
	}
}

func TestKubeletThatDoesNotTellOfItsPodsIsAnError(t *testing.T) {
	k := kubelet.New(t, shortDir(t))
	k.Mu.Lock()
	k.Initializing = true
	k.Mu.Unlock()
	refuses := func(want string) {
		t.Helper()
		_, err := ListPods(t.Context(), k.PodsAPI())
		if err == nil || !strings.Contains(err.Error(), "listing kubelet's pods: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("ListPods = %v, want an error with %q", err, want)
		}
	}
	refuses("Kubelet is initializing")
	k.Stop()
	refuses("no such file")
}
