"""Runs the README's complete example in a folder of its own, as its reader would, and prints what it prints."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"

if __name__ == "__main__":
    text = README.read_text()
    example = "\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        exec(compile(example, "README.md", "exec"), {"__name__": "__main__"})
        os.chdir("/")
