import { createInterface } from 'node:readline'
import { createRequire } from 'node:module'
import { Sandbox } from 'e2b'

const { version } = createRequire(import.meta.url)('e2b/package.json')
const say = (o) => process.stdout.write(JSON.stringify(o) + '\n')
say({ sdk: `npm e2b ${version}, node ${process.versions.node}` })
let sandbox
for await (const line of createInterface({ input: process.stdin })) {
  try {
    if (line === 'kill') {
      await sandbox.kill()
      say({})
      continue
    }
    const began = performance.now()
    sandbox = await Sandbox.create('base')
    const { stdout } = await sandbox.commands.run('echo 42')
    const ms = performance.now() - began
    if (stdout.trim() !== '42') throw new Error(`echo printed ${JSON.stringify(stdout)}`)
    say({ sandbox: sandbox.sandboxId, ms })
  } catch (e) {
    say({ error: `the SDK failed: ${e.message || e.name}` })
  }
}
