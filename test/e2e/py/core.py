"""What every driver must do for the official Python SDK.

Steered by HEARTH_TEST_DRIVER and HEARTH_TEST_TEMPLATE, and by HEARTH_TEST_CELL,
which names a template with a code interpreter; empty runs no cell.
"""

import os
import time
import unittest
import uuid

import httpx
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
        asked = time.time()
        clock = int(self.run_in(self.sbx, "date +%s").stdout)
        self.assertTrue(asked - 5 < clock < time.time() + 5, clock)

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

    def test_pause_of_files(self):
        """The other kind of pause: files alone, and a fresh boot."""
        p = Sandbox.create(TEMPLATE, envs={"OWNER": "me"}, **OPTIONS)
        try:
            state = "cat kept; echo $OWNER; hostname; cat /proc/sys/kernel/random/boot_id"
            handle = p.commands.run("sleep 2345", background=True, timeout=0)
            p.files.write("kept", "1\n")
            before = self.run_in(p, state, "user").stdout.split()
            p.pause(mode="filesystem", request_timeout=120)
            p = Sandbox.connect(p.sandbox_id, timeout=600, request_timeout=120)
            after = self.run_in(p, state, "user").stdout.split()
            self.assertEqual(after[:3], ["1", "me", p.sandbox_id])
            self.assertEqual(after[:3], before[:3])
            self.assertNotEqual(after[3], before[3])
            self.assertNotIn("sleep 2345", [" ".join(x.args) for x in p.commands.list()], f"process {handle.pid} outlived the boot")
        finally:
            p.kill()

    def test_snapshot_and_forks(self):
        """A sandbox goes on after a snapshot; what is made from it has its memory, and nobody else's token."""
        s = Sandbox.create(TEMPLATE, envs={"OWNER": "me"}, **OPTIONS)
        made = [s]
        try:
            sleeper = s.commands.run("exec sleep 5432", background=True, timeout=0)
            s.files.write("note", "one")
            snap = s.create_snapshot(request_timeout=120)
            s.files.write("note", "two")
            made.append(Sandbox.create(snap.snapshot_id, **OPTIONS))
            made += s.fork(count=2, timeout=600, request_timeout=120)
            self.assertEqual([m for m in made if isinstance(m, Exception)], [])
            self.assertEqual([m.files.read("note") for m in made], ["two", "one", "two", "two"])
            line = f"hostname; cat /proc/{sleeper.pid}/comm; cat /etc/machine-id; head -c 16 /dev/urandom | od -An -tx1 | tr -d ' '"
            told = [self.run_in(m, line).stdout.split() for m in made]
            self.assertEqual([t[:2] for t in told], [[m.sandbox_id, "sleep"] for m in made])
            for own in (2, 3):
                self.assertEqual(len({t[own] for t in told}), 4, told)
            self.assertEqual([self.run_in(m, "echo $OWNER").stdout for m in made[2:]], ["me\n", "me\n"])
            tokens = [m.connection_config.sandbox_headers["X-Access-Token"] for m in made]
            opened = [[self.opened_by(m, t) for t in tokens] for m in made]
            self.assertEqual(opened, [[200 if i == k else 401 for k in range(4)] for i in range(4)])
            listed = Sandbox.list_snapshots(sandbox_id=s.sandbox_id).next_items()
            self.assertEqual([x.snapshot_id for x in listed], [snap.snapshot_id])
            self.assertTrue(Sandbox.delete_snapshot(snap.snapshot_id))
            self.assertFalse(Sandbox.delete_snapshot(snap.snapshot_id))
            with self.assertRaisesRegex(Exception, "not found"):
                Sandbox.create(snap.snapshot_id, **OPTIONS)
            self.assertEqual(made[1].files.read("note"), "one")
        finally:
            for m in made:
                if isinstance(m, Sandbox):
                    m.kill()

    def opened_by(self, sbx, token):
        """The status of a file's download from a sandbox with a token."""
        to = {"E2b-Sandbox-Id": sbx.sandbox_id, "E2b-Sandbox-Port": "49983", "X-Access-Token": token}
        return httpx.get(os.environ["E2B_API_URL"] + "/files?path=/etc/hostname", headers=to, timeout=60).status_code

    def test_killed_daemon(self):
        """Root inside kills the guest daemon: another one takes its place, and the sandbox is what it was."""
        s = Sandbox.create(TEMPLATE, envs={"OWNER": "me"}, **OPTIONS)
        try:
            sleeper = s.commands.run("exec sleep 4321", background=True, timeout=0)
            s.files.write("kept", "1")
            self.run_in(s, "kill -9 1; kill -STOP 1; kill -TERM 1; kill -INT 1")  # it keeps the daemon, and nobody inside ends it
            for killed in range(2):
                daemon = self.run_in(s, "echo $PPID; tr '\\0' ' ' < /proc/$PPID/cmdline").stdout.split()
                self.assertIn("hearth-guest", daemon[1])
                self.assertNotEqual(daemon[0], "1", "the first process is the daemon itself")
                with self.assertRaises(Exception, msg="a command outlived the daemon that it was told to"):
                    self.run_in(s, "kill -9 $PPID; sleep 60")
                state = f"echo $PPID $OWNER $(cat /home/user/kept) $(cat /proc/{sleeper.pid}/comm)"
                after = self.again(s, state).split()
                self.assertNotEqual(after[0], daemon[0])
                self.assertEqual(after[1:], ["me", "1", "sleep"], f"after {killed + 1} deaths of the daemon")
            s.pause(request_timeout=120)
            s = Sandbox.connect(s.sandbox_id, timeout=600, request_timeout=120)
            self.assertEqual(self.run_in(s, state).stdout.split()[1:], ["me", "1", "sleep"])
        finally:
            s.kill()

    def again(self, sbx, line):
        """Runs a command as soon as somebody is there to run it."""
        until = time.monotonic() + 60
        while True:
            try:
                return self.run_in(sbx, line).stdout
            except CommandExitException:
                raise
            except Exception:
                if time.monotonic() > until:
                    raise

    @unittest.skipUnless(CELL, "no template with a code interpreter on this driver")
    def test_cell(self):
        from e2b_code_interpreter import Sandbox as Interpreter

        with Interpreter.create(CELL, **OPTIONS) as s:
            r = s.run_code("import sys\nx = 6 * 7\nprint(sys.platform)\nx", timeout=60)
            self.assertEqual((r.text, "".join(r.logs.stdout)), ("42", "linux\n"))
            # A kernel ends with the daemon that started it; the next daemon starts its own.
            with self.assertRaises(Exception, msg="a command outlived the daemon that it was told to"):
                self.run_in(s, "kill -9 $PPID; sleep 60")
            until, answer = time.monotonic() + 120, None
            while answer != "2" and time.monotonic() < until:
                try:
                    answer = s.run_code("1 + 1", timeout=60).text
                except Exception as e:
                    answer = e
            self.assertEqual(answer, "2")
            self.assertEqual(s.run_code("x").error.name, "NameError")
            kernels = self.run_in(s, "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -c 'python/launch[.]py'").stdout
            self.assertEqual(kernels, "1\n", "kernels that run")


if __name__ == "__main__":
    unittest.main()
