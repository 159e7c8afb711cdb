"""What a matplotlib figure shows, as plain data.

chart(figure) returns a dictionary with "type", "title" and "elements"; charts with
two axes add labels and units, and those made of points their ticks and scales. The
figure is only read. matplotlib is never imported here: whoever has a figure has it.
"""

import math
import re
import sys

from .plain import plain

UNIT = re.compile(r"\s\((.*?)\)|\[(.*?)\]")


def chart(figure):
    """The chart of a figure: {} for none, a superchart for several."""
    axes = [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]
    if not axes:
        return {}
    charts = [_of_axes(ax) for ax in axes]
    if len(charts) == 1:
        return charts[0]
    title = getattr(figure, "_suptitle", None)
    return {
        "type": "superchart",
        "title": (title.get_text() or None) if title is not None else None,
        "elements": charts,
    }


def _of_axes(ax):
    kind = _kind(ax)
    make = {
        "line": _line,
        "scatter": _scatter,
        "bar": _bar,
        "pie": _pie,
        "box_and_whisker": _box,
    }.get(kind)
    body = make(ax) if make else {"elements": []}
    return {"type": kind, "title": ax.get_title() or None, **body}


def _kind(ax):
    from matplotlib.collections import PathCollection
    from matplotlib.lines import Line2D
    from matplotlib.patches import PathPatch, Rectangle, Wedge

    marks = _marks(ax)
    if not marks:
        return "unknown"
    if all(isinstance(mark, Line2D) for mark in marks):
        return "line"
    if all(isinstance(mark, (PathPatch, Line2D)) for mark in marks):
        return "box_and_whisker"
    marks = [mark for mark in marks if not _is_rule(mark)]
    kinds = {"scatter": PathCollection, "pie": Wedge, "bar": Rectangle}
    for name, kind in kinds.items():
        if all(isinstance(mark, kind) for mark in marks):
            return name
    return "unknown"


def _marks(ax):
    """What was drawn into the axes, without text."""
    from matplotlib.text import Text

    return [mark for mark in ax._children if not isinstance(mark, Text)]


def _is_rule(mark):
    """Whether a mark is a straight horizontal or vertical line of two points."""
    from matplotlib.lines import Line2D

    if not isinstance(mark, Line2D):
        return False
    xs, ys = list(mark.get_xdata()), list(mark.get_ydata())
    return len(xs) == 2 == len(ys) and (xs[0] == xs[1] or ys[0] == ys[1])


def _plane(ax, swap=False):
    """Labels and units; the axes exchanged when swap."""
    x, y = ax.get_xlabel(), ax.get_ylabel()
    if swap:
        x, y = y, x
    return {"x_label": x, "y_label": y, "x_unit": _unit(x), "y_unit": _unit(y)}


def _unit(label):
    found = UNIT.search(label)
    return (found.group(1) or found.group(2)) if found else None


def _points(ax):
    """What line and scatter charts add to _plane."""
    body = _plane(ax)
    for name, axis in (("x", ax.xaxis), ("y", ax.yaxis)):
        ticks, labels = _ticks(axis)
        body[f"{name}_ticks"] = [_value(axis, tick) for tick in ticks]
        body[f"{name}_tick_labels"] = labels
        body[f"{name}_scale"] = _scale(axis, ticks, labels)
    return body


def _ticks(axis):
    return [_number(t) for t in axis.get_ticklocs()], [t.get_text() for t in axis.get_ticklabels()]


def _converter(axis):
    return axis.get_converter() if hasattr(axis, "get_converter") else axis.converter


def _is_time(axis):
    name = type(_converter(axis)).__name__.lower()
    return any(word in name for word in ("date", "time", "period"))


def _scale(axis, ticks, labels):
    if _is_time(axis):
        return "datetime"
    counted = ticks == list(range(len(ticks))) and len(ticks) > 0
    if type(_converter(axis)).__name__ == "StrCategoryConverter":
        return "categorical"
    if counted and labels != [f"{tick:g}" for tick in ticks]:
        return "categorical"
    return axis.get_scale()


def _value(axis, number):
    """A position on an axis as the data had it: a number, or ISO 8601 for times."""
    if number is None or not _is_time(axis):
        return number
    if "period" in type(_converter(axis)).__name__.lower():
        return _period(axis, number)
    from matplotlib.dates import num2date

    return num2date(number).replace(tzinfo=None).isoformat()


def _period(axis, number):
    pandas, freq = sys.modules.get("pandas"), getattr(axis, "freq", None)
    if pandas is None or freq is None:
        return number
    return pandas.Period(ordinal=int(number), freq=freq).start_time.isoformat()


def _number(value):
    value = float(value)
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _name(label, prefix, word):
    """A label, or "Word N" for matplotlib's own name of the Nth unlabelled thing."""
    label = str(label)
    if label.startswith(prefix):
        return f"{word} {label[len(prefix):]}"
    return label


def _line(ax):
    elements = []
    for line in ax.get_lines():
        if _is_rule(line):
            continue
        xs, ys = _data(ax.xaxis, line.get_xdata()), _data(ax.yaxis, line.get_ydata())
        elements.append(
            {
                "label": _name(line.get_label(), "_child", "Line"),
                "points": [[x, y] for x, y in zip(xs, ys)],
            }
        )
    return {**_points(ax), "elements": elements}


def _data(axis, values):
    """Values as they were plotted: text and times stay what they are."""
    values = plain(list(values), otherwise=str)
    if not _is_time(axis):
        return values
    return [v if isinstance(v, str) else _value(axis, v) for v in values]


def _scatter(ax):
    from matplotlib.collections import PathCollection

    elements = []
    for group in ax.collections:
        if not isinstance(group, PathCollection):
            continue
        points = [
            [_value(ax.xaxis, _number(x)), _value(ax.yaxis, _number(y))]
            for x, y in group.get_offsets().tolist()
            if x is not None and y is not None
        ]
        label = _name(group.get_label(), "_child", "Scatter")
        elements.append({"label": label, "points": points})
    return {**_points(ax), "elements": elements}


def _bar(ax):
    from matplotlib.container import BarContainer

    groups = [c for c in ax.containers if isinstance(c, BarContainer)]
    lying = any(_lies(group) for group in groups)
    axis = ax.yaxis if lying else ax.xaxis
    labels = _Labels(axis)
    elements = []
    for group in groups:
        name = _name(group.get_label(), "_container", "Group")
        for bar in group:
            at = bar.get_y() + bar.get_height() / 2 if lying else bar.get_x() + bar.get_width() / 2
            length = bar.get_width() if lying else bar.get_height()
            label = labels.near(at, abs(bar.get_height() if lying else bar.get_width()))
            elements.append({"label": label, "value": _number(length), "group": name})
    return {**_plane(ax, swap=lying), "elements": elements}


def _lies(group):
    """Whether the bars of a container are horizontal."""
    orientation = getattr(group, "orientation", None)
    if orientation is not None:
        return orientation == "horizontal"
    heights = {bar.get_height() for bar in group}
    return len(group) > 1 and len(heights) == 1


class _Labels:
    """The tick labels of an axis by position."""

    def __init__(self, axis):
        ticks, labels = _ticks(axis)
        self.axis = axis
        self.named = [(t, text) for t, text in zip(ticks, labels) if t is not None and text]
        self.categories = _scale(axis, ticks, labels) == "categorical" or self._fixed(labels)

    def _fixed(self, labels):
        """Whether the labels were given by hand or by categories."""
        from matplotlib.ticker import FixedFormatter, FuncFormatter

        formatter = self.axis.get_major_formatter()
        return bool(labels) and isinstance(formatter, (FixedFormatter, FuncFormatter))

    def near(self, position, reach):
        """The label of the closest tick when ticks are categories, else the position itself."""
        best = min(self.named, key=lambda tick: abs(tick[0] - position), default=None)
        if best is not None and self.categories:
            if abs(best[0] - position) <= max(reach / 2, 0.5) + 1e-9:
                return best[1]
        value = _value(self.axis, _number(position))
        return value if isinstance(value, str) else f"{value:.10g}"


def _pie(ax):
    from matplotlib.patches import Wedge

    elements = []
    for wedge in ax.patches:
        if not isinstance(wedge, Wedge):
            continue
        label = str(wedge.get_label())
        angle = abs(wedge.theta2 - wedge.theta1)
        elements.append(
            {
                "label": "" if label.startswith("_") else label,
                "angle": float(f"{angle:.8g}"),
                "radius": float(wedge.r),
            }
        )
    return {"elements": elements}


def _box(ax):
    from matplotlib.patches import PathPatch

    boxes = [_extent(p.get_path().vertices.tolist()) for p in ax.patches if isinstance(p, PathPatch)]
    lines = [list(zip(_floats(n.get_xdata()), _floats(n.get_ydata()))) for n in ax.get_lines()]
    lines = [line for line in lines if line]
    standing, lying = _centred(boxes, lines, 0), _centred(boxes, lines, 1)
    across = 0 if standing >= lying else 1  # the coordinate that tells boxes apart
    labels = _Labels(ax.yaxis if across else ax.xaxis)
    elements = [_whiskers(box, lines, across, labels) for box in boxes]
    return {**_plane(ax, swap=across == 1), "elements": elements}


def _floats(values):
    return [float(v) for v in values]


def _extent(vertices):
    """((x0, x1), (y0, y1)) of a path."""
    xs, ys = [v[0] for v in vertices], [v[1] for v in vertices]
    return (min(xs), max(xs)), (min(ys), max(ys))


def _close(a, b):
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)


def _centred(boxes, lines, across):
    """How many lines run along the middle of a box."""
    centres = [sum(box[across]) / 2 for box in boxes]
    return sum(
        1
        for line in lines
        if len(line) == 2 and any(all(_close(p[across], c) for p in line) for c in centres)
    )


def _whiskers(box, lines, across, labels):
    along = 1 - across
    centre, (low, high) = sum(box[across]) / 2, box[along]
    reach, median, middle = [low, high], (low + high) / 2, []
    for line in lines:
        if all(_close(point[across], centre) for point in line):
            values = [point[along] for point in line]
            whisker = len(line) == 2 and any(_close(v, low) or _close(v, high) for v in values)
            (reach if whisker else middle).extend(values)
        elif len(line) == 2 and _close(line[0][along], line[1][along]):
            span = sorted(point[across] for point in line)
            inside = low <= line[0][along] <= high
            if inside and _close(span[0], box[across][0]) and _close(span[1], box[across][1]):
                median = line[0][along]
    least, most = min(reach), max(reach)
    return {
        "label": labels.near(centre, box[across][1] - box[across][0]),
        "min": least,
        "first_quartile": low,
        "median": median,
        "third_quartile": high,
        "max": most,
        "outliers": [v for v in middle if v < least or v > most],
    }
