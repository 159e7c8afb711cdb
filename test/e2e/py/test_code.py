"""The official Python code interpreter SDK."""

import base64
import unittest

from e2b_code_interpreter import Sandbox


class Code(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.sbx = Sandbox.create(timeout=300)

    @classmethod
    def tearDownClass(cls):
        cls.sbx.kill()

    def test_value_logs_error(self):
        out = []
        r = self.sbx.run_code("print('hi')\n6 * 7", on_stdout=lambda m: out.append(m.line))
        self.assertEqual((r.text, "".join(r.logs.stdout), "".join(out)), ("42", "hi\n", "hi\n"))
        e = self.sbx.run_code("{}['missing']").error
        self.assertEqual((e.name, e.value), ("KeyError", "'missing'"))
        self.assertIn("missing", e.traceback)

    def test_plot(self):
        r = self.sbx.run_code("import matplotlib.pyplot as plt\nplt.bar(['a', 'b'], [1, 2])\nplt.show()")
        self.assertTrue(base64.b64decode(r.results[0].png).startswith(b"\x89PNG"))
        self.assertEqual([e.value for e in r.results[0].chart.elements], [1, 2])

    def test_table(self):
        r = self.sbx.run_code("import pandas as pd, numpy as np\npd.DataFrame({'n': np.arange(3)})")
        self.assertIn("<table", r.results[0].html)
        self.assertEqual(r.results[0].data, {"n": [0, 1, 2]})

    def test_context(self):
        ctx = self.sbx.create_code_context(cwd="/tmp")
        self.sbx.run_code("y = 5", context=ctx)
        self.assertEqual(self.sbx.run_code("y", context=ctx).text, "5")
        self.assertEqual(self.sbx.run_code("y").error.name, "NameError")
        self.sbx.remove_code_context(ctx)

    def test_pip_is_there(self):
        r = self.sbx.run_code("!python -m pip --version")
        self.assertIn("pip", "".join(r.logs.stdout))


if __name__ == "__main__":
    unittest.main()
