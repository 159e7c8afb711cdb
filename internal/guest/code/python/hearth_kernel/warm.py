"""Work done once before a checkpoint, so that no sandbox does it again.

Modules are imported, and one cell, one table and one plot go through the real
display path; nothing is published and no name is left in the user's namespace.
"""

import contextlib
import ctypes
import gc
import importlib
import linecache
import sys

CELL = "import os\nprint('', end='')\n{'a': [1, 2.5]}"
ERROR = "def _p():\n    1 / 0\n_p()"
SHELL = "!true"
TABLE = """\
import pandas as _p
_f = _p.DataFrame({'a': [1, 2], 'b': ['x', 'y']})
_f.describe()
_f
"""
PLOT = """\
import matplotlib.pyplot as _m
_m.plot([1, 2], [3, 4], label='x')
_m.title('t'); _m.legend()
_m.show()
_m.close('all')
"""


def up(shell, modules):
    """Import modules (missing ones are skipped) and exercise the display path."""
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    cells = [CELL, ERROR, SHELL]
    if "pandas" in sys.modules:
        cells.append(TABLE)
    if "matplotlib.pyplot" in sys.modules:
        cells.append(PLOT)
    for cell in cells:
        _run(shell, cell)
    _forget(shell)
    _shrink()


def rehearse(shell):
    """Run a small cell as a clone that waits for its user, who then finds none of it."""
    _run(shell, CELL)
    _forget(shell)


def _shrink():
    """Give memory back, and keep the collector away from what is left.

    A frozen object is not written by later collections, so clones of a checkpoint
    go on sharing its page.
    """
    linecache.clearcache()
    gc.collect()
    with contextlib.suppress(Exception):
        ctypes.CDLL(None).malloc_trim(0)
    gc.freeze()


def _run(shell, cell):
    from IPython.utils.capture import capture_output

    with capture_output():
        shell.run_cell(cell, store_history=False)


def _forget(shell):
    """Leave the namespace and the counters as a fresh kernel has them."""
    for name in ("_p", "_f", "_m", "os"):
        shell.user_ns.pop(name, None)
    unders = dict.fromkeys(("_", "__", "___"), "")
    for name in unders:
        setattr(shell.displayhook, name, "")
    shell.push(unders, interactive=False)  # as hidden names: else IPython takes them for the user's and never sets them again
    shell.user_ns.get("Out", {}).clear()
    shell.execution_count = 1
    shell.kernel.execution_count = 0
