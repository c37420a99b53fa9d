/* The target's pages: page map, request table, fault thread, the lanes' receivers. */

#define MISSING(p) (!IN(t_here | t_claimed, p))

/* Bytes land in the page and it becomes visible. Nobody may have seen it before. */
inline install(p, is_good) {
  MUST("broken: install once\n", !IN(t_here, p));
  DEL(t_claimed, p);
  if
  :: IN(t_stale, p) -> DEL(t_stale, p)  /* Missing again. */
  :: else ->
    printf("target: page %d is installed\n", p);
    ADD(t_here, p);
    if :: is_good -> ADD(t_good, p) :: else -> DEL(t_good, p) fi
  fi;
}

inline wake(p) {
  if :: vcpu_wait[0] == p -> vcpu_wait[0] = NONE :: else fi;
#if VCPUS > 1
  if :: vcpu_wait[1] == p -> vcpu_wait[1] = NONE :: else fi;
#endif
}

/* The page is here: who is in the table is woken. Nobody else is. */
inline finish(p) {
  if
  :: IN(t_table, p) ->
    printf("target: wakes who waits for page %d\n", p);
    DEL(t_table, p);
    DEL(t_asked, p);
    DEL(t_parked, p);
    wake(p)
  :: else
  fi;
}

inline ask(p) {
  ADD(t_asked, p);
  if
  :: UP(L_URGENT) && !t_reask && t_fence == 0 ->
    printf("target: asks for page %d\n", p);
    request!p
  :: else  /* Lost with the lane; the new epoch asks again. */
  fi;
}

/* ---- the fault thread: first the table, then the map ----------------------------------------- */

#define LOOK(p) fault_saw = IN(t_here, p) + 2 * IN(t_claimed, p)
#ifdef FAULT_LOST_FAULT
#define FIRST_STEP(p) LOOK(p)
#define SECOND_STEP(p) ADD(t_table, p)
#else
#define FIRST_STEP(p) ADD(t_table, p)
#define SECOND_STEP(p) LOOK(p)
#endif

#define FAULT_EVENT(p)                                                                     \
  :: d_step { fault_page == NONE && IN(t_events, p) ->                                     \
       DEL(t_events, p); fault_page = p; FIRST_STEP(p); check() }

active proctype FaultThread() {
end:
  do
  FOR_PAGES(FAULT_EVENT)
  :: d_step { fault_page != NONE ->
       SECOND_STEP(fault_page);
       if
       :: fault_saw == 0 && !IN(t_asked, fault_page) -> ask(fault_page)
       :: fault_saw == 1 -> finish(fault_page)
       :: else  /* Asked already; or claimed, and its holder looks at the table afterwards. */
       fi;
       fault_saw = 0;
       fault_page = NONE; check() }
  od
}

/* ---- a bulk lane's receiver ------------------------------------------------------------------ */

#define T_READS (t_fence == 0 && t_state != T_Unknown && t_state != T_Failed)

#ifdef FAULT_CLAIM_IGNORED
#define MAY_CLAIM(p) (!IN(t_claimed, p))
#else
#define MAY_CLAIM(p) MISSING(p)
#endif

#ifdef FAULT_STALE_FRAME
#define ROUND_FITS(r, l) true
#elif defined(FAULT_PUSH_BEFORE_DELTA)
#define ROUND_FITS(r, l) (r == POST || (!t_final && r == t_markers[l] + 1))
#else
#define ROUND_FITS(r, l) (t_final -> r == POST : r == t_markers[l] + 1)
#endif

#if defined(FAULT_OLD_EPOCH) || defined(FAULT_LANE_NOT_JOINED)
bit bulk_old[BULK_LANES] = 0;  /* Half a frame is here, of an old lane that nobody has closed. */
#define BROKEN(l) (!UP(L_BULK) || bulk_old[l])
#else
#define BROKEN(l) (!UP(L_BULK))
#endif

/* The claim is taken before the first byte may land. */
inline on_bulk_frame(l) {
  bulk[l]?what, page;
  LEMMA("broken lemma: older frames are impossible by construction\n", ROUND_FITS(what, l));
  if
  :: page == MARKER -> t_markers[l] = what
  :: page != MARKER && MAY_CLAIM(page) ->
    ADD(t_claimed, page);
    bulk_hold[l] = page;
    bulk_post[l] = (what == POST)
  :: else ->
    printf("target: drops a frame of page %d\n", page);
    if :: what != POST -> DEL(f_good, page) :: else fi
  fi;
}

inline on_bulk_landed(l) {
  page = bulk_hold[l];
  bulk_hold[l] = NONE;
  if
  :: bulk_post[l] -> install(page, IN(s_good, page))
  :: else -> install(page, IN(f_good, page)); DEL(f_good, page)
  fi;
  bulk_post[l] = 0;
  bulk_wake[l] = page;
}

/* The rest of the frame will never come. */
inline on_bulk_broken(l) {
  page = bulk_hold[l];
  printf("target: a bulk lane ends in the middle of page %d\n", page);
  bulk_hold[l] = NONE;
  bulk_post[l] = 0;
  empty_bulk(l);
#ifndef FAULT_CLAIM_KEPT
  DEL(t_claimed, page);
  DEL(t_stale, page);
#endif
  bulk_gave[l] = page;
}

/* Who waited for this claim has sent no request, or has parked its answer. */
inline on_bulk_gave_up(l) {
  page = bulk_gave[l];
  bulk_gave[l] = NONE;
  if
  :: IN(t_parked, page) ->
    DEL(t_parked, page);
    if
    :: MISSING(page) -> install(page, IN(s_good, page))
    :: else
    fi;
    if :: IN(t_here, page) -> bulk_wake[l] = page :: else fi
  :: !IN(t_parked, page) && IN(t_table, page) && !IN(t_asked, page) -> ask(page)
  :: else
  fi;
}

active [BULK_LANES] proctype BulkReceiver() {
  byte what;
  byte page;
  byte l = _pid - VCPUS - BULK_LANES - 4;
end:
  do
  :: d_step { T_READS && bulk_hold[l] == NONE && bulk_wake[l] == NONE && bulk_gave[l] == NONE &&
              nempty(bulk[l]) ->
       on_bulk_frame(l); what = 0; page = 0; check() }
  :: d_step { bulk_hold[l] != NONE -> on_bulk_landed(l); page = 0; check() }
  :: d_step { bulk_hold[l] != NONE && BROKEN(l) -> on_bulk_broken(l); page = 0; check() }
  :: d_step { bulk_gave[l] != NONE -> on_bulk_gave_up(l); page = 0; check() }
  :: d_step { bulk_wake[l] != NONE -> finish(bulk_wake[l]); bulk_wake[l] = NONE; check() }
  od
}

/* ---- the urgent lane's receiver: answers land in a page of their own ------------------------- */

inline on_answer() {
  answer?page;
  if
  :: MISSING(page) -> install(page, IN(s_good, page)); urgent_wake = page
  :: IN(t_here, page) -> urgent_wake = page
  :: else -> urgent_park = page  /* Claimed. */
  fi;
}

active proctype UrgentReceiver() {
  byte page;
end:
  do
  :: d_step { T_READS && urgent_park == NONE && urgent_look == NONE && urgent_wake == NONE &&
              nempty(answer) ->
       on_answer(); page = 0; check() }
  :: d_step { urgent_park != NONE ->
       if
       :: IN(t_table, urgent_park) ->
         printf("target: parks the answer for page %d\n", urgent_park);
         ADD(t_parked, urgent_park);
         urgent_look = urgent_park
       :: else
       fi;
       urgent_park = NONE; check() }
  :: d_step { urgent_look != NONE ->
       if
       :: MISSING(urgent_look) && IN(t_parked, urgent_look) ->
         DEL(t_parked, urgent_look);
         install(urgent_look, IN(s_good, urgent_look));
         urgent_wake = urgent_look
       :: else
       fi;
       urgent_look = NONE; check() }
  :: d_step { urgent_wake != NONE -> finish(urgent_wake); urgent_wake = NONE; check() }
  od
}
