import json
import platform
import sys
import time
from importlib.metadata import version

from e2b import Sandbox


def say(**fields):
    print(json.dumps(fields), flush=True)


say(sdk=f"PyPI e2b {version('e2b')}, Python {platform.python_version()}")
sandbox = None
for line in sys.stdin:
    try:
        if line.strip() == "kill":
            sandbox.kill()
            say()
            continue
        began = time.perf_counter()
        sandbox = Sandbox.create("base")
        stdout = sandbox.commands.run("echo 42").stdout
        ms = (time.perf_counter() - began) * 1000
        if stdout.strip() != "42":
            raise RuntimeError(f"echo printed {stdout!r}")
        say(sandbox=sandbox.sandbox_id, ms=ms)
    except Exception as e:
        say(error=f"the SDK failed: {e or type(e).__name__}")
