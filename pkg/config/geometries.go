// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"math"

	"github.com/dynamig/dynamig/pkg/geometry"
)

// geometries reads an entry of knownMigGeometries.
func (r *deviceReader) geometries(v at) {
	g := Geometries{Line: r.line(v.node)}
	seen := r.mapping(v, readers{
		"models": r.models(&g.Models),
		"allowedGeometries": r.list(maxGeometries, func(v at) {
			var layout []GeometryEntry
			r.list(maxEntries, func(v at) { layout = append(layout, r.geometryEntry(v)) })(v)
			g.AllowedGeometries = append(g.AllowedGeometries, layout)
		}),
	})
	r.require(v, seen, "models", wantModels)
	r.require(v, seen, "allowedGeometries", "list the layouts, each a list of {name, memory, count}")
	r.out.KnownMigGeometries = append(r.out.KnownMigGeometries, g)
}

func (r *deviceReader) geometryEntry(v at) GeometryEntry {
	var e GeometryEntry
	seen := r.mapping(v, readers{
		"name":   r.profileName(&e.Name),
		"core":   integer(r.decoder, &e.Core, 0, 100),
		"memory": integer(r.decoder, &e.Memory, 1, math.MaxInt32),
		"count":  integer(r.decoder, &e.Count, 1, 64),
	})
	r.require(v, seen, "name", "write a MIG profile, such as 1g.10gb")
	r.require(v, seen, "memory", "write the MiB of one instance")
	r.require(v, seen, "count", "write the number of instances")
	return e
}

// profileName reads the name of a MIG profile. Whether any hardware has it is
// seen later (Catalogue).
func (r *deviceReader) profileName(dst *string) func(at) {
	return func(v at) {
		var name string
		r.text(&name)(v)
		if name == "" {
			return
		}
		if _, err := geometry.ParseName(name); err != nil {
			r.reject(v, "is %s; write a MIG profile, such as 1g.10gb or 1g.10gb+me", quote(name))
			return
		}
		*dst = name
	}
}
