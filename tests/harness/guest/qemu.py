"""Runs the bare guest under QEMU's microvm, to test the guest itself."""
import os
import pathlib
import shutil
import subprocess

from tests.harness.guest import host
from tests.harness.guest.console import Console

# A KVM that is software itself lacks these, and QEMU's default would ask for them.
KVM_CPU = 'qemu64,-cx16,-xsave,-smap,-smep,-fsgsbase,-pcid'
QEMU = 'qemu-system-x86_64'


def default_kernel():
    """The guest's image: $TOWLINE_BARE_GUEST, or what the build put into build/."""
    root = pathlib.Path(__file__).resolve().parents[3]
    return os.environ.get('TOWLINE_BARE_GUEST', root / 'build/tests/guest/bare_guest.elf')


def why_not():
    """Why the guest cannot run under QEMU here, or None."""
    if not shutil.which(QEMU):
        return f'{QEMU} is not installed'
    if not pathlib.Path(default_kernel()).exists():
        return f'{default_kernel()} is not built'
    return None


def accelerator():
    return os.environ.get('TOWLINE_GUEST_ACCEL') or ('kvm' if host.kvm_usable() else 'tcg')


def command_line(append, memory, vcpus, accel, log):
    cpu = KVM_CPU if accel == 'kvm' else 'max'
    return [
        QEMU, '-M', 'microvm,x-option-roms=off,auto-kernel-cmdline=off,memory-backend=ram',
        '-accel', accel, '-cpu', cpu, '-smp', str(vcpus), '-m', memory,
        '-object', f'memory-backend-memfd,id=ram,size={memory},share=on',
        '-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot', '-D', log,
        '-serial', 'stdio', '-kernel', str(default_kernel()), '-append', append]


class QemuGuest:
    """A guest in a QEMU process of its own; leaves nothing behind when the `with` block ends."""

    memfd_name = 'memory-backend-memfd'

    def __init__(self, memory='128M', vcpus=1, accel=None, smp=None, **options):
        accel = accel or accelerator()
        options = {'tsc_khz': host.tsc_khz(), 'vcpus': vcpus, 'report_ms': 200, **options}
        append = ' '.join(f'{key.replace("_", "-")}={value}'
                          for key, value in options.items() if value is not None)
        self.process = subprocess.Popen(
            command_line(append, memory, smp or vcpus, accel, os.devnull), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)
        self.console = Console(self.process.stdout.fileno(), self.process.stdin.fileno())

    @property
    def pid(self):
        return self.process.pid

    @property
    def transcript(self):
        return self.console.transcript

    def quit(self, timeout=30):
        """Has the guest end itself; QEMU's exit status."""
        self.console.send('Q')
        self.console.wait_for('guest.bye', timeout)
        return self.process.wait(timeout)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()
