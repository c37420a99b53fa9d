/* What both ends know, and the wire between them. Sets of pages are bit masks. */

#define ALL ((1 << PAGES) - 1)
#define BIT(p) (1 << (p))
#define IN(set, p) (((set) >> (p)) & 1)
#define ADD(set, p) set = set | BIT(p)
#define DEL(set, p) set = set & (ALL - BIT(p))
#define NONE 7  /* No page. */

#if PAGES == 1
#define FOR_PAGES(action) action(0)
#elif PAGES == 2
#define FOR_PAGES(action) action(0) action(1)
#else
#define FOR_PAGES(action) action(0) action(1) action(2)
#endif

#if BULK_LANES > 1
#define FOR_LANES(action) action(0) action(1)
#define IDLE(what) (what[0] == NONE && what[1] == NONE)
#else
#define FOR_LANES(action) action(0)
#define IDLE(what) (what[0] == NONE)
#endif

mtype:source = { S_Passing, S_Syncing, S_Switching, S_Ordered, S_Serving, S_Completed, S_Failed,
                 S_OrderedPaused, S_OrderedReconnecting, S_OrderedRecovering,
                 S_ServingPaused, S_ServingReconnecting, S_ServingRecovering, S_Dead };
mtype:target = { T_Receiving, T_Loading, T_Loaded, T_Running, T_LoadedAlone, T_LoadedRecovering,
                 T_RunningAlone, T_RunningRecovering, T_Completed, T_Failed,
                 T_Unknown /* Another incarnation: never heard of the id. */ };
mtype:gate = { G_Here, G_Held, G_Ordered, G_Gone };
mtype:round = { R_ReadLog, R_Await, R_Decide };
mtype:hello = { H_None, H_Sent, H_Answered };
mtype:frame = { STALE, FINAL, FIRST, STATE, RUN,                    /* control, to the target */
                APPLIED, RUNNING, MISSES, NEVER, COMPLETE,          /* control, to the source */
                W_LOADED, W_RUNNING, W_NEVER, W_COMPLETE,           /* answers to a hello */
                W_MISSES,                                           /* behind W_RUNNING */
                W_OTHER                                             /* another incarnation's */ };

/* Events of the rule tables; the model only names them. */
mtype:event = { E_PassesDone, E_SwitchNow, E_OrderSent, E_LinkLost, E_Reconnect, E_Reconnected,
                E_TargetLoaded, E_TargetRunning, E_TargetNever, E_TargetComplete,
                E_Compared, E_TakeBack,
                E_Hold, E_Release, E_Order, E_TargetRuns, E_TargetRefused,
                E_StateReceived, E_StateLoaded, E_LoadFailed, E_RunOrdered, E_Resynced,
                E_NothingMissing };

/* ---- the source ------------------------------------------------------------------------------ */

mtype:source s_state = S_Passing;
mtype:gate s_gate = G_Here;
mtype:round s_round = R_ReadLog;
bit s_runs = 1;         /* A vCPU may be inside KVM_RUN. */
byte s_pass = 1;
byte s_rounds = 0;
byte s_todo = ALL;      /* Of this pass. */
byte s_copying = NONE;  /* Cleared in the log, not read yet. */
byte s_dirty = ALL;     /* The dirty log. */
byte s_known = ALL;     /* Dirty as of the last round: the target has no good copy. */
byte s_owed = 0;
byte s_freed = 0;
byte s_epoch = 1;
bit s_resent = 0;
byte push_hold[BULK_LANES] = NONE;  /* Taken from what is owed, not sent yet. */
byte serve_hold = NONE;  /* A request that was read and not answered yet. */
bit serve_old = 0;       /* It came by a lane of an older epoch. */
bit push_old[BULK_LANES] = 0;       /* By a sender that still has the lane of an older epoch. */

/* ---- the target: a page that is neither claimed nor here is missing -------------------------- */

mtype:target t_state = T_Receiving;
bit t_runs = 0;
byte t_here = 0;        /* Installed, hence visible to the guest. */
byte t_claimed = 0;
byte t_stale = 0;       /* Of the claimed: a stale set has named them meanwhile. */
byte t_markers[BULK_LANES] = 0;
bit t_final = 0;        /* The last delta is applied: only frames of the time after the switch. */
byte t_epoch = 1;
byte t_fence = 0;       /* The epoch of the proven hello that is to be answered. */
bit t_ordered = 0;      /* The order was read while the state was being loaded. */
bit t_untold = 0;       /* The guest runs, and the source is to be told. */
bit t_reask = 0;        /* The new epoch's lanes are not attached yet. */
byte t_table = 0;       /* The request table. */
byte t_asked = 0;
byte t_parked = 0;
byte t_events = 0;      /* Faults that the fault thread has not read. */
byte bulk_hold[BULK_LANES] = NONE;  /* The page whose claim this receiver holds. */
bit bulk_post[BULK_LANES] = 0;      /* Its frame is of the time after the switch. */
byte bulk_wake[BULK_LANES] = NONE;  /* Map written, table not finished yet. */
byte bulk_gave[BULK_LANES] = NONE;  /* Claim given up, table not looked at yet. */
byte urgent_park = NONE;            /* The map said claimed. */
byte urgent_look = NONE;            /* Parked; the map has to be looked at once more. */
byte urgent_wake = NONE;
byte fault_page = NONE;
byte fault_saw = 0;
byte vcpu_wait[VCPUS] = NONE;       /* The page that a vCPU (or the loader, as vCPU 0) waits for. */

/* ---- what only the check knows --------------------------------------------------------------- */

byte s_good = ALL;  /* The source's copy is the last write. */
byte f_good = 0;    /* So is the one in a frame of the pre-pass. */
byte t_good = 0;    /* So is the target's; of pages that are here. */
bit guest_idle = 0; /* The guest at the target touches nothing new any more. */
bit t_ran = 0;      /* Some incarnation of the target has run the guest. */
bit s_heard = 0;    /* The source has read so. */
byte t_starts = 0;
byte cuts = CUTS;   /* Trouble that may still come. */
byte crashes = CRASHES;
bit crashed = 0;

/* ---- the wire -------------------------------------------------------------------------------- */

#define L_CONTROL 1
#define L_BULK 2
#define L_URGENT 4
#define L_ALL 7
#define MARKER PAGES  /* In the place of a page. */
#define POST 9        /* In the place of a pass. */

/* Lanes that are down. What was sent before can still be read until its reader sees the end; what
 * is sent afterwards is lost, and the sender need not know. */
byte down = 0;
mtype:hello hello = H_None;  /* The source's connection for a new epoch. */
byte lane_hello = 0;  /* Its connection for one lane of this epoch, in the place of a lost one. */
byte lane_fence = 0;  /* The target has taken that, and waits for the lane's old receiver. */
byte late = 0;  /* The epoch of a hello that the source has given up; the target may read it yet. */

/* Full channels stop their senders, or end the check with an error where no thread may wait. */
chan control = [5] of { mtype:frame, byte, byte };  /* The last: the pass. */
chan reply = [CUTS + 3] of { mtype:frame, byte };
chan bulk[BULK_LANES] = [PAGES + 1] of { byte, byte };
chan request = [PAGES] of { byte };
chan answer = [PAGES] of { byte };

#define UP(lane) ((down & (lane)) == 0)

inline order(kind, with) { if :: UP(L_CONTROL) -> control!kind, with, s_pass :: else fi }
inline tell(kind, with) { if :: UP(L_CONTROL) -> reply!kind, with :: else fi }

inline empty_bulk(l) {
  do :: len(bulk[l]) > 0 -> bulk[l]?_, _ :: else -> break od;
  f_good = 0;  /* Without this lane's marker nobody gets to look. */
}

/* Unread frames on their way to one end are lost. */
inline empty_all_bulk() {
  empty_bulk(0);
#if BULK_LANES > 1
  empty_bulk(1);
#endif
}

inline empty_answers() { do :: len(answer) > 0 -> answer?_ :: else -> break od }
inline empty_requests() { do :: len(request) > 0 -> request?_ :: else -> break od }

inline empty_to_target() {
  do :: len(control) > 0 -> control?_, _, _ :: else -> break od;
  empty_answers();
  empty_all_bulk();
}

inline empty_to_source() {
  do :: len(reply) > 0 -> reply?_, _ :: else -> break od;
  empty_requests();
}

/* The connections of both ends are no use any more, whichever of them found out. */
inline lose_link() {
  down = L_ALL;
  lane_hello = 0;
  lane_fence = 0;
}
