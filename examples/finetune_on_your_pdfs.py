"""Fine-tune on a folder of PDFs, merge the adapter, and read a page with the new model.

    python examples/finetune_on_your_pdfs.py MODEL FOLDER OUT [--epochs 3]

No labels are needed: a PDF's text layer says what is written where. OUT/run holds the adapter and
report.html, OUT/model is a folder like any trained model's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from alignvlm.data.sources import TRANSCRIBE_QUESTION
from alignvlm.documents.opening import load_pages
from alignvlm.errors import DataError
from alignvlm.finetune import finetune, merge_adapter, settings_from
from alignvlm.inference.ask import ask, load_model
from alignvlm.inference.inspect import read_page


def first_page(folder: Path) -> Image.Image:
    """Of the first PDF that can be read; training passes over the others too."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() == ".pdf":
            try:
                return load_pages(path, pages="1")[0]
            except DataError as error:
                print(f"passed over: {error}")
    raise DataError(f"{folder}: no PDF that can be read")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=float, default=3.0)
    args = parser.parse_args(arguments)

    page = first_page(args.folder)
    settings = settings_from(model=args.model, pdfs=args.folder, epochs=args.epochs)
    unfinished = (args.out / "run.finetuning").exists()
    outcome = finetune(settings, args.out / "run", resume=unfinished)
    print(outcome.to_text())

    model, processor = load_model(merge_adapter(args.out / "run", args.out / "model"))
    print("ALIGN reads:", read_page(model, processor, page).text(processor.tokenizer))
    print("the model says:", ask(model, processor, [page], TRANSCRIBE_QUESTION).text)


if __name__ == "__main__":
    main()
