// Finds the sandbox that analyse.py left, fetches its data file from the web
// server inside it, lists the sandboxes and kills this one.
import { Sandbox } from '@e2b/code-interpreter'

const [found] = await Sandbox.list({ query: { metadata: { job: 'demo' } } }).nextItems()
if (!found) throw new Error('the sandbox of analyse.py is not there')
const sandbox = await Sandbox.connect(found.sandboxId)

const headers = { 'E2b-Sandbox-Id': sandbox.sandboxId, 'E2b-Sandbox-Port': '8000' }
let page
for (const deadline = Date.now() + 15_000; ; ) {
  page = await fetch(`${process.env.E2B_SANDBOX_URL}/cars.csv`, { headers })
  if (page.ok) break
  await page.text()
  if (Date.now() > deadline) throw new Error(`port 8000 answers ${page.status}`)
}
console.log('from port 8000 of the sandbox:', (await page.text()).split('\n')[0])

for (const s of await Sandbox.list().nextItems()) {
  console.log(`  ${s.sandboxId}  ${s.templateId}  ${s.state}  ends ${s.endAt.toISOString()}`)
}
console.log(`killed ${sandbox.sandboxId}:`, await sandbox.kill())
