"""Templates: whatever a model, a file or a person wrote is text, in every variable of every one of them."""

import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from jinja2 import Environment, meta, nodes
from jinja2.utils import htmlsafe_json_dumps

from deepintuit_analysis.render import environment
from deepintuit_app.html import render

ROOT = Path(__file__).parents[1]
FOLDERS = [ROOT / room / "templates" for room in ("app", "analysis")]
TEMPLATES = [(folder, str(path.relative_to(folder))) for folder in FOLDERS for path in sorted(folder.rglob("*.html"))]
HOSTILE = """<img src=x onerror=alert(1)> "><i onclick='x'> {{ 7 * 7 }} ${1} `x` <script>alert(2)</script>"""
# Where Python says that a text is HTML: it was made by templates, or stands in our own files.
TRUSTED = {"analysis/render.py": 1, "analysis/report/card.py": 1}
# Values in scripts, by template: Plotly's own file, JSON that Jinja keeps from ending its element, our own addresses.
IN_SCRIPTS = {"card/page.html": ["drawing|tojson", "plotly"], "head.html": ['static("app.js")', 'static("review.js")']}


class Hostile:
    """Any value that a template may meet: each part of it, however it is taken, shows as `HOSTILE`."""

    def __init__(self, chance: random.Random):
        self.chance = chance

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __iter__(self):
        return iter([self, self])

    def __str__(self):
        return HOSTILE

    def __format__(self, spec):
        return HOSTILE

    def __bool__(self):
        return self.chance.random() < 0.7

    def __eq__(self, other):
        return self.chance.random() < 0.5

    __lt__ = __le__ = __gt__ = __ge__ = __ne__ = __contains__ = __eq__

    def __hash__(self):
        return 0

    def __getitem__(self, key):
        return self

    def __call__(self, *given, **named):
        return self

    def __len__(self):
        return 60

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __getitem__


class Seen(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(str(html))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def shape_of(target: nodes.Expr) -> tuple | None:
    return tuple(map(shape_of, target.items)) if isinstance(target, nodes.Tuple) else None


def filled(shape: tuple | None, value):
    return value if shape is None else [filled(part, value) for part in shape]


def unpacking(folder: Path, hostile: Hostile) -> Environment:
    """The environment of `folder` in which a hostile value unpacks into as many as a loop wants."""

    class Unpacking(Environment):
        def _parse(self, *given):
            tree = super()._parse(*given)
            for loop in tree.find_all(nodes.For):
                shape = [nodes.Const(shape_of(loop.target))]
                loop.iter = nodes.Filter(loop.iter, "unpacked", shape, [], None, None, lineno=loop.lineno)
            return tree

    made = environment(folder, Unpacking)
    made.filters["unpacked"] = lambda rows, shape: [filled(shape, row) for row in rows] if rows is hostile else rows
    made.filters |= {"sort": lambda rows, **how: rows}
    made.filters |= dict.fromkeys(("fixed", "float", "percent"), lambda value, digits=0: value)
    made.filters["tojson"] = lambda value: htmlsafe_json_dumps(str(value))
    made.globals |= dict.fromkeys(("address", "number", "interval"), hostile)  # what imported macros know, too
    return made


@pytest.mark.parametrize(("folder", "name"), TEMPLATES, ids=[name for _, name in TEMPLATES])
def test_hostile_text_in_any_variable_of_a_template_is_text(folder, name):
    hostile = Hostile(random.Random(name))
    made = unpacking(folder, hostile)
    source = (folder / name).read_text(encoding="utf-8")
    tree = made.parse(source)
    wanted = meta.find_undeclared_variables(tree)
    if macros := [node for node in tree.body if isinstance(node, nodes.Macro)]:  # each called with hostile arguments
        calls = [f"{it.name}({', '.join(['hostile'] * len(it.args))})" for it in macros]
        called = [any(n.name == "caller" for n in it.find_all(nodes.Name)) for it in macros]
        calls = [
            f"{{% call {call} %}}{{{{ hostile }}}}{{% endcall %}}" if around else f"{{{{ {call} }}}}"
            for call, around in zip(calls, called)
        ]
        source, wanted = source + "".join(calls), wanted | {"hostile"}
    template = made.from_string(source)
    met = False
    for _ in range(20):
        html = template.render(dict.fromkeys(wanted, hostile))
        seen = Seen(html)
        met |= "alert(1)" in seen.text or any(HOSTILE in str(value) for _, has in seen.tags for value in has.values())
        assert not [tag for tag, has in seen.tags if has.get("src") == "x"]
        assert [tag for tag, _ in seen.tags].count("script") <= source.count("<script")
        assert not [key for _, has in seen.tags for key in has if key.startswith("on")]
        assert "<script>alert" not in html
    assert met == bool(wanted), "nothing of what the template is given was shown"


def test_what_gradio_would_interpret_comes_out_as_character_references():
    html = render("macros.html") + render("review/said.html", task={"questions": ["note"]}, rows=[])
    assert not re.search(r"[{}$`]", html)
    html = render("review/tasks.html", tasks=[], damage=HOSTILE)
    assert "&#123;&#123; 7 * 7 &#125;&#125; &#36;&#123;1&#125; &#96;x&#96;" in html
    assert HOSTILE in Seen(html).text


def test_no_template_takes_a_text_for_html():
    """`Markup` in Python is counted, and each place is named above; a URL in a template is one that we made."""
    for folder, name in TEMPLATES:
        source = re.sub(r"\{#.*?#\}", "", (folder / name).read_text(encoding="utf-8"), flags=re.S)
        found = {node.name for node in environment(folder).parse(source).find_all(nodes.Filter)}
        assert not found & {"safe", "escape", "e", "forceescape", "xmlattr", "urlize"}, name
        assert "autoescape" not in source, name
        blocks = re.findall(r"<(?:style|script)\b.*?</(?:style|script)>", source, re.S)
        values = [value for block in blocks for value in re.findall(r"\{\{ (.*?) \}\}", block)]
        assert values == IN_SCRIPTS.get(name, []), f"{name}: a value in a style or a script"
        assert source.count("tojson") == sum("tojson" in value for value in values), name
        assert not re.search(r"[\w-]=\{\{", source), f"{name}: an attribute without quotes"
        assert not re.findall(r'(?:href|src)="\{\{ (?!(?:address|static)\(|(?:\w+\.)?url\b)[^"]*"', source), (
            f"{name}: an address not made by us"
        )
    files = [*(ROOT / "app").rglob("*.py"), *(ROOT / "analysis").rglob("*.py")]
    marked = {
        str(path.relative_to(ROOT)): len(re.findall(r"\bMarkup\(", path.read_text(encoding="utf-8"))) for path in files
    }
    assert {name: count for name, count in marked.items() if count} == TRUSTED
