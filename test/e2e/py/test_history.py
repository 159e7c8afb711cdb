"""A history is asked for by a header, which the official Python SDKs pass on."""

import json
import os
import unittest
import urllib.request

from e2b_code_interpreter import AsyncSandbox, Sandbox

HEADERS = {"X-Hearth-History": "67108864"}


def call(sbx, method, path, body=None):
    request = urllib.request.Request(
        f"{os.environ['E2B_API_URL']}/v2/sandboxes/{sbx.sandbox_id}/{path}",
        method=method,
        data=json.dumps(body).encode() if body else None,
        headers={"X-API-Key": os.environ["E2B_API_KEY"], "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


class History(unittest.TestCase):
    def test_header(self):
        with Sandbox.create(timeout=300, api_headers=HEADERS, metadata={"of": "history"}) as sbx:
            self.assertEqual(sbx.get_info().metadata, {"of": "history"})
            sbx.commands.run("echo one > note")
            sbx.run_code("x = 1")
            sbx.commands.run("echo two > note")
            history = call(sbx, "GET", "history")
            self.assertEqual(history["maxBytes"], 67108864)
            self.assertEqual([s["label"] for s in history["steps"]][-2:], ["cell x = 1", "echo two > note"])
            self.assertEqual(history["head"], 3)
            call(sbx, "POST", "rollback", {"step": 2})
            self.assertEqual(sbx.files.read("note"), "one\n")
            self.assertEqual(sbx.run_code("x").text, "1")


class AsyncHistory(unittest.IsolatedAsyncioTestCase):
    async def test_header(self):
        sbx = await AsyncSandbox.create("base", timeout=300, api_headers=HEADERS)
        try:
            await sbx.commands.run("echo one > note")
            await sbx.commands.run("echo two > note")
            self.assertEqual([s["step"] for s in call(sbx, "GET", "history")["steps"]], [1, 2])
            call(sbx, "POST", "rollback", {"step": 1})
            self.assertEqual(await sbx.files.read("note"), "one\n")
        finally:
            await sbx.kill()


if __name__ == "__main__":
    unittest.main()
