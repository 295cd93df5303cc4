// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/config"
)

func newExportCommand(s *screen, a *access) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "export NODE",
		Short: "Write what a node's GPUs are cut into, in mig-parted's format",
		Long: `Writes the modes and instances that the node's agent reports as a configuration of
NVIDIA's mig-parted, to hand the node back to it. GPUs that the agent leaves alone are
left out, and with a comment instances that no compute instance spans. For a node that
runs it is a moment's picture: instances come and go with pods.`,
		Example: `  kubectl mig export node1 > node1.yaml
  nvidia-mig-parted assert -f node1.yaml -c current    # on the node`,
		Args: checked(func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("name one node, such as: kubectl mig export node1; kubectl mig status lists them")
			}
			return nil
		}),
		RunE: func(cmd *cobra.Command, args []string) error { return export(cmd.Context(), s, a, args[0], name) },
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return a.nodeNames(cmd), cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.Flags().StringVar(&name, "name", "current", "Name of the configuration in mig-configs")
	return cmd
}

func export(ctx context.Context, s *screen, a *access, node, name string) error {
	if _, err := a.connect(); err != nil {
		return err
	}
	n, err := a.gpus.DynamigV1alpha1().GPUNodes().Get(ctx, node, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("there is no GPUNode %s; kubectl mig status lists them", node)
	case err != nil:
		return fmt.Errorf("reading GPUNode %s: %w", node, err)
	}
	text, err := config.EncodeMIGParted(name, &n.Status)
	if err != nil {
		return fmt.Errorf("exporting node %s: %w", node, err)
	}
	_, err = s.out.Write(text)
	return err
}
