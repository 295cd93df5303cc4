// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package config reads the files that operators of HAMi and of mig-parted already
// have, and says what they mean on the hardware of a node.
//
//	device-config.yaml --ParseDevice--> Device --Catalogue(model, NVML profiles)--> GPUModel
//	                                                                            \-> mismatches
//	config.json -------ParseNode------> Node ----For(node, labels)------------> NodeEntry
//	mig-parted.yaml ---ParseMIGParted-> MIGParted --Node.UseMIGParted--> modes (NodeEntry.ModeOf), layouts (Device.Cut)
//
// Words: a geometry is a whole-GPU layout as the file writes it; a template is
// the same with each name resolved to a profile of the hardware; a mismatch is
// one sentence on a part of the file that does not fit the hardware.
//
// Invariants:
//
//	I1  A file is taken whole or not at all: one problem, and there is no Device
//	    and no Node. All problems are reported together, in the order of lines.
//	I2  Each problem names file, line, field and remedy.
//	I3  What a Catalogue names exists: each template names only profiles of the
//	    hardware and can be cut on one GPU.
//	I4  A file that does not fit the hardware is never fatal; it costs a sentence.
//
// config does not know who uses the files, NVML, or pods.
package config
