"""Templates → HTML, in which everything that a model, a file or a person wrote is text.

    render = renderer(Path(__file__).parent / "templates", address=address)
    render("review/tasks.html", tasks=tasks)

The one place where HTML is made. Values are escaped by Jinja unless they are HTML that `render` gave. Gradio reads what
it is given as a template of its own and runs it, so what Handlebars and JavaScript would interpret ({ } $ `) comes out
as a character reference wherever it stands: templates have no use for these characters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from deepintuit_analysis.numbers import number, percent

_INTERPRETED = {"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"}


def renderer(folder: Path, *, interpreted: bool = True, **names: Any) -> Callable[..., Markup]:
    """A function of a template's path in `folder` and of the values it shows. `names` are known in all templates, as
    are the filters `comma` (1,234), `fixed(digits)` and `percent(digits)`, and `zip`. None shows as nothing; a name
    that nobody gave raises `jinja2.UndefinedError`. `interpreted`: whether Gradio reads what comes out."""
    templates = environment(folder)
    templates.globals |= names
    get = cache(templates.get_template)

    def render(template: str, **values: Any) -> Markup:
        html = get(template).render(values)
        for character, reference in _INTERPRETED.items() if interpreted else ():
            html = html.replace(character, reference)
        return Markup(html)

    return render


def environment(folder: Path, kind: type[Environment] = Environment) -> Environment:
    env = kind(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        cache_size=-1,
        finalize=lambda value: "" if value is None else value,
    )
    env.filters |= {"comma": "{:,}".format, "fixed": fixed, "percent": percent}
    env.globals["zip"] = zip
    env.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return env


def fixed(value: float | None, digits: int = 2) -> str:
    return number(value, 1, digits)
