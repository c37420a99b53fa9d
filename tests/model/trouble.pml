/* What goes wrong, and how it may end. */

inline crash_source() {
  printf("trouble: the source dies\n");
  lose_link();
  empty_to_source();
  s_state = S_Dead;
  s_runs = 0;
  s_todo = 0;
  s_copying = NONE;
  s_dirty = 0;
  s_known = 0;
  s_owed = 0;
  s_heard = 0;
  hello = H_None;
  late = 0;
  push_hold[0] = NONE;
  serve_hold = NONE;
  serve_old = 0;
#if BULK_LANES > 1
  push_hold[1] = NONE;
#endif
}

inline crash_receiver(l) {
  bulk_hold[l] = NONE;
  bulk_post[l] = 0;
  bulk_wake[l] = NONE;
  bulk_gave[l] = NONE;
  t_markers[l] = 0;
}

inline crash_target() {
  printf("trouble: the target dies, a new incarnation takes its address\n");
  lose_link();
  empty_to_target();
  t_state = T_Unknown;
  t_runs = 0;
  t_here = 0;
  t_claimed = 0;
  t_stale = 0;
  t_good = 0;
  t_final = 0;
  t_fence = 0;
  t_ordered = 0;
  t_untold = 0;
  late = 0;
  t_reask = 0;
  t_table = 0;
  t_asked = 0;
  t_parked = 0;
  t_events = 0;
  crash_receiver(0);
#if BULK_LANES > 1
  crash_receiver(1);
#endif
  urgent_park = NONE;
  urgent_look = NONE;
  urgent_wake = NONE;
  fault_page = NONE;
  fault_saw = 0;
  vcpu_wait[0] = NONE;
#if VCPUS > 1
  vcpu_wait[1] = NONE;
#endif
}

#define S_OVER (s_state == S_Failed || s_state == S_Completed || s_state == S_Dead)
#define T_OVER (t_state == T_Failed || t_state == T_Completed || t_state == T_Unknown)

#define CUT_ONE(lane)                                                                      \
  :: d_step { cuts > 0 && down == 0 && !(S_OVER && T_OVER) ->                              \
       printf("trouble: lane %d (1 control, 2 bulk, 4 urgent) is cut\n", lane);            \
       cuts--; down = lane; check() }

active proctype Trouble() {
end:
  do
  /* There will be no more. Otherwise nothing that is stuck would be an end: it might yet crash. */
  :: d_step { cuts > 0 || crashes > 0 -> cuts = 0; crashes = 0; check() }

  :: d_step { cuts > 0 && down != L_ALL && !(S_OVER && T_OVER) ->
       printf("trouble: the link is cut\n");
       cuts--;
       down = L_ALL; check() }
  CUT_ONE(L_CONTROL)  /* The others carry on until an end notices. */
  CUT_ONE(L_BULK)
  CUT_ONE(L_URGENT)
  :: d_step { cuts > 0 && hello == H_Sent ->
       printf("trouble: the new connection is cut\n");
       cuts--;
       hello = H_None; check() }
  :: d_step { cuts > 0 && hello == H_Sent && t_fence == 0 && s_epoch > t_epoch ->
       printf("trouble: the source gives up, but its hello will be read yet\n");
       cuts--;
       hello = H_None;
       late = s_epoch; check() }

  :: d_step { crashes > 0 && !S_OVER ->
       crashes--;
       crashed = 1;
       crash_source(); check() }
  :: d_step { crashes > 0 && t_state != T_Unknown && t_state != T_Failed ->
       crashes--;
       crashed = 1;
       crash_target(); check() }
  :: d_step { cuts > 0 && hello == H_Sent && t_fence == 0 && t_state != T_Unknown ->
       printf("trouble: another process is met at the target's address, while the target lives\n");
       cuts--;
       hello = H_Answered;
       reply!W_OTHER, 0; check() }
  od
}

/* ---- how it may end -------------------------------------------------------------------------- */

#if VCPUS > 1
#define NOBODY_WAITS (vcpu_wait[0] == NONE && vcpu_wait[1] == NONE)
#else
#define NOBODY_WAITS (vcpu_wait[0] == NONE)
#endif

#ifdef FAULT_NEVER_UNFENCED  /* That it forgets to drop its half is not the point. */
#define T_DROPPED (t_state == T_Failed || t_state == T_Unknown || t_state == T_Receiving)
#else
#define T_DROPPED (t_state == T_Failed || t_state == T_Unknown)
#endif

#define ENDED_AT_SOURCE (s_state == S_Failed && s_runs && !t_runs && T_DROPPED)
#define ENDED_AT_TARGET (s_state == S_Completed && t_state == T_Completed && t_runs && \
                         t_here == ALL && NOBODY_WAITS)
/* A process was lost: whoever is left keeps what it has. */
#define ENDED_BY_CRASH (crashed && (s_state == S_Dead || s_state == S_Completed || \
                                    (S_PAUSED && s_freed == 0)))
/* The link went down in every epoch there is. */
#define ENDED_BY_CUTS (CUTS >= EPOCHS && s_epoch == EPOCHS && S_PAUSED && s_freed == 0)

/* No end label: only because the Judge must not stay here does spin try the timeout at all. */
active proctype Judge() {
  timeout -> d_step {
    MUST("broken: a vCPU waits for ever\n", NOBODY_WAITS || crashed || S_PAUSED);
    MUST("broken: the move does not end\n",
         ENDED_AT_SOURCE || ENDED_AT_TARGET || ENDED_BY_CRASH || ENDED_BY_CUTS)
  }
}
