"""A link that swallows everything: no reset, no close, no acknowledgement. Needs root and nft."""
import os
import shutil
import subprocess


class Unavailable(Exception):
    """Why this machine cannot do it."""


class Blackhole:
    """Drops every packet of a TCP port of this host, both ways, while it is open."""

    def __init__(self, port):
        if not shutil.which('nft'):
            raise Unavailable('nft is not installed')
        self.table = f'towline_test_{os.getpid()}'
        rules = (f'table inet {self.table} {{\n chain towline {{\n'
                 f'  type filter hook input priority 0;\n'
                 f'  tcp dport {port} drop\n  tcp sport {port} drop\n }}\n}}\n')
        done = subprocess.run(['nft', '-f', '-'], input=rules, text=True, capture_output=True)
        if done.returncode != 0:
            raise Unavailable(f'nft: {done.stderr.strip()}')
        self.is_open = True

    def close(self):
        if self.is_open:
            self.is_open = False
            subprocess.run(['nft', 'delete', 'table', 'inet', self.table], check=True)
