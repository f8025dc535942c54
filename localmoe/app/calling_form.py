"""In which form a model calls tools, before it is loaded."""

from __future__ import annotations

from localmoe.chat.renderer import Renderer
from localmoe.chat.template import ChatTemplate
from localmoe.errors import TemplateError
from localmoe.facts.model import Model

WORDS = {
    "template": "in the form that its chat template shows",
    "family": "in the form of its family; its chat template shows none",
    "generic": "in a general form: its chat template knows no tools",
    None: "none: it has no chat template that can be used",
}


def calling_form(model: Model) -> str | None:
    """``template``, ``family`` or ``generic``; None without a template that can be used."""
    with Renderer() as renderer:
        template = ChatTemplate.from_model(model.chat_template, "", "", renderer=renderer)
        if template.is_plain:
            return None
        try:
            calls = template.calls_of({})
        except TemplateError:
            return None
    return "template" if calls.derived else "generic" if calls.is_generic else "family"
