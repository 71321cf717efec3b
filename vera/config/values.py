"""A component's fields as data: the JSON schema of its class, and the schema's values checked and typed without the class."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, Field, create_model

from vera.config.marks import Fields
from vera.config.schema import Strict

_LIMITS = {
    "minimum": "ge",
    "maximum": "le",
    "exclusiveMinimum": "gt",
    "exclusiveMaximum": "lt",
    "pattern": "pattern",
    "minLength": "min_length",
    "maxLength": "max_length",
    "minItems": "min_length",
    "maxItems": "max_length",
}
_SAID_ELSEWHERE = {"title", "description", "default"}
_TYPES = {"integer": int, "number": float, "string": str, "boolean": bool, "null": None}


def fields_of(cls: type[BaseModel]) -> Fields:
    """The JSON schema of each field of a class, nested classes in place, with `required` where it has no default."""
    schema = cls.model_json_schema()
    return _fields(schema, schema.get("$defs", {}))


def _fields(schema: dict[str, Any], nested: dict[str, Any]) -> Fields:
    made = {name: _inlined(field, nested) for name, field in schema.get("properties", {}).items()}
    return {
        name: {**field, **({"required": True} if name in schema.get("required", ()) else {})} for name, field in made.items()
    }


def _inlined(schema: Any, nested: dict[str, Any]) -> Any:
    """A field's schema without references, and without what the class says of itself."""
    if isinstance(schema, list):
        return [_inlined(item, nested) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        schema = {**nested[schema["$ref"].rpartition("/")[2]], **rest}
    kept = {
        key: _inlined(value, nested) for key, value in schema.items() if key not in _SAID_ELSEWHERE | {"properties", "required"}
    }
    return {**kept, "properties": _fields(schema, nested)} if "properties" in schema else kept


def values_model(name: str, fields: Fields) -> type[Strict]:
    """A model that takes the same values as the class with these fields, but for what only its own validators refuse."""
    return _model(name, json.dumps(fields, sort_keys=True))


@lru_cache(maxsize=256)
def _model(name: str, fields: str) -> type[Strict]:
    typed: dict[str, Any] = {
        key: (_type(field, f"{name}.{key}"), ... if field.get("required") else None)
        for key, field in json.loads(fields).items()
    }
    return create_model(name.rpartition(".")[2], __base__=Strict, **typed)


def _type(schema: dict[str, Any], name: str) -> Any:
    """The Python type that a JSON schema describes."""
    if "anyOf" in schema:
        return Union[tuple(_type(part, name) for part in schema["anyOf"])]  # noqa: UP007 (of a computed tuple)
    if "const" in schema or "enum" in schema:
        return Literal[tuple(schema.get("enum", [schema.get("const")]))]
    kind = schema.get("type")
    if kind == "object" and "properties" in schema:
        return values_model(name, schema["properties"])
    if kind == "object":
        items = schema.get("additionalProperties")
        return dict[str, _type(items, name) if isinstance(items, dict) else Any]
    if kind == "array":
        parts = schema.get("prefixItems")
        made: Any = tuple[tuple(_type(part, name) for part in parts)] if parts else list[_type(schema.get("items", {}), name)]
    else:
        made = _TYPES.get(kind, Any)
    limits = {_LIMITS[key]: value for key, value in schema.items() if key in _LIMITS}
    return Annotated[made, Field(**limits)] if limits else made
