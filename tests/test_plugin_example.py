"""The searcher that the page about plugins shows keeps the contract."""

from __future__ import annotations

import re
from typing import Any

from conftest import ROOT

_page = (ROOT / "docs" / "plugins.md").read_text("utf-8")
_names: dict[str, Any] = {"__name__": "plugins_page"}
for _block in re.findall(r"```py(?:thon)?\n(.*?)```", _page, re.DOTALL):
    exec(_block, _names)

TestAnnealing = _names["TestAnnealing"]
