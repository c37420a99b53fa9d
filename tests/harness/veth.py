"""Two hosts on one: a network namespace, and a cable to it that can be pulled. Needs root and ip."""
import os
import shutil
import subprocess


class Unavailable(Exception):
    """Why this machine cannot do it."""


class Cable:
    """A veth pair between this host (`here`) and a namespace of its own (`there`)."""

    here, there = '198.18.77.1', '198.18.77.2'  # Of the range for tests between devices.

    def __init__(self):
        if not shutil.which('ip'):
            raise Unavailable('ip is not installed')
        self.namespace = f'towline-{os.getpid()}'
        self.device = f'tl{os.getpid()}h'
        far = f'tl{os.getpid()}t'
        try:
            self._ip('netns', 'add', self.namespace)
            self._ip('link', 'add', self.device, 'type', 'veth', 'peer', 'name', far,
                     'netns', self.namespace)
            self._ip('address', 'add', f'{self.here}/30', 'dev', self.device)
            self._ip('link', 'set', self.device, 'up')
            self._ip('-n', self.namespace, 'address', 'add', f'{self.there}/30', 'dev', far)
            self._ip('-n', self.namespace, 'link', 'set', far, 'up')
            self._ip('-n', self.namespace, 'link', 'set', 'lo', 'up')
        except Unavailable:
            self.close()
            raise

    def prefix(self):
        """Before a command: runs it on the other host."""
        return ['ip', 'netns', 'exec', self.namespace]

    def pull(self):
        self._ip('link', 'set', self.device, 'down')

    def plug(self):
        self._ip('link', 'set', self.device, 'up')

    def close(self):
        subprocess.run(['ip', 'netns', 'delete', self.namespace], stderr=subprocess.DEVNULL)
        subprocess.run(['ip', 'link', 'delete', self.device], stderr=subprocess.DEVNULL)

    @staticmethod
    def _ip(*words):
        done = subprocess.run(['ip', *words], text=True, capture_output=True)
        if done.returncode != 0:
            raise Unavailable(f'ip {" ".join(words)}: {done.stderr.strip()}')
