"""Runs the Python blocks of the README, or of a page that is named, in a folder of its own, and prints what they print.

.venv/bin/python scripts/readme_example.py [docs/regularizers.md]
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"

if __name__ == "__main__":
    page = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else README
    names = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL):
            exec(compile(block, page.name, "exec"), names)
            print(flush=True)
        os.chdir("/")
