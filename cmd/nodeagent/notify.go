// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"k8s.io/klog/v2"
)

// notifySystemd tells systemd, where it has started the program, that it is ready
// once containers can be started, and where the unit has WatchdogSec, that it is
// alive, until ctx ends (sd_notify(3)). Elsewhere it does nothing. It waits so long
// for containers that can be started: a driver that is away is reported elsewhere,
// and a restart would not bring it back.
func (s status) notifySystemd(ctx context.Context, patience time.Duration) error {
	address := os.Getenv("NOTIFY_SOCKET")
	if address == "" {
		return nil
	}
	if address[0] == '@' {
		address = "\x00" + address[1:] // an abstract one
	}
	conn, err := net.Dial("unixgram", address)
	if err != nil {
		return fmt.Errorf("telling systemd: %w; use Type=notify with NotifyAccess=main", err)
	}
	defer conn.Close()
	tell := func(state string) {
		// Nobody waits for a systemd that does not read, least of all at the end.
		err := conn.SetWriteDeadline(time.Now().Add(time.Second))
		if err == nil {
			_, err = conn.Write([]byte(state))
		}
		if err != nil {
			klog.FromContext(ctx).Error(err, "Could not tell systemd")
		}
	}
	defer tell("STOPPING=1")
	select {
	case <-ctx.Done():
		return nil
	case <-s.agent.Ready():
	case <-time.After(patience):
	}
	// Kubelet is not waited for: systemd may wait for us before it starts kubelet.
	tell("READY=1")
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchdog()):
		}
		if s.alive(ctx) == nil {
			tell("WATCHDOG=1")
		}
	}
}

// readyPatience is more than the time that a driver call may take (agent.Timing.Hang),
// and less than TimeoutStartSec of our unit.
const readyPatience = 20 * time.Second

// forever is longer than any program runs.
const forever = 1 << 62

// watchdog is how often systemd is to be told: twice in the time that it allows.
func watchdog() time.Duration {
	micros, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || micros <= 0 {
		return forever
	}
	return time.Duration(micros) * time.Microsecond / 2
}
