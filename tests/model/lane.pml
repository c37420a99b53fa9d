/*
 * One data lane is lost after the switch and replaced in the same epoch; nobody pauses. Either end
 * may take it for the loss of the whole link all the same.
 *
 * What is fenced is that lane alone: its receiver is joined, and what it held is missing again. Only
 * then is the new lane attached, and only then does the target say what is missing, because what was
 * under way was owed no more. Before the switch a lost lane is a lost link: a pass's marker speaks
 * for the frames of its own lane.
 */

#ifdef FAULT_LANE_NOT_JOINED
#define JOINED_LANE true
#else
#define JOINED_LANE (lane_fence == L_BULK -> JOINED_BULK : JOINED_URGENT)
#endif

#if defined(FAULT_LANE_NOT_OWED)
#define SAY_MISSING skip
#elif defined(FAULT_LANE_NOT_JOINED)
#define SAY_MISSING bulk_old[0] = (bulk_hold[0] != NONE); tell(MISSES, ALL & ~(t_here | t_claimed))
#else
#define SAY_MISSING tell(MISSES, ALL & ~t_here)
#endif

#ifdef FAULT_LANE_NOT_ASKED
#define ASK_LANE_AGAIN skip
#else
#define ASK_LANE_AGAIN FOR_PAGES(ASK_AGAIN)
#endif

inline begin_lane_fence() {
  lane_fence = lane_hello;
  printf("target: takes a new lane in the place of lane %d\n", lane_fence);
  if
  :: lane_fence == L_BULK -> empty_all_bulk()
  :: else -> empty_answers()
  fi;
}

inline attach_lane() {
  printf("target: the old receiver is joined, lane %d is attached\n", lane_fence);
  down = down & (L_ALL - lane_fence);
  if
  :: lane_fence == L_BULK -> SAY_MISSING
  :: else -> ASK_LANE_AGAIN
  fi;
  lane_fence = 0;
  lane_hello = 0;
}

#define LINK_STANDS ((down & L_CONTROL) == 0 && t_fence == 0)
#define REPLACE_LANE(lane, sender_ended, close_old)                                        \
  :: d_step { s_state == S_Serving && down == lane && lane_hello == 0 && sender_ended ->    \
       printf("source: opens lane %d anew\n", lane);                                        \
       close_old; lane_hello = lane; check() }

active proctype LaneOfSource() {
end:
  do
  REPLACE_LANE(L_BULK, IDLE(push_hold), skip)
  REPLACE_LANE(L_URGENT, true, empty_requests())
  :: d_step { s_state == S_Serving && reply?[MISSES, _] ->
       reply?MISSES, s_owed;
       printf("source: owes %d\n", s_owed); check() }
  od
}

active proctype LaneOfTarget() {
end:
  do
  :: d_step { t_state == T_Running && LINK_STANDS && lane_hello != 0 && lane_fence == 0 ->
       begin_lane_fence(); check() }
  :: d_step { lane_fence != 0 && t_state == T_Running && LINK_STANDS && JOINED_LANE ->
       attach_lane(); check() }
  od
}
