"""The README's examples of a soft limit's hook and of checkpoints, word for word."""

import asyncio
import os
import re
import sys
from pathlib import Path
from types import ModuleType

from .base import make_app
from .recording import record

app = make_app("readme_limits")

README = Path(__file__).parents[3] / "README.md"
EXAMPLES = [
    code
    for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    if "def wind_down(" in code or "def import_pages(" in code
]


async def fetch(url):
    """One page; there are more than anybody has time for."""
    await asyncio.sleep(0.01)
    return url


async def import_page(number):
    """Wait for the test at the third page."""
    record("page", number=number)
    while number == 2 and not os.path.exists(os.environ["README_GATE"]):
        await asyncio.sleep(0.02)


def make_shop():
    """What the examples import of the project."""
    shop, pages = ModuleType("shop"), ModuleType("shop.pages")
    pages.fetch, pages.import_page = fetch, import_page
    sys.modules |= {"shop": shop, "shop.pages": pages}


assert len(EXAMPLES) == 2
make_shop()
for example in EXAMPLES:
    exec(example, {"__name__": __name__, "app": app})
