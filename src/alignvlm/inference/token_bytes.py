"""What the tokens of a vocabulary spell."""

from __future__ import annotations

from typing import Any

from ..reader.cut import BYTES


class TokenBytes:
    """What each token of a vocabulary spells, looked up by its bytes.

    Args:
        tokenizer: a fast tokenizer of transformers; special and added tokens spell nothing.
        size: ids from here on are left out: the model has no logits for them.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        self.byte_level = '"ByteLevel"' in tokenizer.backend_tokenizer.to_str()
        added = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        self.ids: dict[bytes, list[int]] = {}
        for name, token in tokenizer.get_vocab().items():
            if token < size and token not in added and (spelled := self._spelled(name)):
                self.ids.setdefault(spelled, []).append(token)
        self.of = {token: text for text, tokens in self.ids.items() for token in tokens}
        self.prefixes = {text[:end] for text in self.ids for end in range(1, len(text))}

    def _spelled(self, name: str) -> bytes:
        if self.byte_level:
            return bytes(BYTES[char] for char in name) if all(c in BYTES for c in name) else b""
        if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            return bytes([int(name[3:5], 16)])
        return name.replace("\u2581", " ").encode()
