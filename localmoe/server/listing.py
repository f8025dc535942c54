"""``/v1/models``: what can be asked for, as OpenAI's and as other clients read it."""

from __future__ import annotations

from localmoe.facts import catalog
from localmoe.server.models import Models
from localmoe.server.problems import Document, Problem


def models_document(models: Models) -> Document:
    """Every name that is listed, under ``data`` and under ``models``."""
    found = [_entry(models, name) for name in models.names()]
    return {"object": "list", "data": found, "models": found}


def model_document(models: Models, name: str) -> Document:
    """One of them. Raises Problem for a name that nothing answers to."""
    if name in models.names() or models.answers_to_any:
        return _entry(models, name)
    raise Problem(404, catalog.unknown(name).message, code="model_not_found")


def _entry(models: Models, name: str) -> dict[str, object]:
    entry: dict[str, object] = {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "localmoe",
        "name": name,
        "model": name,
    }
    model = models.current
    if model is not None and models.is_current(name):
        entry["status"] = "loaded" if model.loaded is not None else "loading"
        entry["context_length"] = model.plan.settings.context
        entry["meta"] = {
            "n_ctx": model.plan.settings.context,
            "n_ctx_train": model.facts.context_train,
            "size": model.facts.size,
        }
    else:
        entry["status"] = "unloaded"
    return entry
