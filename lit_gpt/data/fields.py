"""The field of a record that holds its text."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from lit_gpt.data.codec import decode, without_surrogates

TEXT_KEYS = ("text", "file_contents", "content", "file_content")
MESSAGES = "messages"


class Skip(Exception):
    """A record cannot be used; the message is the reason, a phrase."""


def field(record: dict[str, Any], key: str) -> Any:
    """record["a.b"], else record["a"]["b"]. Raises KeyError when neither is there."""
    if key in record or "." not in key:
        return record[key]
    first, rest = key.split(".", 1)
    inner = record[first]
    if not isinstance(inner, dict):
        raise KeyError(key)
    return field(inner, rest)


def wanted_keys(text_key: str | None) -> tuple[str, ...]:
    """The fields that may hold a record's text, the best first."""
    return (text_key,) if text_key else (*TEXT_KEYS, MESSAGES)


def has_text(records: list[dict[str, Any]], text_key: str | None) -> bool:
    """True when a field for the text is in one of the records, whatever it holds."""
    for record in records:
        for key in wanted_keys(text_key):
            with suppress(KeyError):
                field(record, key)
                return True
    return False


def no_field(fields: Iterable[str], text_key: str | None) -> str:
    """The reason why records with these fields cannot be used."""
    return (
        f"no field {', '.join(wanted_keys(text_key))} in its records, whose fields are {', '.join(fields)} "
        "(name the right one with --text_key)"
    )


def text_of(record: Any, text_key: str | None) -> tuple[str, int]:
    """(the text of a record, undecodable bytes and lone surrogates in it, which became U+FFFD).

    The first field that holds a text counts; a list of messages becomes one text, a line for each role. Raises Skip.
    """
    if not isinstance(record, dict):
        raise Skip("not an object")
    reason = f"no field {', '.join(wanted_keys(text_key))}"
    for key in wanted_keys(text_key):
        try:
            value = field(record, key)
        except KeyError:
            continue
        if isinstance(value, str):
            return without_surrogates(value)
        if isinstance(value, bytes):
            return decode(value)
        if isinstance(value, list) and (key == MESSAGES or text_key):
            return without_surrogates(_chat(value))
        reason = f"its field {key} is {'null' if value is None else type(value).__name__ + ', not text'}"
    raise Skip(reason)


def _chat(messages: list[Any]) -> str:
    text = ""
    for message in messages:
        if not isinstance(message, dict):
            raise Skip("a message that is not an object")
        content = _content(message.get("content"))
        if content and not isinstance(message.get("role"), str):
            raise Skip("a message without a role")
        text += f"<|{message['role']}|>\n{content}<|end|>\n" if content else ""
    return text


def _content(content: Any) -> str:
    """The text of a message: a string, the parts {"type": "text", "text": ...} of a list, or nothing."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "".join(part for part in parts if isinstance(part, str))
    if content is None or isinstance(content, str):
        return content or ""
    raise Skip(f"a message whose content is {type(content).__name__}, not text")
