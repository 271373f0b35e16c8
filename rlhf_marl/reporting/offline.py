"""One self-contained HTML page: Jinja template, style sheet, scripts and plotly.js inline; opens offline."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from functools import cache
from importlib import metadata, resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rlhf_marl.sanitise import visible

# plotly.js creates an empty <style> and fills it through the CSSOM, which the policy does not restrict.
_EMPTY = ""
# Some libraries inside plotly.js add a style sheet unless an element with this id exists.
_OWN_STYLE = re.compile(r'getElementById\("([0-9a-f]{64})"\)')
# One for all pages: compiling a template takes longer than filling it.
_TEMPLATES = Environment(
    loader=PackageLoader("rlhf_marl.reporting", "."),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=lambda value: visible(value) if type(value) is str else value,
)


def offline_page(template: str, scripts: Sequence[str], data: Any, **variables: Any) -> str:
    """The page as HTML text, byte for byte reproducible.

    Args:
        template, scripts: files of this package; the scripts become one.
        data: what the scripts read, as JSON.
        variables: of the template. Text in them is escaped, and hidden characters are written out.
    """
    plotly, script, style = _plotly(), "\n".join(map(_part, scripts)), _part("report.css")
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash(plotly)} {_hash(script)}",
            f"style-src {_hash(style)} {_hash(_EMPTY)}",
            "style-src-attr 'unsafe-inline'",  # plotly.js sets the style attribute of heat maps
            "img-src data:",
            "connect-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return _TEMPLATES.get_template(template).render(
        policy=policy,
        style=Markup(style),
        plotly=Markup(plotly),
        script=Markup(script),
        unused_styles=_OWN_STYLE.findall(plotly),
        data=Markup(embedded(data)),
        version=metadata.version("rlhf-marl"),
        **variables,
    )


def embedded(data: Any) -> str:
    """JSON that is safe inside a <script> element, with hidden characters as code points."""
    text = json.dumps(_visible(data), ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _visible(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(str(key)): _visible(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_visible(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _part(name: str) -> str:
    return resources.files("rlhf_marl.reporting").joinpath(name).read_text("utf-8")


@cache
def _plotly() -> str:
    """plotly.js's bundle of cartesian charts, without `</script` and carriage returns.

    From the npm package plotly.js-cartesian-dist-min 4.1.1 (MIT). The full library is three times as large and
    starts more slowly.
    """
    return (
        _part("plotly-cartesian.min.js")
        .replace("\r\n", "\n")
        .replace("</script", "<\\/script")
        .replace("<!--", "<\\!--")
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
