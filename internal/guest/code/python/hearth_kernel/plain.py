"""Python and numpy values as what JSON can hold."""

import datetime
import decimal
import math


def plain(value, limit=None, otherwise=None):
    """Convert value to JSON types; raise TypeError or ValueError if it cannot be.

    numpy scalars and arrays become numbers and lists, times ISO 8601 text, NaN,
    infinities and missing values None. With a limit, more values than that are an error.
    Values of other types go through otherwise, if given.
    """
    return _Plain(limit, otherwise).convert(value, 0)


class _Plain:
    DEPTH = 100

    def __init__(self, limit, otherwise):
        self.left = limit
        self.otherwise = otherwise

    def convert(self, value, depth):
        if depth > self.DEPTH:
            raise ValueError("nested too deeply")
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise ValueError("too many values")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return str(value)
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else None
        if isinstance(value, dict):
            return {self.key(k): self.convert(v, depth + 1) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.convert(v, depth + 1) for v in value]
        return self.other(value, depth)

    def other(self, value, depth):
        kind = type(value)
        if kind.__name__ in ("NaTType", "NAType"):
            return None
        if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
            return value.isoformat()
        if isinstance(value, datetime.timedelta):
            return value.total_seconds()
        if isinstance(value, decimal.Decimal):
            return float(value) if value.is_finite() else None
        if kind.__module__ == "numpy":
            if kind.__name__ in ("datetime64", "timedelta64"):
                text = str(value)
                return None if text == "NaT" else text
            return self.convert(value.tolist(), depth + 1)
        if kind.__module__.startswith("pandas") and kind.__name__ in ("Period", "Interval"):
            return str(value)
        if self.otherwise is not None:
            return self.otherwise(value)
        raise TypeError(f"{kind.__name__} has no JSON form")

    def key(self, key):
        if isinstance(key, str):
            return str(key)
        if key is None or isinstance(key, (bool, int, float)):
            return str(key)
        if isinstance(key, (datetime.datetime, datetime.date)):
            return key.isoformat()
        if type(key).__module__ == "numpy":
            return str(key)
        raise TypeError(f"{type(key).__name__} is no JSON key")
