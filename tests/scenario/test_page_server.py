"""A page server holds the guest's memory: a source that dies in post-copy costs one reconnect."""
import os
import pathlib
import signal
import socket
import unittest

import cgroup
import fd_store
import moves
import page_servers
import qmp
import relay
import vm
import waiting
import wire


class PageServerCase(moves.MoveCase):
    AUTO_RECOVER = True

    def pair(self, page_server='own', **source_options):
        self.source = self.run_vm('source', append=moves.with_facts(moves.STILL),
                                  extra=('--page-server', page_server), **source_options)
        self.guest = moves.Guest(self.source)
        self.target, address = self.listening('target')
        self.relay = self.closing(relay.Relay(address))
        self.uri = self.relay.uri
        self.guest.wait_for('guest.start')

    def seen(self):
        """What the source says of its page server."""
        return self.source.qmp.migration().get('x-towline', {}).get('page-server', {})

    def server(self):
        """The one that stands by now."""
        found = waiting.until(lambda: self.seen() if self.seen().get('stands-by') else None,
                              'a page server')
        return self.closing(page_servers.Server(found['pid'], f'{self.source.qmp_path}.pages'))

    def in_postcopy(self, page_server='own', source_options=None, **parameters):
        self.pair(page_server, **(source_options or {}))
        self.begin(x_towline_switch='immediate',
                   **{'max_postcopy_bandwidth': moves.SLOW, **parameters})
        self.target.qmp.wait_status('postcopy-active')
        self.source.qmp.wait_status('postcopy-active')
        return self.server()

    def source_dies(self):
        self.source.kill()
        self.relay.cut()

    def wait_heir(self, server):
        """It serves the target in its source's place."""
        waiting.until(lambda: server.qmp.migration().get('x-towline', {}).get('recoveries'),
                      'the heir')

    def said(self, words):
        """The page server writes where its source wrote."""
        self.source.err.wait_for(lambda line: words in line, words)

    def all_is_right(self, target=None):
        """The guest is whole, at the target, with nobody else left."""
        target = target or self.target
        target.qmp.wait_status('completed')
        self.guest.moved_to(target)
        since = self.guest.wait_reports(1)
        self.guest.sweep()
        self.guest.wait_reports(2)
        self.assertEqual(self.guest.judge_after_kill(since['uptime_us']), [])

    def finish(self, server):
        server.qmp('migrate-set-parameters', max_postcopy_bandwidth=0)
        self.all_is_right()
        server.wait_end()
        self.said('moved: ')
        self.said('page_server.ending code=0')


class InAScope(PageServerCase):
    """What systemd-run(1) does of it: the group, and then the command, in the same process."""

    SYSTEMD_RUN = """#!/bin/sh
for word; do
  shift
  case $word in
    --) break ;;
    --scope) scope=yes ;;
    --quiet | --collect | --no-ask-password | --user | --description=*) ;;
    *) echo "systemd-run: '$word' is no option" >&2; exit 1 ;;
  esac
done
[ "$scope" ] || exit 1
echo $$ > "$TOWLINE_TEST_SCOPE/cgroup.procs" && exec "$@"
"""

    def setUp(self):
        # Before the processes, whose ends come first then.
        self.of_source, self.scope = self.group('source'), self.group('scope')
        super().setUp()

    def group(self, name):
        try:
            group = cgroup.MemoryGroup(4 << 30, name)
        except OSError as error:
            self.skipTest(f'no control group can be made here: {error}')

        def close():
            waiting.until(lambda: not group.pids(), f'the end of the group {name}')
            group.close()

        self.addCleanup(close)
        return group

    def test_a_page_server_outlives_the_control_group_of_its_source(self):
        program = self.folder / 'systemd-run'
        program.write_text(self.SYSTEMD_RUN)
        program.chmod(0o755)
        server = self.in_postcopy('scope', source_options={
            'prefix': self.of_source.prefix(),
            'environment': {'TOWLINE_TEST_SCOPE': str(self.scope.folder),
                            'PATH': f'{self.folder}:{os.environ["PATH"]}'}})
        self.assertEqual(self.of_source.pids(), [self.source.pid])
        self.assertEqual(self.scope.pids(), [server.pid])
        for pid in self.of_source.pids():
            os.kill(pid, signal.SIGKILL)
        self.relay.cut()
        self.wait_heir(server)
        self.finish(server)

    def test_without_systemd_nothing_is_begun_and_the_reason_is_named(self):
        self.pair('scope', environment={'PATH': '/nowhere'})
        self.begin(x_towline_switch='immediate')
        self.assertIn("'systemd-run'", self.source.qmp.wait_status_of_failure()['error-desc'])
        self.source_runs_on()


class TheSourceDies(PageServerCase):
    def test_a_source_killed_in_postcopy_costs_one_reconnect(self):
        server = self.in_postcopy()
        self.source_dies()
        self.wait_heir(server)
        answer = server.qmp.migration()
        self.assertGreaterEqual(answer['x-towline']['epoch'], 2)
        self.assertEqual(answer['status'], 'postcopy-active')
        self.assertEqual(server.qmp.run_state(), 'finish-migrate')
        for command in ('stop', 'cont', 'system_reset'):
            with self.assertRaisesRegex(qmp.QmpError, 'page server|finalized'):
                server.qmp(command)
        with self.assertRaisesRegex(qmp.QmpError, 'destroy'):
            server.qmp('quit')
        self.finish(server)

    def test_an_heir_begins_a_greater_epoch_and_is_steered_by_hand(self):
        server = self.in_postcopy()
        self.relay.cut()
        waiting.until(lambda: self.source.qmp.migration()['x-towline']['recoveries'], 'recovery')
        self.source_dies()
        self.wait_heir(server)
        self.assertGreaterEqual(server.qmp.migration()['x-towline']['epoch'], 3)
        server.qmp('migrate-pause')
        server.qmp.wait_status('postcopy-paused')
        server.qmp('migrate', uri=self.uri, resume=True)
        self.finish(server)

    def test_a_source_that_dies_before_the_switch_takes_its_guest_along(self):
        self.pair()
        self.stopped_in_pass()
        server = self.server()
        self.source_dies()
        server.wait_end()
        self.said('its guest with it')
        self.target.qmp.wait_status_of_failure()
        self.assertNotEqual(self.target.qmp.run_state(), 'running')

    def test_the_word_that_the_guest_runs_is_heard_by_the_heir(self):
        self.pair()
        said = self.relay.on('control', 'source', wire.RUNNING, relay.Hold())
        self.begin(x_towline_switch='immediate', max_postcopy_bandwidth=moves.SLOW)
        said.wait()
        server = self.server()
        self.source_dies()
        self.relay.release()
        self.wait_heir(server)
        self.finish(server)

    def test_an_order_that_was_lost_is_given_by_the_heir(self):
        self.pair()
        order = self.relay.on('control', 'target', wire.RUN, relay.Cut(after=20, how='fin'))
        self.begin()
        self.wait_synced()
        self.relay.refuse()
        self.source.qmp('migrate-start-postcopy')
        order.wait()
        self.target.qmp.wait_status('postcopy-paused')
        server = self.server()
        self.source_dies()
        self.assertNotEqual(self.target.qmp.run_state(), 'running')
        self.relay.refuse(False)
        self.finish(server)

    def rescued(self, server):
        """The first target never had the guest: another one gets it from the page server."""
        self.said('keeps_the_guest')
        self.assertEqual(server.qmp.run_state(), 'paused')
        with self.assertRaisesRegex(qmp.QmpError, 'nowhere else'):
            server.qmp('quit')
        other, address = self.listening('other')
        server.qmp('migrate', uri=f'tcp:{address[0]}:{address[1]}')
        self.all_is_right(other)
        server.wait_end()
        self.said('moved: ')

    def test_a_source_that_dies_with_its_order_on_the_way_leaves_a_whole_guest(self):
        self.pair()
        self.stopped_after_order()
        server = self.server()
        self.source_dies()
        server.qmp.wait_status_of_failure()
        self.rescued(server)

    def test_a_source_that_dies_before_it_gave_the_order_leaves_a_whole_guest(self):
        # Between two of its system calls: what it had written by then, it is made to have written.
        self.pair()
        self.stopped_after_order()
        server = self.server()
        self.source.freeze()
        with open(server.ledger(), 'r+b', buffering=0) as ledger:
            ledger.seek(8)
            ledger.write((2).to_bytes(8, 'little'))
        self.source_dies()
        self.rescued(server)

    def test_a_guest_whose_target_is_gone_too_is_taken_back_and_moved_elsewhere(self):
        self.pair()
        self.stopped_after_order()
        server = self.server()
        self.target.kill()
        self.relay.refuse()
        self.source_dies()
        server.qmp.wait_status('postcopy-paused')
        with self.assertRaisesRegex(qmp.QmpError, 'fenced'):
            server.qmp('x-towline-take-back')
        server.qmp('x-towline-take-back', target_is_fenced=True)
        self.rescued(server)

    def test_a_word_that_its_source_heard_forbids_the_heir_to_take_the_guest_back(self):
        self.pair()
        self.cut_behind_running_in_a_recovery()
        server = self.server()
        self.source_dies()
        server.qmp.wait_status('postcopy-paused')
        self.not_given_back(server)

    def test_a_word_that_the_heir_heard_itself_forbids_to_take_the_guest_back(self):
        # The source died before it heard anything.
        self.pair()
        said = self.relay.on('control', 'source', wire.RUNNING, relay.Hold())
        self.begin(x_towline_switch='after-pass')
        said.wait()
        server = self.server()
        ends = self.cut_in_the_next_comparison()
        self.source_dies()
        self.relay.release()
        ends.wait()
        self.wait_end_of_recovery()
        server.qmp.wait_status('postcopy-paused')
        self.not_given_back(server)

    def not_given_back(self, server):
        """The guest runs at the target: the page server does not have it, and never says so."""
        with self.assertRaisesRegex(qmp.QmpError, 'runs there'):
            server.qmp('x-towline-take-back', target_is_fenced=True)
        self.assertEqual(self.target.qmp.run_state(), 'running')
        self.assertEqual(server.qmp.run_state(), 'finish-migrate')
        self.assertNotIn('here alone', self.source.err.text())
        self.relay.refuse(False)
        self.finish(server)

    def test_a_source_that_is_stopped_is_not_gone(self):
        server = self.in_postcopy()
        self.source.freeze()
        self.relay.cut()
        self.target.qmp.wait_status('postcopy-paused')
        self.assertEqual(server.qmp.migration(), {})
        self.assertEqual(server.qmp.run_state(), 'prelaunch')
        self.source.thaw()
        self.source.qmp('migrate-set-parameters', max_postcopy_bandwidth=0)
        self.completed()
        server.wait_end()
        self.said('nobody needs what is kept here')
        self.verdict()


class TheServerDies(PageServerCase):
    def test_another_one_takes_its_place_and_can_take_over(self):
        server = self.in_postcopy()
        server.kill()
        waiting.until(lambda: self.seen()['starts'] == 2 and self.seen()['stands-by'], 'a second')
        self.assertEqual(self.source.qmp.migration()['x-towline']['epoch'], 1)
        second = self.server()
        self.assertNotEqual(second.pid, server.pid)
        self.source_dies()
        self.finish(second)

    def test_one_that_is_stopped_does_not_stand_by_and_is_replaced(self):
        server = self.in_postcopy()
        os.kill(server.pid, signal.SIGSTOP)
        self.said('it does not answer since')
        waiting.until(lambda: self.seen()['starts'] == 2 and self.seen()['stands-by'], 'a second')
        server.wait_end()
        self.assertEqual(self.source.qmp.migration()['x-towline']['epoch'], 1)
        second = self.server()
        self.assertNotEqual(second.pid, server.pid)
        self.source_dies()
        self.finish(second)

    def test_one_of_an_older_version_is_not_asked_and_stands_by(self):
        older = self.closing(page_servers.OlderServer(self.folder / 'older'))
        self.pair(f'unix:{older.path}')
        self.move()
        self.assertTrue(self.seen() == {} or not self.seen().get('error-desc'), self.seen())
        self.verdict()
        self.assertEqual(older.heard(), b'')

    def test_one_that_cannot_begin_says_why_and_nothing_is_begun(self):
        in_use = self.folder / 'in-use'
        one = socket.socket(socket.AF_UNIX)
        one.bind(str(in_use))
        one.listen()
        self.addCleanup(one.close)
        for path, word in ((self.folder / ('x' * 120), 'at most|107 bytes'),
                           (self.folder / 'none' / 'here', 'No such file'),
                           (in_use, 'in use')):
            with self.subTest(path=path):
                self.source = self.run_vm('source', append=moves.with_facts(moves.STILL), extra=(
                    '--page-server', 'own', '--page-server-qmp', f'unix:{path}'))
                self.guest = moves.Guest(self.source)
                self.target, address = self.listening('target')
                self.uri = f'tcp:{address[0]}:{address[1]}'
                self.guest.wait_for('guest.start')
                self.begin(x_towline_switch='immediate')
                self.assertRegex(self.source.qmp.wait_status_of_failure()['error-desc'], word)
                self.source_runs_on()
                self.assertFalse([line for line in self.source.err.snapshot()
                                  if 'link.lost' in line])
                for machine in (self.source, self.target):
                    machine.close()

    def test_without_one_nothing_is_begun(self):
        self.pair(f'unix:{self.folder}/nobody')
        self.begin(x_towline_switch='immediate')
        self.assertIn('no page server', self.source.qmp.wait_status_of_failure()['error-desc'])
        self.source_runs_on()


class TheSourceLeaves(PageServerCase):
    def test_quit_is_obeyed_in_postcopy(self):
        server = self.in_postcopy()
        self.source.qmp('quit')
        waiting.until(lambda: not self.source.alive(), 'the end of the source')
        self.relay.cut()
        self.wait_heir(server)
        self.finish(server)

    def test_a_signal_is_obeyed_in_postcopy(self):
        server = self.in_postcopy()
        self.source.signal(signal.SIGTERM)
        waiting.until(lambda: not self.source.alive(), 'the end of the source')
        self.finish(server)

    def test_no_number_of_signals_ends_a_server_that_has_the_only_copy(self):
        server = self.in_postcopy()
        self.source_dies()
        self.wait_heir(server)
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            before = self.source.err.count()
            os.kill(server.pid, number)
            self.source.err.wait_for(lambda line: f'signal_refused signal={number.name}' in line,
                                     f'{number.name} to be refused', before)
        self.assertTrue(server.alive())
        self.finish(server)


class DaemonCase(PageServerCase):
    """A page server that a service manager keeps."""

    def start_daemon(self, environment=None, prefix=(), **manager):
        """Plays the manager: what the one before gave to be kept is there."""
        if not hasattr(self, 'store'):
            self.store = self.closing(fd_store.Store(self.folder, **manager))
            self.path = self.folder / 'pages'
            self.daemons = 0
        self.daemons += 1
        control = self.folder / f'pages{self.daemons}.qmp'
        command = self.store.command(*prefix, str(vm.TOWLINE), 'page-server', '--listen',
                                     f'unix:{self.path}', '--qmp', f'unix:{control}')
        self.daemon = self.start(vm.Process(command, self.folder, f'daemon{self.daemons}',
                                            environment={**self.store.environment(),
                                                         **(environment or {})}))
        self.daemon.err.wait_for(lambda line: 'page_server.listens' in line, 'the daemon')
        self.daemon.qmp = self.closing(qmp.Qmp(control, self.daemon.alive))
        return self.daemon

    def heir(self):
        """The daemon serves the target, in the place of its source."""
        pid = self.in_postcopy(f'unix:{self.path}').pid
        self.source_dies()
        self.wait_heir(self.daemon)
        return pid

    def refuses_to_end(self, server, log, pid=None):
        """It has what nobody else has, and says so."""
        with self.assertRaisesRegex(qmp.QmpError, 'destroy'):
            server.qmp('quit')
        os.kill(pid or server.pid, signal.SIGTERM)
        log.wait_for(lambda line: 'monitor.signal_refused' in line, 'the refusal')
        self.assertTrue(server.alive())
        server.qmp('migrate-set-parameters', max_postcopy_bandwidth=0)
        self.all_is_right()


class WhatAManagerConfirms(DaemonCase):
    """Kept elsewhere is what a service manager has said that it keeps. Without that, a page server
    that has the only copy of something refuses to end."""

    def is_not_kept(self, *words):
        pid = self.heir()
        self.daemon.err.wait_for(lambda line: 'page_server.not_stored' in line and
                                 all(word in line for word in words), f'{words}')
        self.refuses_to_end(self.daemon, self.daemon.err, pid)

    def test_what_it_has_no_room_for_is_not_kept(self):
        self.start_daemon(room=1)
        self.is_not_kept('FileDescriptorStoreMax')

    def test_what_an_older_one_has_no_room_for_is_not_kept(self):
        self.start_daemon(room=1, says_room=False)
        self.is_not_kept('1 of 2', 'FileDescriptorStoreMax')

    def test_what_an_older_one_does_not_keep_at_all_is_not_kept(self):
        self.start_daemon(room=0, says_room=False)
        self.is_not_kept('0 of 2')

    def test_what_it_does_not_confirm_is_not_kept(self):
        self.start_daemon(confirms=False)
        self.is_not_kept('did not confirm')

    def test_what_an_older_one_cannot_be_asked_for_is_not_kept(self):
        self.start_daemon({'PATH': '/nowhere'}, says_room=False)
        self.is_not_kept('busctl')

    def test_a_manager_whose_process_is_another_one_is_not_spoken_to(self):
        # As of a daemon that somebody's service starts: its environment is the service's.
        inherits = ('/bin/sh', '-c', '"$@" & wait', 'sh')
        self.start_daemon(prefix=inherits)
        self.is_not_kept('only its own process')
        self.assertEqual(self.store.names(), [])

    def test_what_an_older_one_keeps_survives_the_daemon(self):
        self.start_daemon(says_room=False)
        self.heir()
        self.daemon.err.wait_for(lambda line: 'page_server.stored' in line, 'the confirmation')
        self.daemon.signal(signal.SIGTERM)
        self.assertEqual(self.daemon.wait(), 0)
        self.wait_heir(self.start_daemon())
        self.daemon.qmp('migrate-set-parameters', max_postcopy_bandwidth=0)
        self.all_is_right()

    def test_a_manager_that_does_not_read_holds_no_daemon_up(self):
        deaf = self.closing(fd_store.DeafManager(self.folder))
        self.start_daemon(deaf.environment())
        self.heir()
        self.refuses_to_end(self.daemon, self.daemon.err)

    def test_a_server_that_a_service_s_source_starts_believes_nothing_of_its_manager(self):
        # Everything that it could inherit is there, and would be believed of a daemon.
        self.store = self.closing(fd_store.Store(self.folder))
        server = self.in_postcopy(source_options={'environment': {
            **self.store.environment(), 'LISTEN_FDS': '1', 'LISTEN_PID': '1', 'WATCHDOG_USEC': '9'}})
        told = pathlib.Path(f'/proc/{server.pid}/environ').read_bytes().split(b'\0')
        self.assertEqual([one for one in told if one.startswith(
            (b'NOTIFY_SOCKET', b'FDSTORE', b'LISTEN_', b'WATCHDOG_', b'SYSTEMD_EXEC_PID'))], [])
        self.source_dies()
        self.wait_heir(server)
        self.refuses_to_end(server, self.source.err)
        self.assertEqual(self.store.names(), [])
        server.wait_end()

    def test_a_manager_that_does_not_read_holds_no_server_up_that_a_source_starts(self):
        deaf = self.closing(fd_store.DeafManager(self.folder))
        server = self.in_postcopy(source_options={'environment': deaf.environment()})
        self.source_dies()
        self.wait_heir(server)
        self.finish(server)


class ADaemonThatIsStopped(DaemonCase):
    def test_it_stands_by_again_when_it_goes_on_and_the_switch_waits_for_that(self):
        self.start_daemon()
        self.pair(f'unix:{self.path}')
        self.begin()
        self.wait_synced()
        self.assertTrue(self.seen()['stands-by'])
        self.daemon.freeze()
        seen = waiting.until(lambda: None if self.seen()['stands-by'] else self.seen(), 'silence')
        self.assertIn('does not answer', seen['error-desc'])
        self.source.qmp('migrate-start-postcopy')
        self.assertIn('page server', self.source.qmp.wait_status_of_failure()['error-desc'])
        self.source_runs_on()
        self.daemon.thaw()
        self.daemon.err.wait_for(lambda line: 'page_server.forgets' in line, 'its memory of it')
        self.target, self.relay.target = self.listening('other')
        self.move()
        self.verdict()


class ADaemon(DaemonCase):
    def test_it_survives_its_own_restarts_and_serves_the_next_source_too(self):
        self.start_daemon()
        self.in_postcopy(f'unix:{self.path}')
        # The store reads what it was given in a thread of its own.
        waiting.until(lambda: self.store.names() == ['towline-ledger', 'towline-memory-0'],
                      'both files in the store')
        # While the source lives: it finds the new one by itself.
        self.daemon.kill()
        daemon = self.start_daemon()
        waiting.until(lambda: self.seen()['starts'] == 2 and self.seen()['stands-by'], 'a second')
        # With nobody there but the manager.
        daemon.kill()
        self.source_dies()
        daemon = self.start_daemon()
        self.wait_heir(daemon)
        # In the middle of serving; asked politely, because nothing is lost by it.
        daemon.signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(), 0)
        daemon = self.start_daemon()
        self.wait_heir(daemon)
        daemon.qmp('migrate-set-parameters', max_postcopy_bandwidth=0)
        self.all_is_right()
        daemon.out.wait_for(lambda line: 'moved: ' in line, 'the summary')
        waiting.until(lambda: not self.store.names(), 'nothing to be kept')
        for machine in (self.source, self.target):
            machine.close()
        self.in_postcopy(f'unix:{self.path}')
        self.source.qmp('migrate-set-parameters', max_postcopy_bandwidth=0)
        self.completed()
        self.verdict()

    def parked(self):
        """The daemon has a guest whose target never had it. Its first target stays as it is."""
        self.start_daemon()
        self.pair(f'unix:{self.path}')
        self.stopped_after_order()
        self.source_dies()
        self.keeps()

    def keeps(self):
        self.daemon.err.wait_for(lambda line: 'keeps_the_guest' in line, 'a kept guest')
        self.assertEqual(self.daemon.qmp.run_state(), 'paused')
        self.assertEqual(self.store.names(), ['towline-ledger', 'towline-memory-0'])

    def rescue(self, name, lane=None, direction=None, kind=None):
        """To a new target, whose link does what its name says with the first frame of a kind."""
        machine, address = self.listening(name)
        link = self.closing(relay.Relay(address))
        held = link.on(lane, direction, kind, relay.Hold()) if kind else None
        self.daemon.qmp('migrate', uri=link.uri)
        if held:
            held.wait()
        return machine, link

    def rescue_succeeds(self, name):
        machine, _ = self.rescue(name)
        self.all_is_right(machine)
        self.rescued_by_daemon()

    def rescued_by_daemon(self):
        self.daemon.out.wait_for(lambda line: 'moved: ' in line, 'the summary')
        waiting.until(lambda: not self.store.names(), 'nothing to be kept')

    def test_a_rescue_that_its_daemon_does_not_survive_is_begun_again(self):
        self.parked()
        for number, (lane, kind) in enumerate((('control', wire.ACCEPT),
                                               ('bulk', wire.LANE_READY))):
            self.rescue(f'other{number}', lane, 'source', kind)
            self.daemon.kill()
            self.start_daemon()
            self.keeps()
        # Asked politely: nothing is lost by it.
        self.rescue('other', 'control', 'source', wire.ACCEPT)
        self.daemon.signal(signal.SIGTERM)
        self.assertEqual(self.daemon.wait(), 0)
        self.start_daemon()
        self.keeps()
        self.rescue_succeeds('last')

    def test_a_daemon_that_dies_before_it_gave_a_rescue_its_order_keeps_the_guest(self):
        # Between two of its system calls, as a source above; the record is the rescue's by then.
        self.parked()
        _, link = self.rescue('other', 'control', 'target', wire.STATE)
        ledger = page_servers.Server(self.daemon.pid, None).ledger()
        self.daemon.freeze()
        with open(ledger, 'r+b', buffering=0) as words:
            words.seek(8)
            self.assertEqual(words.read(8), (3).to_bytes(8, 'little'))
            words.seek(8)
            words.write((2).to_bytes(8, 'little'))
        self.daemon.kill()
        link.cut()
        self.start_daemon()
        self.keeps()
        self.rescue_succeeds('last')

    def test_a_daemon_that_dies_with_a_rescue_s_order_on_the_way_asks_that_target(self):
        self.parked()
        other, link = self.rescue('other', 'control', 'target', wire.STATE)
        self.daemon.kill()
        link.cut()
        self.start_daemon()
        self.daemon.qmp.wait_status_of_failure()
        self.keeps()
        self.assertNotEqual(other.qmp.run_state(), 'running')
        self.rescue_succeeds('last')

    def test_a_daemon_that_dies_in_the_post_copy_of_a_rescue_goes_on_with_it(self):
        self.parked()
        self.daemon.qmp('migrate-set-parameters', max_postcopy_bandwidth=moves.SLOW)
        other, _ = self.rescue('other')
        for _ in range(2):
            other.qmp.wait_status('postcopy-active')
            self.daemon.qmp.wait_status('postcopy-active')
            self.daemon.kill()
            self.start_daemon()
            self.wait_heir(self.daemon)
        self.assertGreaterEqual(self.daemon.qmp.migration()['x-towline']['epoch'], 3)
        self.daemon.qmp('migrate-set-parameters', max_postcopy_bandwidth=0)
        self.all_is_right(other)
        self.rescued_by_daemon()

    def test_what_strangers_say_changes_nothing(self):
        daemon = self.start_daemon()
        open_files = vm.open_files(daemon.pid)
        offer = bytes.fromhex('54 4c 54 57 4c 48 56 31') + (1).to_bytes(4, 'little')
        with open(daemon.command[0], 'rb') as no_memory:
            for words, fds in ((b'', 0), (b'garbage' * 1000, 0), (offer, 0),
                               (offer + (1).to_bytes(4, 'little'), 2),
                               (offer + (70).to_bytes(4, 'little'), 71),
                               (offer + bytes(4), 1), (offer + b'\xff' * 4, 100)):
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
                    end.connect(str(self.path))
                    end.settimeout(waiting.LIMIT_S)
                    socket.send_fds(end, [words], [no_memory.fileno()] * fds)
                    answer = end.recv(4096)
                    self.assertTrue(not answer or answer[8:16] == bytes(8), answer)
        waiting.until(lambda: vm.open_files(daemon.pid) <= open_files, 'every descriptor closed')
        for _ in range(40):  # More than it listens to at a time; they stay.
            silent = self.closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            silent.connect(str(self.path))
        self.in_postcopy(f'unix:{self.path}')
        refused = self.run_vm('second', append=moves.with_facts(moves.BUSY),
                              extra=('--page-server', f'unix:{self.path}'))
        _, address = self.listening('elsewhere')
        refused.qmp('migrate-set-parameters', x_towline_switch='after-pass')
        refused.qmp('migrate', uri=f'tcp:{address[0]}:{address[1]}')
        self.assertIn('start another one',
                      refused.qmp.wait_status_of_failure()['error-desc'])
        self.source.qmp('migrate-set-parameters', max_postcopy_bandwidth=0)
        self.completed()
        self.verdict()


if __name__ == '__main__':
    unittest.main()
