/* The target's session, on the thread of its control lane. */

/* One rule of runtime/core/target_session.h; the runner compares. */
#define t_step(from, on, to)                                                               \
  LEMMA("broken lemma: a rule of the target is taken from its state\n", t_state == from);  \
  TOOK(t_step(from, on, to));                                                              \
  t_state = to;                                                                            \
  printf("target: is %e now\n", t_state)

/* Every lane's marker of the pass that the first frame on control belongs to. */
#if BULK_LANES > 1
#define MARKED(pass) (t_markers[0] >= pass && t_markers[1] >= pass)
#else
#define MARKED(pass) (t_markers[0] >= pass)
#endif
#ifdef FAULT_STALE_BEFORE_MARKERS
#define ALL_MARKED true
#else
#define ALL_MARKED (control?[_, _, 0] || (control?[_, _, 1] && MARKED(1)) || \
                    (control?[_, _, 2] && MARKED(2)))
#endif

inline apply_stale(set) {
  printf("target: applies the stale set %d\n", set);
  MUST("broken: the missing set only shrinks\n", !t_ran);
  LEMMA("broken lemma: no claim outlives its marker\n", t_claimed == 0);
  t_here = t_here & ~set;
  t_good = t_good & ~set;
  t_stale = t_stale | (t_claimed & set);
}

/* The tombstone is t_state: this id never ran here and never will. */
inline drop_half() {
  t_here = 0;
  t_good = 0;
}

/* With the order or without it: whoever has the state keeps it. */
inline stay_alone() {
  if
  :: t_state == T_Loaded -> t_step(T_Loaded, E_LinkLost, T_LoadedAlone)
  :: t_state == T_LoadedRecovering -> t_step(T_LoadedRecovering, E_LinkLost, T_LoadedAlone)
#ifdef FAULT_REFUSED_AFTER_RUN
  :: t_state == T_Running -> t_runs = 0; drop_half(); t_state = T_Failed
#else
  :: t_state == T_Running -> t_step(T_Running, E_LinkLost, T_RunningAlone)
#endif
  :: t_state == T_RunningRecovering -> t_step(T_RunningRecovering, E_LinkLost, T_RunningAlone)
  :: else  /* The loader goes on, whatever the link does. */
  fi;
}

#ifdef FAULT_RUN_TWICE
#define STARTS (t_state == T_Loaded || t_state == T_Running)
#elif defined(FAULT_TOMBSTONE_FORGOTTEN)
#define STARTS (t_state == T_Loaded || t_state == T_Failed)
#else
#define STARTS (t_state == T_Loaded)
#endif

/* On the lane of this epoch, whatever lane the order came by. */
#ifdef FAULT_OLD_ORDER
bit t_old_order = 0;
#define SAY_RUNNING if :: !t_old_order -> tell(RUNNING, 0) :: else fi
#else
#define SAY_RUNNING tell(RUNNING, 0)
#endif

inline start_guest() {
  t_step(T_Loaded, E_RunOrdered, T_Running);
  t_ordered = 0;
  t_runs = 1;
  t_ran = 1;
  t_starts++;
  t_untold = 1;
}

/* While the state is being loaded, the order is kept; it may be of a lane that is closed since. A
 * source that was not told that the guest runs says the order again, and need not be answered. */
inline on_run() {
  control?RUN, _, _;
  if
  :: STARTS -> start_guest()
  :: !STARTS && t_state == T_Loading -> t_ordered = 1
  :: else -> printf("target: does not obey this order\n")
  fi;
}

#ifdef FAULT_COMPLETE_COUNTS_CLAIMS
#define NOTHING_MISSING ((t_here | t_claimed) == ALL)
#else
#define NOTHING_MISSING (t_here == ALL)
#endif
#ifdef FAULT_COMPLETE_BEFORE_RUNNING
#define COMPLETES NOTHING_MISSING
#else
#define COMPLETES (NOTHING_MISSING && !t_untold)
#endif

#define NOTICES_LOSS (t_state == T_Loaded || t_state == T_LoadedRecovering || \
                      t_state == T_Running || t_state == T_RunningRecovering)

inline on_link_lost() {
  lose_link();
  empty_to_target();
  if
  :: t_state == T_Receiving ->
    drop_half();
    t_step(T_Receiving, E_LinkLost, T_Failed)
  :: else -> stay_alone()
  fi;
}

/* ---- a new epoch ----------------------------------------------------------------------------- */

/* Everything of the target that belongs to the old lanes has ended. The loader does not belong to
 * them: it may be waiting for a page that only the new epoch can bring. */
#define JOINED_BULK (IDLE(bulk_hold) && IDLE(bulk_wake) && IDLE(bulk_gave))
#define JOINED_URGENT (urgent_park == NONE && urgent_look == NONE && urgent_wake == NONE)
#define JOINED (JOINED_BULK && JOINED_URGENT)

#if defined(FAULT_OLD_EPOCH) || defined(FAULT_CLAIMS_RESET)
#define FENCED true
#elif defined(FAULT_JOIN_WAITS_FOR_LOAD)
#define FENCED (JOINED && t_state != T_Loading)
#else
#define FENCED JOINED
#endif

#ifdef FAULT_STRANGER
#define PROVEN(has_secret) true
#else
#define PROVEN(has_secret) has_secret
#endif
#define STRANGE 99
#ifdef FAULT_LATE_HELLO
#define NEWER(e) ((e) != t_epoch)
#define TOO_LATE (late == t_fence)
#else
#define NEWER(e) ((e) > t_epoch)
#define TOO_LATE (late <= t_fence)
#endif
#ifdef FAULT_COMPLETE_AND_GONE
#define LISTENS (t_state != T_Unknown && t_state != T_Completed)
#else
#define LISTENS (t_state != T_Unknown)
#endif
#define TAKES_HELLO(e, has_secret) (PROVEN(has_secret) && t_fence == 0 && NEWER(e) && LISTENS)

#if defined(FAULT_OLD_EPOCH) || defined(FAULT_NEVER_UNFENCED)
#define CLOSE_OLD_LANES skip
#else
#define CLOSE_OLD_LANES empty_to_target()
#endif

inline begin_fence(e) {
  printf("target: takes the hello of epoch %d and closes the old lanes\n", e);
  t_fence = e;
#ifdef FAULT_MISSING_BEFORE_JOIN
  t_missing = ALL & ~(t_here | t_claimed);
#endif
  if :: TOO_LATE -> late = 0 :: else fi;
  lose_link();
#ifdef FAULT_OLD_ORDER
  t_old_order = t_ordered;
#endif
  CLOSE_OLD_LANES;
  stay_alone();
}

/* A target without its state says never; it drops its half before it says so. */
inline answer_receiving() {
#ifndef FAULT_NEVER_UNFENCED
  drop_half();
  t_step(T_Receiving, E_LinkLost, T_Failed);
#endif
  tell(W_NEVER, 0);
}

#ifdef FAULT_MISSING_BEFORE_JOIN
byte t_missing;
#define MISSING_SET t_missing
#else
#define MISSING_SET (ALL & ~t_here)
#endif

inline answer_with_missing(kind) {
#ifndef FAULT_NOT_ASKED_AGAIN
  t_reask = 1;
#endif
  tell(kind, MISSING_SET);
}

#ifdef FAULT_RUNNING_AS_LOADED
#define ANSWER_RUNNING answer_with_missing(W_LOADED)
#else
#define ANSWER_RUNNING tell(W_RUNNING, 0); answer_with_missing(W_MISSES)
#endif

inline answer_hello() {
  printf("target: the old receivers are joined; answers in state %e\n", t_state);
#ifdef FAULT_CLAIMS_RESET
  t_claimed = 0;
#endif
#ifdef FAULT_OLD_EPOCH
  bulk_old[0] = (bulk_hold[0] != NONE);
#endif
  LEMMA("broken lemma: no claim outlives its epoch\n", t_claimed == 0);
  if
  :: t_state == T_Loaded || t_state == T_Running -> stay_alone()  /* It was loaded meanwhile. */
  :: else
  fi;
  t_epoch = t_fence;
  t_fence = 0;
  t_reask = 0;
  if
  :: hello == H_Sent && s_epoch == t_epoch -> hello = H_Answered; down = 0
  :: else  /* It broke meanwhile, or was a stranger's. */
  fi;
  if
  :: t_state == T_Receiving -> answer_receiving()
  :: t_state == T_Failed ->
#ifdef FAULT_TOMBSTONE_LOST
    tell(W_OTHER, 0)
#else
    tell(W_NEVER, 0)
#endif
  :: t_state == T_Completed -> tell(W_RUNNING, 0); tell(W_COMPLETE, 0)
  :: t_state == T_Loading ->
    t_step(T_Loading, E_Reconnected, T_Loading);
    answer_with_missing(W_LOADED)
  :: t_state == T_LoadedAlone ->
    t_step(T_LoadedAlone, E_Reconnected, T_LoadedRecovering);
    answer_with_missing(W_LOADED)
  :: t_state == T_RunningAlone ->
    t_step(T_RunningAlone, E_Reconnected, T_RunningRecovering);
    if
    :: t_untold -> answer_with_missing(W_LOADED)  /* It says so afterwards. */
    :: else -> ANSWER_RUNNING
    fi
  fi;
}

#ifdef FAULT_LANES_AFTER_RUNNING
#define HAS_LANES (s_state == S_Serving)
#else
#define HAS_LANES (s_state == S_Ordered || s_state == S_Serving)
#endif
#define LANES_ATTACHED (HAS_LANES && UP(L_URGENT) && t_fence == 0)
#define ASK_AGAIN(p) if :: IN(t_table, p) -> ask(p) :: else fi;

active proctype Target() {
  byte set;
end:
  do
  /* Control, in order. */
  :: d_step { T_READS && t_state == T_Receiving && control?[STALE, _, _] && ALL_MARKED ->
       control?STALE, set, _;
       apply_stale(set);
       set = 0;
       tell(APPLIED, 0); check() }
  :: d_step { T_READS && t_state == T_Receiving && control?[FINAL, _, _] && ALL_MARKED ->
       control?FINAL, set, _;
       apply_stale(set);
       set = 0;
       t_final = 1; check() }
  :: d_step { T_READS && t_state == T_Receiving && control?[FIRST, _, _] ->
       control?FIRST, set, _;
       if :: MISSING(set) -> install(set, IN(s_good, set)) :: else fi;
       set = 0; check() }
  :: d_step { T_READS && t_state == T_Receiving && control?[STATE, _, _] ->
       control?STATE, _, _;
       t_step(T_Receiving, E_StateReceived, T_Loading); check() }
  :: d_step { T_READS && t_state != T_LoadedRecovering && t_state != T_RunningRecovering &&
              control?[RUN, _, _] -> on_run(); check() }
  :: d_step { t_state == T_Failed && control?[RUN, _, _] -> on_run(); check() }

  :: d_step { t_ordered && t_state == T_Loaded -> start_guest(); check() }
  :: d_step { t_untold ->
       printf("target: says that the guest runs\n");
       t_untold = 0;
       SAY_RUNNING; check() }

  /* The loader touches memory, as KVM does when it takes the state. */
  :: d_step { t_state == T_Loading && vcpu_wait[0] == NONE && !IN(t_here, 0) ->
       printf("target: the loader touches missing page 0 and waits\n");
       vcpu_wait[0] = 0;
       ADD(t_events, 0); check() }
  :: d_step { t_state == T_Loading && vcpu_wait[0] == NONE ->
       t_step(T_Loading, E_StateLoaded, T_Loaded); check() }
  :: d_step { t_state == T_Loading && vcpu_wait[0] == NONE && JOINED ->
       drop_half();
       t_step(T_Loading, E_LoadFailed, T_Failed);
       tell(NEVER, 0); check() }

  :: d_step { t_state == T_Running && COMPLETES ->
       t_step(T_Running, E_NothingMissing, T_Completed);
       tell(COMPLETE, 0); check() }
  :: d_step { t_state == T_RunningAlone && COMPLETES ->
       t_step(T_RunningAlone, E_NothingMissing, T_Completed);
       tell(COMPLETE, 0); check() }
  :: d_step { t_state == T_RunningRecovering && COMPLETES ->
       t_step(T_RunningRecovering, E_NothingMissing, T_Completed);
       tell(COMPLETE, 0); check() }

  /* The link is lost. The lanes were read to their end before, or not. */
  :: d_step { down != 0 && t_fence == 0 && (NOTICES_LOSS || (t_state == T_Receiving && JOINED)) ->
       on_link_lost(); check() }

  /* A proven hello with a higher epoch, or, if strangers are believed, one without a proof. */
  :: d_step { hello == H_Sent && TAKES_HELLO(s_epoch, true) -> begin_fence(s_epoch); check() }
  :: d_step { late != 0 && TAKES_HELLO(late, true) -> begin_fence(late); check() }
  :: d_step { TAKES_HELLO(STRANGE, false) -> begin_fence(STRANGE); check() }
  :: d_step { t_fence != 0 && FENCED -> answer_hello(); check() }

  /* The new lanes are there: whatever is outstanding is asked again. */
  :: d_step { LANES_ATTACHED && (t_reask || t_state == T_LoadedRecovering || t_state == T_RunningRecovering) ->
       t_reask = 0;
       FOR_PAGES(ASK_AGAIN)
       if
       :: t_state == T_Loading -> t_step(T_Loading, E_Resynced, T_Loading)
       :: t_state == T_LoadedRecovering -> t_step(T_LoadedRecovering, E_Resynced, T_Loaded)
       :: t_state == T_RunningRecovering -> t_step(T_RunningRecovering, E_Resynced, T_Running)
       :: else
       fi; check() }

  /* Another incarnation answers too, and knows nothing. */
  :: d_step { t_state == T_Unknown && hello == H_Sent ->
       hello = H_Answered;
       reply!W_OTHER, 0; check() }
  od
}
