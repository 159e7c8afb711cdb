// Files with the official JavaScript SDK.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { Sandbox, FileNotFoundError, FilesystemEventType, FileType, InvalidArgumentError } from 'e2b'

let sbx
before(async () => { sbx = await Sandbox.create('base') })
after(async () => { await sbx?.kill() })

test('text, bytes and streams round-trip', async () => {
  const text = 'größe ✓\n'
  const info = await sbx.files.write('notes/today.txt', text)
  assert.equal(info.path, '/home/user/notes/today.txt')
  assert.equal(await sbx.files.read('/home/user/notes/today.txt'), text)
  const bytes = Uint8Array.from({ length: 300_000 }, (_, i) => i % 251)
  await sbx.files.write('data.bin', bytes.buffer)
  assert.deepEqual(await sbx.files.read('data.bin', { format: 'bytes' }), bytes)
  await sbx.files.write('stream.bin', new Blob([bytes]).stream())
  const parts = []
  for await (const part of await sbx.files.read('stream.bin', { format: 'stream' })) parts.push(part)
  assert.deepEqual(new Uint8Array(Buffer.concat(parts)), bytes)
  await sbx.files.write('empty', '')
  assert.equal(await sbx.files.read('empty'), '')
})

test('many files at once', async () => {
  const files = Array.from({ length: 40 }, (_, i) => ({ path: `many/${i % 4}/f${i}.txt`, data: `file ${i}` }))
  const infos = await sbx.files.write(files)
  assert.equal(infos.length, 40)
  assert.equal(await sbx.files.read('many/3/f39.txt'), 'file 39')
})

test('list, stat, exists', async () => {
  await sbx.files.write('tree/a.txt', 'a')
  await sbx.files.write('tree/sub/b.txt', 'bb')
  await sbx.commands.run('ln -s a.txt tree/link && chmod 640 tree/a.txt')
  const flat = await sbx.files.list('tree')
  assert.deepEqual(flat.map((e) => e.name), ['a.txt', 'link', 'sub'])
  const deep = await sbx.files.list('tree', { depth: 2 })
  assert.ok(deep.some((e) => e.path === '/home/user/tree/sub/b.txt'))
  const a = await sbx.files.getInfo('tree/a.txt')
  assert.deepEqual([a.type, a.size, a.mode, a.permissions, a.owner, a.group], [FileType.FILE, 1, 0o640, '-rw-r-----', 'user', 'user'])
  assert.ok(Math.abs(a.modifiedTime - Date.now()) < 60_000, 'the clock in the sandbox is right')
  const link = await sbx.files.getInfo('tree/link')
  assert.equal(link.symlinkTarget, '/home/user/tree/a.txt')
  assert.equal(await sbx.files.exists('tree/a.txt'), true)
  assert.equal(await sbx.files.exists('tree/none'), false)
  await assert.rejects(sbx.files.read('tree/none'), FileNotFoundError)
  await assert.rejects(sbx.files.getInfo('tree/none'), FileNotFoundError)
  await assert.rejects(sbx.files.read('tree'), InvalidArgumentError)
})

test('make, rename, remove', async () => {
  assert.equal(await sbx.files.makeDir('made/deep'), true)
  assert.equal(await sbx.files.makeDir('made/deep'), false)
  await sbx.files.write('made/x', '1')
  const moved = await sbx.files.rename('made/x', 'made/deep/y')
  assert.equal(moved.path, '/home/user/made/deep/y')
  assert.equal(await sbx.files.exists('made/x'), false)
  await sbx.files.remove('made')
  assert.equal(await sbx.files.exists('made'), false)
  await assert.rejects(sbx.files.rename('made/x', 'made/z'), FileNotFoundError)
})

test('files belong to the user who wrote them', async () => {
  await sbx.files.write('/root/secret', 'x', { user: 'root' })
  assert.equal((await sbx.files.getInfo('/root/secret', { user: 'root' })).owner, 'root')
  await sbx.files.write('/home/user/mine', 'x')
  assert.equal((await sbx.commands.run('stat -c %U mine')).stdout, 'user\n')
})

test('watch, also what is made later below', async () => {
  await sbx.files.makeDir('watched')
  const events = []
  const saw = async (type, name) => {
    const deadline = Date.now() + 60_000
    while (!events.some((e) => e.type === type && e.name === name)) {
      assert.ok(Date.now() < deadline, `no ${type} ${name} in ${JSON.stringify(events)}`)
      await new Promise((r) => setImmediate(r))
    }
  }
  const handle = await sbx.files.watchDir('watched', (e) => { events.push(e) }, { recursive: true, timeoutMs: 0 })
  await sbx.files.write('watched/new.txt', '1')
  await saw(FilesystemEventType.CREATE, 'new.txt')
  await saw(FilesystemEventType.WRITE, 'new.txt')
  await sbx.files.makeDir('watched/late')
  await saw(FilesystemEventType.CREATE, 'late')
  await sbx.files.write('watched/late/deep.txt', '2')
  await saw(FilesystemEventType.WRITE, 'late/deep.txt')
  await sbx.files.rename('watched/new.txt', 'watched/newer.txt')
  await saw(FilesystemEventType.RENAME, 'new.txt')
  await sbx.files.remove('watched/newer.txt')
  await saw(FilesystemEventType.REMOVE, 'newer.txt')
  await handle.stop()
  await assert.rejects(sbx.files.watchDir('no-such-dir', () => {}))
})

test('metadata of a file comes back', async () => {
  await sbx.files.write('tagged', 'x', { metadata: { origin: 'test' } })
  assert.deepEqual((await sbx.files.getInfo('tagged')).metadata, { origin: 'test' })
})
