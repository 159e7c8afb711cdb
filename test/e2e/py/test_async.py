"""The official Python SDK, asynchronous."""

import asyncio
import unittest

from e2b import AsyncSandbox, CommandExitException, NotFoundException


class Async(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.sbx = await AsyncSandbox.create("base", timeout=300)

    async def asyncTearDown(self):
        await self.sbx.kill()

    async def test_commands(self):
        out = []
        r = await self.sbx.commands.run("echo a; sleep 2; echo b", on_stdout=out.append)
        self.assertEqual((r.stdout, len(out) >= 2), ("a\nb\n", True))
        with self.assertRaises(CommandExitException):
            await self.sbx.commands.run("false")
        bg = await self.sbx.commands.run("sleep 100", background=True)
        self.assertIn(bg.pid, [p.pid for p in await self.sbx.commands.list()])
        self.assertTrue(await bg.kill())

    async def test_many_at_once(self):
        async def one(i):
            await self.sbx.files.write(f"f{i}", str(i))
            return (await self.sbx.commands.run(f"cat f{i}")).stdout

        self.assertEqual(await asyncio.gather(*(one(i) for i in range(20))), [str(i) for i in range(20)])

    async def test_files_and_watch(self):
        await self.sbx.files.make_dir("w")
        written = asyncio.Event()

        def seen(e):
            if e.type.value == "write" and e.name == "f":
                written.set()

        handle = await self.sbx.files.watch_dir("w", seen)
        await self.sbx.files.write("w/f", b"\x00\x01")
        await asyncio.wait_for(written.wait(), 60)
        await handle.stop()
        self.assertEqual(bytes(await self.sbx.files.read("w/f", format="bytes")), b"\x00\x01")
        with self.assertRaises(NotFoundException):
            await self.sbx.files.read("w/none")


if __name__ == "__main__":
    unittest.main()
