"""Cells train where little is installed."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
SCRIPT = """
import sys

class Missing:
    names = {"pydantic", "pypdfium2", "rapidfuzz", "cv2", "datasets", "gguf", "typer", "PIL"}

    def find_spec(self, name, path=None, target=None):
        ours = "pp_ocrv6" in name or name == "alignvlm.reader"
        if ours or name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

sys.meta_path.insert(0, Missing())
import importlib.util
looked = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "pydantic" else looked(name, *rest)
import json
import studies.prior.cell, studies.prior.workers, studies.prior.__main__
own = [name for name in sys.modules if name.partition(".")[0] in ("alignvlm", "studies")]
print(json.dumps(sorted(own)))
"""


def test_the_gpu_path_imports_little():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    own = json.loads(done.stdout)
    assert "studies.prior.cell" in own and "alignvlm.connectors.align" in own
    assert not any(name.startswith(("alignvlm.reader", "alignvlm.model")) for name in own)
