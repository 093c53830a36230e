"""A page about the API that needs nothing from the network."""

from __future__ import annotations

from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 54rem; margin: 2rem auto; padding: 0 1rem; }
h2 { font-size: 1.05rem; margin: 2.2rem 0 .2rem; overflow-wrap: anywhere; }
code, .method { font-family: ui-monospace, monospace; font-size: .92em; }
.method { display: inline-block; min-width: 4.2rem; padding: .1rem .4rem; border-radius: .3rem; text-align: center;
  color: #fff; background: #2b6cb0; }
.post { background: #2f855a; } .delete { background: #c53030; }
table { border-collapse: collapse; width: 100%; margin: .4rem 0 .8rem; }
pre { white-space: pre-wrap; margin: .3rem 0 1rem; }
td, th { text-align: left; vertical-align: top; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #8884; }
th { font-weight: 600; } td:first-child { white-space: nowrap; width: 11rem; }
"""


def api_page(schema: dict[str, Any]) -> str:
    """HTML that lists the operations of an OpenAPI schema: fields, answers and what they mean."""
    operations = [
        _operation(schema, method, path, operation)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]
    info = schema["info"]
    title = f"{escape(info['title'])} {escape(info['version'])}: HTTP API"
    body = "".join(operations) + _answers(schema)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><h1>{title}</h1><p>{escape(info.get('summary', ''))} "
        f'For programs: <a href="/openapi.json">openapi.json</a>.</p>{body}</body></html>'
    )


def _operation(schema: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> str:
    parts = [
        f'<h2><span class="method {escape(method)}">{escape(method.upper())}</span> <code>{escape(path)}</code></h2>',
        f"<p>{escape(operation.get('description', operation.get('summary', '')))}</p>",
    ]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        parts.append(_fields("Form field", _resolved(schema, content["schema"])))
    answers = [(code, _answer(answer)) for code, answer in operation["responses"].items()]
    parts.append(_table("Answer", answers))
    return "".join(parts)


def _answer(answer: dict[str, Any]) -> str:
    """What an answer means, and what its JSON is called."""
    schemas = [content.get("schema", {}) for content in answer.get("content", {}).values()]
    names = [part.get("$ref", part.get("items", {}).get("$ref", "")).rpartition("/")[2] for part in schemas]
    lists = ["list of " if "items" in part else "" for part in schemas]
    kinds = [f"{many}<code>{escape(name)}</code>" for many, name in zip(lists, names, strict=True) if name]
    return escape(answer.get("description", "")) + (f": {', '.join(kinds)}" if kinds else "")


def _answers(schema: dict[str, Any]) -> str:
    """The kinds of answers and what their fields mean."""
    parts = []
    for name, part in schema["components"]["schemas"].items():
        if not name.startswith("Body_") and part.get("description"):
            fields = _table("Field", [(field, _kind(about)) for field, about in part["properties"].items()])
            parts.append(f"<h2><code>{escape(name)}</code></h2><pre>{escape(part['description'])}</pre>{fields}")
    return "".join(parts)


def _resolved(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """What a part of the schema refers to."""
    name = part.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = schema["components"]["schemas"][name] if name else part
    return found


def _fields(title: str, part: dict[str, Any]) -> str:
    return _table(title, [(name, _kind(field)) for name, field in part.get("properties", {}).items()])


def _kind(field: dict[str, Any]) -> str:
    kinds = [field, *field.get("anyOf", [])]
    names = [_choices(kind) or str(kind["type"]) for kind in kinds if "type" in kind or "enum" in kind]
    if any("contentMediaType" in kind or kind.get("format") == "binary" for kind in kinds):
        names = ["file"]
    said = names[0] if "enum" in field else " or ".join(name for name in names if name != "null")
    if field.get("default") not in (None, ""):
        said += f"; {field['default']} by default"
    bounds = [
        f"{word} {field[key]:.0f}" for key, word in (("minimum", "at least"), ("maximum", "at most")) if key in field
    ]
    said += "".join(f"; {bound}" for bound in bounds)
    if field.get("description"):
        said += f"; {field['description']}"
    return escape(said)


def _choices(kind: dict[str, Any]) -> str:
    return ", ".join(str(value) for value in kind.get("enum", []) if value)


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    """A table of names (escaped here) and of HTML."""
    lines = "".join(f"<tr><td><code>{escape(name)}</code></td><td>{words}</td></tr>" for name, words in rows)
    return f"<table><tr><th>{escape(title)}</th><th></th></tr>{lines}</table>" if rows else ""
