"""Table tests of charts.py, plain.py and display.py. Run by TestRealPython.

usage: charts_test.py FOLDER_OF_HEARTH_KERNEL
"""

import datetime
import json
import sys
import unittest

sys.path.insert(0, sys.argv.pop(1))

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from hearth_kernel import charts, display
from hearth_kernel.plain import plain


def draw(function, **figure):
    plt.close("all")
    fig, ax = plt.subplots(**figure)
    function(ax)
    got = charts.chart(fig)
    json.dumps(got, allow_nan=False)
    return got


class Lines(unittest.TestCase):
    def test_labels_units_and_points(self):
        def f(ax):
            ax.plot([1, 2, 3], [4, 5.5, 6], label="a")
            ax.plot([1, 2, 3], [7, 8, float("nan")])
            ax.axhline(5)
            ax.set(title="T", xlabel="t (s)", ylabel="mass [kg]")

        got = draw(f)
        self.assertEqual(got["type"], "line")
        self.assertEqual(got["title"], "T")
        self.assertEqual((got["x_label"], got["x_unit"], got["y_unit"]), ("t (s)", "s", "kg"))
        self.assertEqual(
            got["elements"],
            [
                {"label": "a", "points": [[1, 4.0], [2, 5.5], [3, 6.0]]},
                {"label": "Line 1", "points": [[1, 7.0], [2, 8.0], [3, None]]},
            ],
        )
        self.assertEqual((got["x_scale"], got["y_scale"]), ("linear", "linear"))
        self.assertEqual(len(got["x_ticks"]), len(got["x_tick_labels"]))

    def test_scales(self):
        for name in ("log", "symlog", "linear", "asinh"):
            got = draw(lambda ax: (ax.plot([1, 10, 100], [1, 2, 3]), ax.set_xscale(name)))
            self.assertEqual(got["x_scale"], name)

    def test_dates(self):
        days = [datetime.date(2024, 1, d) for d in (1, 2, 3)]
        for xs in (days, pd.to_datetime(days), np.array(days, dtype="datetime64[D]")):
            got = draw(lambda ax: ax.plot(xs, [1, 2, 3]))
            self.assertEqual(got["x_scale"], "datetime")
            self.assertTrue(str(got["elements"][0]["points"][0][0]).startswith("2024-01-01"), got)
            self.assertTrue(str(got["x_ticks"][0]).startswith("202"), got["x_ticks"])

    def test_pandas_periods(self):
        series = pd.Series([1, 2, 3], index=pd.period_range("2024-01", periods=3, freq="M"))
        got = draw(lambda ax: series.plot(ax=ax))
        self.assertEqual(got["x_scale"], "datetime")

    def test_categories(self):
        got = draw(lambda ax: ax.plot(["a", "b", "c"], [1, 2, 3]))
        self.assertEqual(got["x_scale"], "categorical")
        self.assertEqual(got["x_tick_labels"], ["a", "b", "c"])
        self.assertEqual(got["elements"][0]["points"][0], ["a", 1])


class Others(unittest.TestCase):
    def test_scatter(self):
        got = draw(lambda ax: (ax.scatter([1, 2], [3, 4], label="s"), ax.axvline(1), ax.scatter([5], [6])))
        self.assertEqual(got["type"], "scatter")
        self.assertEqual(got["elements"][0], {"label": "s", "points": [[1, 3], [2, 4]]})
        self.assertEqual(got["elements"][1]["points"], [[5, 6]])

    def test_bars(self):
        got = draw(lambda ax: ax.bar(["a", "b"], [3, 3.5], label="g"))
        self.assertEqual(
            got["elements"],
            [{"label": "a", "value": 3, "group": "g"}, {"label": "b", "value": 3.5, "group": "g"}],
        )

    def test_lying_bars_swap_the_axes(self):
        got = draw(lambda ax: (ax.barh(["a", "b"], [3, 4]), ax.set_xlabel("n (m)"), ax.set_ylabel("who")))
        self.assertEqual([e["value"] for e in got["elements"]], [3, 4])
        self.assertEqual([e["label"] for e in got["elements"]], ["a", "b"])
        self.assertEqual((got["x_label"], got["y_label"], got["y_unit"]), ("who", "n (m)", "m"))

    def test_grouped_bars(self):
        at = np.arange(2)

        def f(ax):
            ax.bar(at - 0.2, [1, 2], 0.4, label="x")
            ax.bar(at + 0.2, [3, 4], 0.4)
            ax.set_xticks(at, ["one", "two"])

        got = draw(f)
        self.assertEqual([e["label"] for e in got["elements"]], ["one", "two", "one", "two"])
        self.assertEqual([e["group"] for e in got["elements"]], ["x", "x", "Group 1", "Group 1"])

    def test_numeric_bars(self):
        got = draw(lambda ax: ax.bar([1, 2, 3], [1, 2, 3]))
        self.assertEqual([e["label"] for e in got["elements"]], ["1", "2", "3"])

    def test_pandas_bars(self):
        frame = pd.DataFrame({"a": [1, 2], "b": [3, 4]}, index=["x", "y"])
        got = draw(lambda ax: frame.plot.bar(ax=ax))
        self.assertEqual(got["type"], "bar")
        self.assertEqual([e["label"] for e in got["elements"]], ["x", "y", "x", "y"])
        self.assertEqual([e["group"] for e in got["elements"]], ["a", "a", "b", "b"])

    def test_histogram(self):
        self.assertEqual(draw(lambda ax: ax.hist([1, 2, 2, 3], bins=3))["type"], "bar")

    def test_pie(self):
        got = draw(lambda ax: ax.pie([1, 2, 3], labels=["a", "b", "c"]))
        self.assertEqual(got["type"], "pie")
        self.assertEqual([e["label"] for e in got["elements"]], ["a", "b", "c"])
        self.assertEqual([round(e["angle"]) for e in got["elements"]], [60, 120, 180])
        self.assertEqual(got["elements"][0]["radius"], 1)

    def test_boxes(self):
        data = [[1, 2, 3, 4, 5, 30], [2, 3, 4]]
        want = [
            {"label": "p", "min": 1, "first_quartile": 2.25, "median": 3.5, "third_quartile": 4.75, "max": 5, "outliers": [30]},
            {"label": "q", "min": 2, "first_quartile": 2.5, "median": 3, "third_quartile": 3.5, "max": 4, "outliers": []},
        ]
        name = "tick_labels" if hasattr(plt.Axes, "boxplot") and _has("tick_labels") else "labels"
        for lying in (False, True):
            how = {"orientation": "horizontal"} if _has("orientation") and lying else {}
            if lying and not how:
                how = {"vert": False}
            got = draw(lambda ax: ax.boxplot(data, patch_artist=True, **{name: ["p", "q"]}, **how))
            self.assertEqual(got["type"], "box_and_whisker")
            self.assertEqual(got["elements"], want)

    def test_superchart(self):
        plt.close("all")
        fig, (a, b) = plt.subplots(1, 2)
        a.plot([1, 2, 3], [1, 2, 3])
        b.bar(["a"], [1])
        fig.suptitle("both")
        got = charts.chart(fig)
        self.assertEqual((got["type"], got["title"]), ("superchart", "both"))
        self.assertEqual([c["type"] for c in got["elements"]], ["line", "bar"])

    def test_what_is_not_a_chart(self):
        plt.close("all")
        self.assertEqual(charts.chart(plt.figure()), {})
        self.assertEqual(draw(lambda ax: None)["type"], "unknown")
        got = draw(lambda ax: ax.imshow(np.zeros((2, 2))))
        self.assertEqual((got["type"], got["title"], got["elements"]), ("unknown", None, []))
        self.assertEqual(display.figure(None), {})

    def test_colour_bar_is_no_chart(self):
        got = draw(lambda ax: ax.figure.colorbar(ax.scatter([1, 2], [3, 4], c=[5, 6])))
        self.assertEqual(got["type"], "scatter")


def _has(parameter):
    import inspect

    return parameter in inspect.signature(plt.Axes.boxplot).parameters


class Values(unittest.TestCase):
    def test_plain(self):
        nan = float("nan")
        for value, want in (
            ({"a": (1, nan, None, True), 2: "x"}, {"a": [1, None, None, True], "2": "x"}),
            (np.float64(1.5), 1.5),
            (np.arange(3), [0, 1, 2]),
            ({"d": datetime.date(2024, 1, 2)}, {"d": "2024-01-02"}),
            ([pd.NaT, pd.NA, pd.Timestamp("2024-01-02")], [None, None, "2024-01-02T00:00:00"]),
            (np.datetime64("2024-01-02"), "2024-01-02"),
        ):
            self.assertEqual(plain(value), want)

    def test_what_has_no_form(self):
        loop = []
        loop.append(loop)
        for value in (object(), {1, 2}, loop, {(1, 2): 3}):
            with self.assertRaises((TypeError, ValueError)):
                plain(value)
            self.assertIsNone(display.collection({"k": value}))

    def test_frame(self):
        frame = pd.DataFrame({"a": [1, None], 5: ["x", object], "c": [{1}, [1]]})
        got = display.frame(frame)
        self.assertEqual(list(got), ["a", "5", "c"])
        json.dumps(got, allow_nan=False)
        self.assertEqual(got["a"], [1.0, None])
        self.assertIsNone(display.frame(pd.DataFrame(np.zeros((1001, 1000)))))


unittest.main()
