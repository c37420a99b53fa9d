/* What must hold in every state; how it may end is in trouble.pml. */

/* A promise of Towline. The name of the broken one is printed when the trail is replayed. */
#define MUST(name, condition) \
  if :: condition :: else -> printf(name); assert(false) fi

/* A step on the way to the promises. None is checked when a fault is planted (PLANTED), so that the
 * fault has to break a promise to be found. */
#ifdef PLANTED
#define LEMMA(name, condition) skip
#else
#define LEMMA(name, condition) MUST(name, condition)
#endif

/* What the checker has taken and seen it says, once each; the runner misses the rest. What it
 * remembers is no part of a state. */
#ifdef SAY_SEEN
c_decl {
  static void say(const char* what) {
    static const char* said[200];
    int at = 0;
    while (said[at] && said[at] != what) at++;
    if (!said[at]) printf("seen: %s\n", said[at] = what);
  }
}
#define TOOK(rule) c_code { say(#rule); }
#define SEEN(name, condition) if :: condition -> c_code { say(name); } :: else fi
#else
#define TOOK(rule) skip
#define SEEN(name, condition) skip
#endif

#define TARGET_READS (t_runs || t_state == T_Loading || t_state == T_Loaded)

/* What must be possible, or the promises would be kept by nobody doing anything. */
inline look() {
  SEEN("a move completes in the second epoch", s_state == S_Completed && t_runs && s_epoch == 2);
  SEEN("a lost order gives the guest back to the source",
       s_state == S_Failed && s_runs && t_epoch == 2 && t_final);
  SEEN("a lost order is sent again and obeyed",
       t_runs && t_epoch == 2 && s_state == S_Ordered && t_starts == 1);
  SEEN("the loader waits for a page while the link is away",
       t_state == T_Loading && vcpu_wait[0] == 0 && s_state == S_OrderedPaused);
  SEEN("the loader gets its page by a lane of the new epoch",
       t_state == T_Loading && vcpu_wait[0] == 0 && s_state == S_Ordered && s_epoch == 2);
  SEEN("the load is over before the hello is answered", t_state == T_Loaded && t_fence != 0);
  SEEN("an answer is parked and its claim given up", t_parked != 0 && bulk_gave[0] != NONE);
  SEEN("a hello comes while an old receiver holds a claim",
       t_fence != 0 && bulk_hold[0] != NONE && bulk_post[0]);
  SEEN("a copy of the pre-pass arrives stale", t_state == T_Receiving && (t_here & ~t_good) != 0);
  SEEN("a hello that the source has given up is taken", t_fence > 1 && t_fence < s_epoch);
  SEEN("another process answers while the target runs the guest",
       (reply?[W_OTHER, _] && t_runs));
  SEEN("a lost lane is replaced and the move completes in its epoch",
       s_state == S_Completed && s_epoch == 1 && cuts == 0 && down == 0);
  SEEN("the target completes while the source believes that it does not run",
       t_state == T_Completed && s_state == S_OrderedPaused);
}

inline check() {
  MUST("broken: single owner\n", !(s_runs && t_runs));
  MUST("broken: one gate\n", !s_runs || s_gate == G_Here || s_gate == G_Held);
  MUST("broken: no stale read\n", !TARGET_READS || (t_here & ~t_good) == 0);
  MUST("broken: no write is lost\n", !s_runs || s_good == ALL);
  MUST("broken: conservation\n", t_state == T_Unknown || (s_freed & ~t_here) == 0);
  MUST("broken: commit rule\n", !t_ran || (s_gate != G_Here && s_gate != G_Held));
  MUST("broken: one start\n", t_starts <= 1);
  look();
}
