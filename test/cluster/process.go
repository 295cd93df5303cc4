// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a tracked process, on the host or in a node. Its record is on disk,
// so it can be looked up and stopped by another process than the one that started it.
type Process struct {
	Name string
	Log  string // file with its standard output and error, of all its runs

	tracker *tracker
}

// record is what the disk knows of a process.
type record struct {
	identity
	Argv []string `json:"argv"`
	Env  []string `json:"env"`
}

// tracker starts the processes of one place, the host or a node.
type tracker struct {
	run, logs string // directories
	mark      string // value of markVar
	bin       string // first in PATH
	start     func(*exec.Cmd) error
}

// stopGrace is how long Stop waits between SIGTERM and SIGKILL.
const stopGrace = 10 * time.Second

func (t *tracker) process(name string) *Process {
	return &Process{Name: name, Log: filepath.Join(t.logs, name+".log"), tracker: t}
}

// launch starts a program that is not running under this name yet. It gets a clean
// environment: PATH, HOME, the mark, and env.
func (t *tracker) launch(name string, argv, env []string) (*Process, error) {
	p := t.process(name)
	if p.Running() {
		return nil, fmt.Errorf("starting %s: it runs already; stop it first", name)
	}
	if err := p.exec(record{Argv: argv, Env: env}); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Process) exec(rec record) error {
	t := p.tracker
	if len(rec.Argv) == 0 {
		return fmt.Errorf("starting %s: no program given", p.Name)
	}
	if err := errors.Join(os.MkdirAll(t.run, 0o755), os.MkdirAll(t.logs, 0o755)); err != nil {
		return fmt.Errorf("starting %s: %w", p.Name, err)
	}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("starting %s: %w", p.Name, err)
	}
	defer log.Close()

	cmd := t.command(rec.Argv, rec.Env)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true} // Ctrl-C in a terminal is not meant for it
	if err := t.start(cmd); err != nil {
		return fmt.Errorf("starting %s: %w", p.Name, err)
	}
	rec.identity, err = identify(cmd.Process.Pid) // before Wait, which lets go of the pid
	// The goroutine only collects the exit status, so that no zombie stays while
	// this process lives; it ends with the child.
	go cmd.Wait()
	if err != nil {
		return fmt.Errorf("starting %s: %w; the end of %s:\n%s", p.Name, err, p.Log, p.tail())
	}
	if err := writeJSON(p.file(), rec); err != nil {
		return errors.Join(fmt.Errorf("starting %s: %w", p.Name, err), rec.signal(unix.SIGKILL))
	}
	return nil
}

func (t *tracker) command(argv, env []string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = append([]string{
		"PATH=" + t.bin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root",
		markVar + "=" + t.mark,
	}, env...)
	return cmd
}

func (p *Process) file() string { return filepath.Join(p.tracker.run, p.Name+".json") }

func (p *Process) record() (record, error) {
	var rec record
	if err := readJSON(p.file(), &rec); err != nil {
		return rec, fmt.Errorf("looking up process %s: %w", p.Name, err)
	}
	return rec, nil
}

// Place returns the name of the node where the process runs, or "host".
func (p *Process) Place() string {
	if _, node, ok := strings.Cut(p.tracker.mark, "/"); ok {
		return node
	}
	return "host"
}

// PID returns the pid as the host sees it, 0 if the process does not run.
func (p *Process) PID() int {
	rec, err := p.record()
	if err != nil || !rec.alive() {
		return 0
	}
	return rec.PID
}

// Running tells whether the process is alive.
func (p *Process) Running() bool { return p.PID() != 0 }

// Stop asks the process to end (SIGTERM), and kills it if it does not within 10 s.
// One that has ended is no error.
func (p *Process) Stop(ctx context.Context) error {
	rec, err := p.record()
	if err != nil {
		return err
	}
	if err := rec.signal(unix.SIGTERM); err != nil {
		return fmt.Errorf("stopping %s: %w", p.Name, err)
	}
	grace, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	if err := rec.wait(grace); err == nil {
		return nil
	}
	return p.Kill(ctx)
}

// Kill ends the process with SIGKILL and waits for its end. One that has ended is no error.
func (p *Process) Kill(ctx context.Context) error {
	rec, err := p.record()
	if err != nil {
		return err
	}
	if err := rec.kill(ctx); err != nil {
		return fmt.Errorf("killing %s: %w", p.Name, err)
	}
	return nil
}

// Signal sends a signal, such as SIGSTOP and SIGCONT. A process that has ended is no error.
func (p *Process) Signal(signal unix.Signal) error {
	rec, err := p.record()
	if err != nil {
		return err
	}
	if err := rec.signal(signal); err != nil {
		return fmt.Errorf("sending %s to %s: %w", signal, p.Name, err)
	}
	return nil
}

// Wait returns when the process has ended, however it did.
func (p *Process) Wait(ctx context.Context) error {
	rec, err := p.record()
	if err != nil {
		return err
	}
	return rec.wait(ctx)
}

// Restart stops the process if it runs, and starts the same command again.
func (p *Process) Restart(ctx context.Context) error {
	if err := p.Stop(ctx); err != nil {
		return err
	}
	rec, err := p.record()
	if err != nil {
		return err
	}
	return p.exec(rec)
}

// Poll interval and limit of one step of a start. The limit is generous: it only
// decides how late a failure is reported.
const (
	pollInterval = 25 * time.Millisecond
	stepTimeout  = 2 * time.Minute
)

// await returns nil once ready does. It fails when the process ends before, with
// the end of its log, and after stepTimeout, with the last answer of ready.
func (p *Process) await(ctx context.Context, ready func(context.Context) error) error {
	step, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	err := poll(step, func() error {
		if !p.Running() {
			return errGone
		}
		return ready(step)
	})
	if errors.Is(ctx.Err(), context.Canceled) { // the caller's wish: the log has nothing to say about it
		return fmt.Errorf("waiting for %s: %w", p.Name, context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("waiting for %s: %w; the end of %s:\n%s", p.Name, err, p.Log, p.tail())
	}
	return nil
}

// poll calls try until it returns no error, at once and then every pollInterval.
// errGone ends it early.
func poll(ctx context.Context, try func() error) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := try()
		if err == nil || errors.Is(err, errGone) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; last: %w", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

const tailBytes, tailLines = 8 << 10, 20

// tail returns the last lines of the log, indented.
func (p *Process) tail() string {
	data, err := os.ReadFile(p.Log)
	if err != nil {
		return "  (no log: " + err.Error() + ")"
	}
	if len(data) > tailBytes {
		data = data[len(data)-tailBytes:]
	}
	lines := strings.Split(string(bytes.TrimSpace(data)), "\n")
	return "  " + strings.Join(lines[max(0, len(lines)-tailLines):], "\n  ")
}

// writeJSON replaces file as a whole or not at all.
func writeJSON(file string, value any) error {
	data, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(file+".tmp", append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(file+".tmp", file)
}

func readJSON(file string, value any) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, value); err != nil {
		return fmt.Errorf("reading %s: %w", file, err)
	}
	return nil
}

// processes returns all that were started here, running or not.
func (t *tracker) processes() ([]*Process, error) {
	files, err := os.ReadDir(t.run)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []*Process
	for _, f := range files {
		if name, ok := strings.CutSuffix(f.Name(), ".json"); ok {
			all = append(all, t.process(name))
		}
	}
	return all, nil
}
