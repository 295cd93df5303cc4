// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package agent makes the GPUs of one node what its bound pods need, and reports
// what they are. It decides nothing about placement: a pod's allocation says which
// instances it owns, and the agent creates them, keeps them, or refuses.
//
//	pods (API watch) --> owners ---wants--> worker, one for each GPU --> nvml.Driver
//	                       ^  ^               |  ^    |
//	     container starts  |  +---- made -----+  |    +--> GPUNode.status (report)
//	     --> Prepare ------+                journal
//
// Words: an owner is a live pod of this node that asks for GPUs; a want is one
// placement that an owner's allocation names; an instance is ours when the journal
// names it, idle when it is ours and has no owner, foreign when it is not ours;
// it is stuck when it is ours, idle, in the way, and cannot be destroyed.
//
// An instance as the journal sees it. Each arrow is on disk before the driver
// call that it announces, so that a crash between any two steps leaves a record
// that is finished or undone at the next start:
//
//	        intent: owner           whole: UUID
//	(none) ----------------> Creating --------------------> Live
//	   ^                       |   ^   compute instance       |  pod gone: no owner
//	   |         undo          |   +------ lost --------------+  pod came: owner
//	   +-----------------------+                              |
//	   +------------- listed no more ------- Destroying <-----+  in the way, proven unused
//
// A pod as the report sees it:
//
//	seen -> Preparing <-> Failing      (retried)
//	            |  |
//	            |  +----> Refused      (final: it owns nothing and can never start)
//	            v
//	        Prepared ---- a terminal phase, or deleted ----> gone
//
// Invariants:
//
//	I1  Nothing is destroyed, or given to another pod, unless the journal names it as
//	    ours and three proofs hold: no live pod owns it (a terminating pod lives), the
//	    driver lists no process in it, and of the node's processes none holds its
//	    capability devices open or is of the pod that had it. One that lives and does not
//	    own it was refused and never had it. Without a compute instance nothing can run in
//	    it, and the first proof is enough. Directly before, the driver lists the very
//	    instance: ids and places come again.
//	I2  An instance of ours is in the journal before it is in the hardware.
//	I3  A placement has one owner at most. Of two pods the prepared one keeps it,
//	    else the one that was seen first; the other is refused for good.
//	I4  The first valid allocation that a pod was seen with is the one that counts.
//	I5  Only a GPU's worker makes driver calls that name it, one at a time; but for the
//	    listing of all GPUs, which reads beside them what does not change of each. A
//	    call that does not return delays that GPU and nothing else.
//	I6  Equal state gives an equal report, and an equal report is not written.
//	I7  No driver call names a GPU that the configuration excludes, but to recognise
//	    it: by its UUID, and by its facts where migconfig selects GPUs.
//	I8  Every step may be repeated.
//
// One case cannot be told apart: when the agent dies between journaling the
// intent and creating the instance, and somebody else creates an instance of the
// same profile at the same place before the agent is back, it is taken for ours.
// It is still destroyed only with the proofs of I1.
//
// agent does not know kubelet's protocol, the scheduling framework, or how a
// container runtime is told about devices.
package agent
