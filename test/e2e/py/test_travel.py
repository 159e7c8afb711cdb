"""Pauses, snapshots and forks with the official Python SDK; rollback, which it does
not know, by its path."""

import os
import unittest
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx
from e2b import Sandbox, SandboxException

API = os.environ["E2B_API_URL"]
KEY = {"X-API-KEY": os.environ["E2B_API_KEY"]}


def sh(sbx, line):
    return sbx.commands.run(line).stdout.strip()


def opened_by(sbx, token):
    """The status of a file's download from one sandbox with a token."""
    to = {"E2b-Sandbox-Id": sbx.sandbox_id, "E2b-Sandbox-Port": "49983", "X-Access-Token": token}
    return httpx.get(f"{API}/files?path=/etc/hostname", headers=to).status_code


def token(sbx):
    return sbx.connection_config.sandbox_headers["X-Access-Token"]


def rules_of(sbx):
    """The network rules that the server has of a sandbox."""
    return httpx.get(f"{API}/sandboxes/{sbx.sandbox_id}", headers=KEY).json().get("network")


class Travel(unittest.TestCase):
    def setUp(self):
        own = {"metadata": {"of": "travel"}, "envs": {"GREETING": "hello"}, "network": {"deny_out": ["192.0.2.0/24"]}}
        self.sbx = self.make(timeout=300, **own)

    def make(self, template="base", **options):
        sbx = Sandbox.create(template, **options)
        self.addCleanup(sbx.kill)
        return sbx

    def test_pause_keeps_what_belongs_to_the_sandbox(self):
        rules = rules_of(self.sbx)
        before = token(self.sbx)
        running = self.sbx.commands.run("sleep 1000", background=True, timeout=0)
        boot = sh(self.sbx, "cat /proc/sys/kernel/random/boot_id")
        for mode in ("full", "filesystem"):
            self.sbx.files.write("note", mode)
            self.sbx.pause(mode=mode)
            self.assertEqual(self.sbx.get_info().state.value, "paused")
            back = Sandbox.connect(self.sbx.sandbox_id, timeout=300)
            self.assertEqual(back.files.read("note"), mode)
            self.assertEqual(token(back), before)
            self.assertEqual(opened_by(self.sbx, before), 200)
            self.assertEqual(back.get_info().metadata, {"of": "travel"})
            self.assertEqual(rules_of(back), rules)
            self.assertEqual(sh(back, "echo $GREETING; hostname").split(), ["hello", self.sbx.sandbox_id])
            alive = running.pid in [p.pid for p in back.commands.list()]
            same = sh(back, "cat /proc/sys/kernel/random/boot_id") == boot
            self.assertEqual((alive, same), (mode == "full", mode == "full"), mode)

    def test_snapshots(self):
        self.sbx.files.write("note", "one")
        snap = self.sbx.create_snapshot()
        self.sbx.files.write("note", "two")
        born = self.make(snap.snapshot_id, timeout=300)
        self.assertEqual(born.files.read("note"), "one")
        self.assertEqual(self.sbx.files.read("note"), "two")
        listed = Sandbox.list_snapshots(sandbox_id=self.sbx.sandbox_id).next_items()
        self.assertEqual([s.snapshot_id for s in listed], [snap.snapshot_id])
        self.assertTrue(Sandbox.delete_snapshot(snap.snapshot_id))
        self.assertFalse(Sandbox.delete_snapshot(snap.snapshot_id))
        with self.assertRaisesRegex(SandboxException, "not found"):
            Sandbox.create(snap.snapshot_id)
        self.assertEqual(born.files.read("note"), "one")

    def test_forks_are_their_own(self):
        draw = "python3 -c 'import uuid, secrets, ssl; print(uuid.uuid4(), secrets.token_hex(), ssl.RAND_bytes(16).hex())'"
        forks = self.sbx.fork(count=2, timeout=300)
        for f in forks:
            self.addCleanup(f.kill)
        drawn = " ".join(sh(s, draw) for s in [self.sbx, *forks]).split()
        self.assertEqual(len(set(drawn)), 9, drawn)
        for f in forks:
            self.assertEqual(sh(f, "echo $GREETING; hostname").split(), ["hello", f.sandbox_id])
            self.assertEqual((opened_by(f, token(f)), opened_by(f, token(self.sbx)), opened_by(self.sbx, token(f))), (200, 401, 401))
        self.assertNotEqual(sh(forks[0], "cat /etc/machine-id"), sh(forks[1], "cat /etc/machine-id"))

    def test_rollback_and_connect(self):
        self.sbx.files.write("note", "good")
        snap = self.sbx.create_snapshot()
        sh(self.sbx, "echo bad > note; (sleep 1000 >/dev/null 2>&1 &)")
        r = httpx.post(f"{API}/v2/sandboxes/{self.sbx.sandbox_id}/rollback", json={"snapshotID": snap.snapshot_id}, headers=KEY, timeout=60)
        self.assertEqual((r.status_code, r.json()["sandboxID"]), (200, self.sbx.sandbox_id))
        self.assertEqual(self.sbx.files.read("note"), "good")
        back = Sandbox.connect(self.sbx.sandbox_id, timeout=300)
        self.assertEqual(sh(back, "cat note; echo; pgrep -c sleep || true").split(), ["good", "0"])

    def test_calls_wake_once(self):
        sleeper = self.make(timeout=300, lifecycle={"on_timeout": "pause", "auto_resume": True})
        word = uuid.uuid4().hex
        sh(sleeper, f"echo {word} > /dev/shm/word")
        sleeper.pause()
        with ThreadPoolExecutor(8) as pool:
            said = list(pool.map(lambda _: sh(sleeper, "cat /dev/shm/word /proc/sys/kernel/random/boot_id"), range(8)))
        self.assertEqual(len(set(said)), 1, said)
        self.assertTrue(said[0].startswith(word))


if __name__ == "__main__":
    unittest.main()
