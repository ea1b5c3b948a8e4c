"""HTML pages that open from disk: templates, escaping, and a policy that lets nothing in or out.

Every page is one file. Its Content-Security-Policy forbids all network access and every script but those that the page
was made with, named by their hashes: text that a model wrote is escaped by the templates, and would still not run if it
were not. Vega is told to interpret its expressions, so ``eval`` stays forbidden too.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from moecap.charts.parts import visible

TEMPLATES = Path(__file__).parent.parent / "templates"
_SOURCE_MAP = re.compile(r"(//# |/\*# )sourceMappingURL=\S+( \*/)?\s*$")
_POLICY = "@content-security-policy@"


def render(template: str, values: Mapping[str, Any]) -> str:
    """Fill a template of ``moecap/templates``. In it, ``script(text)`` is an inline script that the policy allows.

    The template holds ``{{ policy }}`` in its head, before any script.
    """
    hashes: list[str] = []

    def script(text: str) -> Markup:
        if "</script" in text.lower():
            raise ValueError("an inline script cannot hold its own end tag")
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes.append(f"'sha256-{digest}'")
        return Markup("<script>{}</script>").format(Markup(text))

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    environment.globals.update(script=script, asset=asset, data_url=data_url)
    text = environment.get_template(template).render(policy=_POLICY, **values)
    policy = (
        f"default-src 'none'; script-src {' '.join(dict.fromkeys(hashes)) or repr('none')}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    return text.replace(_POLICY, policy, 1)


def _visible(value: Any) -> Any:
    """What a template prints, with controls that would hide or reorder text written out."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def asset(name: str) -> Markup:
    """A style sheet or script of the templates folder, without a pointer to a source map that is not there."""
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    return Markup(_SOURCE_MAP.sub("", text))


def data_url(svg: str) -> str:
    """An SVG image as a URL; what it draws cannot run scripts or load anything."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
