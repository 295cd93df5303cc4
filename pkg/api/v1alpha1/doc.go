// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 is what dynamig's programs and users agree on in the API
// server: the GPUNode kind, the allocation annotation, and the keys and resource
// names. docs/wire.md explains each for people.
//
// v1alpha1 knows forms and checks them. It does not know behaviour: who writes
// what and when is said in docs/design.md sections 2 and 3.
//
// +k8s:deepcopy-gen=package
// +groupName=dynamig.io
// +groupGoName=Dynamig
package v1alpha1
