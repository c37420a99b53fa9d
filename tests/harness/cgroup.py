"""A control group with a memory limit, version 1 or 2, for one process and its children."""
import os
import pathlib

V1, V2 = pathlib.Path('/sys/fs/cgroup/memory'), pathlib.Path('/sys/fs/cgroup')


class MemoryGroup:
    """Raises OSError where no such group can be made."""

    def __init__(self, limit, name='test'):
        one = V1.is_dir()
        self.folder = (V1 if one else V2) / f'towline-{name}-{os.getpid()}'
        self.folder.mkdir()
        self._limit = self.folder / ('memory.limit_in_bytes' if one else 'memory.max')
        try:
            self.limit(limit)
        except OSError:
            self.close()
            raise

    def limit(self, value):
        self._limit.write_text(str(value))

    def prefix(self):
        """Words before a command: it runs in the group."""
        return ['sh', '-c', f'echo $$ > {self.folder}/cgroup.procs && exec "$@"', 'sh']

    def pids(self):
        return [int(line) for line in (self.folder / 'cgroup.procs').read_text().split()]

    def killed(self):
        """How often the kernel killed somebody at the limit."""
        for name in ('memory.oom_control', 'memory.events'):
            path = self.folder / name
            if path.exists():
                counts = dict(line.split() for line in path.read_text().splitlines())
                return int(counts.get('oom_kill', 0))
        return 0

    def close(self):
        self.folder.rmdir()
