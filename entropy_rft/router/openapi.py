"""The router's OpenAPI document, written by hand, because the hot path has no models to generate it from."""

from __future__ import annotations

from typing import Any

from entropy_rft import __version__
from entropy_rft.router.policy import CHOICES, DIFFICULTY_HEADER
from entropy_rft.router.settings_parts import AuthSettings


def document(auth: AuthSettings, with_keys: bool = False) -> dict[str, Any]:
    """OpenAPI 3.1 of every path. Only what the router itself checks is constrained: the rest is the backend's.

    Args:
        auth: which paths are public although there are keys.
        with_keys: whether there are keys.
    """
    answers = {
        "400": _error("The request cannot be understood."),
        "408": _error("The body came too slowly."),
        "413": _error("The body is too large."),
        "415": _error("The body is compressed."),
        "429": _error("Every backend asks for a pause.", retry=True),
        "500": _error("The router or a backend failed."),
        "502": _error("No backend gave an answer."),
        "503": _error("No backend is free or up.", retry=True),
        "504": _error("A backend did not answer in time."),
    }
    unlocked = {"401": _error("The key is missing or wrong.")} if with_keys else {}
    paths: dict[str, Any] = {
        "/v1/chat/completions": {
            "post": _generate("createChatCompletion", "Answer a conversation", _CHAT, {**answers, **unlocked})
        },
        "/v1/completions": {
            "post": _generate("createCompletion", "Continue a prompt", _COMPLETION, {**answers, **unlocked})
        },
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
            "description": "OpenAI's protocol; each question gets the strategy for its difficulty.",
        },
        "paths": paths,
        "components": {"schemas": {"Error": _ERROR}},
    }
    if with_keys:
        spec["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        spec["security"] = [{"key": []}]
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

_HEADERS: dict[str, Any] = {
    "x-entropy-rft-difficulty": {"schema": {"enum": list(CHOICES[1:])}, "description": "The strategy that was used."},
    "x-entropy-rft-confidence": {"schema": {"type": "number"}, "description": "The probe's, 0 to 1."},
    "x-entropy-rft-reason": {"schema": {"type": "string"}, "description": "Why that strategy."},
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


def _generate(operation: str, summary: str, body: dict[str, Any], answers: dict[str, Any]) -> dict[str, Any]:
    return {
        "operationId": operation,
        "summary": summary,
        "parameters": [
            {
                "name": DIFFICULTY_HEADER,
                "in": "header",
                "required": False,
                "schema": {"enum": list(CHOICES)},
                "description": "As `difficulty` in the body, which overrides it.",
            }
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": {
                "description": "The backend's answer, unchanged.",
                "headers": _HEADERS,
                "content": {
                    "application/json": {"schema": {"type": "object"}},
                    "text/event-stream": {"schema": {"type": "string"}},
                },
            },
            **answers,
        },
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


def _error(description: str, retry: bool = False) -> dict[str, Any]:
    answer = _json(description, {"$ref": "#/components/schemas/Error"})
    if retry:
        answer["headers"] = {"retry-after": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return answer
