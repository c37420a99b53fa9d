/* The source: its session, the bulk lanes' senders, the page server. */

#define S_PAUSED (s_state == S_OrderedPaused || s_state == S_ServingPaused)
#define S_RECONNECTING (s_state == S_OrderedReconnecting || s_state == S_ServingReconnecting)
#define S_RECOVERING (s_state == S_OrderedRecovering || s_state == S_ServingRecovering)

/* One rule of runtime/core/source_session.h; the runner compares. */
#define s_step(from, on, to)                                                               \
  LEMMA("broken lemma: a rule of the source is taken from its state\n", s_state == from);  \
  TOOK(s_step(from, on, to));                                                              \
  s_state = to;                                                                            \
  printf("source: is %e now\n", s_state)

/* One rule of the gate, runtime/run_gate.h. */
#define g_step(from, on, to)                                                               \
  LEMMA("broken lemma: a rule of the gate is taken from its state\n", s_gate == from);     \
  TOOK(g_step(from, on, to));                                                              \
  s_gate = to

/* ---- the pre-pass ---------------------------------------------------------------------------- */

/* The log is cleared first and the page read afterwards. */
#ifdef FAULT_CLEAR_AFTER_READ
#define BEGIN_COPY(p) ADD(f_good, p)
#define END_COPY(p) DEL(s_dirty, p); DEL(s_known, p)
#else
#define BEGIN_COPY(p) DEL(s_dirty, p); DEL(s_known, p)
#define END_COPY(p) ADD(f_good, p)
#endif

#define COPY(p)                                                                            \
  :: d_step { s_state == S_Passing && s_copying == NONE && IN(s_todo, p) &&                \
              (s_todo & (BIT(p) - 1)) == 0 ->                                              \
       DEL(s_todo, p); s_copying = p; BEGIN_COPY(p); check() }

#define SEND_COPY(l)                                                                       \
  :: d_step { s_copying != NONE && (s_state == S_Passing || s_state == S_Syncing) &&       \
              nfull(bulk[l]) ->                                                            \
       printf("source: page %d is read and sent in pass %d\n", s_copying, s_pass);         \
       END_COPY(s_copying);                                                                \
       if :: UP(L_BULK) -> bulk[l]!s_pass, s_copying :: else -> DEL(f_good, s_copying) fi; \
       s_copying = NONE; check() }

/* A pass may end at any time (the switch was asked for); the marker is behind its last page. */
#ifdef FAULT_STALE_FRAME
#define PASS_MAY_END (s_todo == 0)
#else
#define PASS_MAY_END (s_copying == NONE)
#endif

#if BULK_LANES > 1
#define ROOM_FOR_MARKERS (nfull(bulk[0]) && nfull(bulk[1]))
#else
#define ROOM_FOR_MARKERS nfull(bulk[0])
#endif

inline end_pass() {
  printf("source: ends pass %d with markers\n", s_pass);
  s_known = s_known | s_todo;
  s_todo = 0;
  if
  :: UP(L_BULK) ->
    bulk[0]!s_pass, MARKER;
#if BULK_LANES > 1
    bulk[1]!s_pass, MARKER
#endif
  :: else
  fi;
  s_round = R_ReadLog;
  s_step(S_Passing, E_PassesDone, S_Syncing)
}

/* ---- the switch ------------------------------------------------------------------------------ */

/* The last dirty delta is read when nobody can write any more. */
#ifdef FAULT_DELTA_BEFORE_PARK
byte s_latched = NONE;
#define LAST_LOG s_latched
#define LATCHED (s_latched != NONE)
#else
#define LAST_LOG s_dirty
#define LATCHED true
#endif

/* One call of send(), behind the gate's step: the point of no return. Where in it a cut falls, if
 * one does, decides what arrives. */
inline send_flight(first) {
  printf("source: sends the flight: delta %d, first page %d (7: none), state, run\n",
         LAST_LOG & ~s_known, first);
  s_step(S_Switching, E_OrderSent, S_Ordered);
  g_step(G_Held, E_Order, G_Ordered);
  order(FINAL, LAST_LOG & ~s_known);
  s_owed = s_known | LAST_LOG;
  if
  :: first != NONE -> DEL(s_owed, first); order(FIRST, first)
  :: else
  fi;
  order(STATE, 0);
  order(RUN, 0);
  s_dirty = 0;  /* The log and the passes are of no use any more. */
  s_known = 0;
  s_pass = 0;
  s_rounds = 0;
  s_round = R_ReadLog;
}

inline fail_before_order() {
  lose_link();
  empty_to_source();
  if
  :: s_gate == G_Held -> g_step(G_Held, E_Release, G_Here)
  :: else
  fi;
  s_runs = 1;
  if
  :: s_state == S_Passing -> s_step(S_Passing, E_LinkLost, S_Failed)
  :: s_state == S_Syncing -> s_step(S_Syncing, E_LinkLost, S_Failed)
  :: s_state == S_Switching -> s_step(S_Switching, E_LinkLost, S_Failed)
  fi;
}

/* The target's own word: it never will. */
inline take_back() {
  g_step(G_Ordered, E_TargetRefused, G_Here);
  s_runs = 1;
}

/* ---- recovery -------------------------------------------------------------------------------- */

#ifdef FAULT_SENDER_KEPT  /* A sender of the old epoch takes its next page from what is owed anew. */
#define SENDERS_JOINED true
bit s_had_senders = 0;
#define LOOK_FOR_SENDERS s_had_senders = (s_state == S_ServingReconnecting)
#define KEEP_SENDERS push_old[0] = s_had_senders
#else
#define SENDERS_JOINED IDLE(push_hold)
#define LOOK_FOR_SENDERS skip
#define KEEP_SENDERS skip
#endif

#ifdef FAULT_OWED_KEPT
#define OWED_ANEW(kind) reply?kind, _
#else
#define OWED_ANEW(kind) reply?kind, s_owed
#endif

/* Noted where it is read, whatever comes behind it. */
inline on_running() {
  s_heard = 1;
  if
  :: s_state == S_Ordered ->
    g_step(G_Ordered, E_TargetRuns, G_Gone);
    s_step(S_Ordered, E_TargetRunning, S_Serving)
  :: s_state == S_OrderedRecovering ->
    g_step(G_Ordered, E_TargetRuns, G_Gone);
    s_step(S_OrderedRecovering, E_TargetRunning, S_ServingRecovering)
  :: else
  fi;
}

#ifdef FAULT_RUNNING_UNNOTED  /* In a recovery, only when all was told. */
#define ON_WELCOME_RUNNING s_heard = 1
#define NOTE_AT_LAST on_running()
#else
#define ON_WELCOME_RUNNING on_running()
#define NOTE_AT_LAST skip
#endif

/* The user vouches that nobody runs the guest at the target: rightly, or wrongly where the source
 * knows better. What a target did that is gone is gone with it. */
#define VOUCHED (t_state == T_Unknown || s_heard)
inline user_takes_back() {
  printf("source: its user takes the guest back\n");
  if
  :: t_state == T_Unknown && !s_heard -> t_ran = 0; s_good = ALL
  :: else
  fi;
  g_step(G_Ordered, E_TakeBack, G_Here);
  s_runs = 1;
  s_step(S_OrderedPaused, E_TakeBack, S_Failed)
}

/* A new attempt is a new epoch, so that what is left of the last one can do nothing. */
#ifdef FAULT_EPOCH_KEPT
#define NEXT_EPOCH if :: s_epoch == 1 -> s_epoch++ :: else fi
#else
#define NEXT_EPOCH s_epoch++
#endif

inline reconnect() {
  NEXT_EPOCH;
  printf("source: says hello with epoch %d\n", s_epoch);
  hello = H_Sent;
  if
  :: s_state == S_OrderedPaused -> s_step(S_OrderedPaused, E_Reconnect, S_OrderedReconnecting)
  :: else -> s_step(S_ServingPaused, E_Reconnect, S_ServingReconnecting)
  fi;
}

/* The target has taken the hello. */
inline recover() {
  LOOK_FOR_SENDERS;
  if
  :: s_state == S_OrderedReconnecting ->
    s_step(S_OrderedReconnecting, E_Reconnected, S_OrderedRecovering)
  :: else -> s_step(S_ServingReconnecting, E_Reconnected, S_ServingRecovering)
  fi;
}

/* The attempt failed. What had arrived was read, or not. */
inline pause_again() {
  hello = H_None;
  lose_link();
  empty_to_source();
  if
  :: s_state == S_OrderedReconnecting -> s_step(S_OrderedReconnecting, E_LinkLost, S_OrderedPaused)
  :: s_state == S_OrderedRecovering -> s_step(S_OrderedRecovering, E_LinkLost, S_OrderedPaused)
  :: s_state == S_ServingReconnecting -> s_step(S_ServingReconnecting, E_LinkLost, S_ServingPaused)
  :: s_state == S_ServingRecovering -> s_step(S_ServingRecovering, E_LinkLost, S_ServingPaused)
  fi;
}

#ifdef FAULT_ORDER_NOT_REPEATED
#define ORDER_AGAIN skip
#else
#define ORDER_AGAIN order(RUN, 0)
#endif

/* What the target said to the hello of this epoch. */
inline on_welcome() {
  if
  :: reply?[W_LOADED, _] ->
    printf("source: the target is loaded and has no order; it is sent again\n");
    OWED_ANEW(W_LOADED);
    s_step(S_OrderedRecovering, E_TargetLoaded, S_Ordered);
    ORDER_AGAIN
  :: reply?[W_RUNNING, _] ->
    printf("source: the target runs\n");
    reply?W_RUNNING, _;
    ON_WELCOME_RUNNING
  :: reply?[W_MISSES, _] ->
    OWED_ANEW(W_MISSES);
    printf("source: the target misses %d\n", s_owed);
    KEEP_SENDERS;
    NOTE_AT_LAST;
    s_step(S_ServingRecovering, E_Compared, S_Serving)
  :: reply?[W_NEVER, _] ->
    printf("source: the target never ran the guest and never will\n");
    reply?W_NEVER, _;
    take_back();
    s_step(S_OrderedRecovering, E_TargetNever, S_Failed)
  :: reply?[W_COMPLETE, _] ->
    printf("source: the target has everything\n");
    reply?W_COMPLETE, _;
    NOTE_AT_LAST;
    s_freed = ALL;
    s_owed = 0;
    s_step(S_ServingRecovering, E_TargetComplete, S_Completed)
  :: reply?[W_OTHER, _] ->
    printf("source: another incarnation answers; that proves nothing\n");
#ifdef FAULT_OTHER_INCARNATION
    reply?W_OTHER, _;
    take_back();
    s_state = S_Failed
#else
    pause_again()
#endif
  fi;
  hello = H_None;
}

active proctype Source() {
end:
  do
  /* Without a pre-pass everything is owed. */
  :: d_step { s_state == S_Passing && s_pass == 1 && s_todo == ALL && s_copying == NONE ->
       s_pass = 0;
       s_todo = 0;
       g_step(G_Here, E_Hold, G_Held);
       s_step(S_Passing, E_PassesDone, S_Syncing);
       s_step(S_Syncing, E_SwitchNow, S_Switching); check() }

  FOR_PAGES(COPY)
  FOR_LANES(SEND_COPY)
  :: d_step { s_state == S_Passing && PASS_MAY_END && ROOM_FOR_MARKERS -> end_pass(); check() }

  /* Stale rounds: sets of pages, no pages. */
  :: d_step { s_state == S_Syncing && s_round == R_ReadLog ->
       printf("source: sends the stale set %d of pass %d\n", s_dirty & ~s_known, s_pass);
       order(STALE, s_dirty & ~s_known);
       s_known = s_known | s_dirty;
       s_round = R_Await; check() }
  :: d_step { s_state == S_Syncing && s_round == R_Await && reply?[APPLIED, _] ->
       reply?APPLIED, _;
       s_round = R_Decide; check() }
  :: d_step { s_state == S_Syncing && s_round == R_Decide && s_rounds < ROUNDS ->
       s_rounds++;
       s_round = R_ReadLog; check() }
  /* The passes of the C++ follow each other within kPassing. */
  :: d_step { s_state == S_Syncing && s_round == R_Decide && s_pass < PASSES ->
       s_pass++;
       s_todo = s_known;
       s_rounds = 0;
       s_state = S_Passing; check() }

  /* The switch. */
  :: d_step { s_state == S_Syncing && s_round == R_Decide ->
       g_step(G_Here, E_Hold, G_Held);
       s_step(S_Syncing, E_SwitchNow, S_Switching); check() }
#ifdef FAULT_DELTA_BEFORE_PARK
  :: d_step { s_state == S_Switching && s_runs && !LATCHED -> s_latched = s_dirty; check() }
#endif
  :: d_step { s_state == S_Switching && s_runs && LATCHED ->
       printf("source: the vCPUs are parked\n");
       s_runs = 0; check() }
  :: d_step { s_state == S_Switching && !s_runs -> send_flight(NONE); check() }
  :: d_step { s_state == S_Switching && !s_runs && IN(s_known | s_dirty, 0) ->
       send_flight(0); check() }
  :: d_step { BEFORE_ORDER -> fail_before_order(); check() }  /* Or the user cancels. */

  /* Behind the point of no return. */
  :: d_step { s_state == S_Ordered && reply?[RUNNING, _] ->
       reply?RUNNING, _;
       on_running(); check() }
  :: d_step { s_state == S_Ordered && reply?[NEVER, _] ->
       reply?NEVER, _;
       take_back();
       s_step(S_Ordered, E_TargetNever, S_Failed); check() }
  :: d_step { s_state == S_Ordered && !s_resent && nfull(control) && UP(L_CONTROL) ->
       printf("source: says the order once more\n");
       s_resent = 1;  /* Towline does not, but an order is obeyed once however often it is said. */
       order(RUN, 0); check() }
  :: d_step { s_state == S_Serving && reply?[COMPLETE, _] ->
       reply?COMPLETE, _;
       s_freed = ALL;
       s_owed = 0;
       s_step(S_Serving, E_TargetComplete, S_Completed); check() }

  /* The link is lost: a lane ended, or the patience. What had arrived was read, or not. */
  :: d_step { (s_state == S_Ordered || s_state == S_Serving) && down != 0 ->
       lose_link();
       empty_to_source();
       serve_old = (serve_hold != NONE);
       if
       :: s_state == S_Ordered -> s_step(S_Ordered, E_LinkLost, S_OrderedPaused)
       :: else -> s_step(S_Serving, E_LinkLost, S_ServingPaused)
       fi; check() }
#ifdef FAULT_UNSENT_ORDER  /* send() failed, so it seems that nothing was sent. */
  :: d_step { s_state == S_Ordered && down != 0 ->
       take_back();
       s_state = S_Failed; check() }
#endif
#ifdef FAULT_RESUME_ON_TIMEOUT
  :: d_step { s_state == S_OrderedPaused -> take_back(); s_state = S_Failed; check() }
#endif

  :: d_step { s_state == S_OrderedPaused && VOUCHED -> user_takes_back(); check() }

  /* A new epoch. */
  :: d_step { S_PAUSED && hello == H_None && s_epoch < EPOCHS -> reconnect(); check() }
  :: d_step { S_RECONNECTING && hello == H_Answered -> recover(); check() }
  :: d_step { S_RECONNECTING && hello == H_None -> pause_again(); check() }
  :: d_step { S_RECOVERING && down != 0 && !reply?[W_OTHER, _] ->
       printf("source: the new connection broke\n");
       pause_again(); check() }
  :: d_step { S_RECOVERING && nempty(reply) && SENDERS_JOINED -> on_welcome(); check() }
  od
}

/* ---- a bulk lane's sender after the switch --------------------------------------------------- */

#ifdef FAULT_PUSH_BEFORE_DELTA
#define MAY_PUSH (s_state == S_Ordered || s_state == S_Serving)
#else
#define MAY_PUSH (s_state == S_Serving)
#endif

#ifdef FAULT_EARLY_RELEASE
#define RELEASE_PUSHED(p) ADD(s_freed, p)
#else
#define RELEASE_PUSHED(p) skip
#endif

/* Taken from what is owed first, sent afterwards. */
#define PUSH(p)                                                                            \
  :: d_step { MAY_PUSH && push_hold[l] == NONE && IN(s_owed, p) ->                         \
       DEL(s_owed, p); push_hold[l] = p; check() }

active [BULK_LANES] proctype Pusher() {
  byte l = _pid - VCPUS - 2;
end:
  do
  FOR_PAGES(PUSH)
  :: d_step { push_hold[l] != NONE && nfull(bulk[l]) ->
       printf("source: pushes page %d\n", push_hold[l]);
       if :: UP(L_BULK) && !push_old[l] -> bulk[l]!POST, push_hold[l] :: else fi;
       RELEASE_PUSHED(push_hold[l]);
       push_old[l] = 0;
       push_hold[l] = NONE; check() }
  od
}

/* ---- the page server: answers come from memory that nobody writes any more ------------------- */

active proctype PageServer() {
end:
  do
  :: d_step { (s_state == S_Ordered || s_state == S_Serving) && serve_hold == NONE &&
              nempty(request) ->
       request?serve_hold; check() }
  :: d_step { serve_hold != NONE && nfull(answer) ->
       printf("source: answers the request for page %d\n", serve_hold);
       DEL(s_owed, serve_hold);
       if :: UP(L_URGENT) && !serve_old -> answer!serve_hold :: else fi;
       serve_old = 0;
       serve_hold = NONE; check() }
  od
}
