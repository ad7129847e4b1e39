"""What people paste and upload: chats, answers of APIs, JSON lines, text; and what cannot be read is named."""

import re

import pytest

from train_hooks.export_format.errors import KisekiError
from ui.html.uploads import Output, read_outputs, read_upload


@pytest.mark.parametrize(
    ("text", "outputs"),
    [
        ("plain text", [Output("plain text")]),
        ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}', [Output("a", "q")]),
        ('[{"role": "user", "content": "q"}, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]',
         [Output("a", "q")]),
        ('{"choices": [{"message": {"content": "a"}}, {"text": "b"}]}', [Output("a"), Output("b")]),
        ('{"request": {"prompt": "q"}, "response": {"body": {"choices": [{"text": "a"}]}}}\n{"output": "b"}',
         [Output("a", "q"), Output("b")]),
        ("{not json} is text", [Output("{not json} is text")]),
        ("[" * 5000, [Output("[" * 5000)]),
        ("  ", []),
    ],
)  # fmt: skip
def test_what_people_paste(text: str, outputs: list[Output]) -> None:
    assert read_outputs(text) == outputs


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.png", b"\x89PNG\0", "found a binary file"),
        ("a.txt", "naïve".encode("latin-1"), "found other bytes at 2; save it as UTF-8"),
        ("a.json", b"{", "found no JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"te', "found no JSON in line 2"),
        ("a.json", b'{"surprise": 1}', "found an object with 'surprise'"),
        ("a.json", b'{"choices": []}', "found choices without text"),
        ("a.json", b'{"messages": []}', "found a chat whose last message has no text"),
        ("a.json", b"7", "found int"),
        ("a.txt", b" \n", "found nothing in it"),
    ],
)
def test_unreadable_uploads_are_named(name: str, content: bytes, words: str) -> None:
    with pytest.raises(KisekiError, match=re.escape(words)) as caught:
        read_upload(name, content)
    assert str(caught.value).startswith(f"{name}: expected a text, a chat")
