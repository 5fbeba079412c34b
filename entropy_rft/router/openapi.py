"""The router's OpenAPI document, written by hand, because the hot path has no models to generate it from."""

from __future__ import annotations

from typing import Any

from entropy_rft import __version__
from entropy_rft.router.dialects import DIALECTS, Dialect, Endpoint
from entropy_rft.router.policy import CHOICES, DIFFICULTY_HEADER
from entropy_rft.router.settings_parts import AuthSettings


def document(auth: AuthSettings, with_keys: bool = False) -> dict[str, Any]:
    """OpenAPI 3.1 of every path. Only what the router itself checks is constrained: the rest is the backend's.

    Args:
        auth: which paths are public although there are keys.
        with_keys: whether there are keys.
    """
    unlocked = {"401": _error("The key is missing or wrong.")} if with_keys else {}
    answers = {**_answers(DIALECTS["chat"]), **unlocked}
    stored = {**answers, "404": _error("No backend holds the answer.")}
    paths: dict[str, Any] = {
        **{dialect.path: {"post": _generate(dialect, with_keys)} for dialect in DIALECTS.values()},
        "/v1/responses/{id}": {
            "get": _stored("retrieveResponse", "Return a stored answer", stored),
            "delete": _stored("deleteResponse", "Delete a stored answer", stored),
        },
        "/v1/responses/{id}/cancel": {"post": _stored("cancelResponse", "Cancel an answer in the background", stored)},
        "/v1/responses/{id}/input_items": {"get": _stored("listInputItems", "The input of a stored answer", stored)},
        "/v1/models": {
            "get": {
                "operationId": "listModels",
                "summary": "The backends' models",
                "responses": {
                    "200": _json("As the backend lists them.", {"type": "object"}),
                    **{status: answers[status] for status in ("429", "500", "502", "503", "504")},
                    **unlocked,
                },
            }
        },
        "/health": {"get": _simple("health", "The process is alive", _STATE)},
        "/ready": {
            "get": {
                "operationId": "ready",
                "summary": "A backend and the probe answer",
                "security": [],
                "responses": {"200": _json("Ready.", _STATE), "503": _json("Not ready; `missing` says why.", _STATE)},
            }
        },
        "/metrics": {
            "get": {
                "operationId": "metrics",
                "summary": "Metrics for Prometheus",
                **({"security": []} if auth.public_metrics else {}),
                "responses": {
                    "200": {"description": "Metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}},
                    **({} if auth.public_metrics else unlocked),
                },
            }
        },
        "/status.json": {
            "get": {
                "operationId": "status",
                "summary": "What the status page shows",
                **({"security": []} if auth.public_status else {}),
                "responses": {
                    "200": _json("Now and the last ten minutes.", {"type": "object"}),
                    **({} if auth.public_status else unlocked),
                },
            }
        },
        "/": {
            "get": {
                "operationId": "page",
                "summary": "The status page",
                "security": [],
                "responses": {
                    "200": {"description": "A page.", "content": {"text/html": {"schema": {"type": "string"}}}}
                },
            }
        },
        "/openapi.json": {"get": _simple("openapi", "This document", {"type": "object"})},
    }
    spec: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "entropy_rft router",
            "version": __version__,
            "description": "OpenAI's and Anthropic's protocols; each question gets the strategy for its difficulty.",
        },
        "paths": paths,
        "components": {"schemas": {"Error": _ERROR, "AnthropicError": _ANTHROPIC_ERROR}},
    }
    if with_keys:
        spec["components"]["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer"},
            "anthropic_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        spec["security"] = [{"key": []}, {"anthropic_key": []}]
    return spec


_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": ["string", "null"]},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}

_ANTHROPIC_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}

_STATE: dict[str, Any] = {
    "type": "object",
    "required": ["status"],
    "properties": {
        "status": {"type": "string"},
        "missing": {"type": "array", "items": {"enum": ["draining", "backends", "features"]}},
    },
}

_DIFFICULTY: dict[str, Any] = {
    "enum": [*CHOICES, None],
    "description": "The probe's choice (auto, the default), or the client's.",
}

# `temperature` and the token limits are described, not constrained: the backend checks them.
_CHAT: dict[str, Any] = {
    "type": "object",
    "required": ["messages"],
    "properties": {
        "messages": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "object", "required": ["role"], "properties": {"role": {"type": "string"}}},
        },
        "difficulty": _DIFFICULTY,
        "temperature": {"description": "Overrides the strategy's."},
        "max_tokens": {"description": "Overrides the strategy's share, or is the budget of it, as configured."},
        "max_completion_tokens": {"description": "As max_tokens."},
    },
    "additionalProperties": True,
}

_COMPLETION: dict[str, Any] = {
    "type": "object",
    "required": ["prompt"],
    "properties": {
        "prompt": {
            "anyOf": [{"type": "string"}, {"type": "array", "minItems": 1}],
            "description": "Text, token ids, or a list of them. No instruction is put before it.",
        },
        "difficulty": _DIFFICULTY,
        "temperature": {"description": "Overrides the strategy's."},
        "max_tokens": {"description": "Overrides the strategy's share, or is the budget of it, as configured."},
    },
    "additionalProperties": True,
}

_RESPONSE: dict[str, Any] = {
    "type": "object",
    "required": ["input"],
    "properties": {
        "input": {
            "anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": "object"}}],
            "description": "Text, or items.",
        },
        "previous_response_id": {"description": "A stored answer; the backend that holds it is asked."},
        "difficulty": _DIFFICULTY,
        "temperature": {"description": "Overrides the strategy's."},
        "max_output_tokens": {"description": "Overrides the strategy's share, or is the budget of it, as configured."},
        "reasoning": {"description": "Its effort overrides the strategy's, or chooses the difficulty, as configured."},
    },
    "additionalProperties": True,
}

_COUNT: dict[str, Any] = {
    "type": "object",
    "required": ["messages"],
    "properties": {"messages": _CHAT["properties"]["messages"]},
    "additionalProperties": True,
}

_MESSAGE: dict[str, Any] = {
    "type": "object",
    "required": ["messages", "max_tokens"],
    "properties": {
        "messages": _CHAT["properties"]["messages"],
        "difficulty": _DIFFICULTY,
        "temperature": {"description": "Overrides the strategy's."},
        "max_tokens": {
            "type": "integer",
            "minimum": 1,
            "description": "Overrides the strategy's share, or is the budget of it, as configured.",
        },
        "thinking": {"description": "Overrides the strategy's limit on the thinking."},
        "output_config": {
            "description": "Its effort overrides the strategy's, or chooses the difficulty, as configured."
        },
    },
    "additionalProperties": True,
}

_POSTED: dict[Endpoint, tuple[str, str, dict[str, Any]]] = {
    "chat": ("createChatCompletion", "Answer a conversation", _CHAT),
    "completions": ("createCompletion", "Continue a prompt", _COMPLETION),
    "responses": ("createResponse", "Answer a conversation, as OpenAI's Responses", _RESPONSE),
    "messages": ("createMessage", "Answer a conversation, as Anthropic's Messages", _MESSAGE),
    "count_tokens": ("countTokens", "Count the tokens of a conversation", _COUNT),
}

_HEADERS: dict[str, Any] = {
    "x-entropy-rft-difficulty": {"schema": {"enum": list(CHOICES[1:])}, "description": "The strategy that was used."},
    "x-entropy-rft-confidence": {"schema": {"type": "number"}, "description": "The probe's, 0 to 1."},
    "x-entropy-rft-reason": {"schema": {"type": "string"}, "description": "Why that strategy."},
    "x-entropy-rft-arm": {
        "schema": {"enum": ["treatment", "control", "shadow", "client"]},
        "description": "Whether the conversation gets strategies; without one, difficulty and confidence are absent.",
    },
    "x-entropy-rft-would-apply": {
        "schema": {"type": "string"},
        "description": "In shadow mode, what the router would have set in the request.",
    },
    "x-entropy-rft-applied": {
        "schema": {"type": "string"},
        "description": "What the router set in the request, separated by commas; the client's own values are not.",
    },
    "x-entropy-rft-routing-ms": {
        "schema": {"type": "number"},
        "description": "Milliseconds that the router took to decide.",
    },
    "x-request-id": {"schema": {"type": "string"}},
}


_ANY: dict[str, Any] = {
    "application/json": {"schema": {"type": "object"}},
    "text/event-stream": {"schema": {"type": "string"}},
}


def _error_schema(dialect: Dialect) -> str:
    return "AnthropicError" if dialect.errors is DIALECTS["messages"].errors else "Error"


def _answers(dialect: Dialect) -> dict[str, Any]:
    """What the router may answer instead of a backend."""
    described = {
        400: "The request cannot be understood.",
        404: "A backend does not know the model.",
        408: "The body came too slowly.",
        413: "The body is too large.",
        415: "The body is compressed.",
        422: "A backend refuses a value.",
        429: "Every backend asks for a pause.",
        500: "The router or a backend failed.",
        502: "No backend gave an answer.",
        503: "No backend is free or up.",
        504: "A backend did not answer in time.",
    }
    return {
        str(dialect.errors.status(status)): _error(text, _error_schema(dialect), retry=status in (429, 503))
        for status, text in described.items()
    }


def _generate(dialect: Dialect, with_keys: bool) -> dict[str, Any]:
    operation, summary, body = _POSTED[dialect.name]
    hint = {
        "name": DIFFICULTY_HEADER,
        "in": "header",
        "required": False,
        "schema": {"enum": list(CHOICES)},
        "description": "As `difficulty` in the body, which overrides it.",
    }
    answers = _answers(dialect)
    if with_keys:
        answers["401"] = _error("The key is missing or wrong.", _error_schema(dialect))
    return {
        "operationId": operation,
        "summary": summary,
        **({"parameters": [hint]} if dialect.routed else {}),
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": {
                "description": "The backend's answer, unchanged.",
                **({"headers": _HEADERS} if dialect.routed else {}),
                "content": _ANY,
            },
            **answers,
        },
    }


def _stored(operation: str, summary: str, answers: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,200}$"}
    return {
        "operationId": operation,
        "summary": summary,
        "parameters": [{"name": "id", "in": "path", "required": True, "schema": schema}],
        "responses": {"200": {"description": "The backend's answer, unchanged.", "content": _ANY}, **answers},
    }


def _simple(operation: str, summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "operationId": operation,
        "summary": summary,
        "security": [],
        "responses": {"200": _json(summary + ".", schema)},
    }


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _error(description: str, name: str = "Error", retry: bool = False) -> dict[str, Any]:
    answer = _json(description, {"$ref": f"#/components/schemas/{name}"})
    if retry:
        answer["headers"] = {"retry-after": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return answer
