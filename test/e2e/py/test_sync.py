"""The official Python SDK, synchronous: sandboxes, commands, files, terminals."""

import io
import os
import time
import unittest
import uuid

from e2b import CommandExitException, NotFoundException, Sandbox, SandboxQuery, TimeoutException
from e2b.sandbox.commands.command_handle import PtySize


def until(condition, seconds=60):
    """Waits for a condition of which there is no event."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s")


class Sync(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.run_id = uuid.uuid4().hex
        cls.sbx = Sandbox.create("base", timeout=300, metadata={"run": cls.run_id}, envs={"GREETING": "hello"})

    @classmethod
    def tearDownClass(cls):
        cls.sbx.kill()

    def test_info_list_timeout(self):
        info = self.sbx.get_info()
        self.assertEqual(info.sandbox_id, self.sbx.sandbox_id)
        self.assertEqual(info.metadata, {"run": self.run_id})
        pages = Sandbox.list(query=SandboxQuery(metadata={"run": self.run_id}))
        self.assertEqual([s.sandbox_id for s in pages.next_items()], [self.sbx.sandbox_id])
        self.assertFalse(pages.has_next)
        self.sbx.set_timeout(600)
        left = self.sbx.get_info().end_at.timestamp() - time.time()
        self.assertTrue(500 < left <= 601, left)
        self.assertTrue(self.sbx.is_running())

    def test_connect_and_kill(self):
        other = Sandbox.create("base")
        again = Sandbox.connect(other.sandbox_id)
        again.files.write("x", "1")
        self.assertEqual(other.files.read("x"), "1")
        self.assertTrue(other.kill())
        self.assertFalse(other.kill())
        self.assertFalse(other.is_running())
        with self.assertRaises(NotFoundException):
            Sandbox.connect(other.sandbox_id)

    def test_commands(self):
        out = []
        r = self.sbx.commands.run("echo $GREETING; echo e >&2", on_stdout=out.append)
        self.assertEqual((r.exit_code, r.stdout, r.stderr, "".join(out)), (0, "hello\n", "e\n", "hello\n"))
        with self.assertRaises(CommandExitException) as e:
            self.sbx.commands.run("exit 3")
        self.assertEqual(e.exception.exit_code, 3)
        self.assertEqual(self.sbx.commands.run("pwd; whoami", cwd="/", user="root").stdout, "/\nroot\n")
        with self.assertRaises(TimeoutException):
            self.sbx.commands.run("sleep 60", timeout=0.5)

    def test_background(self):
        cat = self.sbx.commands.run("cat", background=True, stdin=True, timeout=0)
        self.assertIn(cat.pid, [p.pid for p in self.sbx.commands.list()])
        self.sbx.commands.send_stdin(cat.pid, "in\n")
        got = ""
        for stdout, _, _ in cat:
            got += stdout or ""
            if got == "in\n":
                break
        self.assertEqual(got, "in\n")
        self.assertTrue(self.sbx.commands.kill(cat.pid))
        self.assertFalse(self.sbx.commands.kill(cat.pid))

    def test_files(self):
        fs = self.sbx.files
        self.assertEqual(fs.write("p/t.txt", "text ü").path, "/home/user/p/t.txt")
        self.assertEqual(fs.read("p/t.txt"), "text ü")
        blob = bytes(range(256)) * 1000
        fs.write("p/b.bin", io.BytesIO(blob))
        self.assertEqual(bytes(fs.read("p/b.bin", format="bytes")), blob)
        self.assertEqual(b"".join(fs.read("p/b.bin", format="stream")), blob)
        fs.write_files([{"path": f"p/many/{i}", "data": str(i)} for i in range(20)])
        self.assertEqual(len(fs.list("p/many")), 20)
        info = fs.get_info("p/t.txt")
        self.assertEqual((info.owner, info.size), ("user", 7))
        self.assertTrue(fs.exists("p/t.txt"))
        self.assertTrue(fs.make_dir("p/d"))
        self.assertFalse(fs.make_dir("p/d"))
        fs.rename("p/t.txt", "p/d/u.txt")
        fs.remove("p/d")
        self.assertFalse(fs.exists("p/d"))
        with self.assertRaises(NotFoundException):
            fs.read("p/none")

    def test_watch(self):
        self.sbx.files.make_dir("w/sub")
        handle = self.sbx.files.watch_dir("w", recursive=True)
        self.sbx.files.write("w/sub/f", "1")
        seen = []

        def written():
            seen.extend((e.type.value, e.name) for e in handle.get_new_events())
            return ("write", "sub/f") in seen

        until(written)
        handle.stop()

    def test_pty(self):
        pty = self.sbx.pty.create(PtySize(rows=24, cols=80), timeout=0)
        self.sbx.pty.resize(pty.pid, PtySize(rows=30, cols=100))
        self.sbx.pty.send_stdin(pty.pid, b"stty size; exit\n")
        text = b""
        for _, _, data in pty:
            text += data or b""
        self.assertIn(b"30 100", text)

    def test_pause_and_resume(self):
        p = Sandbox.create("base")
        try:
            p.files.write("kept", "1")
            p.pause()
            self.assertEqual(p.get_info().state.value, "paused")
            back = Sandbox.connect(p.sandbox_id)
            self.assertEqual(back.files.read("kept"), "1")
        finally:
            p.kill()

    def test_context_manager_and_v1_path(self):
        # Releases before 2.51 create through POST /sandboxes; so does any plain client.
        import httpx

        key = {"X-API-KEY": os.environ["E2B_API_KEY"]}
        for path, body in (
            ("/sandboxes", {"templateID": "base", "timeout": 60, "secure": True}),
            ("/v2/sandboxes", {"templateID": "base"}),
        ):
            r = httpx.post(os.environ["E2B_API_URL"] + path, json=body, headers=key, timeout=60)
            self.assertEqual(r.status_code, 201, r.text)
            made = r.json()
            self.assertTrue(made["envdAccessToken"])
            with Sandbox.connect(made["sandboxID"]) as s:
                self.assertEqual(s.commands.run("echo ok").stdout, "ok\n")
            r = httpx.get(os.environ["E2B_API_URL"] + "/sandboxes/" + made["sandboxID"], headers=key)
            self.assertEqual(r.status_code, 404, r.text)


if __name__ == "__main__":
    unittest.main()
