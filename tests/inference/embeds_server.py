"""A stock language model behind HTTP that takes prompt embeddings by the rules of vLLM's chat API.

vLLM itself needs a GPU. What it does with a request (vllm/renderers, pull request 40720) is short:
decode each ``prompt_embeds`` part, join the parts with newlines, put the chat template around them,
tokenize it with a placeholder, and put each tensor's rows in the placeholder's place. Everything
else here is transformers' own ``LlamaForCausalLM``, without a line of alignvlm.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import openai
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

PLACEHOLDER = "<prompt_embeds>"


class StockModel:
    """Model and tokenizer from a folder, as any server of language models has them."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        assert type(self.model) is LlamaForCausalLM
        self.tokenizer.add_special_tokens({"additional_special_tokens": [PLACEHOLDER]})

    def decoded(self, data: str) -> torch.Tensor:
        """``safe_load_prompt_embeds``: strict base64, a plain tensor, of the model's width."""
        file = io.BytesIO(base64.b64decode(data, validate=True))
        tensor = torch.load(file, weights_only=True, map_location="cpu")
        assert isinstance(tensor, torch.Tensor)
        assert tensor.dim() == 2
        assert tensor.shape[1] == self.model.config.hidden_size
        assert tensor.is_floating_point()
        return tensor.to(self.model.dtype)

    def embeds(self, messages: list[dict[str, Any]]) -> torch.Tensor:
        """The prompt, ``[tokens, d_text]``."""
        tensors, texts = [], []
        for message in messages:
            parts = []
            for part in message["content"]:
                if part["type"] == "prompt_embeds":
                    tensors.append(self.decoded(part["data"]))
                parts.append(PLACEHOLDER if part["type"] == "prompt_embeds" else part["text"])
            texts.append({"role": message["role"], "content": "\n".join(parts)})
        ids = self.tokenizer.apply_chat_template(
            texts, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        placeholder = self.tokenizer.convert_tokens_to_ids(PLACEHOLDER)
        table, rest = self.model.get_input_embeddings().weight.detach(), iter(tensors)
        return torch.cat([next(rest) if i == placeholder else table[i][None] for i in ids])

    @torch.inference_mode()
    def answer(self, body: dict[str, Any]) -> str:
        """Greedy."""
        embeds = self.embeds(body["messages"])
        new = self.model.generate(  # pyright: ignore[reportAttributeAccessIssue]
            inputs_embeds=embeds[None],
            attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
            max_new_tokens=body["max_tokens"],
            do_sample=False,
        )
        return self.tokenizer.decode(new[0], skip_special_tokens=True)


@contextmanager
def serving_embeds(folder: Path) -> Iterator[openai.OpenAI]:
    """OpenAI's client of a server of the model in a folder, until the block ends."""
    stock = StockModel(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            message = {"role": "assistant", "content": stock.answer(body)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            done = {"id": "1", "object": "chat.completion", "created": 1, "model": "lm"}
            data = json.dumps({**done, "choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/v1"
            with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
                yield client
        finally:
            server.shutdown()
            thread.join()
