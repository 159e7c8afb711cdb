"""What an agent does with a data file: upload it, analyse it, keep the chart.

Runs unchanged against any E2B-compatible server; the three E2B_ variables in the
environment say which. Writes chart.png and leaves a web server running in the
sandbox for analyse.mjs, which ends it.
"""

import base64
import pathlib
import time

from e2b_code_interpreter import Sandbox
from vega_datasets import local_data

CODE = """
import pandas as pd
import matplotlib.pyplot as plt

cars = pd.read_csv("cars.csv")
by_origin = cars.groupby("Origin")[["Miles_per_Gallon", "Horsepower"]].mean().round(1)
print(by_origin)

fig, ax = plt.subplots(figsize=(7, 4))
for origin, group in cars.groupby("Origin"):
    ax.scatter(group.Horsepower, group.Miles_per_Gallon, s=14, label=origin)
ax.set_xlabel("Horsepower (hp)")
ax.set_ylabel("Miles per gallon (mpg)")
ax.set_title(f"{len(cars)} cars")
ax.legend()
plt.show()
"""


def main():
    began = time.perf_counter()
    sandbox = Sandbox.create(timeout=300, metadata={"job": "demo"})
    print(f"sandbox {sandbox.sandbox_id} created in {(time.perf_counter() - began) * 1000:.0f} ms")

    csv = local_data.cars().to_csv(index=False)
    sandbox.files.write("cars.csv", csv)
    print(f"uploaded cars.csv, {len(csv)} bytes")

    began = time.perf_counter()
    result = sandbox.run_code(CODE)
    if result.error:
        raise SystemExit(result.error.traceback)
    print(f"analysed in {(time.perf_counter() - began) * 1000:.0f} ms:")
    print("".join(result.logs.stdout))
    chart = pathlib.Path("chart.png")
    chart.write_bytes(base64.b64decode(result.results[0].png))
    print(f"chart saved to {chart.resolve()} ({chart.stat().st_size} bytes)")

    uname = sandbox.commands.run("uname -sr; id -un; ls -l cars.csv", on_stdout=lambda line: print("  |", line, end=""))
    assert uname.exit_code == 0
    server = sandbox.commands.run("python3 -m http.server 8000", background=True, timeout=0)
    print(f"web server in the sandbox: pid {server.pid}, port 8000")


if __name__ == "__main__":
    main()
