"""Fine-tune on questions with TRL's SFTTrainer: LoRA on the language model, the connector whole.

    python examples/finetune_with_trl.py MODEL qa.jsonl OUT [--steps 100]

Each line of qa.jsonl is {"image": "page.png", "question": "?", "answer": "42"} or chat messages
with images. OUT holds an adapter; `alignvlm merge OUT --out FOLDER` makes a model of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from alignvlm.compose.assemble import load_pretrained
from alignvlm.data import encode
from alignvlm.data.collate import Collator
from alignvlm.data.records import validate_record
from alignvlm.data.sources import JsonlSource
from alignvlm.finetune.adapter import text_linears
from alignvlm.weights.resolve import resolve


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args(arguments)

    model, processor = load_pretrained(resolve(args.model), torch.float32)
    source = JsonlSource(args.data)
    rows = [source[i].model_dump(include={"id", "images", "messages"}) for i in range(len(source))]
    pad = Collator(processor.tokenizer.pad_token_id)

    def collate(batch: list[dict]) -> dict:
        # our own collator: only the assistant's turns are learnt, and no image is ever cut
        records = [validate_record(row, where=row["id"]) for row in batch]
        return pad([encode.encode(record, processor) for record in records])

    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(args.out),
            max_steps=args.steps,
            per_device_train_batch_size=2,
            learning_rate=1e-4,
            max_length=None,
            bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
            use_cpu=not torch.cuda.is_available(),
            logging_steps=1,
            save_strategy="no",
            remove_unused_columns=False,
            report_to="none",
        ),
        train_dataset=Dataset.from_list(rows),
        data_collator=collate,
        processing_class=processor,
        peft_config=LoraConfig(
            r=16,
            target_modules=text_linears(model),
            modules_to_save=["model.connector"],
        ),
    )
    trainer.train()
    trainer.model.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    print(f"adapter written to {args.out}")


if __name__ == "__main__":
    main()
