"""Ask the checkpoint that comes with the project about the pages beside this file.

    python examples/quickstart.py [--out demo]

Nothing is trained and nothing is canned: the model reads each page and answers while you wait.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image

from alignvlm.inference.ask import ask, encode_pages, load_model
from alignvlm.inference.inspect import heat_map, read_page

PAGES = Path(__file__).parent / "pages"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    model, processor = load_model("smol")  # put together on the first use
    for entry in json.loads((PAGES / "questions.json").read_text("utf-8")):
        page = Image.open(PAGES / entry["page"]).convert("RGB")
        encoded = encode_pages(model, processor, [page])  # once, whatever is asked
        reading = read_page(model, processor, page, encoded=encoded)
        heat_map(page, reading).save(out / f"{Path(entry['page']).stem}-heatmap.png")
        print(f"\n{entry['page']}: what ALIGN reads")
        for line in reading.text(processor.tokenizer).splitlines():
            print("  | " + line)
        for question in entry["questions"]:
            answer = ask(model, processor, [page], question, max_new_tokens=24, encoded=encoded)
            print(f"Q: {question}\nA: {answer.text}")
            print(
                f"   {answer.visual_tokens} visual tokens, {answer.kept_visual_tokens} not blank; "
                f"first token after {answer.prefill_ms:.0f} ms"
            )
    print(f"\nheat maps are in {out}/")


if __name__ == "__main__":
    main()
