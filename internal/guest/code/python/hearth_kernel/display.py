"""Representations beyond IPython's own.

e2b/data:          a pandas data frame as {column: [values]}
e2b/chart:         a matplotlib figure as a chart dictionary (charts.py)
application/json:  dict and list results
Pillow images are shown when they are saved to a path or "opened in a viewer".
Nothing here imports pandas, matplotlib or Pillow: types are named, modules hooked.
"""

import importlib.abc
import importlib.util
import os
import sys

from IPython.core.formatters import BaseFormatter
from IPython.display import display
from traitlets import ObjectName, Unicode

from . import charts
from .plain import plain

MAX_CELLS = 1_000_000  # larger data frames and collections come as text and HTML alone


class DataFormatter(BaseFormatter):
    """e2b/data."""

    format_type = Unicode("e2b/data")
    print_method = ObjectName("_repr_e2b_data_")
    _return_type = dict


class ChartFormatter(BaseFormatter):
    """e2b/chart."""

    format_type = Unicode("e2b/chart")
    print_method = ObjectName("_repr_e2b_chart_")
    _return_type = dict

    def pop(self, typ, default=None):
        """Keep figures: the inline backend takes them out of every formatter."""
        return default


def install(shell):
    """Register everything with an InteractiveShell."""
    formatter = shell.display_formatter
    data = DataFormatter(parent=formatter)
    data.for_type_by_name("pandas.core.frame", "DataFrame", frame)
    data.for_type_by_name("pandas", "DataFrame", frame)
    chart = ChartFormatter(parent=formatter)
    chart.for_type_by_name("matplotlib.figure", "Figure", figure)
    formatter.formatters[data.format_type] = data
    formatter.formatters[chart.format_type] = chart
    as_json = formatter.formatters["application/json"]
    as_json.for_type(dict, collection)
    as_json.for_type(list, collection)
    after_import("PIL.Image", show_images)


def frame(table):
    """A data frame as {column: [values]}, times in ISO 8601; None when too large."""
    if table.size > MAX_CELLS:
        return None
    try:
        return {
            str(name): plain(table.iloc[:, i].tolist(), otherwise=str)
            for i, name in enumerate(table.columns)
        }
    except Exception:
        return None


def figure(fig):
    """A figure as a chart dictionary; {} when it is not understood."""
    try:
        return charts.chart(fig)
    except Exception:
        return {}


def collection(value):
    """A dict or list made of JSON values; None when it holds anything else."""
    try:
        return plain(value, limit=MAX_CELLS)
    except Exception:
        return None


def show_images(module):
    """Show a Pillow image when it is saved to a path; replace the desktop viewer."""
    save = module.Image.save

    def save_and_show(self, fp, format=None, **params):
        save(self, fp, format, **params)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if isinstance(fp, (str, os.PathLike)) and not caller.startswith(("matplotlib", "PIL")):
            display(self)

    def show(self, title=None):
        display(self)

    module.Image.save = save_and_show
    module.Image.show = show


def after_import(name, hook):
    """Call hook(module) once the module is imported, or now when it is."""
    if name in sys.modules:
        hook(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Finder(name, hook))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, name, hook):
        self.name, self.hook = name, hook

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            run, hook = spec.loader.exec_module, self.hook

            def exec_module(module):
                run(module)
                hook(module)

            spec.loader.exec_module = exec_module
        return spec
