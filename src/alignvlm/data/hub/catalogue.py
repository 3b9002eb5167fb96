"""The published data sets that recipes name: how each lies on the hub, and its licence and size.

What stands here was taken from the sets' own pages and files; the number of rows and the licence
are for people, and nothing depends on them but ``alignvlm plan``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..synthetic.covered import VCR_PROMPT


@dataclass(frozen=True)
class PublishedSet:
    """How a data set lies on the hub, and how its rows become records.

    Attributes:
        id: ``owner/name`` on the hub.
        licence, size: for people.
        columns: record roles and the set's own columns; see :mod:`alignvlm.data.columns`.
        optional: roles whose column may be missing.
        rows: how many there are, of all configurations; ``None`` where its page does not say.
        configs: its configurations, where one has to be chosen and their names are known.
        data_files: the files with its rows, a glob of each split; empty where ``datasets`` finds
            them.
        archives: globs of the archives with the images that its rows name.
        image_folders: folders, below its own, that the rows' image paths start from.
        question: asked of every image, for a set of captions.
        images_elsewhere: where the images of a configuration come from that has none.
    """

    id: str
    licence: str
    size: str
    columns: Mapping[str, str]
    optional: tuple[str, ...] = ("id",)
    rows: int | None = None
    configs: tuple[str, ...] = ()
    data_files: Mapping[str, str] = field(default_factory=dict)
    archives: tuple[str, ...] = ()
    image_folders: tuple[str, ...] = (".",)
    question: str | None = None
    images_elsewhere: Mapping[str, str] = field(default_factory=dict)


BIGDOCS_COLUMNS = {
    "id": "sample_id", "image": "image", "image_name": "img_id", "question": "query",
    "answer": "annotations",
}  # fmt: skip
LLAVA_COLUMNS = {"id": "id", "image": "image", "messages": "conversations"}

PUBLISHED = (
    PublishedSet(
        id="ServiceNow/BigDocs-7.5M",
        licence="CC-BY-4.0; each configuration also has its source's own",
        size="7.5 million rows in nine configurations of parquet files",
        rows=7_500_000,
        columns=BIGDOCS_COLUMNS,
        optional=("id", "image", "image_name"),
        configs=(
            "ArxivOCR",
            "ArxivTableCap",
            "COCOtext",
            "Open4Business",
            "TabFact",
            "TextOCR",
            "WikiTQ",
            "cord-v2",
            "pubtables-1m",
        ),
        images_elsewhere={
            "COCOtext": "train2014.zip of COCO (cocodataset.org)",
            "TextOCR": "train_val_images.zip of TextOCR (textvqa.org/textocr)",
            "pubtables-1m": "the images' tar.gz files of bsmock/pubtables-1m",
        },
    ),
    PublishedSet(
        id="ServiceNow/BigDocs-Bench",
        licence="CC-BY-4.0",
        size="ten tasks, a configuration each, of 4,500 to 198,000 training rows",
        columns=BIGDOCS_COLUMNS,
        optional=("id", "image", "image_name"),
    ),
    PublishedSet(
        id="mPLUG/DocDownstream-1.0",
        licence="Apache-2.0; each of its ten benchmarks also has its own",
        size="574,268 training rows; images 73 GB in two parts of one tar.gz",
        rows=574_268,
        columns={"image": "image", "messages": "messages"},
        data_files={"train": "train.jsonl", "val": "val.jsonl"},
        archives=("partial-imgs*", "imgs.tar.gz"),
    ),
    PublishedSet(
        id="pixparse/cc12m-wds",
        licence="Conceptual 12M's: free for any purpose, with no warranty",
        size="10,968,539 rows in 2,176 WebDataset tars",
        rows=10_968_539,
        columns={"id": "__key__", "image": "jpg", "answer": "txt"},
        data_files={"train": "cc12m-train-*.tar"},
        question="Describe the image.",
    ),
    PublishedSet(
        id="liuhaotian/LLaVA-Pretrain",
        licence="that of CC3M, LAION, SBU and BLIP's captions; see its page",
        size="558,128 rows; images.zip 27 GB",
        rows=558_128,
        columns=LLAVA_COLUMNS,
        data_files={"train": "blip_laion_cc_sbu_558k.json"},
        archives=("images.zip",),
        image_folders=(".", "images"),
    ),
    PublishedSet(
        id="lmms-lab/LLaVA-NeXT-Data",
        licence="each source's own; see its page",
        size="779,289 rows of parquet files",
        rows=779_289,
        columns=LLAVA_COLUMNS,
    ),
    PublishedSet(
        id="MAmmoTH-VL/MAmmoTH-VL-Instruct-12M",
        licence="Apache-2.0; each source also has its own",
        size="12 million rows: mammoth_si_10M.json 22 GB, mammoth_ov_2M.json 4 GB, tar.gz shards",
        rows=10_000_000,
        columns=LLAVA_COLUMNS,
        optional=("id", "image"),
        data_files={"train": "mammoth_si_10M.json"},
        archives=("single_image_data/*.tar.gz", "multi_image_data/*.tar.gz"),
        image_folders=(
            ".",
            "single_image_data",
            "multi_image_data",
            "single_image_data/extracted",
            "multi_image_data/extracted",
        ),
    ),
    *(
        PublishedSet(
            id=f"vcr-org/VCR-wiki-en-{setting}",
            licence="CC-BY-SA-4.0",
            size="2,095,733 training rows of parquet files, 380 GB",
            rows=2_095_733,
            columns={"image": "stacked_image", "answer_lines": "crossed_text"},
            question=VCR_PROMPT,
        )
        for setting in ("easy", "hard")
    ),
    PublishedSet(
        id="HuggingFaceM4/FineVision",
        licence="CC-BY-4.0; each configuration also has its source's own",
        size="24 million rows in 185 configurations of parquet files, 4.5 TB",
        columns={"images": "images", "turns": "texts"},
        optional=(),
    ),
    PublishedSet(
        id="HuggingFaceM4/Docmatix",
        licence="MIT",
        size="1.27 million documents (configuration images) of parquet files",
        columns={"images": "images", "pdf": "pdf", "turns": "texts"},
        optional=("images", "pdf"),
        configs=("images", "pdf", "zero-shot-exp"),
    ),
)
"""The sets of the paper, of its low-resource regime, and for general tasks."""


def published(reference: str) -> PublishedSet | None:
    """The set that a hub id means, or a folder that holds a copy of it; ``None`` if it is no known
    one. A copy is a folder whose path ends in the id, or in its name, also in the hub's cache."""
    path = Path(reference)
    names = [reference, "/".join(path.parts[-2:]), path.name]
    if path.parent.name == "snapshots":  # of the hub's cache
        names.append(path.parent.parent.name.removeprefix("datasets--").replace("--", "/"))
    for one in PUBLISHED:
        if one.id in names or one.id.split("/")[1] in names:
            return one
    return None
