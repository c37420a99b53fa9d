/* The guest: it may write any page at any time, at the end that runs it. */

/* At the source, as long as anybody looks at the dirty log. */
#define SOURCE_WRITE(p)                                                                    \
  :: d_step { s_runs && BEFORE_ORDER && (!IN(s_dirty, p) || IN(f_good, p) || IN(t_good, p)) -> \
       printf("guest: writes page %d at the source\n", p);                                 \
       ADD(s_dirty, p); DEL(f_good, p); DEL(t_good, p); check() }

#define TARGET_WRITE(p)                                                                    \
  :: d_step { t_runs && vcpu_wait[v] == NONE && IN(t_here, p) && IN(s_good, p) ->          \
       printf("guest: writes page %d at the target\n", p);                                 \
       DEL(s_good, p); ADD(t_good, p); check() }

#define TARGET_FAULT(p)                                                                    \
  :: d_step { t_runs && !guest_idle && vcpu_wait[v] == NONE && !IN(t_here, p) ->           \
       printf("guest: vCPU %d touches missing page %d and waits\n", v, p);                 \
       vcpu_wait[v] = p; ADD(t_events, p); check() }

#define BEFORE_ORDER (s_state == S_Passing || s_state == S_Syncing || s_state == S_Switching)

active proctype SourceGuest() {
end:
  do
  FOR_PAGES(SOURCE_WRITE)
  od
}

active [VCPUS] proctype Vcpu() {
  byte v = _pid - 1;
end:
  do
  FOR_PAGES(TARGET_WRITE)
  FOR_PAGES(TARGET_FAULT)
  /* The move must not depend on the guest's asking for every page. */
  :: d_step { t_runs && !guest_idle && t_here != ALL -> guest_idle = 1; check() }
  od
}
