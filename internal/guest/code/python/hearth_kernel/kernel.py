"""The kernel application: a stock ipykernel with a smaller footprint.

Every execute_request may carry metadata {"hearth": {...}} from the daemon:

epoch:  int, grows with every restore of the sandbox from a checkpoint. A kernel
        that sees a new one draws new random numbers and takes over `globals`
        before the code runs, so no code sees what the checkpoint had.
globals: {name: value}, the sandbox's environment for that epoch.
env:    {name: value}, for this execution only.
cwd:    directory to change to before the code runs; created when missing.
preload: [module], see warm.py.
rehearse: true, see warm.py.
"""

import contextlib
import os
import sys

from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp

from . import display, pressure, warm


class Environment:
    """Layers the sandbox's and one execution's variables over os.environ."""

    def __init__(self):
        self.epoch = None
        self._below = {}  # name -> value before globals covered it

    def enter(self, epoch, values):
        """Take over the variables of a new epoch. Reports whether it was new."""
        if epoch is None or epoch == self.epoch:
            return False
        restore(self._below)
        self._below = cover(values or {})
        self.epoch = epoch
        return True


def cover(values):
    """Set values in os.environ; return what was there, for restore."""
    below = {}
    for name, value in values.items():
        below[name] = os.environ.get(name)
        os.environ[name] = value
    return below


def restore(below):
    """Undo cover."""
    for name, value in below.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def reseed():
    """Draw new random state wherever a process keeps some of its own."""
    import random

    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "seed"):
        torch.seed()
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None:
        tempfile._name_sequence = None


class HearthKernel(IPythonKernel):
    """An IPython kernel that reads the daemon's metadata."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hearth_env = Environment()
        display.install(self.shell)
        pressure.forget_outputs(self.shell)

    async def execute_request(self, stream, ident, parent):
        orders = (parent.get("metadata") or {}).get("hearth")
        if not orders:
            return await super().execute_request(stream, ident, parent)
        below = {}
        try:
            self.obey(orders)
            below = cover(orders.get("env") or {})
        except Exception as error:
            refusal = f"raise {type(error).__name__}({str(error)!r}) from None"
            parent["content"] = {**parent["content"], "code": refusal}
        try:
            return await super().execute_request(stream, ident, parent)
        finally:
            restore(below)

    def obey(self, orders):
        """Do what must be done before the code of a request may run."""
        if self.hearth_env.enter(orders.get("epoch"), orders.get("globals")):
            reseed()
        cwd = orders.get("cwd")
        if cwd:
            os.makedirs(cwd, exist_ok=True)
            os.chdir(cwd)
        if orders.get("preload"):
            warm.up(self.shell, orders["preload"])
        if orders.get("rehearse"):
            warm.rehearse(self.shell)


class HearthKernelApp(IPKernelApp):
    """The application with bounded output and no terminal habits."""

    def init_iopub(self, context):
        with pressure.lossless(context):
            super().init_iopub(context)


def start():
    """Run the kernel until it is shut down."""
    pressure.install()
    app = HearthKernelApp.instance(kernel_class=HearthKernel)
    config = app.config
    config.InteractiveShell.colors = "nocolor" if _ipython_major() >= 9 else "NoColor"
    config.PlainTextFormatter.max_seq_length = 0
    config.HistoryManager.enabled = False
    config.Completer.use_jedi = False
    with absent("debugpy", "jedi"):
        app.initialize()
    app.start()


@contextlib.contextmanager
def absent(*names):
    """Imports of the named modules fail inside.

    Both are optional in a kernel and large: the debugger's back end (12 MB) and the
    static completer. User code imports them afterwards as usual.
    """
    blocked = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(blocked))
    try:
        yield
    finally:
        for name in blocked:
            if sys.modules.get(name, "") is None:
                del sys.modules[name]


def _ipython_major():
    import IPython

    return IPython.version_info[0]
