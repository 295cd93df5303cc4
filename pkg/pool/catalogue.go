// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"encoding/json"
	"fmt"
	"maps"
	"sync"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// Catalogues shares equal catalogues between nodes: a cluster has few models, and
// a catalogue carries tables. One that was in use is forgotten with its last use: each
// edit of a configuration makes others. Safe for parallel use.
type Catalogues struct {
	mu    sync.Mutex // guards what follows
	known map[string]*geometry.Catalogue
	uses  map[*geometry.Catalogue]int // more than 0
}

// use counts uses of a catalogue, or with a negative number their end.
func (c *Catalogues) use(of *geometry.Catalogue, by int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.uses == nil {
		c.uses = map[*geometry.Catalogue]int{}
	}
	if c.uses[of] += by; c.uses[of] > 0 {
		return
	}
	delete(c.uses, of)
	maps.DeleteFunc(c.known, func(_ string, known *geometry.Catalogue) bool { return known == of })
}

// Nothing returns the catalogue of a model that cannot be cut.
func (c *Catalogues) Nothing(model string) *geometry.Catalogue {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := "nothing " + model
	if c.known[key] == nil {
		if c.known == nil {
			c.known = map[string]*geometry.Catalogue{}
		}
		c.known[key] = geometry.Nothing(model)
	}
	return c.known[key]
}

// Of returns the catalogue of a model, building it the first time.
func (c *Catalogues) Of(m *v1alpha1.GPUModel) (*geometry.Catalogue, error) {
	text, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("reading model %s: %w", m.Model, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if found, ok := c.known[string(text)]; ok {
		return found, nil
	}
	built, err := m.Catalogue()
	if err != nil {
		return nil, err
	}
	if c.known == nil {
		c.known = map[string]*geometry.Catalogue{}
	}
	c.known[string(text)] = built
	return built, nil
}

// Devices is the largest number of instances that one GPU can hold at once.
func Devices(c *geometry.Catalogue) int {
	most := 0
	for _, t := range c.Templates() {
		sum := 0
		for _, e := range t {
			sum += e.Count
		}
		most = max(most, sum)
	}
	if c.Rule() == geometry.RuleTemplates {
		return most
	}
	for _, e := range c.Entries() {
		most = max(most, c.Count(geometry.Occupancy{}, e.Profile))
	}
	return most
}

// largest is the entry with the most memory.
func largest(c *geometry.Catalogue) (geometry.Entry, geometry.Profile) {
	var best geometry.Entry
	for _, e := range c.Entries() {
		if e.MemoryMiB >= best.MemoryMiB {
			best = e
		}
	}
	profile, _ := c.Model().Profile(best.Profile)
	return best, profile
}
