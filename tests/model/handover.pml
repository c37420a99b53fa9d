/*
 * The hand-over of a guest and its recovery, as Towline does them, for spin.
 *
 * Two ends, a few pages, vCPUs, lanes that a cut may empty from any frame on, crashes, strangers.
 * Each action is one step of one thread; between two steps anything else may happen. Names follow
 * the C++ (SourceState::kOrdered is S_Ordered here). docs/model.md says what is left out, and how
 * to read a counterexample.
 *
 * Three reductions keep it finite and small:
 *
 *  - The bytes of a copy of a page are one bit: "this is the last write in source-then-target
 *    order". A write sets the bit of the writer's copy and clears that of all others, so that any
 *    number of writes is covered.
 *  - What changes nothing is no step. A read is no step: check() looks, in every state, at every
 *    page that a guest could read. A refused frame, hello or order is none either.
 *  - Every counter is bounded and nothing repeats: the graph of states has no cycle (the runner has
 *    spin prove that), every execution ends, and the Judge looks at the ends. That is liveness
 *    without any assumption of fairness.
 */

#ifndef PAGES
#define PAGES 2  /* 1 to 3 */
#endif
#ifndef VCPUS
#define VCPUS 1  /* 1 or 2 */
#endif
#ifndef BULK_LANES
#define BULK_LANES 1  /* 1 or 2 */
#endif
#ifndef PASSES
#define PASSES 1  /* At most so many passes over memory while the guest runs; 1 or 2. */
#endif
#ifndef ROUNDS
#define ROUNDS 1  /* At most so many stale rounds after that of a pass. */
#endif
#ifndef EPOCHS
#define EPOCHS 2
#endif
#ifndef CUTS
#define CUTS 1  /* Below EPOCHS, or the source has no epoch left to come back in. */
#endif
#ifndef CRASHES
#define CRASHES 1
#endif

#include "state.pml"
#include "promises.pml"
#include "guest.pml"
#include "source.pml"
#include "pages.pml"
#include "target.pml"
#include "trouble.pml"
#include "lane.pml"
