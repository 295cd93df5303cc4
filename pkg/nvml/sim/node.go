// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// Node is a simulated node as the world around the driver acts on it: jobs that
// hold instances, faults, reboots. Its methods are neither counted nor subject
// to faults. Any number of Nodes and Drivers, in any number of processes, may
// work on one root; each method is one transaction. Safe for parallel use.
type Node struct {
	root  string
	fsync bool

	// mu keeps the goroutines of this process from waiting in the kernel for
	// the lock of one another.
	mu sync.Mutex
}

// Load returns the node that Create made below root.
func Load(root string) (*Node, error) {
	abs, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("loading simulated node: %w", err)
	}
	n := &Node{root: abs}
	if _, _, err := n.read(); err != nil { // before the lock makes a file there
		return nil, err
	}
	return n, nil
}

// Root is the absolute directory that stands for "/" of the simulated node.
func (n *Node) Root() string { return n.root }

// Dump returns a copy of the node's state. It counts as no call.
func (n *Node) Dump() (State, error) {
	unlock, err := n.lock()
	if err != nil {
		return State{}, err
	}
	defer unlock()
	s, _, err := n.read()
	if err != nil {
		return State{}, err
	}
	return *s, nil
}

// update runs change on the state under the node's lock, stores the result where
// it differs, and brings the device tree in line. A process that dies in here
// leaves either the old or the new state; repair, called by Open, completes the
// tree then.
func (n *Node) update(change func(*State)) error {
	unlock, err := n.lock()
	if err != nil {
		return err
	}
	defer unlock()
	s, before, err := n.read()
	if err != nil {
		return err
	}
	had := capabilities(s)
	change(s)
	after, err := encodeState(s)
	if err != nil {
		return err
	}
	if bytes.Equal(before, after) {
		return nil
	}
	if err := n.write(after); err != nil {
		return err
	}
	return n.applyTree(s, had)
}

// attempt is update for a change that may be refused. A change must leave the
// state alone when it returns an error.
func (n *Node) attempt(change func(*State) error) error {
	var refused error
	err := n.update(func(s *State) { refused = change(s) })
	return errors.Join(err, refused)
}

// onGPU is attempt for a change of one GPU.
func (n *Node) onGPU(id nvml.GPUID, change func(*State, *GPU) error) error {
	return n.attempt(func(s *State) error {
		g, err := s.gpu(id)
		if err != nil {
			return err
		}
		return change(s, g)
	})
}

func (n *Node) stateFile() string { return filepath.Join(n.root, "state.json") }

func (n *Node) read() (*State, []byte, error) {
	text, err := os.ReadFile(n.stateFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, fmt.Errorf("reading simulated node: %s has no state.json: create the node first", n.root)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("reading simulated node: %w", err)
	}
	s, err := decodeState(text)
	if err != nil {
		return nil, nil, fmt.Errorf("reading simulated node %s: %w", n.root, err)
	}
	return s, text, nil
}

// write replaces state.json by rename, so that a reader without the lock, and
// the next one after a crash, sees a whole file.
func (n *Node) write(text []byte) error {
	temporary := n.stateFile() + ".tmp"
	if err := n.writeFile(temporary, text); err != nil {
		return fmt.Errorf("writing simulated node: %w", err)
	}
	if err := os.Rename(temporary, n.stateFile()); err != nil {
		return fmt.Errorf("writing simulated node: %w", err)
	}
	return nil
}

func (n *Node) writeFile(name string, text []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil && n.fsync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// lock takes the node's lock, which is a file of its own because state.json is
// replaced at each change.
func (n *Node) lock() (unlock func(), err error) {
	n.mu.Lock()
	f, err := os.OpenFile(filepath.Join(n.root, "state.lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		n.mu.Unlock()
		return nil, fmt.Errorf("locking simulated node: %w", err)
	}
	for {
		if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != syscall.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		n.mu.Unlock()
		return nil, fmt.Errorf("locking simulated node: %w", err)
	}
	return func() {
		f.Close() // releases the lock
		n.mu.Unlock()
	}, nil
}
