// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package browser tests the monitor's page in headless Chromium, over the DevTools
// protocol: on a made-up fleet of 3 and of 1000 nodes, and on the test cluster. Run
// it with make browser. It is a module of its own, so that what drives a browser is
// no dependency of the product.
package browser

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	cdpruntime "github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// chromiumVariable names the browser; hack/browser.sh finds or installs one.
const chromiumVariable = "DYNAMIG_CHROMIUM"

// patience is how long anything may take on a busy machine.
const patience = 60 * time.Second

// What pages say of their stream.
const (
	live  = `document.getElementById("live").textContent === "live"`
	stale = `/does not answer. What you see is of .*\d:\d\d/.test(document.getElementById("stale").textContent) && !document.getElementById("stale").hidden`
)

// Page is one tab.
type Page struct {
	testing.TB
	ctx    context.Context
	close  context.CancelFunc
	errors []string // exceptions, and what the page was refused by its policy
}

// Open starts a browser with a window of the given width, in CSS pixels.
func Open(t testing.TB, url string, width, height int64, dark bool) *Page {
	t.Helper()
	path := os.Getenv(chromiumVariable)
	if path == "" {
		t.Fatalf("%s is not set: run these tests with make browser", chromiumVariable)
	}
	// chromedp has the browser killed when the thread that started it ends, and package
	// cluster ends threads that it has used: this one is nobody else's until the test is over.
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox,
		chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.IgnoreCertErrors, // the tests' certificates are their own
		chromedp.WSURLReadTimeout(patience))
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(cancel)
	// It would log each event of a protocol newer than it knows; errors come from actions.
	ctx, cancel = chromedp.NewContext(ctx, chromedp.WithErrorf(func(string, ...any) {}))
	t.Cleanup(cancel)
	p := &Page{TB: t, ctx: ctx, close: cancel}
	chromedp.ListenTarget(ctx, func(event any) {
		if e, ok := event.(*cdpruntime.EventExceptionThrown); ok {
			p.errors = append(p.errors, e.ExceptionDetails.Error())
		}
	})
	theme := "light"
	if dark {
		theme = "dark"
	}
	p.do("opening "+url,
		chromedp.EmulateViewport(width, height, chromedp.EmulateScale(1)),
		emulation.SetScrollbarsHidden(true),
		emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{
			{Name: "prefers-color-scheme", Value: theme}, {Name: "prefers-reduced-motion", Value: "reduce"},
		}),
		chromedp.Navigate(url))
	t.Cleanup(func() {
		for _, e := range p.errors {
			t.Errorf("the page has thrown: %s", e)
		}
	})
	return p
}

// Close ends the browser before the test does.
func (p *Page) Close() { p.close() }

func (p *Page) do(what string, actions ...chromedp.Action) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	// The first call must start the browser under the context that lives on.
	if err := chromedp.Run(p.ctx); err != nil {
		p.Fatalf("%s: starting the browser: %v", what, err)
	}
	if err := chromedp.Run(ctx, actions...); err != nil {
		p.Fatalf("%s: %v", what, err)
	}
}

// Eval evaluates an expression.
func Eval[T any](p *Page, expression string) T {
	p.Helper()
	var out T
	p.do("evaluating "+expression, chromedp.Evaluate(expression, &out))
	return out
}

// Until waits until an expression is true, as the page's own frames go by.
func (p *Page) Until(what, expression string) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if err := chromedp.Run(p.ctx); err != nil {
		p.Fatalf("starting the browser: %v", err)
	}
	var ok bool
	err := chromedp.Run(ctx, chromedp.Poll(expression, &ok, chromedp.WithPollingTimeout(patience)))
	if err != nil {
		var text string
		_ = chromedp.Run(p.ctx, chromedp.Evaluate("document.body.innerText.slice(0, 1500)", &text))
		p.Fatalf("waiting for %s: %v; the page says:\n%s", what, err, text)
	}
}

// Type enters text where the focus is, at once, as from the clipboard.
func (p *Page) Type(text string) {
	p.Helper()
	p.do("typing", input.InsertText(text))
}

// Keys presses keys, one after the other.
func (p *Page) Keys(keys string) {
	p.Helper()
	p.do("pressing "+keys, chromedp.KeyEvent(keys))
}

// Screenshot keeps what the window shows, under docs/images where the variable
// DYNAMIG_SCREENSHOTS asks for it.
func (p *Page) Screenshot(name string) {
	p.Helper()
	dir := os.Getenv("DYNAMIG_SCREENSHOTS")
	if dir == "" {
		return
	}
	var png []byte
	p.do("taking a screenshot", chromedp.CaptureScreenshot(&png))
	if err := os.WriteFile(fmt.Sprintf("%s/%s.png", dir, name), png, 0o644); err != nil {
		p.Fatal(err)
	}
}
