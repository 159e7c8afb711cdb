"""What every driver must do for the official Python SDK.

Steered by HEARTH_TEST_DRIVER and HEARTH_TEST_TEMPLATE, and by HEARTH_TEST_CELL,
which names a template with a code interpreter; empty runs no cell.
"""

import os
import unittest
import uuid

from e2b import CommandExitException, NotFoundException, Sandbox

DRIVER = os.environ["HEARTH_TEST_DRIVER"]
TEMPLATE = os.environ["HEARTH_TEST_TEMPLATE"]
CELL = os.environ.get("HEARTH_TEST_CELL", "")
OPTIONS = {"timeout": 600, "request_timeout": 120, "api_headers": {"X-Hearth-Driver": DRIVER}}


class Core(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.sbx = Sandbox.create(TEMPLATE, **OPTIONS)
        cls.other = Sandbox.create(TEMPLATE, **OPTIONS)

    @classmethod
    def tearDownClass(cls):
        cls.sbx.kill()
        cls.other.kill()

    def run_in(self, sbx, line, user="root"):
        return sbx.commands.run(line, user=user, timeout=60)

    def test_commands_and_files(self):
        self.assertEqual(self.run_in(self.sbx, "echo out", "user").stdout, "out\n")
        with self.assertRaises(CommandExitException) as e:
            self.run_in(self.sbx, "exit 7")
        self.assertEqual(e.exception.exit_code, 7)
        name = uuid.uuid4().hex
        self.sbx.files.write(name, "mine")
        self.assertEqual(self.run_in(self.sbx, f"cat /home/user/{name}").stdout, "mine")
        self.assertTrue(self.sbx.files.exists(name))
        self.assertFalse(self.other.files.exists(name), "one sandbox sees the other's files")

    def test_clones_differ(self):
        """Two sandboxes of one snapshot have names, machine IDs and randomness of their own."""
        line = "hostname; cat /etc/machine-id; head -c 16 /dev/urandom | od -An -tx1; date +%s"
        mine, others = (self.run_in(s, line).stdout.split("\n") for s in (self.sbx, self.other))
        self.assertEqual(mine[0], self.sbx.sandbox_id)
        for a, b in zip(mine[:3], others[:3]):
            self.assertNotEqual(a, b)
        clock = int(self.run_in(self.sbx, "date +%s").stdout)
        import time

        self.assertLess(abs(time.time() - clock), 5)

    def test_isolation(self):
        """Not the host, not its neighbour, not the cloud's metadata."""
        address = self.run_in(self.other, "hostname -I || ip -4 -o addr show scope global").stdout.split()
        neighbour = next(a.split("/")[0] for a in address if a.count(".") == 3)
        for target in ("169.254.169.254:80", f"{neighbour}:49983", "127.0.0.1:22"):
            host, port = target.split(":")
            line = f"timeout 3 bash -c 'exec 3<>/dev/tcp/{host}/{port}' && echo reached || echo closed"
            self.assertIn("closed", self.run_in(self.sbx, line).stdout, target)
        kernel = self.run_in(self.sbx, "uname -r").stdout.strip()
        self.assertNotEqual(kernel, os.uname().release, "it runs on the host's kernel")
        self.assertEqual(self.run_in(self.sbx, "test -e /dev/kvm || echo none").stdout, "none\n")

    def test_pause_and_resume(self):
        p = Sandbox.create(TEMPLATE, **OPTIONS)
        try:
            handle = p.commands.run("sleep 1000", background=True, timeout=0)
            p.files.write("kept", "1")
            for _ in range(2):
                p.pause(request_timeout=120)
                p = Sandbox.connect(p.sandbox_id, timeout=600, request_timeout=120)
            self.assertEqual(p.files.read("kept"), "1")
            self.assertIn(handle.pid, [x.pid for x in p.commands.list()])
        finally:
            self.assertTrue(p.kill())
        with self.assertRaises(NotFoundException):
            Sandbox.connect(p.sandbox_id)

    @unittest.skipUnless(CELL, "no template with a code interpreter on this driver")
    def test_cell(self):
        from e2b_code_interpreter import Sandbox as Interpreter

        with Interpreter.create(CELL, **OPTIONS) as s:
            r = s.run_code("import sys\nx = 6 * 7\nprint(sys.platform)\nx", timeout=60)
            self.assertEqual((r.text, "".join(r.logs.stdout)), ("42", "linux\n"))


if __name__ == "__main__":
    unittest.main()
