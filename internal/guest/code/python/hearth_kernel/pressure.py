"""Output that waits for its reader.

A stock kernel drops messages when its output socket is full and buffers text
without bound before that. Here the socket refuses to drop, its queue is short, and
whoever prints or displays waits in turn: a program that writes faster than its
client reads is slowed down, and neither side grows.
"""

import contextlib
import os
import threading

import zmq
from ipykernel.iostream import IOPubThread, OutStream

QUEUE = 32  # messages in the output socket, and events waiting for it
CHUNK = 256 * 1024  # characters buffered in a stream before the writer waits


@contextlib.contextmanager
def lossless(context):
    """Sockets made inside get a short queue and wait instead of dropping."""
    options = {zmq.SNDHWM: QUEUE, zmq.XPUB_NODROP: 1}
    context.sockopts.update(options)
    try:
        yield
    finally:
        for option in options:
            context.sockopts.pop(option, None)


class Forgotten(dict):
    """Stands for the record IPython keeps of every output, and keeps nothing.

    That record only serves the %notebook magic; a program that prints for hours
    would fill its memory with it.
    """

    def __missing__(self, key):
        return []

    def __setitem__(self, key, value):
        pass


def forget_outputs(shell):
    """Stop a shell from recording what it shows."""
    if hasattr(shell.history_manager, "outputs"):
        shell.history_manager.outputs = Forgotten()


def _outside(thread):
    """Whether the caller may wait for the output thread."""
    return (
        thread is not None
        and thread.thread is not None
        and thread.thread.is_alive()
        and thread.thread is not threading.current_thread()
        and os.getpid() == thread._master_pid
    )


def _wait(thread, schedule):
    done = threading.Event()
    schedule(thread, done.set)
    while not done.wait(1) and thread.thread.is_alive():
        pass


def install():
    """Make streams and displays wait. Safe to call once per process."""
    schedule = IOPubThread.schedule
    write = OutStream.write

    def patient_schedule(self, function):
        if len(self._events) > QUEUE and _outside(self):
            _wait(self, schedule)
        return schedule(self, function)

    def patient_write(self, string):
        if not isinstance(string, str) or len(string) <= CHUNK:
            return _write(self, string)
        for start in range(0, len(string), CHUNK):
            _write(self, string[start : start + CHUNK])
        return len(string)

    def _write(self, string):
        count = write(self, string)
        pending = getattr(self, "_hearth_pending", 0) + len(string)
        if pending >= CHUNK and _outside(self.pub_thread):
            pending = 0
            schedule(self.pub_thread, self._flush)
            _wait(self.pub_thread, schedule)
        self._hearth_pending = pending
        return count

    IOPubThread.schedule = patient_schedule
    OutStream.write = patient_write
    OutStream.flush_timeout = 3600
    OutStream.flush_interval = 0.05
