// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	v1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/config"
	"github.com/dynamig/dynamig/pkg/durable"
)

// files are the texts of the configuration files; nil where none is named or it
// cannot be read.
type files struct {
	Version         int    `json:"version"`
	DeviceConfig    []byte `json:"deviceConfig,omitempty"`
	MIGPartedConfig []byte `json:"migPartedConfig,omitempty"`
	NodeConfig      []byte `json:"nodeConfig,omitempty"`
}

// filesVersion is the only version of the last good configuration's file so far.
const filesVersion = 1

// lastGoodFileName is the last good configuration's in the state directory.
const lastGoodFileName = "configuration.json"

// readFiles reads the files that are named, as far as that is possible.
func readFiles(c *Config) (f files, problems []error) {
	f.Version = filesVersion
	read := func(file string, text *[]byte) {
		if file == "" {
			return
		}
		got, err := os.ReadFile(file)
		if err != nil {
			problems = append(problems, fmt.Errorf("reading configuration: %w", err))
			return
		}
		*text = append([]byte{}, got...)
	}
	read(c.DeviceConfig, &f.DeviceConfig)
	read(c.MIGPartedConfig, &f.MIGPartedConfig)
	read(c.NodeConfig, &f.NodeConfig)
	return f, problems
}

// settings parses the files, and returns a digest of them, too. The error joins the
// problems of all with those of reading them.
func (f *files) settings(c *Config, problems []error) (*settings, string, error) {
	s := &settings{device: config.DefaultDevice()}
	sum := sha256.New()
	parse := func(text []byte, parse func() error) {
		if text == nil {
			return
		}
		fmt.Fprintf(sum, "%d ", len(text))
		_, _ = sum.Write(text)
		if err := parse(); err != nil {
			problems = append(problems, err)
		}
	}
	parse(f.DeviceConfig, func() (err error) {
		s.device, err = config.ParseDevice(c.DeviceConfig, f.DeviceConfig)
		return err
	})
	var cuts *config.MIGParted
	parse(f.MIGPartedConfig, func() (err error) {
		cuts, err = config.ParseMIGParted(c.MIGPartedConfig, f.MIGPartedConfig)
		return err
	})
	parse(f.NodeConfig, func() (err error) {
		s.nodes, err = config.ParseNode(c.NodeConfig, f.NodeConfig)
		if err != nil || cuts == nil && c.MIGPartedConfig != "" {
			return err // what a bad file of mig-parted would have cannot be told
		}
		return s.nodes.UseMIGParted(cuts)
	})
	if err := errors.Join(problems...); err != nil {
		return nil, "", err
	}
	return s, hex.EncodeToString(sum.Sum(nil)), nil
}

// keepGood keeps good files for a start with bad ones. A disk that does not take them
// is no reason not to work with them.
func (a *Agent) keepGood(ctx context.Context, f *files) {
	if a.config.DryRun {
		return
	}
	path := filepath.Join(a.config.StateDir, lastGoodFileName)
	text, err := json.Marshal(f)
	if err == nil {
		if now, _ := os.ReadFile(path); bytes.Equal(now, text) {
			return
		}
		err = durable.Save(path, text)
	}
	if err != nil {
		klog.FromContext(ctx).Error(err, "Could not keep the configuration; a start with a bad one would have none")
	}
}

// lastGood is the configuration that an earlier run has kept; nil where there is none.
func (c *Config) lastGood() (*settings, string, error) {
	f, err := loadFiles(filepath.Join(c.StateDir, lastGoodFileName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("reading the last good configuration: %w", err)
	}
	return f.settings(c, nil)
}

// countName is the name of the resource that counts devices, in the configuration that
// a start puts in force; HAMi's where there is none.
func (c *Config) countName() v1.ResourceName {
	files, problems := readFiles(c)
	s, _, err := files.settings(c, problems)
	if err != nil {
		s, _, _ = c.lastGood() // reload says what is wrong with it
	}
	if s == nil {
		return v1alpha1.ResourceGPU
	}
	return v1.ResourceName(s.device.ResourceCountName)
}

func loadFiles(path string) (f files, err error) {
	text, err := os.ReadFile(path)
	if err == nil {
		err = durable.Decode(text, &f)
	}
	if err == nil && f.Version != filesVersion {
		err = fmt.Errorf("version %d is unknown, this program knows %d", f.Version, filesVersion)
	}
	return f, err
}
